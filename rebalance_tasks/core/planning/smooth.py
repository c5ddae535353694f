"""A smooth spread, log Σ exp(βx) + log Σ exp(−βx) over the utilisations x, of many exchanges of moves at once.

Unlike max − min it falls when one of several fullest nodes gets emptier, so that a search by single exchanges sees where to go. The
larger β, the nearer it is to the real one. Guides only: what is chosen is checked with exact byte counts.

Source: Boyd, Vandenberghe, Convex Optimization (2004) §3.1.5, log-sum-exp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.solver import Values

    Rows = NDArray[np.int64]

#: An exchange changes four nodes at most.
_APART: Final = 5
#: Exponents beyond it would overflow a double.
_FARTHEST: Final = 600.0


def smooth_spread(shares: Values, beta: float) -> float:
    """Return the smooth spread of some utilisations, float64 (nodes,)."""
    x = beta * (shares - shares.mean())
    return float(np.log(_exp(x).sum()) + np.log(_exp(-x).sum())) / beta


class Without:
    """Utilisations with one move given up, a row each, and what follows from them.

    Attributes:
        shares: float64 (moves + 1, nodes); the last row gives up none.
    """

    def __init__(self, shares: Values, capacity: Values, moves: tuple[Rows, Rows, Rows], beta: float) -> None:
        """Give up each move.

        Args:
            shares: utilisations as things are, float64 (nodes,).
            capacity: bytes, float64 (nodes,).
            moves: source, target (both numbers of nodes) and bytes of each, int64 (moves,).
            beta: sharpness, > 0.
        """
        source, target, sizes = moves
        every = np.arange(len(sizes))
        self.shares = np.tile(shares, (len(sizes) + 1, 1))
        self.shares[every, source] += sizes / capacity[source]
        self.shares[every, target] -= sizes / capacity[target]
        self._lowest, self._highest = float(shares.min()), float(shares.max())
        self._capacity, self._beta, self._mean = capacity, beta, shares.mean()
        # Giving up none changes no node.
        self._ends = np.append(source, -1), np.append(target, -1)
        self._sides = [_Side(_exp(sign * beta * (shares - self._mean))) for sign in (1.0, -1.0)]

    def inside(self, move: Rows, source: Rows, target: Rows, size: Rows) -> NDArray[np.bool_]:
        """Tell which exchanges make no node fuller than the fullest is now, or emptier than the emptiest.

        Args:
            move: that is given up, int64 (n,).
            source: of the move that is made instead; target and size, bytes, likewise.
            target: see source.
            size: see source.
        """
        inside = self.shares[move, source] - size / self._capacity[source] >= self._lowest
        inside &= self.shares[move, target] + size / self._capacity[target] <= self._highest
        for ends in self._ends:
            end = ends[move]
            share = self.shares[move, end]
            apart = (end >= 0) & (end != source) & (end != target)
            inside &= ~apart | ((share >= self._lowest) & (share <= self._highest))
        return inside

    def smooth(self, move: Rows, source: Rows, target: Rows, size: Rows) -> Values:
        """Return the smooth spread after exchanges, float64 (n,); arguments as those of `inside`."""
        changed = [source, target]
        after = [
            self.shares[move, source] - size / self._capacity[source],
            self.shares[move, target] + size / self._capacity[target],
        ]
        for ends in self._ends:
            end = ends[move]
            # A node that changes twice counts once.
            changed.append(np.where((end == source) | (end == target), -1, end))
            after.append(self.shares[move, end])
        total = np.zeros(len(move))
        for sign, side in zip((1.0, -1.0), self._sides, strict=True):
            levels = side.others(changed)
            for node, share in zip(changed, after, strict=True):
                levels += np.where(node < 0, 0.0, _exp(sign * self._beta * (share - self._mean)))
            total += np.log(levels)
        return total / self._beta


class _Side:
    """Sums of exponentials over all nodes but a few, without losing the small ones beside the large."""

    def __init__(self, levels: Values) -> None:
        """Keep the largest apart: one more than can be left out at a time, so that subtracting never takes all there is."""
        self._largest = np.argsort(-levels, kind="stable")[:_APART]
        self._levels, self._rest = levels, levels.copy()
        self._rest[self._largest] = 0.0
        self._sum = float(self._rest.sum())

    def others(self, left_out: list[Rows]) -> Values:
        """Return Σ over the nodes that are not in any of the columns, float64; −1 in a column is no node."""
        rest = np.append(self._rest, 0.0)
        total: Values = np.maximum(0.0, self._sum - np.sum([rest[nodes] for nodes in left_out], axis=0))
        for node in self._largest.tolist():
            total += np.where(np.any([nodes == node for nodes in left_out], axis=0), 0.0, self._levels[node])
        return total


def _exp(values: Values) -> Values:
    found: Values = np.exp(np.clip(values, -_FARTHEST, _FARTHEST))
    return found
