"""Which names on a node are objects of it: the part of that question that all kinds of nodes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.core.keys import RESERVED, is_reserved

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
