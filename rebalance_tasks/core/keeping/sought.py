"""A set of hashes that very many others are looked up in: which of 10⁹ keys are among a million candidates' keys?

hashes of candidates ─▶ **Sought** ◀─ hashes of everything else, some at a time (`core.keeping.keeper`, `control.surveying.merge`, `control.surveying.other_keys`)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A hash is looked for in a table by its lowest bits first: beside a million, one in sixteen others goes on to the search.
_TABLE: Final = 1 << 24
_LOW: Final = np.uint64(_TABLE - 1)


class Sought:
    """The hashes that are looked for."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        """Look for these, uint64 (n,), in any order."""
        self._ordered = np.sort(hashes)
        self._seen = np.zeros(_TABLE, np.bool_)
        self._seen[self._ordered & _LOW] = True

    def __len__(self) -> int:
        """Number of hashes."""
        return len(self._ordered)

    def packed(self) -> bytes:
        """Return them as bytes, for `unpacked`."""
        return self._ordered.tobytes()

    def among(self, others: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return int64 (k,): the positions, rising, of those of ``others``, uint64 (m,), that are looked for."""
        likely: NDArray[np.int64] = np.flatnonzero(self._seen[others & _LOW])
        if not len(likely):
            return likely
        at = np.minimum(np.searchsorted(self._ordered, others[likely]), len(self._ordered) - 1)
        found: NDArray[np.int64] = likely[self._ordered[at] == others[likely]]
        return found


def unpacked(packed: bytes) -> NDArray[np.uint64]:
    """Return hashes that were packed as little-endian uint64, as `Sought.packed` and `control.surveying.other_keys` do. Raises: ValueError."""
    return np.frombuffer(packed, np.uint64)
