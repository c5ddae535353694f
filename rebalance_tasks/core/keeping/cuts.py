"""What an object must be to be kept beside those that are kept of its node already: the others need not be looked at twice.

rows of a stream ─▶ `core.keeping.keeper` ─▶ **Cuts** ─▶ the few that `core.keeping.candidates` chooses from. Of 10⁹ rows some hundredth passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Size classes within a factor of two: how finely gaps can be closed.
_CLASSES: Final = 2.0
#: More than an int64 has: 2 × 63 and one.
CLASSES: Final = 128
_MOST_BYTES: Final = np.iinfo(np.int64).max


def size_classes(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 (n,) in [0, `CLASSES`): objects of one class are of about one size."""
    return (np.log2(np.maximum(sizes, 1)) * _CLASSES).astype(np.int64)


def score(
    sizes: NDArray[np.int64], gravity: NDArray[np.float64], weight: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Return float64 (n,): gravity per byte, the smallest goes first.

    Args:
        sizes: int64 (n,), bytes.
        gravity: float64 (n,).
        weight: bytes at which a size is worth as much as a gravity of 1; one for all, or (n,).
    """
    return gravity + weight / np.maximum(sizes, 1)


class Cut(NamedTuple):
    """Of one node: an object is worth a look for any of three reasons.

    Attributes:
        larger_than: bytes; it would be one of the largest.
        gravity_below: float64 (`CLASSES`,), by size class: it would be one of the least held of its size.
        score_below: by `score` with ``weight``.
    """

    larger_than: int
    gravity_below: NDArray[np.float64]
    score_below: float
    weight: float


class Cuts:
    """The cuts of many nodes as columns; as long as a node has none, all of its objects pass."""

    def __init__(self, nodes: int, *, most_bytes: int) -> None:
        """Let everything pass.

        Args:
            nodes: how many.
            most_bytes: no object larger than this leaves its node, however large.
        """
        self._most_bytes = min(most_bytes, _MOST_BYTES)
        self._larger_than = np.full(nodes, -1, np.int64)
        self._gravity_below = np.full((nodes, CLASSES), np.inf)
        self._score_below = np.full(nodes, np.inf)
        self._weight = np.zeros(nodes)

    def set(self, node: int, cut: Cut) -> None:
        """Take the cut of one node."""
        self._larger_than[node], self._gravity_below[node] = cut.larger_than, cut.gravity_below
        self._score_below[node], self._weight[node] = cut.score_below, cut.weight

    def passing(
        self, node: NDArray[np.int64], sizes: NDArray[np.int64], gravity: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return bool (n,): the objects that may be kept.

        Args:
            node: int64 (n,), which node each lies on.
            sizes: int64 (n,), bytes.
            gravity: float64 (n,).
        """
        passing = (sizes > self._larger_than[node]) & (sizes <= self._most_bytes)
        passing |= gravity < self._gravity_below[node, size_classes(sizes)]
        passing |= score(sizes, gravity, self._weight[node]) < self._score_below[node]
        return passing
