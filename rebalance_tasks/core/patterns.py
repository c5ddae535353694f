"""Glob patterns over many keys at once: ``*`` (also over ``/``), ``?`` and ``[…]``, as `fnmatch` reads them.

Most patterns are answered by Arrow without a Python string an object; only one with ``[`` or a backslash takes the long way.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa
    from numpy.typing import NDArray


def matching(keys: pa.LargeStringArray, patterns: Iterable[str]) -> NDArray[np.bool_]:
    """Return bool (n,): keys that match at least one pattern, whole and case-sensitive."""
    found = np.zeros(len(keys), np.bool_)
    for pattern in patterns:
        found |= _matching(keys, pattern)
    return found


def _matching(keys: pa.LargeStringArray, pattern: str) -> NDArray[np.bool_]:
    # Arrow 26 takes a shortcut for "ends with" and "contains" that reads an escaped backslash as two.
    if "[" in pattern or "\\" in pattern:
        match = re.compile(fnmatch.translate(pattern)).match
        return np.fromiter((match(key) is not None for key in keys.to_pylist()), np.bool_, len(keys))
    escaped = re.sub(r"([%_])", r"\\\1", pattern)
    like = escaped.replace("*", "%").replace("?", "_")
    answer: NDArray[np.bool_] = pc.match_like(keys, like).to_numpy(zero_copy_only=False)
    return answer
