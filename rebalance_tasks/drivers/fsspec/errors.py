"""What a file system behind fsspec may raise, and what it means for a node, a source or a target.

There is no common set of errors: implementations pass on what their libraries raise (ftplib's are not even `OSError`s). Those
that tell what is wrong with one name are told apart; all others are taken for a node out of reach, which is tried again.
"""

from __future__ import annotations

import errno
from typing import Final

from rebalance_tasks.core.errors import (
    NodeFull,
    NodeMissing,
    NodeNotWritable,
    ObjectUnreadable,
    RebalanceError,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.masking import masked_text
from rebalance_tasks.drivers.trees.calls import Words, translating

GONE: Final = (FileNotFoundError, NotADirectoryError)
TAKEN: Final = (FileExistsError, IsADirectoryError)
#: What says something about one name, and nothing about the connection.
OF_A_NAME: Final = (*GONE, *TAKEN, PermissionError)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def node_error(node_id: str, exc: Exception, doing: str) -> RebalanceError:
    """Say what an error on the node itself means: full, not writable or missing."""
    told = f"{doing}: {type(exc).__name__}: {masked_text(str(exc))}"
    if isinstance(exc, OSError) and exc.errno in _FULL:
        return NodeFull(node_id, f"{told}; free space there, raise the quota or lower max_utilisation")
    if isinstance(exc, PermissionError):
        return NodeNotWritable(node_id, f"{told}; let the user of this connection write there")
    return NodeMissing(node_id, f"{told}; check the server, the path and the credentials")


def source_error(node_id: str, key: str, exc: Exception, doing: str) -> RebalanceError:
    """Say what an error on an object that is read or freed means."""
    if isinstance(exc, GONE):
        return SourceVanished(key, "nothing is at this key any more")
    if isinstance(exc, OF_A_NAME):
        return ObjectUnreadable(key, f"{doing}: {exc}; let the user of this connection read it and write to its folder")
    return node_error(node_id, exc, doing)


def target_error(node_id: str, key: str, exc: Exception, doing: str) -> RebalanceError:
    """Say what an error on an object that is written means."""
    if isinstance(exc, (*TAKEN, NotADirectoryError)):
        return TargetExists(key, "something else is at this key, or a file in place of one of its folders")
    return node_error(node_id, exc, doing)


translated: Final = translating(Exception)
WORDS: Final = Words(GONE, TAKEN, translated, node_error, source_error, target_error)
