"""``.rebalance/node-id`` of a local root: which node it is, so that a disk that is not mounted is missed and never taken for empty."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import NodeMissing
from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.local.linux import DIR_PATH_FLAGS, DIR_READ_FLAGS, fsync

if TYPE_CHECKING:
    from rebalance_tasks.drivers.local.linux import Syscalls

NODE_ID: Final = "node-id"
#: The node id is public, so that `rebalance nodes` works for every user.
_NODE_ID_MODE: Final = 0o644
#: An identifier has at most 128 characters; more is not ours.
_NODE_ID_READ_BYTES: Final = 512


def verify_identity(root_fd: int, node_id: str, root: str, *, required: bool) -> bool:
    """Tell whether the root is adopted by this node. Raises: NodeMissing when it is another's, or ``required`` and not."""
    found = _read(root_fd, node_id, root)
    if found is None and required:
        message = (
            f"{root} has no {RESERVED}/{NODE_ID}: its disk is not mounted, or the root was never adopted; "
            "mount it, or adopt the new root first (a missing disk is never an empty node)"
        )
        raise NodeMissing(node_id, message)
    if found is not None and found != node_id:
        message = (
            f"{root} belongs to node {found!a} ({RESERVED}/{NODE_ID} says so); mount the right disk there "
            "or correct the url of this node"
        )
        raise NodeMissing(node_id, message)
    return found is not None


def _read(root_fd: int, node_id: str, root: str) -> str | None:
    """What ``.rebalance/node-id`` says, None when there is none. Raises: NodeMissing."""
    try:
        folder_fd = os.open(RESERVED, DIR_PATH_FLAGS, dir_fd=root_fd)
    except FileNotFoundError:
        return None
    except OSError as exc:
        message = f"{root}/{RESERVED} is not a folder of its own ({exc.strerror}); it may not be a symbolic link"
        raise NodeMissing(node_id, message) from exc
    try:
        fd = os.open(NODE_ID, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
        try:
            text = os.read(fd, _NODE_ID_READ_BYTES)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise NodeMissing(node_id, f"{root}/{RESERVED}/{NODE_ID} cannot be read: {exc.strerror}") from exc
    finally:
        os.close(folder_fd)
    return text.decode("utf-8", "replace").removesuffix("\n")


def write_identity(root_fd: int, node_id: str, root: str, calls: Syscalls) -> None:
    """Write it once: two workers may adopt at once. Raises: OSError, NodeMissing when another node was quicker."""
    reserved_fd = os.open(RESERVED, DIR_READ_FLAGS, dir_fd=root_fd)
    temporary = f".{NODE_ID}.{os.getpid()}.{threading.get_ident()}"
    try:
        fd = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
            _NODE_ID_MODE,
            dir_fd=reserved_fd,
        )
        try:
            os.write(fd, f"{node_id}\n".encode())
            fsync(fd)
        finally:
            os.close(fd)
        # Two workers may adopt at once: the second finds the first's id and must agree with it.
        with suppress(FileExistsError):
            calls.rename_noreplace(temporary, NODE_ID, reserved_fd, reserved_fd)
        fsync(reserved_fd)
        verify_identity(root_fd, node_id, root, required=True)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=reserved_fd)
        os.close(reserved_fd)
