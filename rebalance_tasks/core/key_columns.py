"""`keys.validate_key` for many keys at once: most are seen to be fine without a Python string each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow.compute as pc

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.core.keys import MAX_KEY_BYTES, validate_key

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

#: Whatever `validate_key` might mind: an empty or dotted component, a NUL, and a first component that may alias our folder.
_DOUBTFUL: Final = r"(^|/)\.{0,2}(/|$)|\x00|^\.|^[^/]*[^\x00-\x7f]"


def are_valid(keys: pa.LargeStringArray) -> NDArray[np.bool_]:
    """Return bool (n,): keys that `keys.validate_key` accepts."""
    doubtful = pc.or_(
        pc.match_substring_regex(keys, _DOUBTFUL), pc.greater(pc.binary_length(keys), MAX_KEY_BYTES)
    ).to_numpy(zero_copy_only=False)
    valid: NDArray[np.bool_] = ~doubtful
    for row in np.flatnonzero(doubtful).tolist():
        valid[row] = _is_valid(keys[row].as_py())
    return valid


def _is_valid(key: str) -> bool:
    try:
        validate_key(key)
    except InvalidKey:
        return False
    return True
