"""Folders of the local driver: making them, and asking whether they can be written to.

Access is asked for the effective user: the one the kernel will judge the write by.
"""

from __future__ import annotations

import os
import stat as st_modes
from contextlib import suppress
from pathlib import Path

from rebalance_tasks.core.errors import NodeNotWritable, ObjectUnreadable
from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.local.linux import DIR_READ_FLAGS


def make_folder(name: str, dir_fd: int, mode: int) -> None:
    """Make a folder unless it is there."""
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=dir_fd)


def make_folder_like_parent(name: str, parent_fd: int) -> None:
    """Make a folder with its parent's mode and, as root, its owner, so that whoever uses the parent can use it too."""
    parent = os.fstat(parent_fd)
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        return
    fd = os.open(name, DIR_READ_FLAGS, dir_fd=parent_fd)
    try:
        if os.geteuid() == 0:
            with suppress(OSError):
                os.fchown(fd, parent.st_uid, parent.st_gid)
        with suppress(OSError):
            # The owner keeps full rights, or the next component could not be made.
            os.fchmod(fd, st_modes.S_IMODE(parent.st_mode) | 0o700)
    finally:
        os.close(fd)


def require_writable_parent(key: str, parent_fd: int) -> None:
    """Raise ObjectUnreadable when the object could be copied but not freed afterwards."""
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=parent_fd, effective_ids=True):
        raise ObjectUnreadable(
            key,
            "its folder is not writable, so it could not be freed after the copy; let the worker's user write there",
        )


def probe_writable(node_id: str, root: str) -> None:
    """Raise NodeNotWritable unless the root and, if there, ``.rebalance`` can be written to."""
    for folder in (Path(root), Path(root) / RESERVED):
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            message = f"{folder} is not writable for this user; chown or chmod it, or remount it rw"
            raise NodeNotWritable(node_id, message)
