"""What the measures of some objects come to as gravity, for the second opinion: by own arithmetic, as `verify` does everything.

A plan states the gravity of what it moves. Where the inventory has it as a column the two are compared; where it only has measures of
use, a wrong number in a plan would hide that an object is protected, so it is worked out here once more. Imports nothing from the planner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: The formulas' constants, as DESIGN has them: decades of accesses an hour, dependencies, money for 10⁹ bytes, milliseconds.
_DECADES: Final = 4
_NEAR: Final = 10
_PRICE: Final = 0.12
_FAR_MS: Final = 200
_FAR_UNKNOWN: Final = 0.5
_MEASURES: Final = (
    *("reads_per_hour", "writes_per_hour", "colocated_dependencies"),
    *("egress_cost_per_gb", "latency_ms", "compliant"),
)


def composed(
    rows: NDArray[np.int64],
    inventory: Inventory,
    nodes: Mapping[str, NodeDescriptor],
    options: RebalancerOptions,
    prices: Mapping[tuple[str, str], Decimal],
) -> NDArray[np.float64] | None:
    """Return the gravity of some objects by their measures; None where the inventory has gravity itself, or no measure at all.

    Args:
        rows: int64 (n,), of the inventory; −1 for an object that it does not have, whose gravity is 0.
        inventory: with measures of use.
        nodes: the fleet, by id; an object on another node has no price and no latency.
        options: the weights.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions.

    Returns:
        float64 (n,), in [0, 1].

    Source: DESIGN, "Formulas".
    """
    if inventory.gravity is not None or all(getattr(inventory, name) is None for name in _MEASURES):
        return None
    found = np.zeros(len(rows))
    there = rows >= 0
    rows = rows[there]
    holders = [nodes.get(inventory.node_ids[place]) for place in inventory.node_index[rows].tolist()]

    def told(name: str, otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
        column: NDArray[Any] | None = getattr(inventory, name)
        if column is None:
            return otherwise
        values = column[rows].astype(np.float64)
        return np.where(np.isnan(values), otherwise, values)

    nothing = np.zeros(len(rows))
    price_of = {node_id: _price(node, nodes, prices) for node_id, node in nodes.items()}
    price = np.array([0.0 if node is None else price_of[node.node_id] for node in holders])
    far = np.array([np.nan if node is None or node.latency_ms is None else node.latency_ms for node in holders])
    far = told("latency_ms", far)
    scores = (
        np.log10(1 + told("reads_per_hour", nothing) + told("writes_per_hour", nothing)) / _DECADES,
        told("colocated_dependencies", nothing) / _NEAR,
        told("egress_cost_per_gb", price) / _PRICE,
        np.where(np.isnan(far), _FAR_UNKNOWN, 1 - far / _FAR_MS),
        (told("compliant", _inside(rows, inventory, holders)) > 0).astype(np.float64),
    )
    share = options.scoring_weights.normalized()
    weights = (share.access_frequency, share.colocation, share.egress_cost, share.latency, share.compliance)
    weighed = [weight * np.clip(score, 0, 1) for weight, score in zip(weights, scores, strict=True)]
    found[there] = np.clip(np.sum(weighed, axis=0), 0, 1)
    return found


def _price(
    node: NodeDescriptor, nodes: Mapping[str, NodeDescriptor], prices: Mapping[tuple[str, str], Decimal]
) -> float:
    """Money for 10⁹ bytes that leave a node: the mean over where they could go, or the node's own."""
    own, asked = float(node.egress_cost_per_gb), []
    for other in nodes.values() if prices else ():
        could = other.state in {NodeState.ACTIVE, NodeState.DRAINING} and other.capacity_bytes
        if could and other.pool == node.pool and other.node_id != node.node_id:
            by_zone = prices.get((node.zone, other.zone), prices.get((node.region, other.region)))
            asked.append(own if by_zone is None else float(by_zone))
    return sum(asked) / len(asked) if asked else own


def _inside(rows: NDArray[np.int64], inventory: Inventory, holders: list[NodeDescriptor | None]) -> NDArray[np.float64]:
    """1 where the object's node lies in a region that the object asks for, float64 (rows,)."""
    column = inventory.required_regions
    if column is None:
        return np.zeros(len(rows))
    codes = column.codes[rows].tolist()
    return np.array(
        [
            float(code >= 0 and node is not None and node.region in column.values[code])
            for code, node in zip(codes, holders, strict=True)
        ]
    )
