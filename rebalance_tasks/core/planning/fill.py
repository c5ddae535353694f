"""From bytes between nodes to objects: which objects make up a flow, and which of them go where.

An object is worth leaving when gravity·bytes + λ·moves is small for the bytes it brings, so objects leave in the order of
gravity + λ ÷ size. λ (`Work.move_weight`) says how many bytes, held fully, one move more is worth. Every choice is checked
with exact byte counts against room, budgets and the spread at the start, so that whatever the flow suggests, a target
is never overfilled and the spread never grows (invariants 8 and 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.candidates import Eligibility
    from rebalance_tasks.core.planning.flow import Flows
    from rebalance_tasks.core.planning.state import Work

#: Passes over one pair's candidates; each skips objects that are too large for what is left, so a few fill it.
_MAX_PASSES: Final = 40
#: A flow is filled when it is met to within a thousandth: chasing the last bytes would cost many tiny moves.
_SLACK: Final = 1000
#: Next objects in order among which one is sought that closes the gap.
_WINDOW: Final = 4096
CRUSH: Final = CrushPlacementAlgorithm()


def in_order(work: Work, rows: NDArray[np.int64], move_weight: float) -> NDArray[np.int64]:
    """Return rows in the order in which they should leave, by gravity + ``move_weight`` ÷ size; ties to the earlier row.

    Args:
        work: gravity and sizes.
        rows: int64 (n,).
        move_weight: λ in bytes; infinite means the largest first, whatever holds them.
    """
    sizes = work.inventory.size_bytes[rows]
    if np.isinf(move_weight):
        return rows[np.argsort(-sizes, kind="stable")]
    return rows[np.argsort(work.gravity[rows] + move_weight / np.maximum(sizes, 1), kind="stable")]


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


def about_objects(sizes: NDArray[np.int64], amount: int) -> int:
    """Return about how many objects make up an amount of bytes, in the order given; those that exceed it alone do not count."""
    return int(np.searchsorted(np.cumsum(sizes[sizes <= amount]), amount)) + 1 if amount else 0


def smallest_needed(sizes: NDArray[np.int64], amount: int) -> int:
    """Return the last of the objects that make up an amount of bytes in the order given, the largest first; 0 without any.

    Args:
        sizes: int64 (n,), falling.
        amount: bytes.
    """
    fitting = sizes[sizes <= amount]
    last = min(about_objects(sizes, amount), len(fitting)) - 1
    return int(fitting[last]) if last >= 0 else 0


def cover(sizes: NDArray[np.int64], quota: int, room: int, most: int) -> NDArray[np.int64]:
    """Return positions of objects that together make up a quota, within a thousandth where the sizes allow.

    In the order given up to the object that would exceed the quota; the gap is closed by the first that fits it, else
    by the largest below it, and so on. Never more than ``room``.

    Args:
        sizes: int64 (n,), > 0.
        quota: bytes wanted.
        room: bytes allowed, at least the quota where it may be exceeded a little.
        most: objects.
    """
    left = np.flatnonzero(sizes <= room)
    taken: list[NDArray[np.int64]] = []
    slack, wanted = quota // _SLACK, quota

    def take(count: int) -> None:
        nonlocal wanted, room, most, left
        got = left[:count]
        size_bytes = int(sizes[got].sum())
        taken.append(got)
        wanted, room, most = wanted - size_bytes, room - size_bytes, most - count
        left = left[count:]
        left = left[sizes[left] <= room]

    for _ in range(_MAX_PASSES):
        if wanted <= min(slack // 2, room) or not len(left) or most <= 0:
            break
        totals = np.cumsum(sizes[left])
        before = min(int(np.searchsorted(totals, wanted)), most)
        if before < min(len(left), most) and int(totals[before]) <= min(wanted + slack, room):
            take(before + 1)
            break
        if before:
            take(before)
            continue
        window = sizes[left[:_WINDOW]]
        close = np.flatnonzero((window >= wanted) & (window <= min(wanted + slack, room)))
        below = np.where(window < wanted, window, 0)
        at = int(close[0]) if len(close) else int(np.argmax(below))
        if not len(close) and not below[at]:
            left = left[_WINDOW:]
            continue
        left = np.concatenate([left[at : at + 1], left[:at], left[at + 1 :]])
        take(1)
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
    return _take(work, i, j, fitting[picked], step)


class Filler:
    """Fills the flows of one pool, keeping every node between the emptiest and the fullest it started with."""

    def __init__(
        self, work: Work, eligibility: Eligibility, members: list[int], *, exceed: bool, least: Mapping[int, int]
    ) -> None:
        """Take the pool's taking nodes.

        Args:
            work: what there is to move.
            eligibility: the hard constraints.
            members: taking nodes.
            exceed: budgets leave room, so that a flow may be exceeded a little.
            least: node → bytes an object must have to be taken, 0 where it is absent.
        """
        fleet = work.fleet
        self._work = work
        self._eligibility = eligibility
        self._exceed = exceed
        self._least = least
        self._preferred = Preferred(work, members)
        fullest = max(members, key=lambda i: (fleet.share(i), i))
        emptiest = min(members, key=lambda i: (fleet.share(i), i))
        self._highest = (fleet.used[fullest], fleet.capacity[fullest])
        self._lowest = (fleet.used[emptiest], fleet.capacity[emptiest])

    def fill(self, flows: Flows) -> None:
        """Fill the flows, those of the fullest source first: should a budget end here after all, it ended where it helped."""
        fleet = self._work.fleet
        by_source: dict[int, list[tuple[int, int]]] = {}
        for i, j, amount in flows:
            by_source.setdefault(i, []).append((amount, j))
        waiting = {i: self._about(i, sum(amount for amount, _ in pairs)) for i, pairs in by_source.items()}
        for i in sorted(by_source, key=lambda i: (-fleet.share(i), i)):
            total, about = sum(amount for amount, _ in by_source[i]), waiting.pop(i)
            leaving = Leaving(np.empty(0, np.int64), np.empty(0, np.int64))
            if len(by_source[i]) > 1:
                leaving = self._preferred.targets(self._work.candidates[i], sum(amount for amount, _ in by_source[i]))
            for amount, j in sorted(by_source[i]):
                total, share = total - amount, -(-about * amount // max(1, total))
                about -= share
                self._fill(i, j, amount, leaving, moves=(share, about + sum(waiting.values())))

    def _about(self, i: int, amount: int) -> int:
        return about_objects(self._work.inventory.size_bytes[self._work.candidates[i]], amount)

    def _fill(self, i: int, j: int, quota: int, leaving: Leaving, *, moves: tuple[int, int]) -> None:
        """Fill one flow; ``moves``: about how many objects it is, and how many all flows after it are."""
        work, fleet = self._work, self._work.fleet
        if work.ledger.moves_left <= 0:
            work.ledger.note_moves()
            return
        may_take = self._highest[0] * fleet.capacity[j] // self._highest[1] - fleet.used[j]
        may_give = fleet.used[i] + (-self._lowest[0] * fleet.capacity[i] // self._lowest[1])
        most = min(may_take, may_give, fleet.room(j))
        quota = min(quota, most)
        most = work.ledger.affordable(most if self._exceed else quota, fleet.per_gb(i, j), wanted=quota)
        rows = work.candidates[i]
        sizes = work.inventory.size_bytes[rows]
        fitting = np.flatnonzero((sizes <= most) & (sizes >= self._least.get(i, 0)))
        fitting = fitting[self._eligibility.allowed(rows[fitting], i, j)]
        fitting = fitting[np.argsort(leaving.rank(rows[fitting], j), kind="stable")]
        sizes = work.inventory.size_bytes[rows[fitting]]
        # The last bytes of this flow may be many small objects: they must not take the moves of the flows after it.
        spare = min(work.ledger.moves_left, max(moves[0], work.ledger.moves_left - moves[1]))
        picked = cover(sizes, min(quota, most), most, spare)
        if len(picked) == work.ledger.moves_left and int(sizes[picked].sum()) < min(quota, most) * (1 - 1 / _SLACK):
            work.ledger.note_moves()
        _take(work, i, j, fitting[picked], "balance")


@dataclass(frozen=True, slots=True)
class Leaving:
    """Objects of one node that are about to leave, and the target that placement prefers for each.

    Attributes:
        rows: int64 (n,), sorted.
        targets: int64 (n,), −1 for none.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]

    def rank(self, rows: NDArray[np.int64], j: int) -> NDArray[np.int8]:
        """Return int8 (rows,): 0 what placement wants on j, 1 what it wants nowhere, 2 elsewhere, 3 what is not about to leave."""
        if not len(self.rows):
            return np.zeros(len(rows), np.int8)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        wanted = np.where(self.targets[at] == j, 0, np.where(self.targets[at] < 0, 1, 2))
        return np.where(self.rows[at] == rows, wanted, 3).astype(np.int8)


class Preferred:
    """Asks placement where objects would be if it alone decided: among equal choices that is where they go."""

    def __init__(self, work: Work, members: list[int]) -> None:
        """Take the pool's taking nodes."""
        self._work = work
        self._members = np.array(members, np.int64)
        nodes = [work.fleet.nodes[i] for i in members]
        self._map = CompiledFleet(nodes) if any(node.weight > 0 for node in nodes) else None

    def targets(self, rows: NDArray[np.int64], quota: int) -> Leaving:
        """Return the first rows that make up a quota, with the nodes placement prefers."""
        count = int(np.searchsorted(np.cumsum(self._work.inventory.size_bytes[rows]), quota, side="right"))
        first = np.sort(rows[:count])
        if self._map is None or not len(first):
            return Leaving(first, np.full(len(first), -1, np.int64))
        keys = self._work.inventory.keys.take(pa.array(first))
        return Leaving(first, self._members[CRUSH.compute_placements(keys, 1, self._map)[:, 0]])


def _take(work: Work, i: int, j: int, positions: NDArray[np.int64], step: str) -> int:
    """Move candidates on paper; return their bytes."""
    if not len(positions):
        return 0
    rows = work.candidates[i]
    keep = np.ones(len(rows), np.bool_)
    keep[positions] = False
    work.candidates[i] = rows[keep]
    return work.book(rows[positions], i, j, step)
