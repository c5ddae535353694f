"""The way back of a job: its completed moves, turned round, as far as every other rule allows.

job's moves + survey ─▶ **plan_way_back** ─▶ a plan like any other, marked `undo_of`, which `verify_plan` then lets raise the
spread and move an object within its cooldown (invariant 9's exemption) and nothing else: capacity, pins, protection,
replicas, storage class, regions, patterns and the budgets hold as always (invariant 8).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.imbalance import imbalance
from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.models import NodeState, RebalanceMove, RebalancePlan
from rebalance_tasks.core.planning.candidates import gravity_of, nanoseconds
from rebalance_tasks.core.planning.state import Fleet, Ledger, add_money, money
from rebalance_tasks.core.requirements import host_of, knows, refusal
from rebalance_tasks.core.routes import are_linked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions


@dataclass(frozen=True, slots=True)
class Made:
    """A move that a job completed.

    Attributes:
        source: where the object was.
        target: where the job put it.
        mtime_ns: of the copy as it was published; ``None`` when nobody knows any more (then what was written to after the
            job's end has changed).
    """

    key: str
    source: str
    target: str
    size_bytes: int
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class WayBack:
    """What can be taken back of a job.

    Attributes:
        completed: moves the job had completed.
        plan: the moves back.
        left: reason → completed moves that are not taken back.
        nodes: the fleet the plan was made for.
    """

    job_id: str
    completed: int
    plan: RebalancePlan
    left: Mapping[str, int]
    nodes: tuple[NodeDescriptor, ...]


def plan_way_back(  # noqa: PLR0913  a pure function takes its whole world as arguments
    nodes: Iterable[NodeDescriptor],
    inventory: Inventory,
    made: Sequence[Made],
    *,
    options: RebalancerOptions,
    job_id: str,
    now: datetime,
    fleet: str = "default",
    epoch: int = 0,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
    remaining_cost_today: Decimal | None = None,
    ended: datetime | None = None,
) -> WayBack:
    """Plan the way back of a job, in the order in which it moved.

    Args:
        nodes: the fleet as it is now.
        inventory: every object, as it is now.
        made: the moves that the job completed.
        options: budgets and protections; threshold and cooldown do not count here.
        job_id: the job, named in plan and reasons.
        now: aware.
        fleet: name written into the plan.
        epoch: written into the plan.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions.
        remaining_cost_today: what the day's money still allows.
        ended: when the job did.

    Returns:
        The plan (perhaps of no moves) and why the rest stays; ``len(plan.moves) + sum(left.values()) == len(made)``.
    """
    state = Fleet(nodes, inventory, options, reserved_bytes={}, prices=prices or {})
    back = _Back(state, inventory, options, now, Ledger(options, remaining_cost_today=remaining_cost_today))
    back.ended_ns = None if ended is None else nanoseconds(ended)
    back.find([move.key for move in made])
    moves: list[RebalanceMove] = []
    left: Counter[str] = Counter()
    for move in made:
        found = back.turn(move, f"takes back {job_id}")
        if isinstance(found, str):
            left[found] += 1
        else:
            moves.append(found)
    before = dict(zip((n.node_id for n in back.fleet.nodes), back.fleet.initial_used, strict=True))
    after = dict(zip((n.node_id for n in back.fleet.nodes), back.fleet.used, strict=True))
    digest = hashlib.blake2b(job_id.encode(), digest_size=8)
    for turned in moves:
        digest.update(f"\0{turned.object_key}\0{turned.target_node}\0{turned.size_bytes}".encode())
    stays = Counter(back.stays)
    stays["not_of_the_job"] = len(inventory) - len(moves) - sum(stays.values())
    plan = RebalancePlan(
        plan_id=f"undo-{digest.hexdigest()}",
        fleet=fleet,
        epoch=epoch,
        created_utc=now,
        moves=tuple(moves),
        estimated_duration_seconds=_duration(moves, options),
        estimated_egress_bytes=sum(turned.size_bytes for turned in moves),
        estimated_cost=add_money(turned.cost for turned in moves),
        imbalance_before=imbalance(back.fleet.nodes, before),
        imbalance_after=imbalance(back.fleet.nodes, after),
        limits_reached=back.ledger.limits,
        not_moved={reason: count for reason, count in sorted(stays.items()) if count},
        undo_of=job_id,
    )
    return WayBack(job_id, len(made), plan, dict(sorted(left.items())), state.nodes)


class _Back:
    """The fleet while moves are turned round one after the other."""

    def __init__(
        self, fleet: Fleet, inventory: Inventory, options: RebalancerOptions, now: datetime, ledger: Ledger
    ) -> None:
        self.fleet, self.inventory, self.options, self.ledger = fleet, inventory, options, ledger
        self.now_ns = nanoseconds(now)
        self.ended_ns: int | None = None
        self.gravity = gravity_of(inventory, fleet, options)
        self.rows: dict[str, list[int]] = {}
        #: why objects that are in the inventory stay
        self.stays: Counter[str] = Counter()
        self._seen: set[str] = set()
        #: (replica group, host) → rows of its members there
        self._holding: dict[tuple[int, str], set[int]] = defaultdict(set)

    def find(self, keys: Sequence[str]) -> None:
        """Find the rows of some keys, and who holds the other members of their replica groups."""
        wanted = pa.array(sorted(set(keys)), type=pa.large_string())
        rows = pc.indices_nonzero(pc.is_in(self.inventory.keys, value_set=wanted))
        for key, row in zip(self.inventory.keys.take(rows).to_pylist(), rows.to_pylist(), strict=True):
            self.rows.setdefault(key, []).append(row)
        groups = self.inventory.replica_group
        if groups is None:
            return
        codes = {int(groups.codes[row]) for found in self.rows.values() for row in found} - {-1}
        members = np.flatnonzero(np.isin(groups.codes, sorted(codes)))
        for row in members.tolist():
            node = self.fleet.index.get(self._holder(row))
            if node is not None:
                self._holding[int(groups.codes[row]), host_of(self.fleet.nodes[node])].add(row)

    def turn(self, move: Made, reason: str) -> RebalanceMove | str:
        """Return the move back, or why the object stays."""
        rows = [] if move.key in self._seen else self.rows.get(move.key, [])
        self._seen.add(move.key)
        why = self._ends(move) or self._object(move, rows) or self._place(move, rows[0]) or self._budget(move)
        if why:
            # Each row of the inventory is counted once; an ambiguous key has several.
            self.stays[why] += len(rows)
            return why
        row = rows[0]
        i, j = self.fleet.index[move.target], self.fleet.index[move.source]
        price = self.fleet.per_gb(i, j)
        self.ledger.spend(1, move.size_bytes, price)
        self.fleet.used[i] -= move.size_bytes
        self.fleet.used[j] += move.size_bytes
        if (group := self._group(row)) >= 0:
            # What leaves still counts where it was: a replica must not arrive before it has gone.
            self._holding[group, host_of(self.fleet.nodes[j])].add(row)
        return RebalanceMove(
            object_key=move.key,
            source_node=move.target,
            target_node=move.source,
            size_bytes=move.size_bytes,
            gravity=float(self.gravity[row]),
            cost=money(move.size_bytes, price),
            reason=reason,
        )

    def _ends(self, move: Made) -> str:
        if move.source not in self.fleet.index or move.target not in self.fleet.index:
            return "unknown_node"
        giver, taker = (self.fleet.nodes[self.fleet.index[name]] for name in (move.target, move.source))
        if giver.state is NodeState.MAINTENANCE or taker.state is not NodeState.ACTIVE:
            return "node_not_active"
        if not giver.capacity_bytes or not taker.capacity_bytes:
            return "no_capacity"
        if giver.pool != taker.pool:
            return "other_pool"
        return "" if are_linked(giver, taker) else "unreachable"

    def _object(self, move: Made, rows: Sequence[int]) -> str:
        """Whether the object is where the job put it, as it was, and may move."""
        if len(rows) != 1:
            return "ambiguous" if rows else "gone"
        row, inventory, options = rows[0], self.inventory, self.options
        if self._holder(row) != move.target:
            return "moved_on"
        written = UNKNOWN_TIME if inventory.mtime_ns is None else int(inventory.mtime_ns[row])
        if int(inventory.size_bytes[row]) != move.size_bytes or self._rewritten(move, written):
            return "changed"
        if inventory.pinned is not None and inventory.pinned[row]:
            return "pinned"
        if self.gravity[row] >= options.gravity_protection_threshold:
            return "protected_gravity"
        least_ns = options.min_object_age // timedelta(microseconds=1) * 1000
        return "too_young" if written != UNKNOWN_TIME and self.now_ns - written < least_ns else ""

    def _rewritten(self, move: Made, written: int) -> bool:
        """Whether somebody wrote to the copy, as far as its time tells."""
        if written == UNKNOWN_TIME:
            return False
        if move.mtime_ns is not None:
            return written != move.mtime_ns
        return self.ended_ns is not None and written > self.ended_ns

    def _place(self, move: Made, row: int) -> str:
        """Whether the object may lie where it came from."""
        giver, taker = (self.fleet.nodes[self.fleet.index[name]] for name in (move.target, move.source))
        if why := refusal(taker, self.inventory, row, move.key):
            return why
        if not knows(giver, move.key):
            return "excluded"
        if (group := self._group(row)) >= 0 and self._holding[group, host_of(taker)] - {row}:
            return "replicas_apart"
        return "" if move.size_bytes <= self.fleet.room(self.fleet.index[move.source]) else "no_room"

    def _budget(self, move: Made) -> str:
        price = self.fleet.per_gb(self.fleet.index[move.target], self.fleet.index[move.source])
        if self.ledger.moves_left <= 0:
            self.ledger.note_moves()
            return "budget_moves"
        if self.ledger.affordable(move.size_bytes, price) >= move.size_bytes:
            return ""
        return "budget_egress" if self.ledger.bytes_left < move.size_bytes else "budget_cost"

    def _holder(self, row: int) -> str:
        return self.inventory.node_ids[int(self.inventory.node_index[row])]

    def _group(self, row: int) -> int:
        groups = self.inventory.replica_group
        return -1 if groups is None else int(groups.codes[row])


def _duration(moves: Sequence[RebalanceMove], options: RebalancerOptions) -> float:
    if not options.throttle_bytes_per_sec:
        return 0.0
    pairs: Counter[tuple[str, str]] = Counter()
    for move in moves:
        pairs[move.source_node, move.target_node] += move.size_bytes
    at_once = min(options.max_concurrent_migrations, max(1, len(pairs)))
    return max(max(pairs.values(), default=0), sum(pairs.values()) / at_once) / options.throttle_bytes_per_sec
