"""Better plans of whole objects from one that is there: all nodes but a few stay as they are, the few are planned anew.

An integer program over eight nodes and forty objects is too large to search through, one over three of the nodes is solved in a
few milliseconds. So each pair of nodes, then each three, then each four is asked whether it could do better by itself, until
none can; in the end all are asked for anything that is clearly better. That finds in a hundred small searches what a long
one over all nodes does not.

Source: Shaw, Using Constraint Programming and Local Search Methods to Solve Vehicle Routing Problems (1998); docs/adr/0025.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planning.solver import INFINITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.solver import Columns, Program, Values

#: Nodes that are planned anew together; more of them are hardly ever solved in the tree below.
_SIZES: Final = (2, 3, 4)
#: Sets of one size beyond which nobody asks them all; pairs are always asked.
_MOST_SETS: Final = 100
#: Nodes of the search tree for one set, and the solver's gap there.
_NODES: Final = 60
_GAP: Final = 1e-4
#: How much better a solution must be: less would go on for ever without being of use to anybody.
_STEP: Final = 0.001
#: All nodes are asked for something that is better by so much, in so many nodes of the tree.
_CLEARLY: Final = 0.012
_MORE_NODES: Final = 3_000
#: Beginnings, each with a seed of its own.
_BEGINNINGS: Final = 4
#: Searches in all from one beginning: the plan of a fleet takes seconds, not minutes.
_MOST_SEARCHES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Shape:
    """Which variable of a program is which way, and which of its rows keeps each kind within its number.

    Attributes:
        x: variables (ways,).
        kind: int64 (ways,), positions in ``counts``.
        target: int64 (ways,), nodes.
        source: int64 (kinds,), nodes.
        counts: float64 (kinds,), objects of each kind.
        rows: of the program, (kinds,): Σ x over the ways of a kind.
        pools: nodes that exchange objects, each a list.
    """

    x: Columns
    kind: NDArray[np.int64]
    target: NDArray[np.int64]
    source: NDArray[np.int64]
    counts: Values
    rows: Columns
    pools: list[list[int]]

    def free(self, program: Program, found: Values, nodes: list[int]) -> None:
        """Let some nodes exchange what they hold under a solution; what others hold stays there."""
        taken = np.rint(found[self.x])
        most = self.counts[self.kind]
        inside = np.isin(self.target, nodes)
        program.bound(self.x, np.where(inside, 0.0, taken), np.where(inside, most, taken))
        gone = np.bincount(self.kind, weights=taken, minlength=len(self.counts))
        # What lies on a node outside may not come back to it, nor may more of it leave.
        home = np.isin(self.source, nodes)
        program.bound_rows(self.rows, np.where(home, -INFINITY, gone), np.where(home, self.counts, gone))

    def free_all(self, program: Program) -> None:
        """Let all nodes exchange what they hold."""
        program.bound(self.x, np.zeros(len(self.x)), self.counts[self.kind])
        program.bound_rows(self.rows, np.full(len(self.rows), -INFINITY), self.counts)


def search(program: Program, columns: Columns, costs: Values, *, shape: Shape, least: float) -> Values | None:
    """Return the solution of the least Σ cost · x that was found from several beginnings; None when there is none at all.

    Two beginnings that end alike are taken for the best there is.

    Args:
        program: what a solution must keep to.
        columns: variables that cost something.
        costs: float64, one each.
        shape: what the variables mean.
        least: cost below which nothing is gained.
    """
    ends: list[tuple[float, Values]] = []
    for seed in range(_BEGINNINGS):
        found = program.minimise(columns, costs, seed=seed)
        if found is None or not program.cut_off:
            return found
        found = _by_few(program, found, columns, costs, shape=shape, least=least)
        reached = float(found[columns] @ costs)
        alike = any(abs(reached - other) <= _STEP * other for other, _ in ends)
        ends.append((reached, found))
        if alike or reached <= least:
            break
    found = min(ends, key=lambda end: end[0])[1]
    return _by_all(program, found, columns, costs, shape=shape, least=least)


def improve(
    program: Program, found: Values, columns: Columns, costs: Values, *, shape: Shape, least: float = 0.0
) -> Values:
    """Return a solution that no few nodes can better by themselves, nor, as far as is known, all of them together.

    Args:
        program: whose search for the least Σ cost · x was cut off.
        found: its best solution so far.
        columns: variables that cost something.
        costs: float64, one each.
        shape: what the variables mean.
        least: cost below which nothing is gained.
    """
    found = _by_few(program, found, columns, costs, shape=shape, least=least)
    return _by_all(program, found, columns, costs, shape=shape, least=least)


def _by_all(program: Program, found: Values, columns: Columns, costs: Values, *, shape: Shape, least: float) -> Values:
    """Ask all nodes for anything that is better by a step, and go on from there, until nothing turns up."""
    limit = program.at_most(INFINITY, (columns, costs))
    while (reached := float(found[columns] @ costs)) > least:
        program.limit(limit, max(least, reached * (1 - _CLEARLY)))
        better = program.minimise(columns, np.zeros(len(columns)), nodes=_MORE_NODES)
        if better is None:
            break
        found = _by_few(program, better, columns, costs, shape=shape, least=least)
    program.limit(limit, INFINITY)
    return found


def _by_few(program: Program, found: Values, columns: Columns, costs: Values, *, shape: Shape, least: float) -> Values:
    reached = float(found[columns] @ costs)
    limit = program.at_most(reached, (columns, costs))
    searches = 0
    for sets in _sets(shape.pools):
        unchanged, at = 0, 0
        while unchanged < len(sets) and reached > least and searches < _MOST_SEARCHES:
            shape.free(program, found, sets[at])
            program.limit(limit, max(least, reached * (1 - _STEP)))
            better = program.minimise(columns, costs, nodes=_NODES, gap=_GAP)
            if better is not None:
                found, reached = better, float(better[columns] @ costs)
            unchanged = unchanged + 1 if better is None else 0
            at, searches = (at + 1) % len(sets), searches + 1
    shape.free_all(program)
    program.limit(limit, INFINITY)
    return found


def _sets(pools: list[list[int]]) -> Iterator[list[list[int]]]:
    """Yield the sets of nodes to ask, all of one size at a time."""
    for size in _SIZES:
        asked = [
            pool for pool in pools if size == _SIZES[0] or (size < len(pool) and comb(len(pool), size) <= _MOST_SETS)
        ]
        yield [list(nodes) for pool in asked for nodes in combinations(pool, size)]
