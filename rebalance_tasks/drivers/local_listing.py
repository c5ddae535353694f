"""List all objects of a local root as columns: `os.scandir` and one stat a file, no recursion, no link followed.

Survey and check stand on it; it holds "a missing disk is never an empty node" together with `LocalTree.check`, and counts
whatever is on the node but is not an object instead of hiding it.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat as st_modes
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.errors import NodeMissing
from rebalance_tasks.core.keys import MAX_KEY_BYTES, RESERVED, is_reserved
from rebalance_tasks.drivers.base import Listing
from rebalance_tasks.drivers.linux import DIR_READ_FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rebalance_tasks.drivers.local_tree import LocalTree

#: A folder that we may not enter: what it holds is unknown, but the node is there.
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM})
#: A folder that is no longer the one that was seen: removed, replaced by a file or by a link.
_SWAPPED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def key_filter(include: Iterable[str], exclude: Iterable[str]) -> Callable[[str], bool] | None:
    """Compile glob patterns over whole keys (``*`` also matches ``/``); None when every key passes."""

    def compiled(patterns: Iterable[str]) -> re.Pattern[str] | None:
        joined = "|".join(fnmatch.translate(pattern) for pattern in patterns)
        return re.compile(joined) if joined else None

    wanted, unwanted = compiled(include), compiled(exclude)
    if wanted is None and unwanted is None:
        return None

    def passes(key: str) -> bool:
        return (wanted is None or wanted.match(key) is not None) and (unwanted is None or unwanted.match(key) is None)

    return passes


def _encoded_length(name: str) -> int:
    """Bytes of UTF-8 in a file name; more than any key may have when it is not UTF-8."""
    if name.isascii():
        return len(name)
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return MAX_KEY_BYTES + 1


class LocalLister:
    """One listing in progress."""

    def __init__(self, tree: LocalTree, passes: Callable[[str], bool] | None) -> None:
        """List what ``tree`` holds and ``passes`` lets through."""
        self._tree = tree
        self._passes = passes
        self._keys: list[str] = []
        self._sizes = array("q")
        self._mtimes = array("q")
        self._left_out: Counter[str] = Counter()
        self._device = 0
        #: folders still to be read: (path, bytes of UTF-8 in it and its slash).
        self._folders: list[tuple[str, int]] = []

    def run(self) -> Listing:
        """Walk the whole root. Raises: NodeMissing when a part of it cannot be read for an I/O error."""
        self._device = os.fstat(self._tree.root_fd()).st_dev
        self._folders = [(".", 0)]
        while self._folders:
            path, prefix_bytes = self._folders.pop()
            try:
                fd = self._tree.open_folder(path, DIR_READ_FLAGS)
            except OSError as exc:
                self._note_closed(path, exc)
                continue
            try:
                if os.fstat(fd).st_dev != self._device:
                    self._left_out["other_file_system"] += 1
                else:
                    self._read_folder(fd, "" if path == "." else f"{path}/", prefix_bytes)
            except OSError as exc:
                self._note_closed(path, exc)
            finally:
                os.close(fd)
        return Listing(
            keys=self._keys,
            size_bytes=np.frombuffer(self._sizes, dtype=np.int64),
            mtime_ns=np.frombuffer(self._mtimes, dtype=np.int64),
            left_out=dict(self._left_out),
        )

    def _note_closed(self, path: str, exc: OSError) -> None:
        if exc.errno == errno.EXDEV:
            self._left_out["other_file_system"] += 1
        elif exc.errno in _CLOSED:
            self._left_out["unreadable_folder"] += 1
        elif exc.errno not in _SWAPPED:
            message = (
                f"listing {path!a} below {self._tree.root} failed: {exc.strerror}; look at the disk before going on"
            )
            raise NodeMissing(self._tree.node_id, message) from exc

    def _read_folder(self, fd: int, prefix: str, prefix_bytes: int) -> None:  # noqa: C901  one pass, inlined for speed
        keys, sizes, mtimes = self._keys.append, self._sizes.append, self._mtimes.append
        left_out, passes, device, at_root = self._left_out, self._passes, self._device, not prefix
        room = MAX_KEY_BYTES - prefix_bytes
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name
                if at_root and is_reserved(name):
                    if name != RESERVED:
                        left_out["invalid_key"] += 1
                    continue
                if (length := len(name) if name.isascii() else _encoded_length(name)) > room:
                    left_out["invalid_key"] += 1
                    continue
                if entry.is_dir(follow_symlinks=False):
                    self._folders.append((prefix + name, prefix_bytes + length + 1))
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mode = status.st_mode
                if not st_modes.S_ISREG(mode):
                    left_out["symlink" if st_modes.S_ISLNK(mode) else "special_file"] += 1
                elif status.st_nlink > 1:
                    left_out["hard_link"] += 1
                elif status.st_dev != device:
                    left_out["other_file_system"] += 1
                elif passes is not None and not passes(prefix + name):
                    left_out["excluded"] += 1
                else:
                    keys(prefix + name)
                    sizes(status.st_size)
                    mtimes(status.st_mtime_ns)
