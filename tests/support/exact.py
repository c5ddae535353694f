"""What the best plan could do: an exact integer program for small fleets, and the relaxed one under budgets for large ones.

Written apart from the planner: one variable an object and target, no hubs, no bands shared with it. Slow on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import highspy
import numpy as np
import pyarrow as pa

from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Spreads and nodes in the solver's units, whose tolerance is 10⁻⁷.
SCALE: Final = 1000.0
#: The reference is itself within this of the optimum.
GAP: Final = 1e-3
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

    def __init__(self, fleet: Small, goal: float, max_utilisation: str = "0.95") -> None:
        self.goal = goal
        unit = sum(fleet.capacity) / len(fleet.capacity) / SCALE
        used = fleet.used
        room = [max(0, int(Fraction(max_utilisation) * c) - u) for c, u in zip(fleet.capacity, used, strict=True)]
        self._ways = [
            (o, j)
            for o, size in enumerate(fleet.sizes)
            for j in range(len(room))
            if j != fleet.at[o] and size <= room[j]
        ]
        self._bytes = np.array([fleet.sizes[o] for o, _ in self._ways], np.float64)
        solver = self._solver = highspy.Highs()
        solver.silent()
        for name, value in (("threads", 1), ("mip_rel_gap", GAP), ("mip_max_nodes", 20_000)):
            solver.setOptionValue(name, value)
        for _ in self._ways:
            solver.addVar(0, 1)
        for at in range(len(self._ways)):
            solver.changeColIntegrality(at, highspy.HighsVarType.kInteger)
        self._bottom, self._spread = len(self._ways), len(self._ways) + 1
        solver.addVar(0, INF)
        solver.addVar(goal * SCALE, INF)
        for o in range(len(fleet.sizes)):
            self._row(-INF, 1, {at: 1.0 for at, (p, _) in enumerate(self._ways) if p == o})
        for i, capacity in enumerate(fleet.capacity):
            moved = {at: fleet.sizes[o] / unit for at, (o, j) in enumerate(self._ways) if j == i}
            self._row(-INF, room[i] / unit, moved)
            moved |= {at: -fleet.sizes[o] / unit for at, (o, _) in enumerate(self._ways) if fleet.at[o] == i}
            share = capacity / unit / SCALE
            self._row(-used[i] / unit, INF, {**moved, self._bottom: -share})
            self._row(-INF, -used[i] / unit, {**moved, self._bottom: -share, self._spread: -share})

    def spread(self) -> float:
        """The smallest spread ≥ the goal."""
        costs = np.zeros(self._spread + 1)
        costs[self._spread] = 1.0
        return max(self.goal, float(self._least(costs)[self._spread]) / SCALE)

    def least_bytes(self, spread: float) -> int:
        """The fewest bytes that bring the spread down to this."""
        self._solver.changeColBounds(self._spread, 0.0, spread * SCALE + 1e-6)
        found = self._least(
            np.concatenate([self._bytes / self._bytes.max(), [0.0, 0.0]]) if len(self._bytes) else np.zeros(2)
        )
        return int(self._bytes[found[: len(self._ways)] > 0.5].sum())

    def _least(self, costs: NDArray[np.float64]) -> NDArray[np.float64]:
        self._solver.changeColsCost(len(costs), np.arange(len(costs), dtype=np.int32), costs)
        self._solver.run()
        return np.array(self._solver.getSolution().col_value)

    def _row(self, lower: float, upper: float, entries: dict[int, float]) -> None:
        columns = np.array(list(entries), np.int32)
        self._solver.addRow(lower, upper, len(columns), columns, np.array(list(entries.values()), np.float64))


def shortfall(fleet: Small, plan: Any, goal: float) -> tuple[float, float]:
    """Compare a plan with the best: (spread ÷ best spread, bytes ÷ fewest bytes for the spread it reached), 1 is best."""
    best = Best(fleet, goal)
    reached = max(goal, plan.imbalance_after)
    spread = reached / max(best.spread(), 1e-12)
    least = best.least_bytes(reached)
    return spread, plan.estimated_egress_bytes / least if least else float(plan.estimated_egress_bytes == 0)
