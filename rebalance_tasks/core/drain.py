"""Before a node is drained: what of it fits elsewhere, and what does not, by the constraint that stands in the way.

The planner itself empties the node on paper, with budgets lifted: budgets only say how long it takes, and that is told
apart. Objects that merely wait (cooling down, being written) are no obstacle. Invariant 8: hard constraints are never
traded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.imbalance import is_eligible, usage
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.planning.candidates import gravity_of
from rebalance_tasks.core.planning.state import Fleet, add_money
from rebalance_tasks.core.requirements import host_of, knows, refusal
from rebalance_tasks.core.routes import are_linked
from rebalance_tasks.core.simulating.bound import fewest_cycles
from rebalance_tasks.core.simulating.events import Scenario
from rebalance_tasks.core.simulating.world import World, held_back

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: Moves of one plan on paper: a node of millions of objects is emptied in several, so that memory stays bounded.
_AT_ONCE: Final = 200_000
#: More than any fleet has or costs: what is asked is whether it fits, not how long it takes.
_UNLIMITED: Final = {
    "max_moves_per_cycle": _AT_ONCE,
    "max_egress_bytes_per_cycle": 1 << 62,
    "max_cost_per_cycle": Decimal("1e30"),
    "max_cost_per_day": None,
    "object_cooldown": timedelta(0),
    "min_object_age": timedelta(0),
    # Nothing but draining: no spread is wide enough for more.
    "imbalance_threshold": 1.0,
    "target_imbalance": None,
}


@dataclass(frozen=True, slots=True)
class Held:
    """Objects of a node that have one thing in common.

    Attributes:
        reason: the constraint, a stable word.
        example: key of one of them.
    """

    reason: str
    objects: int
    bytes: int
    example: str


@dataclass(frozen=True, slots=True)
class DrainCheck:
    """What draining a node would come to.

    Attributes:
        objects, bytes: on the node.
        fits_objects, fits_bytes: of these, what finds a place.
        room_bytes: what the pool's active nodes may still receive, under `max_utilisation`.
        blocked: what will not fit, by constraint.
        waits: what fits and may not leave yet: cooling down, written to a moment ago.
        cost: money for what fits.
        fewest_cycles: that the budgets allow; ``None`` when one of them is 0.
        bound_by: the option that makes it more than one cycle.
    """

    node_id: str
    pool: str
    objects: int
    bytes: int
    fits_objects: int
    fits_bytes: int
    room_bytes: int
    blocked: tuple[Held, ...]
    waits: tuple[Held, ...]
    cost: Decimal
    fewest_cycles: int | None
    bound_by: str

    @property
    def fits(self) -> bool:
        """Whether the node can be emptied."""
        return not self.blocked


def check_drain(
    nodes: Iterable[NodeDescriptor],
    inventory: Inventory,
    node_id: str,
    *,
    options: RebalancerOptions,
    now: datetime,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
) -> DrainCheck:
    """Tell what of a node would find a place if it were drained, together with those that are being drained already.

    Args:
        nodes: the fleet; the node itself in whatever state.
        inventory: every object.
        node_id: the node; one of ``nodes``.
        options: `max_utilisation`, protections, budgets.
        now: aware.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions.
    """
    listed = [
        node.model_copy(update={"state": NodeState.DRAINING}) if node.node_id == node_id else node for node in nodes
    ]
    node = next(node for node in listed if node.node_id == node_id)
    used = usage(listed, inventory)
    left = {name: size for name, size in _room(listed, used, node.pool, options).items() if name != node_id}
    rows = np.flatnonzero(_on(inventory, [node_id]))
    cost, places = _emptied(listed, used, inventory, node, options=options, now=now, prices=prices or {})
    going = np.flatnonzero(places)
    fleet = Fleet(listed, inventory, options, reserved_bytes={}, prices=prices or {})
    gravity = gravity_of(inventory, fleet, options)
    stays = np.setdiff1d(rows, going)
    blocked = _blocked(inventory, stays, node, [n for n in listed if n.node_id in left], gravity, options, left)
    bound = fewest_cycles(listed, used, inventory, options, prices=prices, held=~places)
    sizes = inventory.size_bytes
    return DrainCheck(
        node_id=node_id,
        pool=node.pool,
        objects=len(rows),
        bytes=int(sizes[rows].sum()),
        fits_objects=len(going),
        fits_bytes=int(sizes[going].sum()),
        room_bytes=sum(max(0, room) for room in left.values()),
        blocked=_held(inventory, blocked),
        waits=_held(inventory, _waiting(inventory, going, options, now)),
        cost=cost,
        fewest_cycles=bound.cycles,
        bound_by=bound.by,
    )


def _on(inventory: Inventory, node_ids: Sequence[str]) -> NDArray[np.bool_]:
    codes = [code for code, name in enumerate(inventory.node_ids) if name in node_ids]
    return np.isin(inventory.node_index, codes)


def room_of(node: NodeDescriptor, used_bytes: int, options: RebalancerOptions) -> int:
    """Return the bytes that a node may still receive; below zero where it holds more than `max_utilisation` allows."""
    # The decimal text of the option, so that 0.95 of 100 is 95 and not 94.
    highest = Fraction(str(options.max_utilisation))
    return int(highest * (node.capacity_bytes or 0)) - node.reserved_bytes - used_bytes


def _room(
    nodes: Sequence[NodeDescriptor], used: Mapping[str, int], pool: str, options: RebalancerOptions
) -> dict[str, int]:
    """node_id → bytes it may still receive, of the pool's taking nodes."""
    return {
        node.node_id: room_of(node, used[node.node_id], options)
        for node in nodes
        if node.pool == pool and is_eligible(node)
    }


def _emptied(
    nodes: Sequence[NodeDescriptor],
    used: Mapping[str, int],
    inventory: Inventory,
    node: NodeDescriptor,
    *,
    options: RebalancerOptions,
    now: datetime,
    prices: Mapping[tuple[str, str], Decimal],
) -> tuple[Decimal, NDArray[np.bool_]]:
    """Empty the pool's draining nodes on paper; return the money for the node's, and bool (n,): its rows that found a place."""
    leaving = [n.node_id for n in nodes if n.pool == node.pool and n.state is NodeState.DRAINING]
    wanted = _on(inventory, leaving)
    if (groups := inventory.replica_group) is not None:
        # Their replicas elsewhere count as well: they must stay apart.
        codes = np.unique(groups.codes[wanted])
        wanted |= np.isin(groups.codes, codes[codes >= 0])
    rows = np.flatnonzero(wanted | inventory.ambiguous)
    described = [n.model_copy(update={"used_bytes": used[n.node_id]}) for n in nodes]
    world = World(described, inventory.take(rows), Scenario())
    patient = options.model_copy(update=_UNLIMITED)
    cost: list[Decimal] = []
    while True:
        plan = plan_rebalance(world.nodes, world.inventory, options=patient, now=now, prices=prices, plan_id="drain")
        if not plan.moves:
            break
        world.apply(plan, now, cooldown=timedelta(0))
        cost += [move.cost for move in plan.moves if move.source_node == node.node_id]
    places = np.zeros(len(inventory), np.bool_)
    was = _on(inventory, [node.node_id])[rows]
    places[rows] = was & ~_on(world.inventory, [node.node_id])
    return add_money(cost), places


def _waiting(
    inventory: Inventory, rows: NDArray[np.int64], options: RebalancerOptions, now: datetime
) -> dict[int, str]:
    """Rows that may leave, and not yet."""
    found: dict[int, str] = {}
    for column, least, reason in (
        (inventory.mtime_ns, options.min_object_age, "too_young"),
        (inventory.last_moved_ns, options.object_cooldown, "cooldown"),
    ):
        if column is not None and least:
            found |= dict.fromkeys(rows[held_back(column[rows], least, now)].tolist(), reason)
    return found


def _held(inventory: Inventory, reasons: Mapping[int, str]) -> tuple[Held, ...]:
    objects, size_bytes = Counter(reasons.values()), Counter[str]()
    example: dict[str, int] = {}
    for row, reason in reasons.items():
        size_bytes[reason] += int(inventory.size_bytes[row])
        example.setdefault(reason, row)
    return tuple(
        Held(reason, objects[reason], size_bytes[reason], inventory.key(example[reason])) for reason in sorted(objects)
    )


def _blocked(
    inventory: Inventory,
    rows: NDArray[np.int64],
    node: NodeDescriptor,
    targets: Sequence[NodeDescriptor],
    gravity: NDArray[np.float64],
    options: RebalancerOptions,
    room: Mapping[str, int],
) -> dict[int, str]:
    """Say for objects that found no place what kept them: of the object itself first, then of every node."""
    groups = inventory.replica_group
    holders: dict[int, set[str | None]] = {}
    if groups is not None and len(rows):
        partners = np.flatnonzero(np.isin(groups.codes, groups.codes[rows]) & (groups.codes >= 0))
        hosts = {n.node_id: host_of(n) for n in (*targets, node)}
        for other in partners.tolist():
            holders.setdefault(int(groups.codes[other]), set()).add(
                hosts.get(inventory.node_ids[inventory.node_index[other]])
            )
    near = [other for other in targets if are_linked(node, other)]
    told: dict[int, str] = {}
    keys = inventory.keys.take(pa.array(rows)).to_pylist()
    for row, key in zip(rows.tolist(), keys, strict=True):
        if inventory.ambiguous[row]:
            told[row] = "ambiguous"
        elif inventory.pinned is not None and inventory.pinned[row]:
            told[row] = "pinned"
        elif gravity[row] >= options.gravity_protection_threshold:
            told[row] = "protected_gravity"
        elif not knows(node, key):
            told[row] = "excluded"
        else:
            taken = holders.get(int(groups.codes[row]), set()) if groups is not None else set()
            told[row] = "unreachable" if targets and not near else _nowhere(inventory, row, key, near, room, taken)
    return told


def _nowhere(
    inventory: Inventory,
    row: int,
    key: str,
    targets: Sequence[NodeDescriptor],
    room: Mapping[str, int],
    taken: set[str | None],
) -> str:
    """The constraint that leaves no node, asked one after the other."""
    if not targets:
        return "no_other_node"
    refusals = {other.node_id: refusal(other, inventory, row, key) for other in targets}
    left = [other for other in targets if not refusals[other.node_id]]
    if not left:
        # Nodes may refuse for different reasons: told is the one that adding capacity helps least.
        return min(set(refusals.values()), key=("storage_class", "regions", "tags", "excluded").index)
    left = [other for other in left if host_of(other) not in taken]
    if not left:
        return "replicas_apart"
    largest = max(room[other.node_id] for other in left)
    return "too_large" if int(inventory.size_bytes[row]) > largest else "no_room"
