"""The fewest cycles in which any plan could restore balance under the budgets of a cycle: the simulation's yardstick.

For a pool whose draining nodes hold D bytes, and a band [a, a + T] of utilisation: every node above the band gives what
it has too much, every node below takes what it lacks, and D goes to whoever lacks most. So beside D at least
min over a of max(Σ(uᵢ − (a+T)·cᵢ)⁺, Σ(a·cᵢ − uᵢ)⁺ − D) bytes move. How many objects that is at least, a linear program says,
in which each node gives its largest first, cut up where need be, and what one node gives is what another takes. Real objects,
hard constraints and the day's money can only cost more.

Source: DESIGN, "Formulas" (least bytes), extended by draining nodes and by the number of objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.imbalance import is_eligible
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.planning.solver import INFINITY, Program
from rebalance_tasks.core.prices import per_gb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: Halvings of the band's place: beyond a double's digits nothing changes.
_HALVINGS: Final = 64
#: Rounding of sums of doubles, far above what thousands of nodes add up to.
_SLACK: Final = 1e-9
#: The mean node in the solver's units, whose tolerance is 10⁻⁷.
_SCALE: Final = 1e4
#: The solver's rounding, as a share and in objects.
_ROUNDING: Final = 1e-6
#: Segments of objects over all nodes, and of one node at least: more of them make the bound tighter and the program slower.
_SEGMENTS: Final = 20_000
_LEAST_SEGMENTS: Final = 64


@dataclass(frozen=True, slots=True)
class Bound:
    """What restoring balance takes at least.

    Attributes:
        cycles: the fewest; ``None`` when a budget of 0 allows nothing at all.
        bytes: that must move.
        moves: objects that must move.
        cost: money, if every byte went the cheapest way.
        by: the option that makes it more than one cycle; empty when none does.
    """

    cycles: int | None
    bytes: int
    moves: int
    cost: Decimal
    by: str = ""


def fewest_cycles(
    nodes: Sequence[NodeDescriptor],
    used: Mapping[str, int],
    inventory: Inventory,
    options: RebalancerOptions,
    *,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
    held: NDArray[np.bool_] | None = None,
) -> Bound:
    """Return the fewest cycles that bring every pool under the threshold and empty its draining nodes.

    Args:
        nodes: the fleet.
        used: node_id → bytes.
        inventory: sizes and places of the objects.
        options: threshold and the budgets of a cycle.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions.
        held: bool (n,): objects that may not leave a draining node whatever the budgets.
    """
    threshold = options.imbalance_threshold
    index = {node_id: code for code, node_id in enumerate(inventory.node_ids)}
    total_bytes = total_moves = 0
    cost = Fraction(0)
    for pool in sorted({node.pool for node in nodes}):
        members = [node for node in nodes if node.pool == pool and is_eligible(node)]
        leavers = [node for node in nodes if node.pool == pool and node.state is NodeState.DRAINING]
        if not members:
            continue
        here = inventory.node_index
        sizes = [inventory.size_bytes[here == index.get(node.node_id, -1)] for node in members]
        away = np.isin(here, [index[node.node_id] for node in leavers if node.node_id in index])
        if held is not None:
            away &= ~held
        leaving, objects = int(inventory.size_bytes[away].sum()), int(away.sum())
        band = _Band(members, used, threshold, leaving)
        needed = leaving + band.least_bytes()
        if not needed and not objects:
            continue
        total_bytes += needed
        total_moves += objects + band.least_moves(sizes)
        cost += Fraction(_cheapest([*members, *leavers], members, prices or {})) * needed / 10**9
    return _bound(total_bytes, total_moves, cost, options)


def _bound(size_bytes: int, moves: int, cost: Fraction, options: RebalancerOptions) -> Bound:
    wanted = (
        ("max_egress_bytes_per_cycle", Fraction(size_bytes), Fraction(options.max_egress_bytes_per_cycle)),
        ("max_moves_per_cycle", Fraction(moves), Fraction(options.max_moves_per_cycle)),
        ("max_cost_per_cycle", cost, Fraction(options.max_cost_per_cycle)),
    )
    cycles: int | None = 1 if size_bytes or moves else 0
    by = ""
    for name, need, budget in wanted:
        if need and not budget:
            cycles, by = None, name
            break
        least = -(-need // budget) if need else 0
        if cycles is not None and least > cycles:
            cycles, by = int(least), name
    money = Decimal(cost.numerator) / Decimal(cost.denominator)
    return Bound(cycles, size_bytes, moves, money, by)


def _cheapest(
    sources: Sequence[NodeDescriptor], targets: Sequence[NodeDescriptor], prices: Mapping[tuple[str, str], Decimal]
) -> Decimal:
    """Money for 10⁹ bytes on the cheapest way within a pool."""
    pairs = ((s, t) for s in sources for t in targets if s.node_id != t.node_id)
    return min((per_gb(source, target, prices) for source, target in pairs), default=Decimal(0))


class _Band:
    """The taking nodes of one pool, and the band of utilisation they are to end in."""

    def __init__(
        self, members: Sequence[NodeDescriptor], used: Mapping[str, int], threshold: float, leaving: int
    ) -> None:
        self.used = np.array([used[node.node_id] for node in members], np.float64)
        self.capacity = np.array([node.capacity_bytes or 1 for node in members], np.float64)
        self.share = self.used / self.capacity
        self.threshold, self.leaving = threshold, float(leaving)

    def give(self, a: float) -> NDArray[np.float64]:
        return np.maximum(0.0, self.used - (a + self.threshold) * self.capacity)

    def lacking(self, a: float) -> float:
        return float(np.maximum(0.0, a * self.capacity - self.used).sum()) - self.leaving

    def least_bytes(self) -> int:
        """Bytes that must move between taking nodes, beside what leaves the draining ones."""
        return int(self._meeting(lambda a: float(self.give(a).sum()), self.lacking) * (1 - _SLACK))

    def least_moves(self, sizes: Sequence[NDArray[np.int64]]) -> int:
        """Objects that must move between taking nodes; ``sizes`` holds those of each, in the order of the members.

        All of use, where even they do not suffice.
        """
        n, unit = len(self.used), float(self.capacity.mean()) / _SCALE
        most = max(_LEAST_SEGMENTS, _SEGMENTS // n)
        segments = [_segments(self._of_use(own), most) for own in sizes]
        objects = np.concatenate([counts for _, counts in segments])
        given = np.concatenate([largest for largest, _ in segments]) / unit
        giver = np.repeat(np.arange(n), [len(counts) for _, counts in segments])
        program = Program()
        x = program.variables(objects)
        taken, bottom = program.variables(np.full(n, INFINITY)), program.variables(np.full(1, INFINITY))
        every, all_zero = np.arange(n), np.zeros(max(n, len(x)), np.int64)
        level = [
            (giver, x, -given),
            (every, taken, np.ones(n)),
            (every, np.full(n, bottom[0]), -self.capacity / unit / _SCALE),
        ]
        lowest = -self.used / unit
        program.rows(lowest, lowest + self.threshold * self.capacity / unit, level)
        arriving = np.full(1, self.leaving / unit)
        program.rows(arriving, arriving, [(all_zero[:n], taken, np.ones(n)), (all_zero[: len(x)], x, -given)])
        found = program.minimise(x, np.ones(len(x)))
        return int(objects.sum() if found is None else np.ceil(found[x].sum() * (1 - _ROUNDING) - _ROUNDING))

    def _of_use(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What could lie elsewhere in the end, the largest first: no node is then fuller than the mean and a threshold."""
        mean = (self.used.sum() + self.leaving) / self.capacity.sum()
        most = (mean + self.threshold) * self.capacity.max() * (1 + _SLACK)
        return np.sort(sizes[(sizes > 0) & (sizes <= most)])[::-1]

    def _meeting(self, falling: Callable[[float], float], rising: Callable[[float], float]) -> float:
        """Return the least over ``a`` of max(falling(a), rising(a), 0): where the two meet, to the last digit."""
        low, high = float(self.share.min()) - self.threshold, float(self.share.max())
        if falling(low) <= 0:
            return 0.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if falling(middle) > max(0.0, rising(middle)):
                low = middle
            else:
                high = middle
        return min(falling(low), max(0.0, rising(high)))


def _segments(sizes: NDArray[np.int64], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (bytes an object, objects) of about so many segments: each object counts as much as its segment's first."""
    if not len(sizes):
        return np.empty(0), np.empty(0)
    ends = np.unique(np.geomspace(1, len(sizes), min(most, len(sizes))).astype(np.int64))
    begins = np.concatenate([[0], ends[:-1]])
    return sizes[begins].astype(np.float64), np.diff(ends, prepend=0).astype(np.float64)
