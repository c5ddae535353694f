"""Many small, plain objects between two local roots: `LocalDriver`'s own steps, without a call and a look-up for each of them.

For a file of 4 KiB the system calls that the order of writes asks for take about 35 µs, and going through the driver one by one
as much again. A burst (`drivers.burst`) runs through a batch with everything at hand: folders that its caller holds, one buffer,
and the descriptor of each copy, which stays open until the copy is read back, so that what is compared is the very file
that was written. An object that is not plain, or a call that fails, is declined.
"""

from __future__ import annotations

import errno
import os
import resource
import stat as st_modes
import threading
from typing import TYPE_CHECKING, Final, Self

import xxhash

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.drivers.local.entries import PRIVATE_MODE, QUIET_CREATE_FLAGS, QUIET_FLAGS, open_quietly
from rebalance_tasks.drivers.local.errors import validate_local_key, validate_name
from rebalance_tasks.drivers.local.files import apply_metadata, fingerprint_of, is_version, read_metadata
from rebalance_tasks.drivers.local.hold import Renamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.local.tree import LocalTree

#: Larger objects gain nothing here. Half of a common core's second-level cache, so that what is read is hashed and written from there.
MOST_BYTES: Final = 256 << 10
#: st_blocks counts in these (POSIX).
_STAT_BLOCK_BYTES: Final = 512
_MODE_BITS: Final = 0o7777
_LISTS_XATTRS: Final = hasattr(os, "listxattr")
#: Tests count what is written.
write_at = os.pwrite


class _Descriptors:
    """How many copies all threads of this process may keep open: half of its limit, the rest is for everybody else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def take(self, wanted: int) -> int:
        with self._lock:
            granted = min(wanted, self._left)
            self._left -= granted
            return granted

    def give_back(self, count: int) -> None:
        with self._lock:
            self._left += count


DESCRIPTORS: Final = _Descriptors()


class LocalBurst(NoBurst):
    """`Burst` between two local roots."""

    def __init__(self, source: LocalTree, target: LocalTree, *, objects: int) -> None:
        """Prepare for up to so many objects."""
        self._source = source
        self._target = target
        self._room = DESCRIPTORS.take(objects)
        #: copies that are still open, by move
        self._open: dict[MoveId, int] = {}
        self._buffer = memoryview(bytearray(MOST_BYTES))
        self._tmp = target.work_fd("tmp")
        self._owner = (os.geteuid(), os.getegid())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was not read back."""
        for fd in self._open.values():
            os.close(fd)
        self._open = {}
        DESCRIPTORS.give_back(self._room)
        self._room = 0

    # -- copy aside -----------------------------------------------------------------------------------------------
    def stage(
        self, objects: Iterable[tuple[str, MoveId, int] | None], spend: Callable[[int], None]
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        """Copy each object aside, metadata included; see `Burst.stage`."""
        hold = self._source.held
        folders, writable = (hold.folders, hold.writable) if hold else ({}, frozenset[int]())
        for wanted in objects:
            copied = None
            if wanted is not None and 0 < wanted[2] <= MOST_BYTES:
                key, move_id, size_bytes = wanted
                folder, _, name = key.rpartition("/")
                parent = folders.get(folder or ".")
                if parent in writable and _fits(key):
                    spend(size_bytes)
                    try:
                        copied = self._copy(parent, name, move_id, size_bytes)
                    except OSError:
                        copied = None
            yield copied

    def _copy(self, parent: int | None, name: str, move_id: MoveId, size_bytes: int) -> tuple[Fingerprint, str] | None:
        # Looked at before it is opened: opening a device can act on it.
        if not st_modes.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return None
        source = open_quietly(name, parent)
        try:
            status = os.fstat(source)
            if (
                status.st_size != size_bytes
                or status.st_nlink > 1
                or not st_modes.S_ISREG(status.st_mode)
                or status.st_blocks * _STAT_BLOCK_BYTES < size_bytes
            ):
                return None
            data = self._buffer[:size_bytes]
            if os.readv(source, [data]) != size_bytes:
                return None
            fd = os.open(validate_name(move_id, "move id"), QUIET_CREATE_FLAGS, PRIVATE_MODE, dir_fd=self._tmp)
            try:
                self._fill(fd, data, source, status)
            except BaseException:
                os.close(fd)
                os.unlink(move_id, dir_fd=self._tmp)
                raise
        finally:
            os.close(source)
        if len(self._open) < self._room:
            self._open[move_id] = fd
        else:
            os.close(fd)
        return fingerprint_of(status), xxhash.xxh3_128_hexdigest(data)

    def _fill(self, fd: int, data: memoryview, source: int, status: os.stat_result) -> None:
        """Give a copy its bytes and its metadata; for most files that is a mode and two times. Raises: OSError."""
        if write_at(fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain = (status.st_uid, status.st_gid) == self._owner
        if not plain or not _LISTS_XATTRS or os.listxattr(source):
            apply_metadata(fd, read_metadata(source, status))
            return
        os.fchmod(fd, status.st_mode & _MODE_BITS)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))

    # -- read back ------------------------------------------------------------------------------------------------
    def read_back(self, copies: Iterable[tuple[MoveId, int, str] | None]) -> Iterator[Fingerprint | None]:
        """Read staged copies and compare them; see `Burst.read_back`."""
        for wanted in copies:
            found = None
            # A larger copy is none of this burst's, and lies on the disk alone: reading into it would fetch it for nothing.
            if wanted is not None and wanted[1] <= MOST_BYTES:
                try:
                    found = self._read_back(*wanted)
                except OSError:
                    found = None
            yield found

    def _read_back(self, move_id: MoveId, size_bytes: int, digest: str) -> Fingerprint | None:
        fd = self._open.pop(move_id, -1)
        if fd < 0:
            fd = os.open(move_id, QUIET_FLAGS, dir_fd=self._tmp)
        try:
            data = self._buffer[:size_bytes]
            if os.preadv(fd, [data], 0) != size_bytes or xxhash.xxh3_128_hexdigest(data) != digest:
                return None
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return fingerprint_of(status) if status.st_size == size_bytes else None

    # -- publish, free --------------------------------------------------------------------------------------------
    def publish(self, copies: Iterable[tuple[str, MoveId, Fingerprint, Fingerprint] | None]) -> Iterator[bool]:
        """Give staged copies their keys; see `Burst.publish`."""
        source, target = self._source.held, self._target.held
        tmp, rename, stat = self._tmp, self._target.calls.rename_noreplace, os.stat
        for wanted in copies:
            done = False
            if wanted is not None and source is not None and target is not None:
                key, move_id, version, copy = wanted
                folder, _, name = key.rpartition("/")
                here, there = source.folders.get(folder or "."), target.folders.get(folder or ".")
                if here is not None and there is not None:
                    try:
                        if is_version(stat(name, dir_fd=here, follow_symlinks=False), version) and is_version(
                            stat(move_id, dir_fd=tmp, follow_symlinks=False), copy
                        ):
                            rename(move_id, name, tmp, there)
                            target.note(Renamed(there, name, tmp, move_id, copy, freed=False))
                            done = True
                    except OSError:
                        done = False
            yield done

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """Move sources into the trash; see `Burst.free`."""
        return free_held(self._source, objects)


def free_held(source: LocalTree, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
    """Move objects whose folders this thread holds into the trash; see `Burst.free`."""
    hold = source.held
    trash, rename, stat = source.work_fd("trash"), source.calls.rename_aside, os.stat
    for wanted in objects:
        done = False
        if wanted is not None and hold is not None:
            key, move_id, version = wanted
            folder, _, name = key.rpartition("/")
            parent = hold.folders.get(folder or ".")
            if parent is not None:
                try:
                    if is_version(stat(name, dir_fd=parent, follow_symlinks=False), version):
                        rename(name, move_id, parent, trash)
                        hold.note(Renamed(parent, name, trash, move_id, version, freed=True))
                        done = is_version(stat(move_id, dir_fd=trash, follow_symlinks=False), version)
                except OSError:
                    done = False
        yield done


def _fits(key: str) -> bool:
    try:
        validate_local_key(key)
    except InvalidKey:
        return False
    return True
