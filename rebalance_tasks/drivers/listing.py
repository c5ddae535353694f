"""What is listed of a node: which names are objects of it, and the columns that come of them; all kinds of nodes share it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.core.keys import RESERVED, is_reserved
from rebalance_tasks.drivers.base import Listing

if TYPE_CHECKING:
    from collections.abc import Callable


def reason_left_out(key: str, *, validate: Callable[[str], object], passes: Callable[[str], bool] | None) -> str:
    """Why a name is no object, as `Listing.left_out` counts it; empty when it may be one, ``.rebalance`` for what is ours.

    Args:
        key: the name below the node's root.
        validate: raises `InvalidKey` for what this kind of node does not take for a key.
        passes: the node's own choice of keys, if it has one.
    """
    first = key.partition("/")[0]
    if is_reserved(first):
        return RESERVED if first == RESERVED else "invalid_key"
    try:
        validate(key)
    except InvalidKey:
        return "invalid_key"
    return "excluded" if passes is not None and not passes(key) else ""


class Columns:
    """A listing that is being made."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._keys: list[str] = []
        self._sizes: list[int] = []
        self._times: list[int] = []
        self._accessed: list[int] = []
        self._left_out: Counter[str] = Counter()

    def add(self, key: str, size_bytes: int, mtime_ns: int, atime_ns: int | None = None) -> None:
        """Take an object; of its times 0 and None are not known."""
        self._keys.append(key)
        self._sizes.append(size_bytes)
        self._times.append(mtime_ns)
        self._accessed.append(atime_ns or 0)

    def leave_out(self, reason: str) -> None:
        """Count a name that is no object; see `reason_left_out`."""
        self._left_out[reason] += 1

    def listing(self) -> Listing:
        """Return what was taken; what is ours is not told."""
        del self._left_out[RESERVED]
        sizes, times = np.array(self._sizes, dtype=np.int64), np.array(self._times, dtype=np.int64)
        accessed = np.array(self._accessed, dtype=np.int64) if any(self._accessed) else None
        return Listing(self._keys, sizes, times, dict(self._left_out), accessed)
