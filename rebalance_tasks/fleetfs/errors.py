"""Our errors as the `OSError`s that users of fsspec expect; the original is always the cause."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import (
    InvalidArgument,
    NodeError,
    NodeFull,
    NodeNotWritable,
    ObjectNotFound,
    ObjectUnreadable,
    RetryableError,
    SourceChanged,
    SourceVanished,
    TargetExists,
)

if TYPE_CHECKING:
    from rebalance_tasks.core.errors import RebalanceError


def as_os_error(error: RebalanceError, path: str) -> Exception:
    """Return what to raise instead of one of our errors; what is wrong with an argument is a `ValueError` already."""
    number, message = errno.EIO, str(error)
    match error:
        case InvalidArgument():
            return error
        case ObjectNotFound() if isinstance(error.__cause__, NodeError):
            # What could not be looked at must not be taken for missing.
            message = f"not found on the nodes that answer, and {error.__cause__}"
        case ObjectNotFound() | SourceVanished():
            number = errno.ENOENT
        case NodeFull():
            number = errno.ENOSPC
        case NodeNotWritable() | ObjectUnreadable():
            number = errno.EACCES
        case TargetExists():
            number = errno.EEXIST
        case SourceChanged():
            number = errno.ESTALE
        case NodeError():
            pass
        case RetryableError():
            number = errno.EAGAIN
        case _:
            pass
    return OSError(number, message, path)
