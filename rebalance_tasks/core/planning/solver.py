"""A linear (or integer) program, built a block at a time and solved by HiGHS for one goal after another.

The planner's goals are ordered: each is minimised, then kept while the next one is. Deterministic: one thread, a fixed
seed, limits in nodes of the search tree and never in seconds, so that the same snapshot gives the same plan. One thread also
because Celery forks: HiGHS starts none then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import highspy
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Positions of variables.
Columns: TypeAlias = "NDArray[np.int32]"
Values: TypeAlias = "NDArray[np.float64]"

INFINITY: Final = float(highspy.kHighsInf)
#: Variables × nodes of the search tree in which an integer program must be solved, and nodes at least; the best solution
#: that was seen counts then.
_MOST_WORK: Final = 20_000
_LEAST_NODES: Final = 100
#: An integer solution this near to the bound is good enough.
_GAP: Final = 0.003
#: How far a goal may be given up for the next one, relative to its value: the solver's own rounding.
_KEEP: Final = 1e-9
_SOLVED: Final = frozenset(
    {
        highspy.HighsModelStatus.kOptimal,
        highspy.HighsModelStatus.kSolutionLimit,
        highspy.HighsModelStatus.kIterationLimit,
    }
)


class _Solver(highspy.Highs):
    """A solver that does not begin by printing its name: standard output belongs to the command that runs it."""

    def enableCallbacks(self) -> None:  # noqa: N802  the library's name; its constructor calls it and prints there
        """Be silent first."""
        self.silent()
        super().enableCallbacks()  # type: ignore[no-untyped-call]


class Program:
    """Minimise goals over x with ``lower ≤ A·x ≤ upper`` and ``0 ≤ x ≤ most``."""

    def __init__(self) -> None:
        """Begin without variables."""
        self._solver = _Solver()  # type: ignore[no-untyped-call]
        self._solver.setOptionValue("threads", 1)
        self._size = 0

    @property
    def cut_off(self) -> bool:
        """Whether the last search ended before it was complete."""
        return bool(self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal)

    def variables(self, most: Values, *, whole: bool = False) -> Columns:
        """Add variables between 0 and ``most`` (float64 (n,)); return their positions."""
        n = len(most)
        columns = np.arange(self._size, self._size + n, dtype=np.int32)
        if n:
            none = np.empty(0, np.int32)
            starts = np.zeros(n, np.int32)
            self._solver.addCols(n, np.zeros(n), np.zeros(n), most, 0, starts, none, np.empty(0))
            if whole:
                self._solver.changeColsIntegrality(n, columns, np.full(n, highspy.HighsVarType.kInteger))
        self._size += n
        return columns

    def rows(
        self,
        lower: Values,
        upper: Values,
        entries: Sequence[tuple[NDArray[np.integer], Columns, Values]],
    ) -> Columns:
        """Add constraints; return their numbers.

        Args:
            lower: float64 (m,), −∞ for none; upper likewise.
            upper: see lower.
            entries: blocks of (row in 0 … m−1, variable, coefficient), each of equal length.
        """
        first = int(self._solver.getNumRow())
        numbers = np.arange(first, first + len(lower), dtype=np.int32)
        if not len(lower):
            return numbers
        row = np.concatenate([np.asarray(block[0], np.int64) for block in entries])
        column = np.concatenate([block[1] for block in entries])
        value = np.concatenate([block[2] for block in entries]).astype(np.float64)
        order = np.lexsort((column, row))
        row, column, value = row[order], column[order], value[order]
        starts = np.searchsorted(row, np.arange(len(lower))).astype(np.int32)
        self._solver.addRows(len(lower), lower, upper, len(value), starts, column.astype(np.int32), value)
        return numbers

    def at_most(self, limit: float, costs: tuple[Columns, Values]) -> int:
        """Add one constraint, Σ cost · x ≤ limit; return its number for `limit`."""
        columns, values = costs
        self._solver.addRow(-INFINITY, limit, len(columns), columns, values)
        return int(self._solver.getNumRow()) - 1

    def limit(self, number: int, limit: float) -> None:
        """Change the limit of a constraint of `at_most`."""
        self._solver.changeRowBounds(number, -INFINITY, limit)

    def bound(self, columns: Columns, lower: Values, upper: Values) -> None:
        """Change the least and the most of some variables."""
        self._solver.changeColsBounds(len(columns), columns, lower, upper)

    def bound_rows(self, numbers: Columns, lower: Values, upper: Values) -> None:
        """Change the limits of constraints of `rows`."""
        for number, low, high in zip(numbers.tolist(), lower.tolist(), upper.tolist(), strict=True):
            self._solver.changeRowBounds(number, low, high)

    def minimise(
        self, columns: Columns, costs: Values, *, nodes: int | None = None, gap: float = _GAP, seed: int = 0
    ) -> Values | None:
        """Return the x of least Σ cost · x, float64 (all variables,); None when there is no solution at all.

        Args:
            columns: variables that cost something.
            costs: float64, one each.
            nodes: of the search tree, for an integer program; by default more where there are few variables.
            gap: to the bound at which an integer solution is good enough, as a share.
            seed: another one begins a search elsewhere.
        """
        most = max(_LEAST_NODES, _MOST_WORK // self._size) if nodes is None else nodes
        self._solver.setOptionValue("mip_max_nodes", most)
        self._solver.setOptionValue("mip_rel_gap", gap)
        self._solver.setOptionValue("random_seed", seed)
        full = np.zeros(self._size)
        full[columns] = costs
        self._solver.changeColsCost(self._size, np.arange(self._size, dtype=np.int32), full)
        self._solver.run()
        solved = self._solver.getModelStatus() in _SOLVED
        if (
            not solved
            or self._solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible
        ):
            return None
        return np.array(self._solver.getSolution().col_value)

    def minimise_and_keep(self, columns: Columns, costs: Values) -> Values | None:
        """Like `minimise`; from then on no solution may be worse in this respect."""
        found = self.minimise(columns, costs)
        if found is not None:
            reached = float(found[columns] @ costs)
            self.at_most(reached + _KEEP * max(1.0, abs(reached)), (columns, costs))
        return found

    def start_from(self, solution: Values) -> None:
        """Give an integer program a first solution to better."""
        self._solver.setSolution(self._size, np.arange(self._size, dtype=np.int32), solution)
