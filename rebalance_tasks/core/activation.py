"""Before a node gives and takes again: how full it is, what it can take, and what of it would fit nowhere.

A node that comes back from maintenance may hold more than `max_utilisation` allows it, since somebody wrote to it meanwhile or its disk
was replaced by a smaller one. What is too much has to leave, so it is looked at as a drain would: what finds a place elsewhere?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance_tasks.core.drain import Held, check_drain, room_of
from rebalance_tasks.core.imbalance import imbalance, usage
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions


@dataclass(frozen=True, slots=True)
class ActivationCheck:
    """What activating a node would come to.

    Attributes:
        bytes: on the node.
        capacity_bytes: of the node; 0 where it has none.
        room_bytes: what it may still receive, under `max_utilisation`.
        over_bytes: what it holds beyond that limit and has to give away.
        fits_bytes: of these, what finds a place on the pool's other nodes.
        spread_before, spread_after: of all pools' active nodes, without the node and with it.
        blocked: what will not fit, by constraint; ``no_capacity`` where the node can hold nothing.
    """

    node_id: str
    pool: str
    bytes: int
    capacity_bytes: int
    room_bytes: int
    over_bytes: int
    fits_bytes: int
    spread_before: float
    spread_after: float
    blocked: tuple[Held, ...]

    @property
    def fits(self) -> bool:
        """Whether the node can hold what it has, or give the rest away."""
        return not self.blocked


def check_activation(
    nodes: Iterable[NodeDescriptor],
    inventory: Inventory,
    node_id: str,
    *,
    options: RebalancerOptions,
    now: datetime,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
) -> ActivationCheck:
    """Tell whether a node can hold what it has if it gave and took again, and what of it would fit nowhere.

    Args:
        nodes: the fleet; the node itself in whatever state.
        inventory: what the nodes hold.
        node_id: the node; one of ``nodes``.
        options: `max_utilisation`, protections.
        now: aware.
        prices: as in `check_drain`.
    """
    listed = list(nodes)
    used = usage(listed, inventory)
    without, active = (_with_state(listed, node_id, state) for state in (NodeState.MAINTENANCE, NodeState.ACTIVE))
    node = next(node for node in active if node.node_id == node_id)
    capacity = node.capacity_bytes or 0
    room = room_of(node, used[node_id], options)
    over = max(0, -room)
    blocked: tuple[Held, ...] = ()
    fits = 0
    if not capacity:
        blocked = (Held("no_capacity", 0, used[node_id], ""),)
    elif over:
        left = check_drain(active, inventory, node_id, options=options, now=now, prices=prices)
        fits = min(over, left.fits_bytes)
        blocked = left.blocked if fits < over else ()
    return ActivationCheck(
        node_id=node_id,
        pool=node.pool,
        bytes=used[node_id],
        capacity_bytes=capacity,
        room_bytes=max(0, room),
        over_bytes=over,
        fits_bytes=fits,
        spread_before=imbalance(without, used),
        spread_after=imbalance(active, used),
        blocked=blocked,
    )


def _with_state(nodes: list[NodeDescriptor], node_id: str, state: NodeState) -> list[NodeDescriptor]:
    return [node.model_copy(update={"state": state}) if node.node_id == node_id else node for node in nodes]
