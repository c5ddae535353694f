"""How many bytes each node should give or take, and between which pairs, as if objects were water.

A band [bottom, top] of utilisation is laid through the pool; what stands above it flows to where the band is not reached.
The band is the one that needs the fewest bytes (`imbalance.least_bytes` is its yardstick). Floats guide here; the
filling step decides with exact byte counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rebalance_tasks.core.planner_state import Fleet

#: Halvings of [0, 1]-sized intervals: finer than the last bit of a double.
_HALVINGS: Final = 64


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool's taking nodes as float columns; ``movable`` bytes may leave a node, ``room`` bytes may enter it."""

    members: list[int]
    used: NDArray[np.float64]
    capacity: NDArray[np.float64]
    movable: NDArray[np.float64]
    room: NDArray[np.float64]

    def above(self, level: float) -> NDArray[np.float64]:
        """Bytes each node can give to come down to a level."""
        return np.minimum(np.maximum(self.used - level * self.capacity, 0.0), self.movable)

    def below(self, level: float) -> NDArray[np.float64]:
        """Bytes each node can take to come up to a level."""
        return np.minimum(np.maximum(level * self.capacity - self.used, 0.0), self.room)

    def low_high(self) -> tuple[float, float]:
        """An interval that holds every level that matters."""
        shares = self.used / self.capacity
        return float(shares.min()), float(max(shares.max(), 1.0))


def _last_true(test: Callable[[float], bool], low: float, high: float) -> float:
    """Return the largest level at which a test that turns from true to false still holds (``low`` if nowhere)."""
    if test(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if test(middle) else (low, middle)
    return low


def balance(pool: Pool, goal: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (give, take), float64 per node, of least total bytes that brings the spread to ``goal`` or as near as can be.

    Where a node cannot give enough (protected, pinned) the band's top stays at what it keeps and the bottom follows;
    where a node cannot take, the other way round.
    """
    low, high = pool.low_high()
    level = _last_true(lambda a: float(pool.above(a + goal).sum()) >= float(pool.below(a).sum()), low - goal, high)
    even = _last_true(lambda a: float(pool.above(a).sum()) >= float(pool.below(a).sum()), low, high)
    stuck_high = float(((pool.used - pool.movable) / pool.capacity).max())
    stuck_low = float(((pool.used + pool.room) / pool.capacity).min())
    top, bottom = max(level + goal, stuck_high), min(level, stuck_low)
    if top > level + goal:
        bottom = min(max(level, top - goal), even, stuck_low)
    elif bottom < level:
        top = max(min(level + goal, bottom + goal), even, stuck_high)
    amount = max(float(pool.above(top).sum()), float(pool.below(bottom).sum()))
    amount = min(amount, float(pool.above(even).sum()), float(pool.below(even).sum()))
    return drawn(pool, amount), poured(pool, amount)


def poured(pool: Pool, amount: float) -> NDArray[np.float64]:
    """Return bytes per node, float64, when an amount is poured in: the emptiest fill up to one common level."""
    low, high = pool.low_high()
    level = _last_true(lambda a: float(pool.below(a).sum()) <= amount, low, high)
    return pool.below(level)


def drawn(pool: Pool, amount: float) -> NDArray[np.float64]:
    """Return bytes per node, float64, when an amount is drawn off: the fullest come down to one common level."""
    low, high = pool.low_high()
    level = -_last_true(lambda a: float(pool.above(-a).sum()) <= amount, -high, -low)
    return pool.above(level)


def pair_order(fleet: Fleet, sources: list[int], targets: list[int]) -> list[tuple[int, int]]:
    """Return all (source, target) pairs, cheapest egress first, then within the zone, then within the region."""
    return sorted(
        ((i, j) for i in sources for j in targets if i != j),
        key=lambda pair: (fleet.per_gb(*pair), fleet.distance(*pair), pair),
    )


def transport(order: list[tuple[int, int]], give: dict[int, int], take: dict[int, int]) -> list[tuple[int, int, int]]:
    """Match givers and takers along an order of pairs; return (source, target, bytes).

    Each pair exhausts a giver or a taker, so there are at most givers + takers − 1 of them: few, fat groups.
    """
    give, take = dict(give), dict(take)
    out = []
    for i, j in order:
        amount = min(give[i], take[j])
        if amount > 0:
            out.append((i, j, amount))
            give[i] -= amount
            take[j] -= amount
    return out
