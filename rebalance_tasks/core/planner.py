"""The plan: which objects move where, so that the spread falls with the least disruption, and why.

A pure function of its arguments. The steps: screen the objects that must stay → empty draining nodes → for each pool
at or over the threshold find the flows of least bytes and money inside the budgets, fill them by gravity per byte, settle
the rest object by object → write moves, reasons and sums. `verify` checks every plan again with arithmetic of its own.

Invariants: 8 (budgets and hard constraints are never traded for balance), 9 (the spread never grows, nothing is
overfilled, nothing moves twice; draining is exempt from the first).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.imbalance import imbalance
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.planning.balance import balance_pools
from rebalance_tasks.core.planning.candidates import (
    MOVABLE,
    NOT_A_CANDIDATE,
    REASONS,
    Eligibility,
    gravity_of,
    node_rows,
    screen,
)
from rebalance_tasks.core.planning.drain import drain
from rebalance_tasks.core.planning.reasons import explain_rest, obstacles, wanting
from rebalance_tasks.core.planning.state import Fleet, Ledger, Work, add_money, money

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.planning.state import Chosen

#: Moves off a draining node come before every balancing move, whose priority is the source's fill in thousandths.
DRAIN_PRIORITY: Final = 1000


def plan_rebalance(  # noqa: PLR0913  a pure function takes its whole world as arguments
    nodes: Iterable[NodeDescriptor],
    inventory: Inventory,
    *,
    options: RebalancerOptions,
    fleet: str = "default",
    epoch: int = 0,
    plan_id: str | None = None,
    now: datetime | None = None,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
    reserved_bytes: Mapping[str, int] | None = None,
    excluded_keys: Collection[str] = (),
    remaining_cost_today: Decimal | None = None,
) -> RebalancePlan:
    """Plan the moves that restore balance.

    Deterministic: the same arguments (rows in the same order) give the same plan, id included.

    Args:
        nodes: the fleet; objects on nodes that are not among them stay and are counted ``unknown_node``.
        inventory: every object of the fleet.
        options: threshold, target, budgets, protections.
        fleet: name written into the plan.
        epoch: the fleet's epoch written into the plan.
        plan_id: default ``"plan-"`` and a hash of the content.
        now: aware; ages and cooldowns are measured from it. Without it, from the newest time in the inventory.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions; overrides the node's own price.
        reserved_bytes: node_id → bytes that running jobs will still write there.
        excluded_keys: objects to leave alone (pending in a job, forwarded).
        remaining_cost_today: what the day's money still allows; default ``options.max_cost_per_day``.

    Returns:
        The plan; ``len(moves) + sum(not_moved.values()) == len(inventory) + len(inventory.unlisted)``. Its duration is the longer of the longest
        (source, target) group and an even share of all bytes over ``max_concurrent_migrations`` groups, at
        ``throttle_bytes_per_sec``; 0 without a throttle.

    Raises:
        InvalidArgument: two nodes share a node_id.
    """
    state = Fleet(nodes, inventory, options, reserved_bytes=reserved_bytes or {}, prices=prices or {})
    gravity = gravity_of(inventory, state, options)
    why = screen(inventory, state, gravity, options=options, now=now, excluded_keys=excluded_keys)
    work = Work(
        fleet=state,
        inventory=inventory,
        ledger=Ledger(options, remaining_cost_today=remaining_cost_today),
        gravity=gravity,
        candidates=_by_node(inventory, state, why),
        move_weight=_move_weight(inventory, why),
    )
    triggered, by_size = _choose(work, options)
    givers = wanting(state, triggered, options)
    explain_rest(work, why, givers)
    moves = _moves(work, by_size=by_size)
    return _written(
        RebalancePlan(
            plan_id=plan_id or "plan-unnamed",
            fleet=fleet,
            epoch=epoch,
            created_utc=now,
            moves=moves,
            estimated_duration_seconds=_duration(work, options),
            estimated_egress_bytes=sum(move.size_bytes for move in moves),
            estimated_cost=add_money(move.cost for move in moves),
            imbalance_before=_imbalance(state, state.initial_used),
            imbalance_after=_imbalance(state, state.used),
            limits_reached=work.ledger.limits,
            cannot=obstacles(work, why, givers),
            not_moved=_not_moved(inventory, why),
        ),
        named=plan_id is not None,
    )


def _not_moved(inventory: Inventory, why: NDArray[np.int8]) -> dict[str, int]:
    """Count what stays by its reason, objects that are no rows with the others."""
    counts = Counter({REASONS[code]: n for code, n in enumerate(np.bincount(why).tolist()) if n and code != MOVABLE})
    counts.update(inventory.unlisted.objects)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _choose(work: Work, options: RebalancerOptions) -> tuple[list[list[int]], bool]:
    """Choose the moves; return the pools that were balanced and whether objects left by size."""
    eligibility = Eligibility(work)
    for pool in sorted(work.fleet.pools):
        drain(work, eligibility, pool)
    triggered = []
    for pool in sorted(work.fleet.pools):
        members = work.fleet.takers(pool)
        if len(members) > 1 and work.fleet.spread(members) >= options.imbalance_threshold:
            triggered.append(members)
    return triggered, bool(triggered) and balance_pools(work, eligibility, triggered, goal=options.effective_target)


def _by_node(inventory: Inventory, state: Fleet, why: NDArray[np.int8]) -> dict[int, NDArray[np.int64]]:
    """Return node → its movable rows, int64 in rising order."""
    if not state.nodes:
        return {}
    # NumPy sorts 16-bit integers by counting, several times as fast as wider ones.
    narrow = np.uint16 if len(state.nodes) < np.iinfo(np.uint16).max else np.int32
    rows = np.flatnonzero(why == MOVABLE)
    node = node_rows(inventory, state)[rows].astype(narrow)
    counts = np.bincount(node, minlength=len(state.nodes))
    rows = rows[np.argsort(node, kind="stable")]
    return dict(enumerate(np.split(rows, np.cumsum(counts)[:-1])))


def _move_weight(inventory: Inventory, why: NDArray[np.int8]) -> float:
    """Return λ: one move more is worth an average object that is fully held, whatever the scale of the sizes."""
    movable, rest = why == MOVABLE, inventory.unlisted
    size_bytes = float(inventory.size_bytes.sum(where=movable)) + rest.movable_bytes
    return max(1.0, 4 * size_bytes / max(1, int(np.count_nonzero(movable)) + rest.objects.get(NOT_A_CANDIDATE, 0)))


def _moves(work: Work, *, by_size: bool) -> tuple[RebalanceMove, ...]:
    """Write the chosen rows as moves: highest priority first, then by pair, in the order in which they were chosen."""
    fleet = work.fleet
    ordered = sorted(work.chosen, key=lambda c: (-_priority(fleet, c), c.source, c.target))
    moves: list[RebalanceMove] = []
    for chosen in ordered:
        source, target = fleet.nodes[chosen.source].node_id, fleet.nodes[chosen.target].node_id
        price, reason = fleet.per_gb(chosen.source, chosen.target), _reason(fleet, chosen, by_size=by_size)
        priority = _priority(fleet, chosen)
        keys = work.inventory.keys.take(pa.array(chosen.rows)).to_pylist()
        sizes, scores = work.inventory.size_bytes[chosen.rows].tolist(), work.gravity[chosen.rows].tolist()
        moves += [
            RebalanceMove(
                object_key=key,
                source_node=source,
                target_node=target,
                size_bytes=size,
                priority=priority,
                gravity=score,
                cost=money(size, price),
                reason=reason,
            )
            for key, size, score in zip(keys, sizes, scores, strict=True)
        ]
    return tuple(moves)


def _priority(fleet: Fleet, chosen: Chosen) -> int:
    if chosen.step == "drain":
        return DRAIN_PRIORITY
    return min(DRAIN_PRIORITY - 1, int(1000 * fleet.initial_used[chosen.source] / fleet.capacity[chosen.source]))


def _reason(fleet: Fleet, chosen: Chosen, *, by_size: bool) -> str:
    """Say in one sentence why these objects go."""
    source, target = fleet.nodes[chosen.source], fleet.nodes[chosen.target]
    at = fleet.initial_used[chosen.target] / fleet.capacity[chosen.target]
    if chosen.step == "drain":
        return f"{source.node_id} is draining; {target.node_id} is {at:.1%} full and has room".replace("%", " %")
    members = fleet.takers(source.pool)
    mean = sum(fleet.initial_used[i] for i in members) / sum(fleet.capacity[i] for i in members)
    full = fleet.initial_used[chosen.source] / fleet.capacity[chosen.source]
    whose = "fleet" if len(fleet.pools) == 1 else f"pool {source.pool}"
    why = f"size fits the gap to {target.node_id}" if chosen.step == "repair" else "lowest gravity per byte"
    if chosen.step == "whole":
        why = "part of the fewest bytes that level it"
    elif chosen.step == "balance" and by_size:
        why = "largest first, as the number of moves is limited"
    return f"{source.node_id} is {full:.1%} full ({whose} mean {mean:.1%}); {why}".replace("%", " %")


def _duration(work: Work, options: RebalancerOptions) -> float:
    if not options.throttle_bytes_per_sec:
        return 0.0
    groups: Counter[tuple[int, int]] = Counter()
    for chosen in work.chosen:
        groups[chosen.source, chosen.target] += int(work.inventory.size_bytes[chosen.rows].sum())
    longest, total = max(groups.values(), default=0), sum(groups.values())
    at_once = min(options.max_concurrent_migrations, max(1, len(groups)))
    return max(longest, total / at_once) / options.throttle_bytes_per_sec


def _imbalance(state: Fleet, used: Iterable[int]) -> float:
    return imbalance(state.nodes, {node.node_id: u for node, u in zip(state.nodes, used, strict=True)})


def _written(plan: RebalancePlan, *, named: bool) -> RebalancePlan:
    """Give the plan its id: a hash of what it says, unless it was named."""
    if named:
        return plan
    digest = hashlib.blake2b(plan.model_dump_json(exclude={"plan_id", "moves"}).encode(), digest_size=10)
    for move in plan.moves:
        digest.update(f"{move.object_key}\0{move.source_node}\0{move.target_node}\0{move.size_bytes}\0".encode())
    return plan.model_copy(update={"plan_id": f"plan-{digest.hexdigest()}"})
