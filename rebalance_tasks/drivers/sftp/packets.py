"""SFTP requests built, and answers read, many at a time: what a few small files need, in versions 3 to 6 of the protocol.

Nothing here asks anybody anything (`drivers.sftp.bulk` does). What is read comes from the server and is bounded.

Source: draft-ietf-secsh-filexfer-02 (version 3) and -13 (version 6); OpenSSH's PROTOCOL for ``fsync@openssh.com`` and ``hardlink@openssh.com``.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncssh
from asyncssh.packet import PacketDecodeError, SSHPacket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.drivers.base import ObjectMetadata

_INIT: Final = 1
_VERSION: Final = 2
_OPEN: Final = 3
_CLOSE: Final = 4
_READ: Final = 5
_WRITE: Final = 6
_LSTAT: Final = 7
_FSTAT: Final = 8
_FSETSTAT: Final = 10
_REMOVE: Final = 13
_RENAME: Final = 18
_LINK: Final = 21
_EXTENDED: Final = 200
_STATUS: Final = 101
_HANDLE: Final = 102
_DATA: Final = 103
_ATTRS: Final = 105

#: SSH_FXF_READ
_AS_IT_IS: Final = 0x01
#: ACE4_READ_DATA | READ_ATTRIBUTES, then SSH_FXF_OPEN_EXISTING
_AS_IT_IS_5: Final = (0x81, 2)
#: SSH_FXF_READ | WRITE | CREAT | TRUNC
_MADE_ANEW: Final = 0x1B
#: ACE4_READ_DATA | WRITE_DATA | READ_ATTRIBUTES | WRITE_ATTRIBUTES, then SSH_FXF_CREATE_TRUNCATE
_MADE_ANEW_5: Final = (0x183, 1)
#: Every server takes, and gives, as many bytes of a file in one packet (draft-ietf-secsh-filexfer-02 §3).
PIECE_BYTES: Final = 32 * 1024
#: No server may want more room for one answer; OpenSSH's and asyncssh's take requests of a quarter of a megabyte.
MOST_BYTES: Final = 1 << 20
_NS: Final = 10**9
_UINT32: Final = struct.Struct(">I")
_UINT64: Final = struct.Struct(">Q")
_HEAD: Final = struct.Struct(">IBI")
#: What may be told of a file in version 4 and later.
_ALL_ATTRS: Final = 0xFFFD


class Answer(NamedTuple):
    """One answer of the server's."""

    kind: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it did what was asked, with nothing to tell."""
        return self.kind == _STATUS and self.body[:4] == b"\0\0\0\0"

    @property
    def handle(self) -> bytes | None:
        """Of a file that it has opened."""
        return _text(self.body) if self.kind == _HANDLE else None

    @property
    def data(self) -> bytes | None:
        """What it has read."""
        return _text(self.body) if self.kind == _DATA else None

    def attrs(self, version: int) -> asyncssh.SFTPAttrs | None:
        """What it shows of a file."""
        if self.kind != _ATTRS:
            return None
        with suppress(PacketDecodeError, asyncssh.SFTPError):
            return asyncssh.SFTPAttrs.decode(SSHPacket(self.body), version)
        return None


def _text(body: bytes) -> bytes:
    if len(body) < _UINT32.size:
        return b""
    (length,) = _UINT32.unpack_from(body)
    return body[4 : 4 + length]


def string(text: bytes) -> bytes:
    """A length and the bytes."""
    return _UINT32.pack(len(text)) + text


def request(number: int, kind: int, body: bytes) -> bytes:
    """A whole request."""
    return _HEAD.pack(len(body) + 5, kind, number) + body


def hello(version: int) -> bytes:
    """The first packet: the newest version that we speak."""
    return struct.pack(">IBI", 5, _INIT, version)


def extensions_of(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, value) of what a server's first answer says besides its version."""
    rest = body
    while len(rest) >= 8:  # noqa: PLR2004  two lengths
        name = _text(rest)
        value = _text(rest[4 + len(name) :])
        yield name, value
        rest = rest[8 + len(name) + len(value) :]


class Dialect:
    """Requests as one server understands them: (kind, body) each.

    Attributes:
        version: of the protocol.
        syncs: it syncs a file when it is asked to.
        links: it gives a file a second name, refusing one that is taken.
    """

    def __init__(self, version: int, extensions: dict[bytes, bytes]) -> None:
        """Understand what the server has said of itself."""
        self.version = version
        self.syncs = extensions.get(b"fsync@openssh.com") == b"1"
        self.links = version >= 6 or extensions.get(b"hardlink@openssh.com") == b"1"  # noqa: PLR2004  the protocol's own numbers

    def open_new(self, path: bytes) -> tuple[int, bytes]:
        """Make a file anew, for writing and reading."""
        return self._open(path, _MADE_ANEW, _MADE_ANEW_5)

    def open_old(self, path: bytes) -> tuple[int, bytes]:
        """Open a file that is there, for reading."""
        return self._open(path, _AS_IT_IS, _AS_IT_IS_5)

    def _open(self, path: bytes, flags: int, flags_5: tuple[int, int]) -> tuple[int, bytes]:
        how = _UINT32.pack(flags) if self.version < 5 else struct.pack(">II", *flags_5)  # noqa: PLR2004
        return _OPEN, string(path) + how + asyncssh.SFTPAttrs().encode(self.version)

    @staticmethod
    def writes(handle: bytes, data: bytes) -> list[tuple[int, bytes]]:
        """Write a file from its beginning, in as many requests as it takes."""
        return [
            (_WRITE, b"".join((string(handle), _UINT64.pack(at), string(data[at : at + PIECE_BYTES]))))
            for at in range(0, len(data), PIECE_BYTES)
        ]

    @staticmethod
    def sync(handle: bytes) -> tuple[int, bytes]:
        """Put a file on the server's disk."""
        return _EXTENDED, string(b"fsync@openssh.com") + string(handle)

    def set_attrs(self, handle: bytes, metadata: ObjectMetadata) -> tuple[int, bytes]:
        """Set mode and times."""
        return _FSETSTAT, string(handle) + attrs_of(metadata).encode(self.version)

    @staticmethod
    def reads(handle: bytes, size_bytes: int) -> list[tuple[int, bytes]]:
        """Read a file of that size, in as many requests as it takes, and one byte more, which a file that has grown has."""
        lengths = [(at, min(PIECE_BYTES, size_bytes - at)) for at in range(0, size_bytes, PIECE_BYTES)]
        return [
            (_READ, string(handle) + struct.pack(">QI", at, length + (at + length == size_bytes)))
            for at, length in lengths
        ]

    def show(self, handle: bytes) -> tuple[int, bytes]:
        """Look at an open file."""
        return _FSTAT, string(handle) + self._wanted

    def look(self, path: bytes) -> tuple[int, bytes]:
        """Look at a name, links not followed."""
        return _LSTAT, string(path) + self._wanted

    @property
    def _wanted(self) -> bytes:
        return b"" if self.version < 4 else _UINT32.pack(_ALL_ATTRS)  # noqa: PLR2004

    @staticmethod
    def close(handle: bytes) -> tuple[int, bytes]:
        """Close a file."""
        return _CLOSE, string(handle)

    @staticmethod
    def remove(path: bytes) -> tuple[int, bytes]:
        """Remove a name."""
        return _REMOVE, string(path)

    def rename(self, old: bytes, new: bytes) -> tuple[int, bytes]:
        """Rename; what a name that is taken means is the server's affair."""
        return _RENAME, string(old) + string(new) + (b"" if self.version < 5 else bytes(4))  # noqa: PLR2004

    def link(self, old: bytes, new: bytes) -> tuple[int, bytes]:
        """Give a file a second name."""
        if self.version >= 6:  # noqa: PLR2004
            return _LINK, string(new) + string(old) + b"\0"
        return _EXTENDED, string(b"hardlink@openssh.com") + string(old) + string(new)


def attrs_of(metadata: ObjectMetadata) -> asyncssh.SFTPAttrs:
    """Mode and times, as far as they are known."""
    attrs = asyncssh.SFTPAttrs(permissions=metadata.mode)
    if metadata.mtime_ns is not None:
        atime_ns = metadata.mtime_ns if metadata.atime_ns is None else metadata.atime_ns
        attrs.atime, attrs.atime_ns = divmod(atime_ns, _NS)
        attrs.mtime, attrs.mtime_ns = divmod(metadata.mtime_ns, _NS)
    return attrs


class Garbled(Exception):
    """What came is no answer."""


class Answers:
    """Cuts what arrives into answers."""

    def __init__(self) -> None:
        """Nothing has arrived."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, Answer]]:
        """Take what arrived; return (number, answer) of what is whole by now; the server's hello has its version for a number.

        Raises:
            Garbled: a packet has no room for its head, or is longer than any may be.
        """
        buffer, at = self._buffer, 0
        buffer += data
        found: list[tuple[int, Answer]] = []
        while len(buffer) - at >= _HEAD.size:
            length, kind, number = _HEAD.unpack_from(buffer, at)
            if not _HEAD.size - 4 <= length <= MOST_BYTES:
                msg = f"the server sent a packet of {length} bytes"
                raise Garbled(msg)
            end = at + 4 + length
            if end > len(buffer):
                break
            found.append((number, Answer(kind, bytes(buffer[at + _HEAD.size : end]))))
            at = end
        del buffer[:at]
        return found


def is_hello(answer: Answer) -> bool:
    """Whether it is the server's first."""
    return answer.kind == _VERSION
