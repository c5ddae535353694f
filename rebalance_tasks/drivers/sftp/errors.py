"""What an SFTP server's answers mean for a node, a source or a target. Nothing above the driver sees asyncssh's errors."""

from __future__ import annotations

from typing import Final

import asyncssh

from rebalance_tasks.core.errors import (
    InvalidKey,
    NodeFull,
    NodeMissing,
    NodeNotWritable,
    ObjectUnreadable,
    RebalanceError,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.drivers.sftp.link import LinkBroken
from rebalance_tasks.drivers.trees.calls import Words, translating

_FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
_REFUSED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)
GONE = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory)
_TAKEN = (asyncssh.SFTPFileAlreadyExists, asyncssh.SFTPFileIsADirectory)


def node_error(node_id: str, exc: Exception, doing: str) -> RebalanceError:
    """Say what an error on the node itself means: full, missing or not writable."""
    if isinstance(exc, _FULL):
        return NodeFull(node_id, f"{doing}: {exc}; free space there, raise the quota or lower max_utilisation")
    if isinstance(exc, _REFUSED):
        return NodeNotWritable(node_id, f"{doing}: {exc}; let the user of this connection write there")
    return NodeMissing(node_id, f"{doing}: {exc}; check the server, the path and the credentials")


def source_error(node_id: str, key: str, exc: Exception, doing: str) -> RebalanceError:
    """Say what an error on an object that is read or freed means."""
    if isinstance(exc, GONE):
        return SourceVanished(key, "nothing is at this key any more")
    if isinstance(exc, LinkBroken):
        return node_error(node_id, exc, doing)
    return ObjectUnreadable(key, f"{doing}: {exc}; let the user of this connection read it and write to its folder")


def target_error(node_id: str, key: str, exc: Exception, doing: str) -> RebalanceError:
    """Say what an error on an object that is written means."""
    if isinstance(exc, (*_TAKEN, asyncssh.SFTPNotADirectory)):
        return TargetExists(key, "something else is at this key, or a file in place of one of its folders")
    if isinstance(exc, asyncssh.SFTPInvalidFilename):
        return InvalidKey(key, f"the server cannot hold this name ({exc})")
    return node_error(node_id, exc, doing)


translated: Final = translating(asyncssh.SFTPError, LinkBroken)
WORDS: Final = Words(GONE, _TAKEN, translated, node_error, source_error, target_error)
