"""Balancing pools inside shared budgets: the best spread that the budgets can reach, then objects that bring it about.

Flows first (`planning.flow`), then objects (`planning.fill`), then single objects where they are coarse (`planning.repair`).
Where there are few objects, whole ones are planned at once and nearly exactly (`planning.exact`). When a budget binds, the
flows are those of the smallest spread that fits all budgets: the money, bytes and moves there are go where they lower
the spread most, over all pools at once.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planning.exact import ENOUGH, balance_exactly
from rebalance_tasks.core.planning.exchange import exchange
from rebalance_tasks.core.planning.fill import Filler, about_objects, in_order, smallest_needed
from rebalance_tasks.core.planning.flow import Hubs, Limits, Network, Supply
from rebalance_tasks.core.planning.repair import Repair

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from decimal import Decimal

    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.candidates import Eligibility
    from rebalance_tasks.core.planning.flow import Flows, Solution
    from rebalance_tasks.core.planning.solver import Values
    from rebalance_tasks.core.planning.state import Snapshot, Work

#: λ as multiples of the usual one, tried in turn when the moves would be too many; the last is "the largest first".
_FEWER_MOVES: Final = (1.0, 8.0, 64.0, 512.0, float("inf"))
#: Objects counted singly where the number of moves binds; beyond, segments grow by a tenth.
_SINGLES: Final = 16
_GROWTH: Final = 1.1
#: Spread that is the solver's rounding.
_ROUNDING: Final = 1e-9
#: Where whole objects come this near to what water would reach, there is nothing to search for.
_AS_GOOD: Final = 0.003


def balance_pools(work: Work, eligibility: Eligibility, pools: list[list[int]], *, goal: float) -> bool:
    """Bring pools to the goal, or as near as budgets and objects allow.

    Args:
        work: what there is to move, and the ledger to stay within.
        eligibility: the hard constraints.
        pools: taking nodes of each pool to balance.
        goal: spread.

    Returns:
        Whether the largest objects left first because the number of moves bound.
    """
    before = work.snapshot()
    by_size, good = _by_flows(work, eligibility, pools, goal=goal)
    if good:
        return by_size
    reached, limits = _result(work, pools, before, goal=goal), work.ledger.limits
    flowed = work.snapshot()
    work.restore(before)
    if balance_exactly(work, eligibility, pools, goal=goal, known=reached[0]):
        found = _result(work, pools, before, goal=goal)
        # Within the share to which a spread out of reach is met, fewer bytes and less money are better; a goal that was
        # reached is not given up for them.
        as_near = found[0] <= (goal if reached[0] <= goal else reached[0] * (1 + ENOUGH))
        if found[0] < reached[0] / (1 + ENOUGH) or (as_near and found[1:] < reached[1:]):
            for name in limits if found[0] > goal else ():
                work.ledger.note(name)
            return by_size
    work.restore(flowed)
    return by_size


def _result(work: Work, pools: list[list[int]], before: Snapshot, *, goal: float) -> tuple[float, int, Decimal]:
    """What was reached: the spread as far as it is over the goal, and the bytes and the money it took."""
    spread = max(goal, *(work.fleet.spread(members) for members in pools))
    return spread, before.ledger.bytes_left - work.ledger.bytes_left, before.ledger.cost_left - work.ledger.cost_left


def _by_flows(work: Work, eligibility: Eligibility, pools: list[list[int]], *, goal: float) -> tuple[bool, bool]:
    """Balance by flows; return whether objects left by size, and whether the result is as good as if they were water."""
    before, wide = work.snapshot(), max(work.fleet.spread(members) for members in pools)
    demand = _Demand(work, eligibility, pools)
    solution, by_size = demand.solve(goal)
    if solution is None:
        return False, False
    # Goals that differ by the solver's rounding only are the goal itself.
    goals = [goal if reached <= goal + _ROUNDING else reached for reached in solution.goals]
    order = sorted(range(len(pools)), key=lambda at: (-work.fleet.spread(pools[at]), at))
    for at in order:
        inside = set(pools[at])
        flows = [flow for flow in solution.flows if flow[0] in inside]
        Filler(work, eligibility, pools[at], exceed=not solution.used_up, least=demand.least).fill(flows)
    for at in order:
        Repair(work, eligibility, pools[at], goal=goals[at]).run()
    as_good = max(goals) + (0 if max(goals) == goal else _AS_GOOD * (wide - max(goals)))
    if "max_moves_per_cycle" in work.ledger.limits and _result(work, pools, before, goal=max(goals))[0] > as_good:
        for at in order:
            exchange(work, eligibility, pools[at], goal=goals[at])
    reached, size_bytes, _ = _result(work, pools, before, goal=max(goals))
    near = reached <= as_good
    # Water that leaves out the largest objects is no bound to what exchanging them would reach.
    near = near and (reached <= goal or not demand.too_large)
    return by_size, near and size_bytes <= solution.size_bytes * (1 + _AS_GOOD) + 1


class _Demand:
    """What pools want moved, and about how many objects that is."""

    def __init__(self, work: Work, eligibility: Eligibility, pools: list[list[int]]) -> None:
        self._work = work
        self._eligibility = eligibility
        self._useful: dict[int, NDArray[np.int64]] = {}
        #: Where moves bind: node → the size below which an object is not worth one of them in its flows.
        self.least: dict[int, int] = {}
        #: Objects that no node could take and be less full than their own is now.
        self.too_large = 0
        for members in pools:
            for i, limit in size_limits(work, members).items():
                rows = work.candidates.get(i, np.empty(0, np.int64))
                self._useful[i] = rows[work.inventory.size_bytes[rows] <= limit]
                self.too_large += len(rows) - len(self._useful[i])
        hubs = Hubs(work.fleet, [i for members in pools for i in members])
        supplies = [supply for i, rows in self._useful.items() for supply in self._supplies(i, rows, hubs)]
        self._network = Network(work, pools, supplies, hubs)

    def solve(self, goal: float) -> tuple[Solution | None, bool]:
        """Return the flows inside all budgets, and whether the largest objects leave first; candidates are put in order."""
        ledger = self._work.ledger
        solution = self._network.solve(goal, Limits())
        limits = Limits()
        if solution is not None and (
            solution.size_bytes > ledger.bytes_left or solution.cost > float(ledger.cost_left)
        ):
            limits = Limits(size_bytes=ledger.bytes_left, cost=float(ledger.cost_left))
            solution = self._network.solve(goal, limits)
        if solution is None:
            return None, False
        for times in _FEWER_MOVES:
            self._order(solution.flows, self._work.move_weight * times)
            if self._moves(solution.flows) <= ledger.moves_left:
                self._note(solution)
                return solution, False
        ledger.note_moves()
        counts = {
            i: _segments(self._work.inventory.size_bytes[rows], ledger.moves_left) for i, rows in self._useful.items()
        }
        limits = Limits(ledger.bytes_left, float(ledger.cost_left), ledger.moves_left, counts)
        solution = self._network.solve(goal, limits)
        if solution is not None:
            self._note(solution)
            self._order(solution.flows, float("inf"))
            self.least = {i: smallest_needed(sizes, total) for i, sizes, total in self._leaving(solution.flows)}
        return solution, True

    def _note(self, solution: Solution) -> None:
        for name in solution.used_up:
            if name == "egress":
                self._work.ledger.note_egress()
            elif name == "cost":
                self._work.ledger.note_cost()

    def _supplies(self, i: int, rows: NDArray[np.int64], hubs: Hubs) -> Iterable[Supply]:
        """Sort a node's objects by the hubs they may go to."""
        sizes = self._work.inventory.size_bytes[rows]
        open_hubs = hubs.open_to(i)
        kinds = [self._eligibility.permitted(rows, nodes[0]) for nodes in hubs.nodes]
        if all(kind.all() for kind in kinds):
            yield Supply(i, int(sizes.sum()), open_hubs)
            return
        packed = np.ascontiguousarray(np.packbits(np.array(kinds), axis=0).T)
        _, first, code = np.unique(packed, axis=0, return_index=True, return_inverse=True)
        totals = np.zeros(len(first), np.int64)
        np.add.at(totals, code.ravel(), sizes)
        for row, total in zip(first.tolist(), totals.tolist(), strict=True):
            yield Supply(i, total, open_hubs & np.array([kind[row] for kind in kinds]))

    def _order(self, flows: Flows, move_weight: float) -> None:
        """Put the candidates of the giving nodes in the order in which they should leave."""
        for i in {i for i, _, _ in flows}:
            self._useful[i] = in_order(self._work, self._useful[i], move_weight)
            self._work.candidates[i] = self._useful[i]

    def _moves(self, flows: Flows) -> int:
        """Return about how many objects some flows are."""
        return sum(about_objects(sizes, total) for _, sizes, total in self._leaving(flows))

    def _leaving(self, flows: Flows) -> Iterator[tuple[int, NDArray[np.int64], int]]:
        """Yield (node, sizes of its candidates in their order, bytes that leave it)."""
        totals: Counter[int] = Counter()
        for i, _, amount in flows:
            totals[i] += amount
        for i, total in totals.items():
            yield i, self._work.inventory.size_bytes[self._useful[i]], total


def _segments(sizes: NDArray[np.int64], most: int) -> tuple[Values, Values]:
    """Return (bytes, objects) of a node's largest objects, float64 each: single ones first, then ever longer segments."""
    count = min(len(sizes), max(1, most))
    if not count:
        return np.empty(0), np.empty(0)
    largest = -np.sort(-np.partition(sizes, len(sizes) - count)[len(sizes) - count :])
    ends = list(range(1, _SINGLES))
    while ends[-1] < count:
        ends.append(max(ends[-1] + 1, int(ends[-1] * _GROWTH)))
    cuts = np.array([0, *sorted({min(end, count) for end in ends})])
    totals = np.concatenate([[0], np.cumsum(largest)])[cuts]
    size_bytes, objects = np.diff(totals).astype(np.float64), np.diff(cuts).astype(np.float64)
    return size_bytes[size_bytes > 0], objects[size_bytes > 0]


def size_limits(work: Work, members: list[int]) -> dict[int, int]:
    """Return node → the largest object that could leave it and make another node less full than it is now."""
    fleet = work.fleet
    capacity = np.array([fleet.capacity[i] for i in members], np.float64)
    used = np.array([fleet.used[i] for i in members], np.float64)
    room = np.array([fleet.room(i) for i in members], np.float64)
    # Guides only, so doubles will do: the filling checks exact counts.
    limits = np.minimum(room[None, :], np.outer(used / capacity, capacity) - used[None, :])
    np.fill_diagonal(limits, 0.0)
    # Halfway to the next integer up: rounding must not keep out an object that just fits.
    return {i: int(limit + 0.5) for i, limit in zip(members, limits.max(axis=1).tolist(), strict=True)}
