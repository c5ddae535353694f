"""The last steps by single objects: what flows of water could not settle because objects are coarse or bound.

Each step takes the fullest node down or the emptiest up, with the object that fits the gap best. A step must make the two
nodes it touches more alike and leave neither outside the pool's present band, so the spread never grows and the
search ends; when no object does that, the plan is as close as it gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.candidates import Eligibility
    from rebalance_tasks.core.planning.state import Work

#: Steps before the search gives up: far more than nodes, since flows have already done the bulk.
_MAX_STEPS: Final = 5_000
#: A step must close at least this share of the gap between its two nodes; less is churn for nothing.
_LEAST_GAIN: Final = 0.01
#: Objects of nearly the right size among which the one of lowest gravity is taken.
_WINDOW: Final = 32


@dataclass(frozen=True, slots=True)
class _Step:
    """A step looked for: the size that would be ideal, the largest that is welcome, the largest that is bearable."""

    source: int
    target: int
    ideal: int
    welcome: int
    bearable: int


class Repair:
    """Improves one pool by single objects."""

    def __init__(self, work: Work, eligibility: Eligibility, members: list[int], *, goal: float) -> None:
        """Take the pool's taking nodes and the spread to reach."""
        self._work = work
        self._eligibility = eligibility
        self._members = members
        self._goal = goal
        self._by_size: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def run(self) -> None:
        """Step until the goal is reached, a budget is spent, or nothing helps any more."""
        fleet = self._work.fleet
        for _ in range(_MAX_STEPS):
            if fleet.spread(self._members) <= self._goal:
                return
            if self._work.ledger.moves_left <= 0:
                self._work.ledger.note_moves()
                return
            order = sorted(self._members, key=lambda i: (fleet.share(i), i))
            if not self._first_that_works(self._lowering(order)) and not self._first_that_works(self._raising(order)):
                return

    # -- which steps would help -----------------------------------------------------------------------------------
    def _lowering(self, order: list[int]) -> list[_Step]:
        """Steps from the fullest node, to the emptiest first."""
        fleet, low, full = self._work.fleet, order[0], order[-1]
        top = fleet.share(low) + self._goal
        ideal = int(fleet.used[full] - top * fleet.capacity[full]) + 1
        return [self._step(full, j, ideal, int(top * fleet.capacity[j]) - fleet.used[j], order) for j in order[:-1]]

    def _raising(self, order: list[int]) -> list[_Step]:
        """Steps to the emptiest node, from the fullest first."""
        fleet, low, full = self._work.fleet, order[0], order[-1]
        bottom = fleet.share(full) - self._goal
        ideal = int(bottom * fleet.capacity[low] - fleet.used[low]) + 1
        return [
            self._step(i, low, ideal, int(fleet.used[i] - bottom * fleet.capacity[i]), order)
            for i in reversed(order[1:])
        ]

    def _step(self, i: int, j: int, ideal: int, welcome: int, order: list[int]) -> _Step:
        fleet = self._work.fleet
        gap = fleet.share(i) - fleet.share(j)
        lowest = order[0]
        bearable = min(
            fleet.room(j),
            # j ends below where i stands now, by a margin …
            int((fleet.share(i) - _LEAST_GAIN * gap) * fleet.capacity[j]) - fleet.used[j],
            (fleet.used[i] * fleet.capacity[j] - 1) // fleet.capacity[i] - fleet.used[j],
            # … and i not below the emptiest of all.
            fleet.used[i] + (-fleet.used[lowest] * fleet.capacity[i] // fleet.capacity[lowest]),
        )
        return _Step(i, j, max(1, ideal), min(welcome, bearable), bearable)

    # -- taking one -----------------------------------------------------------------------------------------------
    def _first_that_works(self, steps: list[_Step]) -> bool:
        """Take the cheapest step with an object of welcome size, else the most even one with one of bearable size."""
        fleet = self._work.fleet
        cheapest = sorted(steps, key=lambda s: (fleet.per_gb(s.source, s.target), fleet.distance(s.source, s.target)))
        return any(self._take(step, step.welcome) for step in cheapest) or any(
            self._take(step, step.bearable) for step in steps if step.bearable > step.welcome
        )

    def _take(self, step: _Step, most: int) -> bool:
        """Choose the object for a step: the smallest that is ideal or more, else the largest below."""
        rows, sizes = self._sorted(step.source)
        if most < 1 or not len(rows):
            return False
        position = self._find(rows, sizes, step, most)
        if position is None:
            return False
        work = self._work
        size, price = int(sizes[position]), work.fleet.per_gb(step.source, step.target)
        payable = work.ledger.affordable(size, price)
        if payable < size:
            position = self._find(rows, sizes, step, payable)
            if position is None:
                return False
        work.book(rows[position : position + 1].copy(), step.source, step.target, "repair")
        self._by_size[step.source] = np.delete(rows, position), np.delete(sizes, position)
        return True

    def _find(self, rows: NDArray[np.int64], sizes: NDArray[np.int64], step: _Step, most: int) -> int | None:
        first, ideal, end = (
            int(np.searchsorted(sizes, 1)),
            int(np.searchsorted(sizes, step.ideal)),
            int(np.searchsorted(sizes, most, side="right")),
        )
        above = range(max(first, ideal), end)
        below = range(min(ideal, end) - 1, first - 1, -1)
        # Equal sizes stand by gravity: of the largest below the ideal, begin with the lightest.
        level = range(int(np.searchsorted(sizes, sizes[below[0]])), below[0] + 1) if below else range(0)
        for span in (above[:_WINDOW], level[:_WINDOW], below[:_WINDOW], above[_WINDOW:], below[_WINDOW:]):
            found = self._lightest(rows, np.array(span, np.int64), step)
            if found is not None:
                return found
        return None

    def _lightest(self, rows: NDArray[np.int64], span: NDArray[np.int64], step: _Step) -> int | None:
        """Of some positions that may go, the one of lowest gravity; the nearest to the ideal among equals."""
        if not len(span):
            return None
        fits = span[self._eligibility.allowed(rows[span], step.source, step.target)]
        return int(fits[np.argmin(self._work.gravity[rows[fits]])]) if len(fits) else None

    def _sorted(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A node's remaining candidates by size, then gravity, smallest first: rows and sizes."""
        if i not in self._by_size:
            rows = self._work.candidates.get(i, np.empty(0, np.int64))
            rows = rows[np.lexsort((self._work.gravity[rows], self._work.inventory.size_bytes[rows]))]
            self._by_size[i] = rows, self._work.inventory.size_bytes[rows]
        return self._by_size[i]
