"""Before a node is drained: what of it fits elsewhere, and what does not, by the constraint that stands in the way.

The planner's own draining step, played with budgets lifted: budgets only say how long it takes, and that is told apart.
Objects that merely wait (cooling down, being written) are no obstacle. Invariant 8: hard constraints are never traded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from rebalance_tasks.core.imbalance import usage
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.planner_candidates import (
    MOVABLE,
    REASONS,
    Eligibility,
    gravity_of,
    matches,
    node_rows,
    screen,
)
from rebalance_tasks.core.planner_fill import drain, order_candidates
from rebalance_tasks.core.planner_state import Fleet, Ledger, Work, add_money, money
from rebalance_tasks.core.simulation_bound import fewest_cycles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Coded, Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

T = TypeVar("T")

#: More than any fleet has or costs: what is asked is whether it fits, not how long it takes.
_UNLIMITED: Final = {
    "max_moves_per_cycle": 1 << 62,
    "max_egress_bytes_per_cycle": 1 << 62,
    "max_cost_per_cycle": Decimal("1e30"),
    "max_cost_per_day": None,
}
#: Reasons that pass by themselves.
_PASSING: Final = ("cooldown", "too_young")


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
    state = Fleet(listed, inventory, options, reserved_bytes={}, prices=prices or {})
    gravity = gravity_of(inventory, state, options)
    patient = options.model_copy(update={**_UNLIMITED, "object_cooldown": timedelta(0), "min_object_age": timedelta(0)})
    why = screen(inventory, state, gravity, options=patient, now=now, excluded_keys=())
    waiting = screen(inventory, state, gravity, options=options, now=now, excluded_keys=())
    here = node_rows(inventory, state)
    pool = state.nodes[state.index[node_id]].pool
    leavers = state.leavers(pool)
    candidates = {i: np.flatnonzero((here == i) & (why == MOVABLE)) for i in leavers}
    work = Work(state, inventory, Ledger(patient, remaining_cost_today=None), gravity, candidates)
    for i in leavers:
        work.candidates[i] = order_candidates(work, work.candidates[i], by_size=False)
    rooms = {j: state.room(j) for j in state.takers(pool)}
    eligibility = Eligibility(work)
    drain(work, eligibility, pool)

    i = state.index[node_id]
    rows = np.flatnonzero(here == i)
    chosen = [entry for entry in work.chosen if entry.source == i]
    going = np.concatenate([entry.rows for entry in chosen] or [np.empty(0, np.int64)])
    reasons = {int(row): REASONS[why[row]] for row in rows if why[row] != MOVABLE}
    stuck = np.setdiff1d(rows[why[rows] == MOVABLE], going)
    reasons |= _stuck(work, Eligibility(work), stuck, i, rooms)
    late = {int(row): REASONS[waiting[row]] for row in going if REASONS[waiting[row]] in _PASSING}
    bound = fewest_cycles(
        listed, usage(listed, inventory), inventory, options, prices=prices, held=~np.isin(np.arange(len(why)), going)
    )
    sizes = inventory.size_bytes
    return DrainCheck(
        node_id=node_id,
        pool=pool,
        objects=len(rows),
        bytes=int(sizes[rows].sum()),
        fits_objects=len(going),
        fits_bytes=int(sizes[going].sum()),
        room_bytes=sum(max(0, room) for room in rooms.values()),
        blocked=_held(inventory, reasons),
        waits=_held(inventory, late),
        cost=add_money(money(int(sizes[e.rows].sum()), state.per_gb(e.source, e.target)) for e in chosen),
        fewest_cycles=bound.cycles,
        bound_by=bound.by,
    )


def _held(inventory: Inventory, reasons: Mapping[int, str]) -> tuple[Held, ...]:
    objects, size_bytes = Counter(reasons.values()), Counter[str]()
    example: dict[str, int] = {}
    for row, reason in reasons.items():
        size_bytes[reason] += int(inventory.size_bytes[row])
        example.setdefault(reason, row)
    return tuple(
        Held(reason, objects[reason], size_bytes[reason], inventory.key(example[reason])) for reason in sorted(objects)
    )


def _stuck(
    work: Work, eligibility: Eligibility, rows: NDArray[np.int64], i: int, rooms: Mapping[int, int]
) -> dict[int, str]:
    """Say for objects that found no place which constraint kept them out of every node."""
    if not rooms:
        return dict.fromkeys(rows.tolist(), "no_other_node")
    if not len(rows):
        return {}
    inventory, sizes = work.inventory, work.inventory.size_bytes[rows]
    classes, regions, groups = inventory.required_storage_class, inventory.required_regions, inventory.replica_group
    anywhere = {name: np.zeros(len(rows), np.bool_) for name in ("storage_class", "regions", "patterns", "allowed")}
    largest = np.full(len(rows), -1, np.int64)
    for j, room in rooms.items():
        node = work.fleet.nodes[j]
        offered = {str(kind) for kind in node.storage_classes}
        anywhere["storage_class"] |= _offers(classes, rows, offered.__contains__)
        anywhere["regions"] |= _offers(regions, rows, partial(_contains, node.region))
        anywhere["patterns"] |= matches(node, inventory, rows)
        allowed = _allowed(eligibility, rows, groups, i, j)
        anywhere["allowed"] |= allowed
        largest = np.maximum(largest, np.where(allowed, room, -1))
    told: dict[int, str] = {}
    for at, row in enumerate(rows.tolist()):
        if anywhere["allowed"][at]:
            told[row] = "too_large" if sizes[at] > largest[at] else "no_room"
            continue
        missing = (name for name in ("storage_class", "regions", "patterns") if not anywhere[name][at])
        apart = "replicas_apart" if groups is not None and groups.codes[row] >= 0 else "no_target"
        told[row] = next(missing, apart)
    return told


def _contains(region: str, regions: tuple[str, ...]) -> bool:
    return region in regions


def _offers(wanted: Coded[T] | None, rows: NDArray[np.int64], meets: Callable[[T], bool]) -> NDArray[np.bool_]:
    """Bool (rows,): a node meets what these rows ask for; who asks for nothing is content."""
    if wanted is None:
        return np.ones(len(rows), np.bool_)
    met = np.array([*(meets(value) for value in wanted.values), True])
    return met[wanted.codes[rows]]


def _allowed(
    eligibility: Eligibility, rows: NDArray[np.int64], groups: Coded[str] | None, i: int, j: int
) -> NDArray[np.bool_]:
    """Bool (rows,): each object, asked for by itself, may go from i to j."""
    if groups is None:
        return eligibility.allowed(rows, i, j)
    # Asked for together, only the first of a replica group would be let through: ask a member of each at a time.
    allowed = np.zeros(len(rows), np.bool_)
    codes = groups.codes[rows].astype(np.int64)
    codes[codes < 0] = -1 - np.flatnonzero(codes < 0)
    left = np.arange(len(rows))
    while len(left):
        _, first = np.unique(codes[left], return_index=True)
        asked = left[first]
        allowed[asked] = eligibility.allowed(rows[asked], i, j)
        left = np.delete(left, first)
    return allowed
