"""Small files from a disk to a folder behind SFTP, the requests of many in one piece: `SftpDriver`'s own steps, without waiting for each.

Alone, an object hands each of its requests from the engine's thread to the line's loop and back. A burst (`drivers.burst`) reads a few
files, and has each copy written, synced, dated, read back and closed by requests that go out together (`drivers.sftp_bulk`). It declines
what is larger, what fails and what is not what was sent; the drivers then go their own way and say what is wrong.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import asyncssh
import xxhash

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.drivers.local_errors import validate_local_key
from rebalance_tasks.drivers.sftp_files import fingerprint_as, fingerprint_of, is_regular
from rebalance_tasks.drivers.sftp_link import LinkBroken
from rebalance_tasks.drivers.tree import aside_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver, ObjectMetadata
    from rebalance_tasks.drivers.sftp_bulk import BulkSession
    from rebalance_tasks.drivers.sftp_packets import Answer, Dialect
    from rebalance_tasks.drivers.sftp_tree import SftpTree

T = TypeVar("T")
R = TypeVar("R")

#: One request, and one answer, must hold a whole object: the least that every server takes is 34,000 bytes.
MOST_BYTES: Final = 32 * 1024
#: Objects handed over together: flags are looked at before each of them is read, and those before it may be on their way.
AT_ONCE: Final = 64
_NS: Final = 10**9


class _Copy(NamedTuple):
    """One small file, read."""

    move_id: MoveId
    path: bytes
    data: bytes
    source: Fingerprint
    metadata: ObjectMetadata


class _Name(NamedTuple):
    """One copy aside, and the name it is to have."""

    aside: bytes
    path: bytes
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

    async def _put(self, session: BulkSession, copies: Sequence[_Copy]) -> list[Fingerprint | None]:
        """Write copies, sync them, read them back; the fingerprints of those that are what was sent, and nothing of the others."""
        say = session.dialect
        opened = await session.ask([say.open_new(copy.path) for copy in copies])
        shows = not self._grain_ns
        wanted: list[tuple[int, bytes]] = []
        spans: list[slice] = []
        for copy, handle in zip(copies, [answer.handle for answer in opened], strict=True):
            begin = len(wanted)
            wanted += [] if handle is None else _requests(say, handle, copy, shows=shows)
            spans.append(slice(begin, len(wanted)))
        answers = await session.ask(wanted)
        proven = [self._proof(say, copy, answers[span], shows=shows) for copy, span in zip(copies, spans, strict=True)]
        made = [
            copy for copy, found, span in zip(copies, proven, spans, strict=True) if found is None and answers[span]
        ]
        await session.ask([say.remove(copy.path) for copy in made])
        return proven

    def _proof(self, say: Dialect, copy: _Copy, answers: Sequence[Answer], *, shows: bool) -> Fingerprint | None:
        """The fingerprint of a copy that is what was sent: as the server shows it until it is known how it keeps times, then foretold.

        What is foretold wrongly is found out before the copy gets its key.
        """
        if not answers:
            return None
        *done, back = answers[: -2 if shows else -1]
        closed = answers[-1]
        if back.data != copy.data or not all(answer.ok for answer in (*done, closed)):
            return None
        mtime_ns = copy.metadata.mtime_ns
        if not shows and mtime_ns is not None:
            return fingerprint_as(len(copy.data), mtime_ns - mtime_ns % self._grain_ns)
        attrs = answers[-2].attrs(say.version) if shows else None
        if attrs is None:
            return None
        found = fingerprint_of(attrs)
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
                return _Copy(move_id, self._path(aside_name(move_id)), data, reader.fingerprint, reader.metadata)
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

    async def _publish(self, session: BulkSession, names: Sequence[_Name]) -> list[bool]:
        """Give names as `sftp_tree.give_name` does, where a copy is what was verified; a server that does neither is declined."""
        say = session.dialect
        in_one = self._target.link.renames_once
        if not (in_one or say.links):
            return [False] * len(names)
        looks = await session.ask([say.look(name.aside) for name in names])
        same = [_is(answer.attrs(say.version), name.expected) for answer, name in zip(looks, names, strict=True)]
        ready = [name for name, is_same in zip(names, same, strict=True) if is_same]
        given = await session.ask([(say.rename if in_one else say.link)(name.aside, name.path) for name in ready])
        published = {name.path for name, answer in zip(ready, given, strict=True) if answer.ok}
        if not in_one:
            # What stays aside all the same is cleanup's: the object has its key.
            await session.ask([say.remove(name.aside) for name in ready if name.path in published])
        return [name.path in published for name in names]

    def _ready(self, key: str, move_id: MoveId, source: Fingerprint, expected: Fingerprint) -> _Name | None:
        try:
            validate_local_key(key)
            self._target.make_folder(key)
            if not self._source.unchanged(key, source):
                return None
        except (RebalanceError, asyncssh.SFTPError, LinkBroken):
            return None
        return _Name(self._path(aside_name(move_id)), self._path(key), expected)

    def _path(self, name: str) -> bytes:
        return self._target.path(name).encode("utf-8", "surrogateescape")

    def _all(
        self, act: Callable[[BulkSession, Sequence[T]], Awaitable[Sequence[R]]], things: Sequence[T | None]
    ) -> Sequence[R | None]:
        """Act on all of them at once; ``None`` where there was nothing to do, or nobody who does it."""
        try:
            done = iter(
                self._target.link.run_bulk(lambda session: act(session, [one for one in things if one is not None]))
            )
        except LinkBroken:
            return [None] * len(things)
        return [None if one is None else next(done) for one in things]


def _requests(say: Dialect, handle: bytes, copy: _Copy, *, shows: bool) -> list[tuple[int, bytes]]:
    """All that is asked about an open copy: to write, sync and date it, to read it back, to show it, and to close it."""
    return [
        say.write(handle, copy.data),
        *([say.sync(handle)] if say.syncs else []),
        say.set_attrs(handle, copy.metadata),
        say.read(handle, len(copy.data) + 1),
        *([say.show(handle)] if shows else []),
        say.close(handle),
    ]


def _is(attrs: asyncssh.SFTPAttrs | None, expected: Fingerprint) -> bool:
    return attrs is not None and is_regular(attrs) and fingerprint_of(attrs) == expected


def _some(things: Iterable[T]) -> Iterator[list[T]]:
    """Cut into lists of `AT_ONCE`."""
    left = iter(things)
    while some := list(islice(left, AT_ONCE)):
        yield some
