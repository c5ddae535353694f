"""Files of an SFTP server as the engine reads and writes them, and what their attributes say."""

from __future__ import annotations

import asyncio
import stat as st_modes
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from rebalance_tasks.core.errors import SourceChanged
from rebalance_tasks.drivers.base import Fingerprint, ObjectMetadata
from rebalance_tasks.drivers.sftp.errors import source_error, target_error, translated
from rebalance_tasks.drivers.sftp.packets import attrs_of
from rebalance_tasks.drivers.trees.calls import Found, Kind
from rebalance_tasks.drivers.windowed import WindowedSource

if TYPE_CHECKING:
    from rebalance_tasks.drivers.sftp.link import SftpLink

#: Bytes asked for, or sent, at once; asyncssh cuts them into requests that are in flight together.
WINDOW_BYTES: Final = 1024**2
_NS: Final = 10**9
#: asyncssh's word for a regular file.
_REGULAR: Final = 1


def times_of(attrs: asyncssh.SFTPAttrs) -> tuple[int, int]:
    """Return (mtime, atime) in ns since the epoch; a server of protocol 3 tells whole seconds."""
    mtime_ns = (attrs.mtime or 0) * _NS + (attrs.mtime_ns or 0)
    return mtime_ns, (attrs.atime or 0) * _NS + (attrs.atime_ns or 0)


def is_regular(attrs: asyncssh.SFTPAttrs) -> bool:
    """Tell whether these are a regular file's."""
    if attrs.permissions is not None and st_modes.S_IFMT(attrs.permissions):
        return st_modes.S_ISREG(attrs.permissions)
    return bool(attrs.type == _REGULAR)


def fingerprint_of(attrs: asyncssh.SFTPAttrs) -> Fingerprint:
    """Return the fingerprint of a file: size and time are all that survives a rename, and so also tell which file it is."""
    return fingerprint_as(attrs.size or 0, times_of(attrs)[0])


def fingerprint_as(size_bytes: int, mtime_ns: int) -> Fingerprint:
    """Return the fingerprint of a file of this size and time."""
    return Fingerprint(size_bytes, mtime_ns=mtime_ns, etag=f"{size_bytes}-{mtime_ns}")


def found_of(attrs: asyncssh.SFTPAttrs) -> Found:
    """Read what the server says of a name."""
    mtime_ns, atime_ns = times_of(attrs)
    return Found(
        _kind_of(attrs),
        fingerprint_as(attrs.size or 0, mtime_ns),
        changed_ns=0 if attrs.ctime is None else attrs.ctime * _NS + (attrs.ctime_ns or 0),
        mode=None if attrs.permissions is None else st_modes.S_IMODE(attrs.permissions),
        atime_ns=atime_ns,
    )


def _kind_of(attrs: asyncssh.SFTPAttrs) -> Kind:
    match attrs.type:
        case asyncssh.FILEXFER_TYPE_DIRECTORY:
            return Kind.FOLDER
        case asyncssh.FILEXFER_TYPE_SYMLINK:
            return Kind.LINK
        case _ if is_regular(attrs):
            return Kind.HARD_LINK if (attrs.nlink or 1) > 1 else Kind.FILE
        case _:
            return Kind.SPECIAL


class SftpSource(WindowedSource):
    """An open file being read, a window at a time; `SourceHandle`."""

    def __init__(self, link: SftpLink, node_id: str, path: str, key: str, found: Found) -> None:
        """Read the file at ``path``, which was just looked at."""
        super().__init__()
        self._link, self._node_id, self._path, self._key = link, node_id, path, key
        self.fingerprint, self.metadata = found.fingerprint, found.metadata

    def _fetch(self, offset: int) -> bytes:
        # A longer read is cut into requests that would all find the end.
        length = min(WINDOW_BYTES, self.fingerprint.size_bytes - offset)

        async def read(client: asyncssh.SFTPClient) -> tuple[bytes, asyncssh.SFTPAttrs]:
            async with client.open(self._path, "rb") as file:
                data: bytes
                data, attrs = await asyncio.gather(file.read(length, offset), file.stat())
                return data, attrs

        with translated(lambda exc: source_error(self._node_id, self._key, exc, "read")):
            window, attrs = self._link.run(read)
        # Each window opens the path anew, which may lead to another file by now.
        if fingerprint_of(attrs) != self.fingerprint:
            raise SourceChanged(self._key, "it was replaced or written to while it was read")
        if not window:
            raise SourceChanged(self._key, "the source shrank while it was read")
        return window


class SftpWriter:
    """A copy being made aside; `StagedWriter`. Nothing is open between two calls, so a broken line costs one of them."""

    def __init__(self, link: SftpLink, node_id: str, path: str, label: str, offset: int) -> None:
        """Append to ``path`` at ``offset``; a copy at 0 is made anew."""
        self._link, self._node_id, self._path, self._label = link, node_id, path, label
        self._position = offset
        self._buffer = bytearray()
        self._made = offset > 0

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises: NodeFull, NodeMissing, NodeNotWritable."""
        self._buffer += data
        if len(self._buffer) >= WINDOW_BYTES:
            self._flush(None)

    def sync(self) -> None:
        """Write what is in memory, durably where the server can."""
        self._flush(None)

    def finish(self, metadata: ObjectMetadata) -> None:
        """Write the rest and the metadata."""
        self._flush(metadata)

    def close(self) -> None:
        """Keep what is there."""
        self._flush(None)

    def _flush(self, metadata: ObjectMetadata | None) -> None:
        data, position, flags = bytes(self._buffer), self._position, "r+b" if self._made else "wb"

        async def write(client: asyncssh.SFTPClient) -> None:
            async with client.open(self._path, flags) as file:
                if data:
                    await file.write(data, position)
                with suppress(asyncssh.SFTPOpUnsupported):
                    await file.fsync()
                if metadata is not None:
                    await apply(file, metadata)

        with translated(lambda exc: target_error(self._node_id, self._label, exc, "write a copy")):
            self._link.run(write)
        self._position += len(data)
        self._made = True
        self._buffer.clear()


async def apply(file: Any, metadata: ObjectMetadata) -> None:  # noqa: ANN401  asyncssh's file of any text kind
    """Give an open file its mode and its times, by one request."""
    await file.setstat(attrs_of(metadata))
