"""Open files of the local driver: a source pinned to one version, a staged copy, and the metadata between them.

Keeps: a staged file carries the source's mtime only once everything else is there (set last, in `LocalWriter.finish`).
"""

from __future__ import annotations

import errno
import os
import stat as st_modes
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from rebalance_tasks.drivers.base import Fingerprint, ObjectMetadata
from rebalance_tasks.drivers.local.direct import DIRECT_FROM_BYTES, Around
from rebalance_tasks.drivers.local.errors import copy_error, source_error
from rebalance_tasks.drivers.local.linux import fdatasync, fsync

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from rebalance_tasks.core.errors import RebalanceError
    from rebalance_tasks.drivers.base import SourceHandle
    from rebalance_tasks.drivers.local.tree import LocalTree

#: st_blocks counts in these, whatever the file system's own block size (POSIX).
_STAT_BLOCK_BYTES: Final = 512
#: Holes are looked for in blocks of the page size: no common file system keeps finer ones.
HOLE_BYTES: Final = 4096
#: What travels besides user.*; security labels and trusted.* belong to the host, not to the object.
_ACL_XATTR: Final = "system.posix_acl_access"
_CAPABILITY_XATTR: Final = "security.capability"
#: FAT and some FUSE file systems keep no modes.
_NO_MODES: Final = suppress(PermissionError, NotImplementedError)
_SET_ID_BITS: Final = st_modes.S_ISUID | st_modes.S_ISGID


def fingerprint_of(status: os.stat_result) -> Fingerprint:
    """Return the fingerprint of a stat result."""
    return Fingerprint(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def is_version(status: os.stat_result, version: Fingerprint) -> bool:
    """Tell whether this is a regular file with that fingerprint."""
    return (
        status.st_ino == version.inode
        and status.st_mtime_ns == version.mtime_ns
        and status.st_size == version.size_bytes
        and status.st_dev == version.device
        and not version.etag
        and st_modes.S_ISREG(status.st_mode)
    )


def read_metadata(fd: int, status: os.stat_result) -> ObjectMetadata:
    """Return what travels with an open file's bytes."""
    return ObjectMetadata(
        mode=st_modes.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        atime_ns=status.st_atime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        xattrs=_read_xattrs(fd),
        sparse=status.st_blocks * _STAT_BLOCK_BYTES < status.st_size,
    )


def _read_xattrs(fd: int) -> Mapping[str, bytes]:
    if sys.platform != "linux":
        return {}
    try:
        names = os.listxattr(fd)
    except OSError:  # best effort: not every file system keeps them
        return {}
    found: dict[str, bytes] = {}
    for name in names:
        if name.startswith("user.") or name in {_ACL_XATTR, _CAPABILITY_XATTR}:
            with suppress(OSError):
                found[name] = os.getxattr(fd, name)
    return found


def _write_xattrs(fd: int, xattrs: Mapping[str, bytes]) -> None:
    if sys.platform == "linux":
        for name, value in xattrs.items():
            with suppress(OSError):  # best effort: an object is not refused for what its target cannot keep
                os.setxattr(fd, name, value)


def apply_metadata(fd: int, metadata: ObjectMetadata) -> None:
    """Give an open file its owner (as root), extended attributes, mode and, last, its times. Raises: OSError."""
    # The order matters: chown drops set-id bits and capabilities; a read-only mode would refuse attributes.
    euid, egid = os.geteuid(), os.getegid()
    wanted = (metadata.uid if metadata.uid is not None else euid, metadata.gid if metadata.gid is not None else egid)
    owned = wanted == (euid, egid)
    if euid == 0 and not owned:
        with suppress(OSError):  # root squashed by NFS, or a file system without owners
            os.fchown(fd, *wanted)
            owned = True
    if metadata.xattrs:
        _write_xattrs(fd, metadata.xattrs)
    if metadata.mode is not None:
        with _NO_MODES:
            # A set-id bit under another owner would hand out that owner's rights.
            os.fchmod(fd, metadata.mode if owned else metadata.mode & ~_SET_ID_BITS)
    if metadata.mtime_ns is not None:
        atime_ns = metadata.atime_ns if metadata.atime_ns is not None else metadata.mtime_ns
        os.utime(fd, ns=(atime_ns, metadata.mtime_ns))


class LocalSource:
    """An open file; `SourceHandle` of the local driver."""

    __slots__ = ("_around", "_fd", "_key", "_metadata", "_position", "_status", "fingerprint")

    def __init__(self, fd: int, key: str, status: os.stat_result, around: Around | None = None) -> None:
        """Own ``fd``, whose fstat is ``status``; ``key`` names it in errors, ``around`` reads it past the page cache."""
        self._fd = fd
        self._key = key
        self._around = around
        self._position = 0
        self._status = status
        self._metadata: ObjectMetadata | None = None
        self.fingerprint = fingerprint_of(status)

    @property
    def metadata(self) -> ObjectMetadata:
        """What travels with the bytes; a copy that is read back needs none."""
        if self._metadata is None:
            self._metadata = read_metadata(self._fd, self._status)
        return self._metadata

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer; return the number of bytes, less than its length only at the end of the file."""
        filled = 0
        try:
            while filled < len(buffer):
                count = self._read(buffer[filled:], self._position + filled)
                if count == 0:
                    break
                filled += count
        except OSError as exc:
            raise source_error(self._key, exc, "read") from exc
        self._position += filled
        return filled

    def _read(self, buffer: memoryview, offset: int) -> int:
        if self._around is not None:
            return self._around.read(buffer, offset)
        return os.preadv(self._fd, [buffer], offset)

    def seek(self, offset: int) -> None:
        """Go to an absolute byte offset."""
        self._position = offset

    def close(self) -> None:
        """Close; again is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def data_runs(data: memoryview, position: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the parts of ``data`` that are not whole zero blocks of the file.

    Args:
        data: bytes of the file.
        position: the file offset they go to; the blocks are aligned in the file, not in ``data``.
    """
    head = min(-position % HOLE_BYTES, len(data))
    whole = (len(data) - head) // HOLE_BYTES
    body_end = head + whole * HOLE_BYTES
    if head:
        yield 0, head
    if whole:
        words = np.frombuffer(data[head:body_end], dtype=np.uint64).reshape(whole, HOLE_BYTES // 8)
        used = np.concatenate(([False], words.any(axis=1), [False]))
        edges = np.flatnonzero(used[1:] != used[:-1])
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            yield head + first * HOLE_BYTES, head + last * HOLE_BYTES
    if body_end < len(data):
        yield body_end, len(data)


class LocalWriter:
    """A staged file open for appending; `StagedWriter` and `Expecting` of the local driver."""

    __slots__ = ("_around", "_fd", "_label", "_length", "_position", "_sparse", "_tree")

    def __init__(self, fd: int, tree: LocalTree, label: str, *, offset: int, sparse: bool) -> None:
        """Own an open file.

        Args:
            fd: its descriptor, closed by `finish` or `close`.
            tree: whose it is.
            label: names the copy in errors.
            offset: how long it is.
            sparse: leave holes where whole blocks are zero.
        """
        self._fd = fd
        self._tree = tree
        self._label = label
        self._position = offset
        self._length = offset
        self._sparse = sparse
        self._around: Around | None = None

    def expect(self, size_bytes: int, key: str, source: SourceHandle) -> None:  # noqa: ARG002  the same wherever it goes
        """Prepare for a copy of that size in all; a large one gets its room now, and is written past the page cache.

        Raises:
            NodeFull: there is no room for it.
            NodeNotWritable.
        """
        # A sparse one would lose its holes.
        if self._sparse or size_bytes < DIRECT_FROM_BYTES or not self._tree.direct:
            return
        try:
            self._tree.calls.preallocate(self._fd, size_bytes)
        except OSError as exc:
            raise self._error(exc, "make room for a copy") from exc
        self._around = Around(self._fd)

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises: NodeFull, NodeNotWritable."""
        try:
            if not self._sparse:
                self._put(data, self._position)
            else:
                for start, end in data_runs(data, self._position):
                    self._put(data[start:end], self._position + start)
        except OSError as exc:
            raise self._error(exc, "write") from exc
        self._position += len(data)

    def _put(self, data: memoryview, offset: int) -> None:
        while data:
            count = self._around.write(data, offset) if self._around else os.pwrite(self._fd, data, offset)
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[count:]
            offset += count
        self._length = offset

    def _settle_length(self) -> None:
        """Give the file its full length where its last bytes are a hole."""
        if self._length != self._position:
            os.ftruncate(self._fd, self._position)
            self._length = self._position

    def sync(self) -> None:
        """Make what was written so far durable. Raises: NodeFull, NodeNotWritable."""
        try:
            self._settle_length()
            fdatasync(self._fd)
        except OSError as exc:
            raise self._error(exc, "sync") from exc

    def finish(self, metadata: ObjectMetadata) -> None:
        """Apply the metadata, mtime last, and close. Raises: NodeFull, NodeNotWritable."""
        try:
            self._settle_length()
            apply_metadata(self._fd, metadata)
            if self._tree.calls.syncfs is None:  # else the driver syncs the whole batch
                fsync(self._fd)
        except OSError as exc:
            raise self._error(exc, "finish a copy") from exc
        finally:
            self._release()

    def close(self) -> None:
        """Close and keep what is there; again is fine."""
        if self._fd >= 0:
            with suppress(OSError):  # a shorter file only makes a later attempt start earlier
                # Never cut: whoever took over from a stalled worker may have gone on with this very file.
                if os.fstat(self._fd).st_size < self._position:
                    self._settle_length()
            self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _error(self, exc: OSError, doing: str) -> RebalanceError:
        return copy_error(self._tree.node_id, self._tree.root, self._label, exc, doing)
