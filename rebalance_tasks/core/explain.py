"""Why one object moves, or why it does not: the plan's reason, or the first constraint that stands in the way.

plan + the fleet it was made for ─▶ **explain_object** ─▶ a stable code, a sentence and the facts. The same screening as the
planner's, for one object; where every target refuses, each of them says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc

from rebalance_tasks.core.errors import InvalidArgument, ObjectNotFound
from rebalance_tasks.core.imbalance import is_eligible
from rebalance_tasks.core.planning.candidates import MOVABLE, REASONS, as_of_ns, gravity_of, screen
from rebalance_tasks.core.planning.reasons import SENTENCES, cut_off, held_back_by, wanting
from rebalance_tasks.core.planning.state import Fleet
from rebalance_tasks.core.requirements import host_of, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions

#: word of a refusal -> what the node lacks.
_REFUSALS: Final = {
    "storage_class": "lacks the storage class",
    "regions": "is in no required region",
    "tags": "lacks a required tag",
    "excluded": "its patterns exclude the key",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Explained:
    """One object of a plan.

    Attributes:
        code: ``moves``, or the reason why it stays (a word of `RebalancePlan.not_moved`).
        details: facts behind it, by name.
    """

    object_key: str
    node_id: str
    moves: bool
    target_node: str | None
    code: str
    sentence: str
    details: Mapping[str, Any] = field(default_factory=dict)


def explain_object(
    plan: RebalancePlan,
    key: str,
    nodes: Sequence[NodeDescriptor],
    inventory: Inventory,
    *,
    options: RebalancerOptions,
    now: datetime | None = None,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
) -> Explained:
    """Explain one object of a plan.

    Args:
        plan: made for these nodes and this inventory.
        key: the object.
        nodes: the fleet.
        inventory: what it holds.
        options: the plan's.
        now: when it was made; default the plan's own time.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions.

    Raises:
        ObjectNotFound: no node holds it.
        InvalidArgument: it may be one of those that are known only as numbers.
    """
    rows = pc.indices_nonzero(pc.equal(inventory.keys, key)).to_numpy()
    if not len(rows):
        if others := len(inventory.unlisted):
            msg = (
                f"{key!r} is none of the {len(inventory):,} objects that a plan chooses from, and {others:,} others are known only as numbers: "
                "it stays where it is, or is not there; `rebalance locate` looks for it"
            )
            raise InvalidArgument(msg)
        raise ObjectNotFound(key)
    fleet = Fleet(nodes, inventory, options, reserved_bytes={}, prices=prices or {})
    for move in plan.moves:
        if move.object_key == key:
            facts = {"size_bytes": move.size_bytes, "gravity": move.gravity, "cost": move.cost}
            return Explained(key, move.source_node, True, move.target_node, "moves", move.reason, facts)
    moment = as_of_ns(inventory, now or plan.created_utc)
    when = None if moment is None else _EPOCH + timedelta(microseconds=moment // 1000)
    alone = inventory.take(rows)
    gravity = gravity_of(alone, fleet, options)
    code = int(screen(alone, fleet, gravity, options=options, now=when, excluded_keys=())[0])
    row = int(rows[0])
    facts = {"size_bytes": int(inventory.size_bytes[row]), "gravity": float(gravity[0])}
    node_id = inventory.node_ids[int(inventory.node_index[row])]
    if code != MOVABLE:
        if REASONS[code] == "ambiguous":
            facts["nodes"] = ", ".join(inventory.node_ids[i] for i in inventory.node_index[rows].tolist())
        return _stays(key, node_id, REASONS[code], facts)
    return _could_move(plan, key, row, fleet, inventory, options, facts)


def _could_move(
    plan: RebalancePlan,
    key: str,
    row: int,
    fleet: Fleet,
    inventory: Inventory,
    options: RebalancerOptions,
    facts: dict[str, Any],
) -> Explained:
    """Nothing holds the object itself: did its node have to give, and if so, who would not take it?"""
    triggered = [
        members
        for members in map(fleet.takers, sorted(fleet.pools))
        if fleet.spread(members) >= options.imbalance_threshold
    ]
    for move in plan.moves:
        fleet.used[fleet.index[move.source_node]] -= move.size_bytes
        fleet.used[fleet.index[move.target_node]] += move.size_bytes
    node_id = inventory.node_ids[int(inventory.node_index[row])]
    at = fleet.index[node_id]
    facts["utilisation_after"] = fleet.share(at)
    code = "not_needed"
    if at in wanting(fleet, triggered, options):
        code = "unreachable" if cut_off(fleet, at) else held_back_by(plan.limits_reached)
    if code in {"no_target", "unreachable"}:
        facts |= {
            f"target {fleet.nodes[j].node_id}": why for j, why in _refusals(key, row, at, fleet, inventory).items()
        }
    return _stays(key, node_id, code, facts)


def _refusals(key: str, row: int, at: int, fleet: Fleet, inventory: Inventory) -> dict[int, str]:
    """Why each other node of the pool does not take an object, in words."""
    size, source = int(inventory.size_bytes[row]), fleet.nodes[at]
    taken = _hosts_of_replicas(row, fleet, inventory)
    found = {}
    for j, node in enumerate(fleet.nodes):
        if node.pool != source.pool or j == at:
            continue
        if not is_eligible(node):
            found[j] = f"does not take objects ({node.state})"
        elif not fleet.linked(at, j):
            found[j] = "no host reaches both"
        elif why := refusal(node, inventory, row, key):
            found[j] = _REFUSALS[why]
        elif host_of(node) in taken:
            found[j] = "its host holds a replica"
        elif size > fleet.room(j):
            found[j] = f"has room for {max(0, fleet.room(j))} bytes"
        else:
            found[j] = f"would be {(fleet.used[j] + size) / fleet.capacity[j]:.1%} full".replace("%", " %")
    return found


def _hosts_of_replicas(row: int, fleet: Fleet, inventory: Inventory) -> set[str]:
    groups = inventory.replica_group
    if groups is None or groups.codes[row] < 0:
        return set()
    others = np.flatnonzero(groups.codes == groups.codes[row])
    names = (inventory.node_ids[i] for i in inventory.node_index[others[others != row]].tolist())
    return {host_of(fleet.nodes[fleet.index[name]]) for name in names if name in fleet.index}


def _stays(key: str, node_id: str, code: str, facts: Mapping[str, Any]) -> Explained:
    return Explained(key, node_id, False, None, code, SENTENCES[code], facts)
