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
import time
from array import array
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rebalance_tasks.core.errors import NodeMissing
from rebalance_tasks.core.keys import MAX_KEY_BYTES, RESERVED, is_reserved
from rebalance_tasks.drivers.base import Listing
from rebalance_tasks.drivers.local.errors import MAX_COMPONENT_BYTES
from rebalance_tasks.drivers.local.linux import DIR_READ_FLAGS
from rebalance_tasks.drivers.node_parts import TooManyObjects
from rebalance_tasks.drivers.remembered import Columns, Remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rebalance_tasks.drivers.local.tree import LocalTree
    from rebalance_tasks.drivers.node_parts import Part

#: A folder that we may not enter: what it holds is unknown, but the node is there.
_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM})
#: A folder that was changed so recently may change again within one tick of its file system's clock (2 s on FAT).
SETTLED_NS: Final = 3 * 10**9
#: The type of a file, as the upper bits of its mode say it (POSIX; `stat.S_ISREG` is a call for each file).
_TYPE_SHIFT: Final = 12
_REGULAR: Final = st_modes.S_IFREG >> _TYPE_SHIFT
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


class Folder(NamedTuple):
    """What is remembered of one folder: how it was, and which objects lay directly in it.

    Attributes:
        path: below the root, ``.`` for the root itself.
        inode: of the folder; with ``changed_ns`` it tells whether names were added, removed or replaced since.
        changed_ns: the later of the folder's times of change; 0 when it may change without showing.
        first: its first row in the columns of the listing.
        objects: how many.
        left_out: what it holds that is no object, and how often.
    """

    path: str
    inode: int
    changed_ns: int
    first: int
    objects: int
    left_out: dict[str, int]


class LocalLister:
    """One listing in progress; with an earlier one it reads only the folders that have changed since."""

    def __init__(
        self,
        tree: LocalTree,
        passes: Callable[[str], bool] | None,
        before: Remembered | None = None,
        *,
        part: Part | None = None,
        most: int | None = None,
        access_times: bool = False,
    ) -> None:
        """List what ``tree`` holds and ``passes`` lets through: a part of it, or up to about so many objects; `run` also tells access times."""
        self._tree = tree
        self._passes = passes
        self._part = part
        self._most = most
        self._read = 0
        self._keys: list[str] = []
        self._sizes = array("q")
        self._mtimes = array("q")
        self._atimes = array("q") if access_times else None
        self._left_out: Counter[str] = Counter()
        self._device = 0
        #: folders still to be read: (path, bytes of UTF-8 in it and its slash).
        self._pending: list[tuple[str, int]] = []
        self._seen: list[Folder] = []
        self._earlier = before
        self._columns = Columns(before)
        self._before: dict[str, Folder] = {}
        self._children: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for folder in map(Folder._make, before.folders if before else ()):
            self._before[folder.path] = folder
            if folder.path != ".":
                above = folder.path.rpartition("/")[0] or "."
                self._children[above].append((folder.path, len(folder.path.encode()) + 1))

    def run(self) -> Listing:
        """Walk the whole root. Raises: NodeMissing when a part of it cannot be read for an I/O error."""
        self._walk()
        return Listing(
            keys=self._keys,
            size_bytes=np.frombuffer(self._sizes, dtype=np.int64),
            mtime_ns=np.frombuffer(self._mtimes, dtype=np.int64),
            left_out=dict(self._left_out),
            atime_ns=None if self._atimes is None else np.frombuffer(self._atimes, dtype=np.int64),
        )

    def remember(self) -> Remembered:
        """Walk as `run` does, and return what lets the next walk be shorter."""
        self._walk()
        if self._earlier is not None and tuple(self._seen) == self._earlier.folders:
            return self._earlier
        self._columns.add(self._keys, self._sizes, self._mtimes)
        settled = all(folder.changed_ns for folder in self._seen)
        return Remembered(self._columns.joined(), dict(self._left_out), tuple(self._seen), settled=settled)

    def _walk(self) -> None:
        self._device = os.fstat(self._tree.root_fd()).st_dev
        self._pending = [(".", 0)]
        while self._pending:
            path, prefix_bytes = self._pending.pop()
            left_out, self._left_out = self._left_out, Counter()
            try:
                self._visit(path, prefix_bytes)
            except OSError as exc:
                self._note_closed(path, exc)
                self._seen.append(Folder(path, 0, 0, 0, 0, {}))
            left_out.update(self._left_out)
            self._left_out = left_out

    def _visit(self, path: str, prefix_bytes: int) -> None:
        """Read a folder, or take it as it was."""
        fd = self._tree.open_folder(path, DIR_READ_FLAGS)
        try:
            status = os.fstat(fd)
            if status.st_dev != self._device:
                self._leave_out(path, "other_file_system")
                self._seen.append(Folder(path, 0, 0, 0, 0, {}))
                return
            changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
            known = self._before.get(path)
            if known is not None and known.changed_ns and known[1:3] == (status.st_ino, changed_ns):
                self._take(known)
                return
            first, now_ns = len(self._keys), time.time_ns()
            self._read_folder(fd, "" if path == "." else f"{path}/", prefix_bytes)
        finally:
            os.close(fd)
        self._read += len(self._keys) - first
        if self._most is not None and self._read > self._most:
            raise TooManyObjects
        settled = changed_ns < now_ns - SETTLED_NS
        row, count = self._columns.rows + first, len(self._keys) - first
        self._seen.append(Folder(path, status.st_ino, changed_ns if settled else 0, row, count, dict(self._left_out)))

    def _take(self, known: Folder) -> None:
        """Let a folder be as it was; the folders in it are visited themselves."""
        self._columns.add(self._keys, self._sizes, self._mtimes)
        self._keys, self._sizes, self._mtimes = [], array("q"), array("q")
        self._seen.append(known._replace(first=self._columns.rows))
        self._columns.take(known.first, known.objects)
        self._left_out.update(known.left_out)
        # The last one pushed is visited first, as when they were read.
        self._pending += reversed(self._children[known.path])

    def _leave_out(self, path: str, reason: str) -> None:
        """Count a folder that is not read, in one of the parts that would have read it."""
        prefix = "" if path == "." else f"{path}/"
        if self._part is None or (self._part.holds(prefix) and self._part.covers(prefix, path)):
            self._left_out[reason] += 1

    def _note_closed(self, path: str, exc: OSError) -> None:
        if exc.errno == errno.EXDEV:
            self._leave_out(path, "other_file_system")
        elif exc.errno in _CLOSED:
            self._leave_out(path, "unreadable_folder")
        elif exc.errno not in _SWAPPED:
            message = (
                f"listing {path!a} below {self._tree.root} failed: {exc.strerror}; look at the disk before going on"
            )
            raise NodeMissing(self._tree.node_id, message) from exc

    def _read_folder(self, fd: int, prefix: str, prefix_bytes: int) -> None:  # noqa: C901, PLR0912  one pass, inlined for speed
        keys, sizes = self._keys.append, self._sizes.append
        mtimes, atimes = self._mtimes.append, self._atimes
        left_out, passes, device, at_root = self._left_out, self._passes, self._device, not prefix
        part, ours = self._part, self._part is None or self._part.holds(prefix)
        # Below, all of a folder is in one part.
        covers = part.covers if part is not None and ours and not part.covers_all(prefix) else None
        all_mine = ours and covers is None
        room = MAX_KEY_BYTES - prefix_bytes
        # What every entry is asked costs a listing dearly: no name of a file is too long for its key where there is so much room.
        roomy = room >= MAX_COMPONENT_BYTES
        with os.scandir(fd) as entries:
            plain = all_mine and roomy and not at_root and passes is None and atimes is None
            for entry in self._read_plain(entries, prefix) if plain else entries:
                name = entry.name
                mine = all_mine or (covers is not None and covers(prefix, prefix + name))
                if at_root and is_reserved(name):
                    if name != RESERVED and mine:
                        left_out["invalid_key"] += 1
                    continue
                if not (roomy and name.isascii()) and _encoded_length(name) > room:
                    if mine:
                        left_out["invalid_key"] += 1
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if part is None or part.enters(prefix + name):
                        self._pending.append((prefix + name, prefix_bytes + _encoded_length(name) + 1))
                    continue
                if not mine:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mode = status.st_mode
                if mode >> _TYPE_SHIFT != _REGULAR:
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
                    if atimes is not None:
                        atimes.append(status.st_atime_ns)

    def _read_plain(self, entries: Iterable[os.DirEntry[str]], prefix: str) -> list[os.DirEntry[str]]:
        """Take the plain files whose names are ASCII where nothing else is to be asked of a file; return all other entries."""
        keys, sizes, mtimes = self._keys.append, self._sizes.append, self._mtimes.append
        device, others = self._device, []
        for entry in entries:
            name = entry.name
            if entry.is_dir(follow_symlinks=False) or not name.isascii():
                others.append(entry)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_mode >> _TYPE_SHIFT != _REGULAR or status.st_nlink > 1 or status.st_dev != device:
                others.append(entry)
                continue
            keys(prefix + name)
            sizes(status.st_size)
            mtimes(status.st_mtime_ns)
        return others
