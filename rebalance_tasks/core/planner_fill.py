"""From bytes between nodes to objects: filling the flows, emptying draining nodes, and the last coarse steps.

Every choice is checked with exact byte counts against room, budgets and the spread at the start of the step, so that
whatever the flow suggests, a target is never overfilled and the spread never grows (invariants 8 and 9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planner_flow import Pool, pair_order, poured, transport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.core.planner_candidates import Eligibility
    from rebalance_tasks.core.planner_state import Work

#: Passes over one pair's candidates; each skips objects that are too large for what is left, so a few fill it.
_MAX_PASSES: Final = 40
#: Rounds in which what a draining node still holds is poured again before it is placed object by object.
_POUR_ROUNDS: Final = 4
#: Objects of a draining node placed one by one; what is beyond goes in bulk to wherever there is room.
_MAX_SINGLES: Final = 500


def order_candidates(work: Work, rows: NDArray[np.int64], *, by_size: bool) -> NDArray[np.int64]:
    """Return rows in the order in which they should leave: lowest gravity per byte first, or the largest first.

    Largest first is for when the number of moves binds: each move then achieves the most. Ties go to the larger object,
    then to the earlier row.
    """
    sizes = work.inventory.size_bytes[rows]
    if by_size or not work.gravity[rows].any():
        return rows[np.argsort(-sizes, kind="stable")]
    per_byte = work.gravity[rows] / np.maximum(sizes, 1)
    return rows[np.lexsort((-sizes, per_byte))]


def take_in_order(sizes: NDArray[np.int64], quota: int, most: int) -> NDArray[np.int64]:
    """Return positions of the objects taken: in the order given, each that still fits into what is left of the quota.

    Args:
        sizes: int64 (n,), ≥ 0.
        quota: bytes.
        most: objects.
    """
    left = np.arange(len(sizes))
    taken: list[NDArray[np.int64]] = []
    for _ in range(_MAX_PASSES):
        left = left[sizes[left] <= quota]
        if not len(left) or most <= 0:
            break
        totals = np.cumsum(sizes[left])
        count = min(int(np.searchsorted(totals, quota, side="right")), most)
        taken.append(left[:count])
        quota -= int(totals[count - 1])
        most -= count
        left = left[count:]
    return np.concatenate(taken) if taken else np.empty(0, np.int64)


def fill_pair(work: Work, eligibility: Eligibility, i: int, j: int, *, quota: int, step: str) -> int:
    """Choose objects for i → j worth at most ``quota`` bytes; return the bytes chosen."""
    rows = work.candidates.get(i)
    if rows is None or not len(rows) or quota < 0:
        return 0
    if work.ledger.moves_left <= 0:
        work.ledger.note_moves()
        return 0
    # An object larger than the quota cannot be cut: filter before the dearer questions.
    fitting = np.flatnonzero(work.inventory.size_bytes[rows] <= min(quota, work.fleet.room(j)))
    fitting = fitting[eligibility.allowed(rows[fitting], i, j)]
    if not len(fitting):
        return 0
    sizes = work.inventory.size_bytes[rows[fitting]]
    wanted = min(quota, work.fleet.room(j), int(sizes.sum()))
    picked = take_in_order(sizes, work.ledger.affordable(wanted, work.fleet.per_gb(i, j)), work.ledger.moves_left)
    if len(picked) == work.ledger.moves_left and int(sizes[picked].sum()) < wanted:
        work.ledger.note_moves()
    if not len(picked):
        return 0
    positions = fitting[picked]
    chosen = rows[positions]
    keep = np.ones(len(rows), np.bool_)
    keep[positions] = False
    work.candidates[i] = rows[keep]
    return work.book(chosen, i, j, step)


def pool_columns(work: Work, members: list[int], *, movable: dict[int, int]) -> Pool:
    """Return a pool's nodes as float columns."""
    fleet = work.fleet
    return Pool(
        members=members,
        used=np.array([fleet.used[i] for i in members], np.float64),
        capacity=np.array([fleet.capacity[i] for i in members], np.float64),
        movable=np.array([movable.get(i, 0) for i in members], np.float64),
        room=np.array([max(0, fleet.room(i)) for i in members], np.float64),
    )


# -- draining ---------------------------------------------------------------------------------------------------------
def drain(work: Work, eligibility: Eligibility, pool: str) -> None:
    """Empty the draining nodes of a pool onto its taking nodes, the emptiest first."""
    fleet = work.fleet
    sources, targets = fleet.leavers(pool), fleet.takers(pool)
    if not sources or not targets:
        return
    order = pair_order(fleet, sources, targets)
    if _waiting_bytes(work, sources) > sum(max(0, fleet.room(j)) for j in targets):
        work.ledger.note("max_utilisation")
    for _ in range(_POUR_ROUNDS):
        waiting = {i: int(work.inventory.size_bytes[work.candidates[i]].sum()) for i in sources}
        level = poured(pool_columns(work, targets, movable={}), float(sum(waiting.values())))
        # One byte more than the water level: rounding must not keep the last object out. Room is checked exactly.
        take = {j: int(share) + 1 for j, share in zip(targets, level, strict=True)}
        before = len(work.chosen)
        for i, j, amount in transport(order, waiting, take):
            fill_pair(work, eligibility, i, j, quota=amount, step="drain")
        if len(work.chosen) == before:
            break
    for i in sources:
        _place_singly(work, eligibility, i, targets)
    for i in sources:
        for j in sorted(targets, key=lambda j: (fleet.share(j), j)):
            fill_pair(work, eligibility, i, j, quota=fleet.room(j), step="drain")


def _waiting_bytes(work: Work, sources: list[int]) -> int:
    return sum(int(work.inventory.size_bytes[work.candidates[i]].sum()) for i in sources)


def _place_singly(work: Work, eligibility: Eligibility, i: int, targets: list[int]) -> None:
    """Place what the shares were too small for, largest first, each where it leaves the lowest utilisation."""
    fleet, sizes = work.fleet, work.inventory.size_bytes
    rows = order_candidates(work, work.candidates[i], by_size=True)[:_MAX_SINGLES]
    gone: list[int] = []
    for row in rows.tolist():
        if work.ledger.moves_left <= 0:
            work.ledger.note_moves()
            break
        size, single = int(sizes[row]), np.array([row])
        for j in sorted(targets, key=lambda j: ((fleet.used[j] + size) / fleet.capacity[j], j)):
            if size > fleet.room(j) or not eligibility.allowed(single, i, j)[0]:
                continue
            if work.ledger.affordable(size, fleet.per_gb(i, j)) < size:
                continue
            work.book(single, i, j, "drain")
            gone.append(row)
            break
    work.candidates[i] = work.candidates[i][~np.isin(work.candidates[i], gone)]


# -- balancing --------------------------------------------------------------------------------------------------------
def fill_flows(work: Work, eligibility: Eligibility, flows: list[tuple[int, int, int]], members: list[int]) -> None:
    """Fill the flows of one pool, keeping every node between the emptiest and the fullest it started with."""
    fleet = work.fleet
    fullest = max(members, key=lambda i: (fleet.share(i), i))
    emptiest = min(members, key=lambda i: (fleet.share(i), i))
    highest = (fleet.used[fullest], fleet.capacity[fullest])
    lowest = (fleet.used[emptiest], fleet.capacity[emptiest])
    for i, j, amount in flows:
        may_take = highest[0] * fleet.capacity[j] // highest[1] - fleet.used[j]
        may_give = fleet.used[i] + (-lowest[0] * fleet.capacity[i] // lowest[1])
        quota = min(amount, may_take, may_give)
        if quota > 0:
            fill_pair(work, eligibility, i, j, quota=quota, step="balance")


def size_limits(work: Work, members: list[int]) -> dict[int, int]:
    """Return node → the largest object that could leave it and make another node less full than it is now."""
    fleet = work.fleet
    return {
        i: max(
            (
                min(fleet.room(j), fleet.used[i] * fleet.capacity[j] // fleet.capacity[i] - fleet.used[j])
                for j in members
                if j != i
            ),
            default=0,
        )
        for i in members
    }
