"""Few objects, planned whole: an integer program says how many of each kind go where.

Where a node holds a handful of large objects, flows of water mislead. As long as there are few enough ways to place them,
all of them are weighed at once, under the same goals in the same order as the flows: smallest spread, fewest bytes, least
money, and among equals least gravity and fewest moves. The answer is within the solver's gap (0.3 %) of the best there is,
or the best that was seen in a bounded search.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.options import GB
from rebalance_tasks.core.planning.fill import Preferred
from rebalance_tasks.core.planning.flow import SCALE
from rebalance_tasks.core.planning.search import Shape, improve, search
from rebalance_tasks.core.planning.solver import INFINITY, Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.candidates import Eligibility
    from rebalance_tasks.core.planning.solver import Columns, Values
    from rebalance_tasks.core.planning.state import Work

#: Ways to place a kind of object, over all kinds: with more of them the search takes too long, and water is a better model.
_MOST_WAYS: Final = 600
#: Objects beyond which nobody looks for kinds.
_MOST_OBJECTS: Final = 5_000
#: Spread that is the solver's rounding.
_ROUNDING: Final = 1e-9
#: Where the goal is out of reach, the smallest spread is met to within this share, and so are bytes before money.
ENOUGH: Final = 0.005
#: What an object is held by, the way it goes and the move itself count so much beside its bytes: they break ties.
_TIE: Final = 0.001


def balance_exactly(work: Work, eligibility: Eligibility, pools: list[list[int]], *, goal: float, known: float) -> bool:
    """Bring pools with few objects to the goal, or as near as budgets and objects allow.

    Args:
        work: what there is to move, and the ledger to stay within.
        eligibility: the hard constraints.
        pools: taking nodes of each pool.
        goal: spread.
        known: spread that another way reaches; what is found is to be no wider and take fewer bytes.

    Returns:
        Whether there were few enough to try.
    """
    if sum(len(work.candidates.get(i, ())) for members in pools for i in members) > _MOST_OBJECTS:
        return False
    ways = Ways(work, eligibility, pools)
    if len(ways.kind) > _MOST_WAYS or not len(ways.kind):
        return False
    taken = _Problem(work, pools, ways).solve(goal, known)
    if taken is None:
        return False
    for i, j, rows in ways.chosen(taken):
        work.candidates[i] = work.candidates[i][~np.isin(work.candidates[i], rows)]
        work.book(rows, i, j, "whole")
    if max(work.fleet.spread(members) for members in pools) > goal:
        _note_what_binds(work, ways)
    return True


def _note_what_binds(work: Work, ways: Ways) -> None:
    """Note each budget that has no room left for the smallest thing that could still be done."""
    ledger = work.ledger
    if not ledger.moves_left:
        ledger.note_moves()
    ledger.affordable(int(ways.sizes.min()), Decimal(0))
    cheapest = int(np.argmin(ways.sizes * ways.prices))
    price = work.fleet.per_gb(int(ways.source[cheapest]), int(ways.target[cheapest]))
    ledger.affordable(int(ways.sizes[cheapest]), price)


class Ways:
    """Every (kind of object, target) that no hard constraint forbids, as columns of equal length.

    Objects on one node that have one size and may go to the same nodes are of one kind, and only their number counts: the
    search need not try them in each order. Of a kind the lightest leave first. Each replica is a kind of its own.

    Attributes:
        kind: int64 (ways,), index into ``objects`` and ``counts``; source and target likewise: nodes.
        sizes: float64 (ways,); gravity, prices (for 10⁹ bytes) and distances likewise.
        objects: rows of each kind, the lightest first.
        counts: float64 (kinds,), how many that are.
    """

    def __init__(self, work: Work, eligibility: Eligibility, pools: list[list[int]]) -> None:
        """Find the kinds."""
        kind: list[int] = []
        pairs: list[tuple[int, int]] = []
        self.objects: list[NDArray[np.int64]] = []
        for members in pools:
            for i in members:
                for rows, targets in _kinds(work, eligibility, i, members):
                    kind += [len(self.objects)] * len(targets)
                    pairs += [(i, j) for j in targets]
                    self.objects.append(rows)
        self._preferred = [Preferred(work, members) for members in pools]
        self._pool = {i: at for at, members in enumerate(pools) for i in members}
        self._sizes = work.inventory.size_bytes
        self.kind = np.array(kind, np.int64)
        self.source, self.target = np.array(pairs, np.int64).reshape(-1, 2).T
        self.counts = np.array([len(rows) for rows in self.objects], np.float64)
        self.sizes = np.array([self._sizes[rows[0]] for rows in self.objects], np.float64)[self.kind]
        self.gravity = np.array([work.gravity[rows].mean() for rows in self.objects], np.float64)[self.kind]
        self.prices = np.array([float(work.fleet.per_gb(i, j)) for i, j in pairs])
        self.distances = np.array([float(work.fleet.distance(i, j)) for i, j in pairs])

    def chosen(self, taken: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Yield (source, target, rows) for a number of objects by way, int64 (ways,): where placement prefers, if it may."""
        found: dict[tuple[int, int], list[NDArray[np.int64]]] = defaultdict(list)
        for kind in np.unique(self.kind[taken > 0]).tolist():
            ways = np.flatnonzero((self.kind == kind) & (taken > 0))
            rows = self.objects[kind][: int(taken[ways].sum())]
            leaving = self._preferred[self._pool[int(self.source[ways[0]])]].targets(rows, int(self._sizes[rows].sum()))
            for way in ways.tolist():
                i, j = int(self.source[way]), int(self.target[way])
                order = np.argsort(leaving.rank(rows, j), kind="stable")
                found[i, j].append(rows[order[: taken[way]]])
                rows = np.sort(rows[order[taken[way] :]])
        for (i, j), parts in sorted(found.items()):
            yield i, j, np.concatenate(parts)


def _kinds(
    work: Work, eligibility: Eligibility, i: int, members: list[int]
) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """Yield the kinds of objects on a node: rows, the lightest first, and the nodes that may take them."""
    rows = work.candidates.get(i, np.empty(0, np.int64))
    targets = [j for j in members if j != i]
    if not len(rows) or not targets:
        return
    sizes = work.inventory.size_bytes[rows]
    may_go = np.array([(sizes <= work.fleet.room(j)) & eligibility.allowed_alone(rows, i, j) for j in targets])
    groups = work.inventory.replica_group
    alone = np.zeros(len(rows), np.int64) if groups is None else np.where(groups.codes[rows] >= 0, rows + 1, 0)
    traits = np.column_stack([sizes, alone, *may_go.astype(np.int64)])
    _, code = np.unique(traits, axis=0, return_inverse=True)
    for kind in range(int(code.max()) + 1):
        these = np.flatnonzero(code.ravel() == kind)
        if may_go[:, these[0]].any():
            order = np.argsort(work.gravity[rows[these]], kind="stable")
            yield rows[these[order]], [j for j, may in zip(targets, may_go[:, these[0]].tolist(), strict=True) if may]


class _Problem:
    """The integer program over some ways."""

    def __init__(self, work: Work, pools: list[list[int]], ways: Ways) -> None:
        self._work = work
        self._pools = pools
        self._ways = ways
        self._members = [i for members in pools for i in members]
        self._place = np.full(len(work.fleet.nodes), -1, np.int64)
        self._place[self._members] = np.arange(len(self._members))
        self._unit = sum(work.fleet.capacity[i] for i in self._members) / len(self._members) / SCALE

    def solve(self, goal: float, known: float) -> NDArray[np.int64] | None:
        """Return int64 (ways,): how many objects go each way; None without a solution."""
        program, shape, spreads = self._program(goal)
        x = shape.x
        self._limit(program, x)
        ways, ones = self._ways, np.ones(len(spreads))
        near = goal * SCALE * len(spreads) * (1 + _ROUNDING)
        found = search(program, spreads, ones, shape=shape, least=near)
        if found is None:
            return None
        program.at_most(self._widest(float(found[spreads].sum()), near, known), (spreads, ones))
        goals = [self._bytes()]
        if np.ptp(ways.prices):
            goals = [ways.sizes, ways.sizes * ways.prices, *goals]
        for costs in goals:
            # The solver's gaps are relative.
            scaled = costs / costs.max()
            program.start_from(found)
            better = program.minimise(x, scaled)
            cut_off, found = program.cut_off, found if better is None else better
            if cut_off:
                found = improve(program, found, x, scaled, shape=shape)
            program.at_most(float(found[x] @ scaled) * (1 + _TIE) + _ROUNDING, (x, scaled))
        return np.rint(found[x]).astype(np.int64)

    def _widest(self, reached: float, near: float, known: float) -> float:
        """How wide the spreads may be while bytes are saved, all in the program's units but for ``known``."""
        if reached <= near:
            return near
        # Out of reach, the last hair of spread may cost more bytes than all the rest.
        widest = reached * (1 + ENOUGH)
        if len(self._pools) > 1:
            return widest
        # The solver's gap may hide a spread that is there.
        return min(widest, max(near, known * SCALE * (1 + _ROUNDING)))

    def _bytes(self) -> Values:
        """Bytes of each way; what decides among nearly equal numbers of bytes adds less than the solver's gap to them.

        A search of its own for each of those goals would take as long as the one for bytes.
        """
        ways = self._ways
        costs: Values = ways.sizes * (1 + _TIE * (ways.gravity + ways.distances / 2)) + _TIE * ways.sizes.mean()
        return costs

    def _program(self, goal: float) -> tuple[Program, Shape, Columns]:
        fleet, members, ways, unit = self._work.fleet, self._members, self._ways, self._unit
        n, pools = len(members), len(self._pools)
        sizes = ways.sizes / unit
        used = np.array([fleet.used[i] / unit for i in members])
        capacity = np.array([fleet.capacity[i] / unit for i in members]) / SCALE
        room = np.array([max(0, fleet.room(i)) / unit for i in members])
        pool = np.repeat(np.arange(pools), [len(nodes) for nodes in self._pools])
        every = np.arange(n)
        source, target = self._place[ways.source], self._place[ways.target]
        program = Program()
        x = program.variables(ways.counts[ways.kind], whole=True)
        bottom = program.variables(np.full(pools, INFINITY))
        spreads = program.variables(np.full(pools, INFINITY))
        level = [(source, x, -sizes), (target, x, sizes), (every, bottom[pool], -capacity)]
        program.rows(-used, np.full(n, INFINITY), level)
        program.rows(np.full(n, -INFINITY), -used, [*level, (every, spreads[pool], -capacity)])
        program.rows(np.full(n, -INFINITY), room, [(target, x, sizes)])
        lowest = np.full(pools, goal * SCALE)
        program.rows(lowest, np.full(pools, INFINITY), [(np.arange(pools), spreads, np.ones(pools))])
        kinds = program.rows(np.full(len(ways.counts), -INFINITY), ways.counts, [(ways.kind, x, np.ones(len(x)))])
        for apart in self._apart():
            program.at_most(1.0, (x[apart], np.ones(len(apart))))
        home = np.zeros(len(ways.counts), np.int64)
        home[ways.kind] = source
        together = [self._place[nodes].tolist() for nodes in self._pools]
        return program, Shape(x, ways.kind, target, home, ways.counts, kinds, together), spreads

    def _apart(self) -> list[NDArray[np.int64]]:
        """Ways of which at most one may be taken: those of one replica group to one host."""
        ways, groups, host = self._ways, self._work.inventory.replica_group, self._work.fleet.host
        if groups is None:
            return []
        together: dict[tuple[int, int], list[int]] = defaultdict(list)
        for at, (kind, j) in enumerate(zip(ways.kind.tolist(), ways.target.tolist(), strict=True)):
            if (code := int(groups.codes[ways.objects[kind][0]])) >= 0:
                together[code, host[j]].append(at)
        return [np.array(found) for found in together.values() if len(found) > 1]

    def _limit(self, program: Program, x: Columns) -> None:
        ledger, ways = self._work.ledger, self._ways
        most = ways.counts[ways.kind]
        if most.sum() > ledger.moves_left:
            program.at_most(ledger.moves_left, (x, np.ones(len(x))))
        if (ways.sizes * most).sum() > ledger.bytes_left:
            program.at_most(ledger.bytes_left / self._unit, (x, ways.sizes / self._unit))
        costs = ways.sizes / GB * ways.prices
        if (costs * most).sum() > ledger.cost_left:
            # In units of the budget itself: amounts may be millionths of a coin.
            scale = float(ledger.cost_left) or float(costs.max())
            program.at_most(float(ledger.cost_left) / scale, (x, costs / scale))
