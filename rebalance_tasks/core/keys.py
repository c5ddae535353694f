"""Which object keys exist at all: one rule for every store, applied before a key is acted on.

Keys come from plans, messages and Redis, so each of them is checked where it is used (invariant 13). A driver adds
what its own store cannot hold (`drivers.local.errors.validate_local_key`) and confines the key to its node's root.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from rebalance_tasks.core.errors import InvalidKey

#: The folder on each node that is ours; nothing below it is ever an object.
RESERVED: Final = ".rebalance"

#: The longest key that S3 and its relatives take, in bytes of UTF-8: a longer one could not move between stores.
MAX_KEY_BYTES: Final = 1024

#: Code points that case-folding file systems (ext4 ``+F``, HFS+) ignore when they compare names.
_IGNORABLE: Final = frozenset({"Cf", "Mn"})


def is_reserved(component: str) -> bool:
    """Tell whether a first component is, or may alias, our own folder on a file system that folds case or form."""
    if component.isascii():
        return component.lower() == RESERVED
    kept = "".join(char for char in component if unicodedata.category(char) not in _IGNORABLE)
    return unicodedata.normalize("NFKC", kept).casefold() == RESERVED


def validate_key(key: str) -> str:
    """Return ``key`` unchanged if it is a relative, '/'-separated name that no store can read as something else.

    Args:
        key: any text; newlines, spaces, trailing dots and every script are fine.

    Raises:
        InvalidKey: empty, absolute, an empty, ``.`` or ``..`` component, a NUL, not encodable as UTF-8, more than
            1,024 bytes of it, or below ``.rebalance``.
    """
    if not key:
        raise InvalidKey(key, "it is empty")
    if "\0" in key:
        raise InvalidKey(key, "it holds a NUL, which no store can keep")
    size_bytes = len(key)
    if not key.isascii():
        try:
            size_bytes = len(key.encode())
        except UnicodeEncodeError as exc:
            raise InvalidKey(key, "it is not UTF-8 (a lone surrogate); rename the object") from exc
    if size_bytes > MAX_KEY_BYTES:
        raise InvalidKey(key, f"it has {size_bytes} bytes of UTF-8; at most {MAX_KEY_BYTES} are allowed")
    if key[0] == "/":
        raise InvalidKey(key, "it is absolute; keys are relative to the node's root")
    components = key.split("/")
    for component in components:
        if component in {"", ".", ".."}:
            raise InvalidKey(key, f"component {component!r} is not allowed (no '//', no trailing '/', no '.' or '..')")
    if is_reserved(components[0]):
        raise InvalidKey(key, f"{RESERVED!r} is this service's own folder")
    return key
