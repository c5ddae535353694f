"""Emptying draining nodes: what they hold is poured over the pool's taking nodes like water, the emptiest first.

Runs before any balancing and spends the budgets first. Every choice is checked with exact byte counts against room and
budgets, so that whatever the levels suggest, a target is never overfilled (invariant 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planning.fill import fill_pair, in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.candidates import Eligibility
    from rebalance_tasks.core.planning.state import Fleet, Work

#: Rounds in which what a draining node still holds is poured again before it is placed object by object.
_POUR_ROUNDS: Final = 4
#: Objects of a draining node placed one by one; what is beyond goes in bulk to wherever there is room.
_MAX_SINGLES: Final = 500
#: Halvings of an interval of utilisations: finer than the last bit of a double.
_HALVINGS: Final = 64


def drain(work: Work, eligibility: Eligibility, pool: str) -> None:
    """Empty the draining nodes of a pool onto its taking nodes, the emptiest first."""
    fleet = work.fleet
    sources, targets = [i for i in fleet.leavers(pool) if i in work.candidates], fleet.takers(pool)
    if not sources or not targets:
        return
    for i in sources:
        work.candidates[i] = in_order(work, work.candidates[i], work.move_weight)
    order = pair_order(fleet, sources, targets)
    if _waiting_bytes(work, sources) > sum(max(0, fleet.room(j)) for j in targets):
        work.ledger.note("max_utilisation")
    for _ in range(_POUR_ROUNDS):
        waiting = {i: _waiting_bytes(work, [i]) for i in sources}
        level = poured(fleet, targets, float(sum(waiting.values())))
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
    rows = work.candidates[i]
    rows = rows[np.argsort(-sizes[rows], kind="stable")][:_MAX_SINGLES]
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


# -- water ------------------------------------------------------------------------------------------------------------
def poured(fleet: Fleet, targets: list[int], amount: float) -> NDArray[np.float64]:
    """Return bytes per target, float64 (targets,), when an amount is poured in: the emptiest fill up to one common level."""
    used = np.array([fleet.used[j] for j in targets], np.float64)
    capacity = np.array([fleet.capacity[j] for j in targets], np.float64)
    room = np.array([max(0, fleet.room(j)) for j in targets], np.float64)

    def below(level: float) -> NDArray[np.float64]:
        return np.minimum(np.maximum(level * capacity - used, 0.0), room)

    low, high = float((used / capacity).min()), float(max((used / capacity).max(), 1.0))
    if float(below(high).sum()) <= amount:
        return below(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(below(middle).sum()) <= amount else (low, middle)
    return below(low)


def pair_order(fleet: Fleet, sources: list[int], targets: list[int]) -> list[tuple[int, int]]:
    """Return all (source, target) pairs, cheapest egress first, then within the zone, then within the region."""
    return sorted(
        ((i, j) for i in sources for j in targets if i != j),
        key=lambda pair: (fleet.per_gb(*pair), fleet.distance(*pair), pair),
    )


def transport(order: list[tuple[int, int]], give: dict[int, int], take: dict[int, int]) -> list[tuple[int, int, int]]:
    """Match givers and takers along an order of pairs; return (source, target, bytes).

    Each pair exhausts a giver or a taker, so there are at most givers + takers − 1 of them: few, fat groups.
    """
    give, take = dict(give), dict(take)
    out = []
    for i, j in order:
        amount = min(give[i], take[j])
        if amount > 0:
            out.append((i, j, amount))
            give[i] -= amount
            take[j] -= amount
    return out
