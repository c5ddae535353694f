"""The smallest of each column, fast: where NumPy compares draws.

Both placement rules ask here; equal values go to the first row, which is the canonical order of nodes (invariant 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rebalance_tasks.core.placement.hashing import U64

#: From here on four branch-free passes a row beat NumPy's argmin along the slow axis.
_PASS_KEYS: Final = 1536
#: From here on one sort is cheaper than a pass over the rows per rank.
_SORT_RANKS: Final = 8
#: Above every draw (at most 10.4 · 2⁶⁰): marks a row as taken.
TAKEN: Final = np.uint64(2**64 - 1)


def smallest_rows(values: U64, count: int) -> npt.NDArray[np.int64]:
    """Return the rows of the `count` smallest values of every column: int64 (n, count). Overwrites `values`."""
    n = values.shape[1]
    if count > _SORT_RANKS:
        return np.argsort(values, axis=0, kind="stable")[:count].T
    rows = np.empty((n, count), dtype=np.int64)
    columns = np.arange(n)
    for rank in range(count):
        row = row_of_minimum(values)
        rows[:, rank] = row
        if rank + 1 < count:
            values[row, columns] = TAKEN
    return rows


def row_of_minimum(values: U64) -> npt.NDArray[np.int64]:
    """Return argmin(axis=0), first of equals: int64 (n,)."""
    m, n = values.shape
    if n < _PASS_KEYS:
        return np.asarray(np.argmin(values, axis=0), dtype=np.int64)
    # Contiguous passes without a branch beat NumPy's reduction along the slow axis several times over.
    small = np.uint8 if m <= 1 << 8 else np.uint16 if m <= 1 << 16 else np.int64
    best = values[0].copy()
    row = np.zeros(n, dtype=small)
    less = np.empty(n, dtype=np.bool_)
    candidate = np.empty(n, dtype=small)
    for i in range(1, m):
        np.less(values[i], best, out=less)
        np.minimum(best, values[i], out=best)
        np.multiply(less, small(i), out=candidate)
        np.maximum(row, candidate, out=row)  # i grows, so the last improvement is the greatest
    return row.astype(np.int64)
