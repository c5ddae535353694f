"""What the best plan could do: an exact integer program for small fleets, and the relaxed one under budgets for large ones.

Written apart from the planner: one variable an object and target, no hubs, no bands shared with it. Slow on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import highspy
import numpy as np
import pyarrow as pa

from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor
from tests.support.covering import Covering
from tests.support.silent import SilentSolver

if TYPE_CHECKING:
    from rebalance_tasks.core.models import RebalancePlan

#: Spreads and nodes in the solver's units, whose tolerance is 10⁻⁷.
SCALE: Final = 1000.0
#: Nodes of the search tree after which nobody knows.
MOST_NODES: Final = 3_000
#: The same where every other way has given up: seed 91 takes two seconds then.
MOST_NODES_AT_LAST: Final = 200_000
INF: Final = float(highspy.kHighsInf)


@dataclass(frozen=True, slots=True)
class Small:
    """A small fleet: capacities by node, sizes and nodes by object."""

    capacity: list[int]
    sizes: list[int]
    at: list[int]

    @property
    def used(self) -> list[int]:
        """Bytes on each node."""
        return [sum(s for s, p in zip(self.sizes, self.at, strict=True) if p == i) for i in range(len(self.capacity))]

    @property
    def nodes(self) -> list[NodeDescriptor]:
        """Descriptors of the nodes."""
        return [NodeDescriptor(node_id=f"n{i}", capacity_bytes=size) for i, size in enumerate(self.capacity)]

    @property
    def inventory(self) -> Inventory:
        """The objects."""
        return Inventory.from_arrow(
            pa.table(
                {
                    "object_key": [f"k{i}" for i in range(len(self.sizes))],
                    "size_bytes": pa.array(self.sizes, pa.int64()),
                    "node_id": [f"n{i}" for i in self.at],
                }
            )
        )


def small_fleet(seed: int) -> Small:
    """A random fleet of 2 to 8 nodes and 3 to 40 objects: even, lognormal or few sizes; equal or unequal capacities."""
    rng = np.random.default_rng(seed)
    nodes, objects = int(rng.integers(2, 9)), int(rng.integers(3, 41))
    sizes = (
        rng.integers(1, 1000, objects),
        np.maximum(1, rng.lognormal(5, 1.5, objects)).astype(np.int64),
        rng.choice([100, 200, 500], objects),
    )[int(rng.integers(0, 3))]
    at = rng.choice(nodes, objects, p=rng.dirichlet(np.full(nodes, 0.7)))
    ratios = np.ones(nodes) if rng.random() < 0.5 else rng.choice([1, 2, 4], nodes)
    whole = max(int(sizes.sum()) * 2 / nodes, int(sizes.max()) * 1.2)
    return Small([int(ratio * whole) for ratio in ratios], sizes.tolist(), at.tolist())


class Best:
    """The best any plan of whole objects could do on a small fleet."""

    def __init__(self, fleet: Small, max_utilisation: str = "0.95") -> None:
        unit = self._unit = sum(fleet.capacity) / len(fleet.capacity) / SCALE
        used = fleet.used
        room = [max(0, int(Fraction(max_utilisation) * c) - u) for c, u in zip(fleet.capacity, used, strict=True)]
        self._ways = [
            (o, j)
            for o, size in enumerate(fleet.sizes)
            for j in range(len(room))
            if j != fleet.at[o] and size <= room[j]
        ]
        solver = self._solver = SilentSolver()
        for _ in self._ways:
            solver.addVar(0, 1)
        for at in range(len(self._ways)):
            solver.changeColIntegrality(at, highspy.HighsVarType.kInteger)
        self._bottom, self._spread = len(self._ways), len(self._ways) + 1
        solver.addVar(0, INF)
        solver.addVar(0, INF)
        for o in range(len(fleet.sizes)):
            self._row(-INF, 1, {at: 1.0 for at, (p, _) in enumerate(self._ways) if p == o})
        for i, capacity in enumerate(fleet.capacity):
            moved = {at: fleet.sizes[o] / unit for at, (o, j) in enumerate(self._ways) if j == i}
            self._row(-INF, room[i] / unit, moved)
            moved |= {at: -fleet.sizes[o] / unit for at, (o, _) in enumerate(self._ways) if fleet.at[o] == i}
            share = capacity / unit / SCALE
            self._row(-used[i] / unit, INF, {**moved, self._bottom: -share})
            self._row(-INF, -used[i] / unit, {**moved, self._bottom: -share, self._spread: -share})
        self._total = solver.getNumRow()
        self._row(-INF, INF, {at: fleet.sizes[o] / unit for at, (o, _) in enumerate(self._ways)})
        self._row(-INF, INF, dict.fromkeys(range(len(self._ways)), 1.0))

    def reaches(
        self, spread: float, size_bytes: float | None = None, moves: int | None = None, *, nodes: int = MOST_NODES
    ) -> bool | None:
        """Whether some plan reaches a spread, with at most so many bytes and moves; None when the search was cut off.

        Asking for a plan that is better by two parts in a hundred is much quicker than looking for the best one.
        """
        solver = self._solver
        solver.setOptionValue("mip_max_nodes", nodes)
        solver.changeColBounds(self._spread, 0.0, spread * SCALE)
        most = INF if size_bytes is None else size_bytes / self._unit
        solver.changeRowBounds(self._total, -INF, most)
        solver.changeRowBounds(self._total + 1, -INF, INF if moves is None else float(moves))
        solver.run()
        match solver.getModelStatus():
            case highspy.HighsModelStatus.kOptimal:
                return True
            case highspy.HighsModelStatus.kInfeasible:
                return False
            case _:
                return None

    def _row(self, lower: float, upper: float, entries: dict[int, float]) -> None:
        columns = np.array(list(entries), np.int32)
        self._solver.addRow(lower, upper, len(columns), columns, np.array(list(entries.values()), np.float64))


def beaten_by(
    fleet: Small,
    plan: RebalancePlan,
    goal: float,
    margin: float = 0.02,
    *,
    moves: int | None = None,
    thorough: bool = False,
) -> str | None:
    """Say in what some plan is better by a margin: ``spread``, or ``bytes`` at no wider a spread; empty when none is.

    Args:
        fleet: the nodes and the objects.
        plan: that is judged.
        goal: spread below which nothing is gained.
        margin: as a share.
        moves: at most so many; None for any number.
        thorough: where the integer program is cut off, try every content of every node (not with a limit of moves), and then a larger tree.

    Returns:
        None when the search was cut off before it could tell.
    """
    best = Best(fleet)

    def reaches(spread: float, size_bytes: float | None = None) -> bool | None:
        found = best.reaches(spread, size_bytes, moves)
        if found is None and thorough and moves is None:
            found = Covering(fleet).reaches(spread, size_bytes)
        if found is None and thorough:
            found = best.reaches(spread, size_bytes, moves, nodes=MOST_NODES_AT_LAST)
        return found

    found: list[bool | None] = [False]
    if plan.imbalance_after > goal * (1 + margin):
        found.append(better := reaches(max(goal, plan.imbalance_after / (1 + margin))))
        if better:
            return "spread"
    if not plan.moves:
        return None if None in found else ""
    found.append(better := reaches(max(goal, plan.imbalance_after), plan.estimated_egress_bytes / (1 + margin)))
    if better:
        return "bytes"
    return None if None in found else ""
