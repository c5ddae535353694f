"""Why one object moves or stays: what the core's explanation says, or what the plan itself shows where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.compute as pc

from rebalance_tasks.core.errors import ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions


class Explained(Protocol):
    """An explanation: the object, where it is, whether and where it goes, a stable code, a sentence and the facts."""

    @property
    def object_key(self) -> str: ...  # noqa: D102
    @property
    def node_id(self) -> str: ...  # noqa: D102
    @property
    def moves(self) -> bool: ...  # noqa: D102
    @property
    def target_node(self) -> str | None: ...  # noqa: D102
    @property
    def code(self) -> str: ...  # noqa: D102
    @property
    def sentence(self) -> str: ...  # noqa: D102
    @property
    def details(self) -> Mapping[str, Any]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Shown:
    """An explanation made of the plan alone."""

    object_key: str
    node_id: str
    moves: bool
    target_node: str | None
    code: str
    sentence: str
    details: Mapping[str, Any] = field(default_factory=dict)


def explain(
    plan: RebalancePlan,
    key: str,
    nodes: Sequence[NodeDescriptor],
    inventory: Inventory,
    *,
    options: RebalancerOptions,
    now: datetime | None = None,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
) -> Explained:
    """Explain one object of a plan. Raises: ObjectNotFound: no node holds it."""
    try:
        core = import_module("rebalance_tasks.core.explain")
    except ModuleNotFoundError:
        return shown(plan, key, inventory)
    found: Explained = core.explain_object(plan, key, nodes, inventory, options=options, now=now, prices=prices)
    return found


def shown(plan: RebalancePlan, key: str, inventory: Inventory) -> Shown:
    """Return what the plan itself says of an object. Raises: ObjectNotFound."""
    for move in plan.moves:
        if move.object_key == key:
            return Shown(key, move.source_node, True, move.target_node, "moves", move.reason)
    rows = pc.indices_nonzero(pc.equal(inventory.keys, key)).to_pylist()
    if not rows:
        raise ObjectNotFound(key)
    node_id = inventory.node_ids[int(inventory.node_index[rows[0]])]
    why = "the plan reaches its target without it, or an option holds it (see what is left alone in `rebalance plan`)"
    return Shown(key, node_id, False, None, "stays", why)
