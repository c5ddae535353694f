"""Small files from a disk to a folder behind SFTP, many in flight on one line: `SftpDriver`'s own steps, without waiting for each.

Alone, an object hands each of its requests from the engine's thread to the line's loop and back. A burst (`drivers.burst`) reads a few
files, hands them over together, and has each copy written, synced and read back through one open file. It declines what is larger,
what fails and what is not what was sent; the drivers then go their own way and say what is wrong.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import asyncssh
import xxhash

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.drivers.local_errors import validate_local_key
from rebalance_tasks.drivers.sftp_files import apply, fingerprint_as, fingerprint_of, is_regular
from rebalance_tasks.drivers.sftp_link import LinkBroken
from rebalance_tasks.drivers.sftp_tree import give_name
from rebalance_tasks.drivers.tree import aside_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver, ObjectMetadata
    from rebalance_tasks.drivers.sftp_tree import SftpTree

T = TypeVar("T")
R = TypeVar("R")

#: Larger objects gain nothing here.
MOST_BYTES: Final = 64 * 1024
#: Objects handed over together: flags are looked at before each of them is read, and those before it may be on their way.
AT_ONCE: Final = 32
_NS: Final = 10**9


class _Copy(NamedTuple):
    """One small file, read."""

    move_id: MoveId
    path: str
    data: bytes
    source: Fingerprint
    metadata: ObjectMetadata


class _Name(NamedTuple):
    """One copy aside, and the name it is to have."""

    aside: str
    path: str
    expected: Fingerprint


class SftpBurst(NoBurst):
    """Stages, reads back and publishes on one node; `Burst`."""

    alone = True

    def __init__(self, source: Driver, target: SftpTree) -> None:
        """Copy from ``source``, whose reads are quick."""
        self._source, self._target = source, target
        #: what was read back, by move
        self._proven: dict[MoveId, Fingerprint] = {}
        #: the server keeps times in whole multiples of this; 0: not known
        self._grain_ns = 0

    def stage(
        self, objects: Iterable[tuple[str, MoveId, int] | None], spend: Callable[[int], None]
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        """Copy each object aside, and read it back while its file is open; see `Burst.stage`."""
        for some in _some(objects):
            copies = [None if one is None else self._read(*one, spend) for one in some]
            for copy, proven in zip(copies, self._all(self._put, copies), strict=True):
                if copy is None or proven is None:
                    yield None
                    continue
                self._proven[copy.move_id] = proven
                yield copy.source, xxhash.xxh3_128_hexdigest(copy.data)

    async def _put(self, client: asyncssh.SFTPClient, copy: _Copy) -> Fingerprint | None:
        """Write a copy, sync it, read it back; its fingerprint if it is what was sent."""
        async with client.open(copy.path, "w+b", block_size=0) as file:
            await file.write(copy.data, 0)
            with suppress(asyncssh.SFTPOpUnsupported):
                await file.fsync()
            await apply(file, copy.metadata)
            back: str | bytes = await file.read(len(copy.data) + 1, 0)
            found = await self._shown(file, copy)
        if back == copy.data:
            return found
        await client.remove(copy.path)
        return None

    async def _shown(self, file: Any, copy: _Copy) -> Fingerprint:  # noqa: ANN401  asyncssh's file of any text kind
        """The fingerprint that the server shows of a copy: asked for until it is known how it keeps times, then foretold.

        What is foretold wrongly is found out before the copy gets its key.
        """
        mtime_ns = copy.metadata.mtime_ns
        if self._grain_ns and mtime_ns is not None:
            return fingerprint_as(len(copy.data), mtime_ns - mtime_ns % self._grain_ns)
        found = fingerprint_of(await file.stat())
        if mtime_ns is not None and mtime_ns % _NS:
            self._grain_ns = {mtime_ns: 1, mtime_ns - mtime_ns % _NS: _NS}.get(found.mtime_ns, 0)
        return found

    def _read(self, key: str, move_id: MoveId, size_bytes: int, spend: Callable[[int], None]) -> _Copy | None:
        if not 0 < size_bytes <= MOST_BYTES:
            return None
        spend(size_bytes)
        # One byte more, which a file that has grown has.
        buffer = memoryview(bytearray(size_bytes + 1))
        try:
            with self._source.open_source(key) as reader:
                if reader.readinto(buffer) != size_bytes or reader.fingerprint.size_bytes != size_bytes:
                    return None
                data = bytes(buffer[:size_bytes])
                return _Copy(move_id, self._target.path(aside_name(move_id)), data, reader.fingerprint, reader.metadata)
        except RebalanceError:
            return None

    def read_back(self, copies: Iterable[tuple[MoveId, int, str] | None]) -> Iterator[Fingerprint | None]:
        """Say what was read back right after it was written and synced."""
        for copy in copies:
            yield None if copy is None else self._proven.pop(copy[0], None)

    def publish(self, copies: Iterable[tuple[str, MoveId, Fingerprint, Fingerprint] | None]) -> Iterator[bool]:
        """Give the copies their keys, each if its source and the copy are what they were; see `Burst.publish`."""
        for some in _some(copies):
            names = [None if one is None else self._ready(*one) for one in some]
            for done in self._all(self._publish, names):
                yield bool(done)

    async def _publish(self, client: asyncssh.SFTPClient, name: _Name) -> bool:
        found = await client.lstat(name.aside)
        if not is_regular(found) or fingerprint_of(found) != name.expected:
            return False
        await give_name(client, name.aside, name.path, in_one=self._target.link.renames_once)
        return True

    def _ready(self, key: str, move_id: MoveId, source: Fingerprint, expected: Fingerprint) -> _Name | None:
        try:
            validate_local_key(key)
            self._target.make_folder(key)
            if not self._source.unchanged(key, source):
                return None
        except (RebalanceError, asyncssh.SFTPError, LinkBroken):
            return None
        return _Name(self._target.path(aside_name(move_id)), self._target.path(key), expected)

    def _all(
        self, act: Callable[[asyncssh.SFTPClient, T], Awaitable[R]], things: Sequence[T | None]
    ) -> Sequence[R | None]:
        """Act on all of them at once; ``None`` where there was nothing to do or the server has refused."""

        async def asked(client: asyncssh.SFTPClient) -> list[R | None]:
            async def one(thing: T | None) -> R | None:
                with suppress(asyncssh.SFTPError):
                    return None if thing is None else await act(client, thing)
                return None

            found = await asyncio.gather(*map(one, things), return_exceptions=True)
            return [_or_raise(result) for result in found]

        try:
            return self._target.link.run(asked)
        except LinkBroken:
            return [None] * len(things)


def _or_raise(result: R | BaseException) -> R:
    if isinstance(result, BaseException):
        raise result
    return result


def _some(things: Iterable[T]) -> Iterator[list[T]]:
    """Cut into lists of `AT_ONCE`."""
    left = iter(things)
    while some := list(islice(left, AT_ONCE)):
        yield some
