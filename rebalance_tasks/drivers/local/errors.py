"""The local driver's translation of errno into our errors, and the rules its file names add to those of keys.

Third-party errors stop here: nothing above the driver sees an `OSError`.
"""

from __future__ import annotations

import errno
import re
from functools import lru_cache
from typing import Final

from rebalance_tasks.core.errors import (
    InvalidArgument,
    InvalidKey,
    MoveError,
    NodeError,
    NodeFull,
    NodeMissing,
    NodeNotWritable,
    ObjectUnreadable,
    RebalanceError,
    RetryableError,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.drivers.base import ObjectTooLarge

#: NAME_MAX of every file system in common use.
MAX_COMPONENT_BYTES: Final = 255
#: What a move or a manifest may be called, so that its name is one safe file name with room for a suffix.
_NAME: Final = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,199}")
#: A name with the suffixes we give it.
_FOUND_NAME: Final = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,254}")

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO})
#: The process is short of something, not the node.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
#: Names that this file system cannot hold, and folders that lie on another one.
UNFIT_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EXDEV})


# Each verb checks the key and the id it is given, so one object asks for the same answer a dozen times.
@lru_cache(maxsize=4096)
def validate_local_key(key: str) -> str:
    """Return ``key`` if each of its components also fits into a file name. Raises: InvalidKey."""
    validate_key(key)
    if len(key) > MAX_COMPONENT_BYTES // 4:  # below it no component can be too long, whatever its script
        for component in key.split("/"):
            size_bytes = len(component.encode())
            if size_bytes > MAX_COMPONENT_BYTES:
                raise InvalidKey(
                    key, f"a component has {size_bytes} bytes; a file name holds at most {MAX_COMPONENT_BYTES}"
                )
    return key


@lru_cache(maxsize=4096)
def validate_name(name: str, what: str) -> str:
    """Return a move id or manifest name that is safe as a file name. Raises: InvalidArgument."""
    if not _NAME.fullmatch(name):
        message = f"{what} {name[:80]!a} refused: it must match [A-Za-z0-9._:-]{{1,200}} and not begin with a dot"
        raise InvalidArgument(message)
    return name


def is_name(name: str) -> bool:
    """Tell whether a file name found in a working folder can be one of ours."""
    return _FOUND_NAME.fullmatch(name) is not None


def _exhausted(exc: OSError) -> RetryableError:
    return RetryableError(f"{exc.strerror}; raise the limit (ulimit -n) or run fewer processes, then try again")


def node_error(node_id: str, root: str, exc: OSError, doing: str) -> NodeError | RetryableError:
    """Say what an error on the node itself means: full, missing or not writable."""
    number = exc.errno
    if number in _EXHAUSTED:
        return _exhausted(exc)
    if number in _FULL:
        return NodeFull(
            node_id, f"{doing}: {exc.strerror} below {root!r}; free space, raise the quota or lower max_utilisation"
        )
    if number in _MISSING:
        message = f"{doing}: {exc.strerror} below {root!r}; mount the disk, or set the node's state to maintenance"
        return NodeMissing(node_id, message)
    if number == errno.EIO:
        return NodeNotWritable(
            node_id, f"{doing}: I/O error below {root!r}; look at the disk (dmesg, smartctl) before going on"
        )
    message = f"{doing}: {exc.strerror} below {root!r}; let the worker's user write there (chown, chmod, remount rw)"
    return NodeNotWritable(node_id, message)


def copy_error(node_id: str, root: str, label: str, exc: OSError, doing: str) -> RebalanceError:
    """Say what an error under a copy that is being written means; ``label`` names the copy."""
    if exc.errno == errno.EFBIG:
        why = f"{doing}: {exc.strerror} below {root!r}; the file system or the worker's limit (ulimit -f) takes no file this large"
        return ObjectTooLarge(label, why)
    return node_error(node_id, root, exc, doing)


def target_error(node_id: str, root: str, key: str, exc: OSError, doing: str) -> RebalanceError:
    """Say what an error under a target's key means."""
    if exc.errno in {errno.ENOTDIR, errno.ELOOP}:
        return TargetExists(key, "a folder of this key is a file or a symbolic link on the target")
    if exc.errno == errno.EEXIST:
        return TargetExists(
            key, f"a folder of this key is spelled otherwise below {root}, which cannot tell the two apart"
        )
    if exc.errno == errno.EXDEV:
        return InvalidKey(
            key, f"its folder lies on another file system mounted below {root}; make that a node of its own"
        )
    if exc.errno in UNFIT_NAME:
        return InvalidKey(key, f"the file system of {root} cannot hold this name ({exc.strerror})")
    return node_error(node_id, root, exc, doing)


def source_error(key: str, exc: OSError, doing: str) -> MoveError | RetryableError:
    """Say what an error on one object means: vanished or unreadable."""
    number = exc.errno
    if number in _EXHAUSTED:
        return _exhausted(exc)
    if number == errno.ENOENT:
        return SourceVanished(key, "nothing is at this key any more")
    if number in {errno.ELOOP, errno.ENOTDIR}:
        return ObjectUnreadable(
            key, f"{doing}: a folder of this key is a file or a symbolic link; links are never followed"
        )
    if number == errno.EXDEV:
        return ObjectUnreadable(
            key, f"{doing}: it lies on another file system mounted below the root; make that a node of its own"
        )
    return ObjectUnreadable(key, f"{doing}: {exc.strerror}; let the worker's user read it and write to its folder")
