"""A folder behind SFTP as one end of a burst: `SftpDriver`'s own steps for many small files, their requests in one piece.

Alone, an object hands each of its requests from the engine's thread to the line's loop and back. Here the requests of many files go out
together (`drivers.sftp.bulk`): to look at them, to open them, and then all the rest. What is not as it should be is declined
(`drivers.small_burst`), and nothing of it is left.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import asyncssh

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.drivers.local.errors import validate_local_key
from rebalance_tasks.drivers.sftp.files import fingerprint_as, fingerprint_of, found_of
from rebalance_tasks.drivers.sftp.link import LinkBroken
from rebalance_tasks.drivers.small_burst import Small, lots, spread
from rebalance_tasks.drivers.trees.calls import aside_name, trash_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.sftp.bulk import BulkSession
    from rebalance_tasks.drivers.sftp.packets import Answer, Dialect
    from rebalance_tasks.drivers.sftp.tree import SftpTree
    from rebalance_tasks.drivers.trees.calls import Found

T = TypeVar("T")
R = TypeVar("R")

_NS: Final = 10**9


class _Renaming(NamedTuple):
    """A file, the name it is to have, and the version that may have it."""

    old: bytes
    new: bytes
    expected: Fingerprint


class SftpMany:
    """`Many` on one node."""

    def __init__(self, tree: SftpTree) -> None:
        """Stand on a tree; nothing is asked yet."""
        self._tree = tree
        #: what was read back, by move
        self._proven: dict[MoveId, Fingerprint] = {}
        #: the server keeps times in whole multiples of this; 0: not known
        self._grain_ns = 0

    # -- as a source ----------------------------------------------------------------------------------------------
    def read(self, objects: Sequence[tuple[str, MoveId, int]]) -> list[Small | None]:
        """Read whole objects; see `Many.read`."""
        return self._all(self._read, [one if self._leads_to_it(one[0]) else None for one in objects])

    async def _read(self, session: BulkSession, objects: Sequence[tuple[str, MoveId, int]]) -> list[Small | None]:
        say = session.dialect
        paths = [self._path(key) for key, _, _ in objects]
        # Looked at before it is opened: opening a pipe would hold up the server.
        looks = await session.ask([say.look(path) for path in paths])
        found = [_file_in(answer, say) for answer in looks]
        sizes = [0 if one is None else one.fingerprint.size_bytes for one in found]
        opened = await session.ask_of_each(
            [
                [say.open_old(path)] if size == wanted[2] else []
                for path, size, wanted in zip(paths, sizes, objects, strict=True)
            ]
        )
        handles = [answers[0].handle if answers else None for answers in opened]
        told = await session.ask_of_each(
            [
                [] if handle is None else [*say.reads(handle, size), say.show(handle), say.close(handle)]
                for handle, size in zip(handles, sizes, strict=True)
            ]
        )
        return [_small(say, *one) for one in zip(objects, found, told, strict=True)]

    def unchanged(self, versions: Sequence[tuple[str, Fingerprint]]) -> list[bool]:
        """Tell which objects are still the version that was read."""
        return [
            bool(one)
            for one in self._all(self._compare, [one if self._leads_to_it(one[0]) else None for one in versions])
        ]

    async def _compare(self, session: BulkSession, versions: Sequence[tuple[str, Fingerprint]]) -> list[bool]:
        return await _are(session, [(self._path(key), version) for key, version in versions])

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """Move sources into the trash; see `Burst.free`."""
        for lot in lots(objects):
            names = [
                _Renaming(self._path(one[0]), self._path(trash_name(one[1])), one[2])
                if one is not None and self._leads_to_it(one[0])
                else None
                for one in lot
            ]
            for done in self._all(self._free, names):
                yield bool(done)

    async def _free(self, session: BulkSession, names: Sequence[_Renaming]) -> list[bool]:
        """Rename what is as it was copied into the trash, as `SftpTree.move_aside` does, and compare again there."""
        say = session.dialect
        same = await _are(session, [(name.old, name.expected) for name in names])
        ready = [name for name, is_same in zip(names, same, strict=True) if is_same]
        given = await session.ask([say.rename(name.old, name.new) for name in ready])
        there = [name for name, answer in zip(ready, given, strict=True) if answer.ok]
        held = await _are(session, [(name.new, name.expected) for name in there])
        freed = {name.new for name, is_held in zip(there, held, strict=True) if is_held}
        return [name.new in freed for name in names]

    # -- as a target ----------------------------------------------------------------------------------------------
    def put(self, copies: Sequence[Small]) -> list[bool]:
        """Copy objects aside, and read each back while its file is open; see `Many.put`."""
        proven = self._all(self._put, copies)
        self._proven |= {copy.move_id: found for copy, found in zip(copies, proven, strict=True) if found is not None}
        return [found is not None for found in proven]

    async def _put(self, session: BulkSession, copies: Sequence[Small]) -> list[Fingerprint | None]:
        """Write copies, sync them, read them back; the fingerprints of those that are what was sent, and nothing of the others."""
        say = session.dialect
        paths = [self._path(aside_name(copy.move_id)) for copy in copies]
        opened = await session.ask([say.open_new(path) for path in paths])
        told = await session.ask_of_each(
            [
                [] if answer.handle is None else self._requests(say, answer.handle, copy)
                for copy, answer in zip(copies, opened, strict=True)
            ]
        )
        proven = [self._proof(say, copy, answers) for copy, answers in zip(copies, told, strict=True)]
        made = zip(paths, told, proven, strict=True)
        await session.ask([say.remove(path) for path, answers, found in made if answers and found is None])
        return proven

    def _requests(self, say: Dialect, handle: bytes, copy: Small) -> list[tuple[int, bytes]]:
        """All that is asked about an open copy: to write, sync and date it, to read it back, to show it, and to close it."""
        foretold = self._grain_ns and copy.metadata.mtime_ns is not None
        return [
            *say.writes(handle, copy.data),
            *([say.sync(handle)] if say.syncs else []),
            say.set_attrs(handle, copy.metadata),
            *say.reads(handle, len(copy.data)),
            *([] if foretold else [say.show(handle)]),
            say.close(handle),
        ]

    def _proof(self, say: Dialect, copy: Small, answers: Sequence[Answer]) -> Fingerprint | None:
        """The fingerprint of a copy that is what was sent: as the server shows it until it is known how it keeps times, then foretold.

        What is foretold wrongly is found out before the copy gets its key.
        """
        shown = [attrs for answer in answers if (attrs := answer.attrs(say.version)) is not None]
        done = sum(answer.ok or answer.data is not None for answer in answers) + len(shown)
        if not answers or done < len(answers) or _joined(answers) != copy.data:
            return None
        mtime_ns = copy.metadata.mtime_ns
        if not shown:
            if mtime_ns is None or not self._grain_ns:
                return None
            return fingerprint_as(len(copy.data), mtime_ns - mtime_ns % self._grain_ns)
        found = fingerprint_of(shown[0])
        if mtime_ns is not None and mtime_ns % _NS:
            self._grain_ns = {mtime_ns: 1, mtime_ns - mtime_ns % _NS: _NS}.get(found.mtime_ns, 0)
        return found

    def read_back(self, move_id: MoveId) -> Fingerprint | None:
        """Say what was read back right after it was written and synced."""
        return self._proven.pop(move_id, None)

    def publish(self, copies: Sequence[tuple[str, MoveId, Fingerprint]]) -> list[bool]:
        """Give the copies their keys; see `Many.publish`."""
        names = [
            _Renaming(self._path(aside_name(move_id)), self._path(key), expected) if self._has_folder(key) else None
            for key, move_id, expected in copies
        ]
        return [bool(done) for done in self._all(self._publish, names)]

    async def _publish(self, session: BulkSession, names: Sequence[_Renaming]) -> list[bool]:
        """Give names as `sftp_tree.give_name` does, where a copy is what was verified; a server that does neither is declined."""
        say = session.dialect
        in_one = self._tree.link.renames_once
        if not (in_one or say.links):
            return [False] * len(names)
        same = await _are(session, [(name.old, name.expected) for name in names])
        ready = [name for name, is_same in zip(names, same, strict=True) if is_same]
        given = await session.ask([(say.rename if in_one else say.link)(name.old, name.new) for name in ready])
        published = {name.new for name, answer in zip(ready, given, strict=True) if answer.ok}
        if not in_one:
            # What stays aside all the same is cleanup's: the object has its key.
            await session.ask([say.remove(name.old) for name in ready if name.new in published])
        return [name.new in published for name in names]

    # -- both -----------------------------------------------------------------------------------------------------
    def _leads_to_it(self, key: str) -> bool:
        """Whether the folders of an object's key are real ones."""
        with suppress(RebalanceError, asyncssh.SFTPError, LinkBroken):
            self._tree.require_real_folder(validate_local_key(key))
            return True
        return False

    def _has_folder(self, key: str) -> bool:
        """Whether a key has its folders, which are made."""
        with suppress(RebalanceError, asyncssh.SFTPError, LinkBroken):
            self._tree.make_folder(validate_local_key(key))
            return True
        return False

    def _path(self, name: str) -> bytes:
        return self._tree.path(name).encode("utf-8", "surrogateescape")

    def _all(
        self, act: Callable[[BulkSession, Sequence[T]], Awaitable[Sequence[R]]], things: Sequence[T | None]
    ) -> list[R | None]:
        """Act on all of them at once; ``None`` where there was nothing to do, or nobody who does it."""
        try:
            return spread(things, lambda there: self._tree.link.run_bulk(lambda session: act(session, there)))
        except LinkBroken:
            return [None] * len(things)


def _small(
    say: Dialect, wanted: tuple[str, MoveId, int], found: Found | None, answers: Sequence[Answer]
) -> Small | None:
    """An object that was read whole, and was the same file before and after."""
    if found is None or not answers:
        return None
    *pieces, shows, _ = answers
    data, shown = _joined(pieces), _file_in(shows, say)
    if len(data) != wanted[2] or shown is None or shown.fingerprint != found.fingerprint:
        return None
    return Small(wanted[0], wanted[1], data, found.fingerprint, found.metadata)


def _joined(pieces: Iterable[Answer]) -> bytes:
    """What the server has read, in the order in which it was asked; answers of another kind hold nothing."""
    return b"".join(piece.data or b"" for piece in pieces)


def _file_in(answer: Answer, say: Dialect) -> Found | None:
    """The regular file that the server shows."""
    attrs = answer.attrs(say.version)
    found = None if attrs is None else found_of(attrs)
    return found if found is not None and found.is_file else None


async def _are(session: BulkSession, names: Sequence[tuple[bytes, Fingerprint]]) -> list[bool]:
    """Tell which of these names are regular files of that version."""
    looks = await session.ask([session.dialect.look(path) for path, _ in names])
    found = [_file_in(answer, session.dialect) for answer in looks]
    return [one is not None and one.fingerprint == expected for one, (_, expected) in zip(found, names, strict=True)]
