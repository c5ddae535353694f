"""Few objects, planned whole: an integer program says for each object whether it goes, and where.

Where a node holds a handful of large objects, flows of water mislead. As long as there are few enough ways to place them,
all of them are weighed at once, under the same goals in the same order as the flows: smallest spread, fewest bytes, least
money, then least gravity·bytes + λ·moves and the targets that placement prefers. The answer is within the solver's gap
(0.3 %) of the best there is, or the best that was seen in a bounded search.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.options import GB
from rebalance_tasks.core.planner_fill import Preferred
from rebalance_tasks.core.planner_flow import SCALE
from rebalance_tasks.core.planner_solver import INFINITY, MOST_NODES, Program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.core.planner_candidates import Eligibility
    from rebalance_tasks.core.planner_solver import Columns, Values
    from rebalance_tasks.core.planner_state import Work

#: Ways to place an object, over all objects: with more of them the search takes too long, and water is a better model.
MOST_WAYS: Final = 600
#: The search for the last goal, what objects are held by, is a short one: it decides among plans of equal bytes and money.
_FEW_NODES: Final = 20
#: What placement prefers counts less than anything else: this share of a move.
_PREFERENCE: Final = 1e-3


def few_ways(work: Work, pools: list[list[int]]) -> bool:
    """Tell whether there are few enough objects and nodes to weigh all of them at once."""
    ways = sum(len(work.candidates.get(i, ())) * (len(members) - 1) for members in pools for i in members)
    return ways <= MOST_WAYS


def balance_exactly(work: Work, eligibility: Eligibility, pools: list[list[int]], *, goal: float) -> None:
    """Bring pools with few objects to the goal, or as near as budgets and objects allow.

    Args:
        work: what there is to move, and the ledger to stay within.
        eligibility: the hard constraints.
        pools: taking nodes of each pool.
        goal: spread.
    """
    ways = _Ways(work, eligibility, pools)
    problem = _Problem(work, pools, ways)
    taken = problem.solve(goal)
    if taken is None:
        return
    for i, j in sorted(set(zip(ways.source[taken].tolist(), ways.target[taken].tolist(), strict=True))):
        rows = ways.rows[taken & (ways.source == i) & (ways.target == j)]
        work.candidates[i] = work.candidates[i][~np.isin(work.candidates[i], rows)]
        work.book(rows, i, j, "whole")
    if max(work.fleet.spread(members) for members in pools) > goal:
        _note_what_binds(work, ways)


def _note_what_binds(work: Work, ways: _Ways) -> None:
    """Note each budget that has no room left for the smallest thing that could still be done."""
    ledger = work.ledger
    if not ledger.moves_left:
        ledger.note_moves()
    if len(ways.rows):
        ledger.affordable(int(ways.sizes.min()), Decimal(0))
        cheapest = int(np.argmin(ways.sizes * ways.prices))
        i, j = int(ways.source[cheapest]), int(ways.target[cheapest])
        ledger.affordable(int(ways.sizes[cheapest]), work.fleet.per_gb(i, j))


class _Ways:
    """Every (object, target) that no hard constraint forbids, as columns of equal length."""

    def __init__(self, work: Work, eligibility: Eligibility, pools: list[list[int]]) -> None:
        rows, source, target, preferred = [], [], [], []
        for members in pools:
            preference = Preferred(work, members)
            for i in members:
                objects = work.candidates.get(i, np.empty(0, np.int64))
                leaving = preference.targets(objects, int(work.inventory.size_bytes[objects].sum()))
                for j in members:
                    if i == j:
                        continue
                    fits = work.inventory.size_bytes[objects] <= work.fleet.room(j)
                    found = objects[fits & eligibility.allowed_alone(objects, i, j)]
                    rows.append(found)
                    source.append(np.full(len(found), i))
                    target.append(np.full(len(found), j))
                    preferred.append(leaving.rank(found, j) == 0)
        nothing = np.empty(0, np.int64)
        self.rows: NDArray[np.int64] = np.concatenate([nothing, *rows])
        self.source: NDArray[np.int64] = np.concatenate([nothing, *source])
        self.target: NDArray[np.int64] = np.concatenate([nothing, *target])
        self.preferred: NDArray[np.bool_] = np.concatenate([np.empty(0, np.bool_), *preferred])
        self.sizes = work.inventory.size_bytes[self.rows].astype(np.float64)
        pairs = list(zip(self.source.tolist(), self.target.tolist(), strict=True))
        self.prices = np.array([float(work.fleet.per_gb(i, j)) for i, j in pairs])
        self.distances = np.array([float(work.fleet.distance(i, j)) for i, j in pairs])


class _Problem:
    """The integer program over some ways."""

    def __init__(self, work: Work, pools: list[list[int]], ways: _Ways) -> None:
        self._work = work
        self._pools = pools
        self._ways = ways
        self._members = [i for members in pools for i in members]
        self._place = np.full(len(work.fleet.nodes), -1, np.int64)
        self._place[self._members] = np.arange(len(self._members))
        self._unit = sum(work.fleet.capacity[i] for i in self._members) / len(self._members) / SCALE

    def solve(self, goal: float) -> NDArray[np.bool_] | None:
        """Return bool (ways,): those taken; None without a solution."""
        program, x, spreads = self._program(goal)
        self._limit(program, x)
        ways, work = self._ways, self._work
        held = work.gravity[ways.rows] * ways.sizes + work.move_weight * (1.0 - _PREFERENCE * ways.preferred)
        program.minimise_and_keep(spreads, np.ones(len(spreads)))
        found: Values | None = None
        for costs in (ways.sizes, ways.sizes * ways.prices, ways.sizes * ways.distances, held):
            if not costs.any():
                continue
            nodes = _FEW_NODES if costs is held else MOST_NODES
            # The solver's gaps are relative.
            better = program.minimise_and_keep(x, costs / costs.max(), nodes=nodes)
            if better is None:
                break
            found = better
            program.start_from(found)
        return None if found is None else np.asarray(found[x] > 0.5)  # noqa: PLR2004  0 or 1, but for rounding

    def _program(self, goal: float) -> tuple[Program, Columns, Columns]:
        fleet, members, ways, unit = self._work.fleet, self._members, self._ways, self._unit
        n, pools = len(members), len(self._pools)
        sizes = ways.sizes / unit
        used = np.array([fleet.used[i] / unit for i in members])
        capacity = np.array([fleet.capacity[i] / unit for i in members])
        room = np.array([max(0, fleet.room(i)) / unit for i in members])
        pool = np.repeat(np.arange(pools), [len(nodes) for nodes in self._pools])
        every = np.arange(n)
        source, target = self._place[ways.source], self._place[ways.target]
        program = Program()
        x = program.variables(np.ones(len(sizes)), whole=True)
        bottom = program.variables(np.full(pools, INFINITY))
        spreads = program.variables(np.full(pools, INFINITY))
        level = [(source, x, -sizes), (target, x, sizes), (every, bottom[pool], -capacity / SCALE)]
        program.rows(-used, np.full(n, INFINITY), level)
        program.rows(np.full(n, -INFINITY), -used, [*level, (every, spreads[pool], -capacity / SCALE)])
        program.rows(np.full(n, -INFINITY), room, [(target, x, sizes)])
        program.rows(np.full(pools, goal * SCALE), np.full(pools, INFINITY), [(np.arange(pools), spreads, np.ones(pools))])
        for apart in self._apart():
            program.rows(np.full(1, -INFINITY), np.ones(1), [(np.zeros(len(apart)), x[apart], np.ones(len(apart)))])
        return program, x, spreads

    def _apart(self) -> list[NDArray[np.int64]]:
        """Ways of which at most one may be taken: those of one object, and those of one replica group to one host."""
        ways, groups, host = self._ways, self._work.inventory.replica_group, self._work.fleet.host
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, (row, j) in enumerate(zip(ways.rows.tolist(), ways.target.tolist(), strict=True)):
            together[(row,)].append(at)
            if groups is not None and groups.codes[row] >= 0:
                together[int(groups.codes[row]), host[j]].append(at)
        return [np.array(found) for found in together.values() if len(found) > 1]

    def _limit(self, program: Program, x: Columns) -> None:
        ledger, ways = self._work.ledger, self._ways
        if len(x) > ledger.moves_left:
            program.at_most(ledger.moves_left, (x, np.ones(len(x))))
        if ways.sizes.sum() > ledger.bytes_left:
            program.at_most(ledger.bytes_left / self._unit, (x, ways.sizes / self._unit))
        costs = ways.sizes / GB * ways.prices
        if costs.sum() > ledger.cost_left:
            # In units of the budget itself: amounts may be millionths of a coin.
            scale = float(ledger.cost_left) or float(costs.max())
            program.at_most(float(ledger.cost_left) / scale, (x, costs / scale))
