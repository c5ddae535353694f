"""Plain small objects of a batch between two local roots, in columns: each step of `drivers.burst.Burst` over many of them in one call.

What `LocalBurst` does object by object, machine code (`local.kernel_files`, extra ``fast``) does here without a Python object for each.
A row goes as far as all is plain; one that does not come along at a step stays as it is, and whoever carries the batch takes it out
(`PlainRows.leave`) and goes the drivers' own way with it, which also says what is wrong. Callers hold the folders (`Driver.hold`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
import xxhash

from rebalance_tasks.core.errors import ObjectUnreadable
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.local import kernel_files
from rebalance_tasks.drivers.local.burst import DESCRIPTORS, MOST_BYTES
from rebalance_tasks.drivers.local.entries import NAMELESS_FLAGS
from rebalance_tasks.drivers.local.errors import validate_name
from rebalance_tasks.drivers.local.folders import require_writable_parent
from rebalance_tasks.drivers.local.hold import Renamed
from rebalance_tasks.drivers.local.kernel_files import (
    COPIED,
    FLIPPED,
    LEFT,
    PUBLISHED,
    READ,
    VERIFIED,
    WAITING,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.drivers.local.hold import LocalHold
    from rebalance_tasks.drivers.local.tree import LocalTree

#: The last component of most keys, whatever `validate_local_key` allows besides.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@ -]{0,99}")
#: Where a process finds its open files (Linux).
_OPEN_FILES: Final = "/proc/self/fd"
#: Sizes, mtimes in ns, inodes and devices.
Versions: TypeAlias = tuple[list[int], list[int], list[int], list[int]]


#: How far a row is; between "read" and "verified" lies the comparison, between "published" and "flipped" the commit.
RowStep: TypeAlias = Literal["waiting", "copied", "read", "verified", "published", "flipped", "freed", "moved", "left"]
#: By the numbers that the kernels have for them.
_STEPS: Final[tuple[RowStep, ...]] = get_args(RowStep)


class Ahead(NamedTuple):
    """How many rows go into one call, and how many bytes at most."""

    rows: int
    size_bytes: int


class PlainRows:
    """The rows, and how far each is; a context, left when the batch is done.

    Attributes:
        keys: object keys.
        move_ids: of their moves.
        sizes: bytes of each.
        steps: uint8 (n,), how far each is, in the kernels' numbers.
        left: the number of those that are no rows any more.
        digests: xxh3-128 in hex of what was copied, of those that were.
    """

    left: Final = LEFT

    def __init__(
        self, source: LocalTree, target: LocalTree, moves: Sequence[tuple[str, MoveId, int]], *, ahead: Ahead
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            source: where they are.
            target: where they go.
            moves: (key, move id, size in bytes), never attempted before; those that `plain` names.
            ahead: of one call.
        """
        self._source, self._target, self._ahead = source, target, ahead
        count = len(moves)
        self.keys = [key for key, _, _ in moves]
        self.move_ids = [MoveId(validate_name(move_id, "move id")) for _, move_id, _ in moves]
        self.sizes = [size for _, _, size in moves]
        self.steps = np.full(count, WAITING, np.uint8)
        self.digests = [""] * count
        parts = [key.rpartition("/") for key in self.keys]
        codes: dict[str, int] = {}
        self._folder = np.array([codes.setdefault(folder or ".", len(codes)) for folder, _, _ in parts], np.int32)
        self._folders = list(codes)
        self._names = [name for _, _, name in parts]
        self._text, self._places = _joined(self._names, self.move_ids)
        self._lengths = np.array(self.sizes, np.int64)
        self._sources = np.zeros((count, 4), np.int64)
        self._copies = np.zeros((count, 4), np.int64)
        self._open = np.full(count, -1, np.int32)
        self._room = DESCRIPTORS.take(count)
        self._nameless = np.zeros(count, np.uint8)
        if _names_descriptors():
            self._nameless[: self._room] = 1
        self._data = np.empty(max(ahead.size_bytes, MOST_BYTES), np.uint8)
        self._work = np.empty(kernel_files.ROOM, np.int64)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close what is still open; a copy that has no name is gone with that."""
        self._close(0, len(self.keys))
        DESCRIPTORS.give_back(self._room)
        self._room = 0

    # -- rows -----------------------------------------------------------------------------------------------------
    def at(self, step: RowStep) -> list[int]:
        """Rows that are at a step."""
        found: list[int] = np.flatnonzero(self.steps == _STEPS.index(step)).tolist()
        return found

    def names(self) -> list[RowStep]:
        """How far each is."""
        return [_STEPS[step] for step in self.steps.tolist()]

    def give_names(self, rows: Iterable[int]) -> None:
        """Let copies of rows that are to leave lie aside under the names of their moves; whoever misses one copies it anew."""
        tmp = self._target.work_fd("tmp")
        for row in rows:
            if self._nameless[row] and self._open[row] >= 0:
                with suppress(OSError):
                    os.link(self._aside(row), self.move_ids[row], dst_dir_fd=tmp)
                self._close(row, row + 1)

    def aside(self, move_id: MoveId) -> str | None:
        """Where the copy of a row lies that has no name; ``None`` where there is none such."""
        row = self.move_ids.index(move_id) if move_id in self.move_ids else None
        return None if row is None or self._open[row] < 0 or not self._nameless[row] else self._aside(row)

    def _aside(self, row: int) -> str:
        return f"{_OPEN_FILES}/{self._open[row]}"

    def leave(self, rows: Iterable[int]) -> None:
        """Take rows out: somebody else sees to them."""
        self.steps[list(rows)] = LEFT

    def flipped(self) -> None:
        """Say that readers are sent to all that are published."""
        self.steps[self.steps == PUBLISHED] = FLIPPED

    def sources(self, rows: Sequence[int]) -> Versions:
        """What was copied."""
        return _columns(self._sources[rows])

    def copies(self, rows: Sequence[int]) -> Versions:
        """The copies that were read back."""
        return _columns(self._copies[rows])

    def source(self, row: int) -> Fingerprint:
        """The version that was copied."""
        return _fingerprints(self._sources[[row]])[0]

    def copy(self, row: int) -> Fingerprint:
        """The very copy that was read back."""
        return _fingerprints(self._copies[[row]])[0]

    # -- the steps ------------------------------------------------------------------------------------------------
    def stage(self, spend: Callable[[int], None], done: Callable[[MoveId], None]) -> None:
        """Copy them aside, metadata included.

        Args:
            spend: asks for leave to write so many bytes; what it raises ends the step, with nothing left of those bytes.
            done: told after each call the move that came last.
        """
        hold = self._source.held
        if hold is None:
            return
        self._source.hold_shared(self._shared())
        _find_writable(hold)
        folders = self._descriptors([{path: fd for path, fd in hold.folders.items() if fd in hold.writable}])
        tmp, owner = self._target.work_fd("tmp"), np.array([os.geteuid(), os.getegid()], np.int64)
        for first, last in self._calls():
            spend(sum(self.sizes[first:last]))
            kernel_files.copy_some(
                *(first, last, self.steps, folders, tmp, self._text, self._places, self._lengths, owner),
                *(self._work, self._data, self._sources, self._open, self._nameless),
            )
            for row, digest in self._digests(first, last, COPIED):
                self.digests[row] = digest
            if last > self._room:
                self._close(max(first, self._room), last)
            done(self.move_ids[last - 1])

    def read_back(self, check: Callable[[], None]) -> None:
        """Read the copies and compare them with what was read from the sources; ``check`` is asked before each call."""
        tmp = self._target.work_fd("tmp")
        for first, last in self._calls():
            check()
            kernel_files.read_some(
                *(first, last, self.steps, tmp, self._text, self._places, self._lengths, self._work, self._data),
                *(self._copies, self._open, self._nameless),
            )
            same = [row for row, digest in self._digests(first, last, READ) if digest == self.digests[row]]
            self.steps[same] = VERIFIED

    def publish(self, done: Callable[[], None]) -> None:
        """Give the copies their keys, each if its source is still what was copied; never overwriting."""
        source, target = self._source.held, self._target.held
        if source is None or target is None:
            return
        self._source.hold_shared(self._shared())
        self._target.hold_shared(self._shared(), create=True)
        folders, tmp = self._descriptors([source.folders, target.folders]), self._target.work_fd("tmp")
        target.note_later(lambda: self._renamed(folders[:, 1], tmp, self._copies, PUBLISHED, freed=False))
        for first, last in self._calls():
            kernel_files.publish_some(
                *(first, last, self.steps, folders, tmp, self._text, self._places, self._sources, self._copies),
                *(self._work, self._open, self._nameless),
            )
            done()

    def free(self, done: Callable[[], None]) -> None:
        """Move the sources into the trash, each if it is still what was copied, and compare again there."""
        hold = self._source.held
        if hold is None:
            return
        self._source.hold_shared(self._shared())
        folders, trash = self._descriptors([hold.folders]), self._source.work_fd("trash")
        hold.note_later(lambda: self._renamed(folders[:, 0], trash, self._sources, kernel_files.FREED, freed=True))
        for first, last in self._calls():
            kernel_files.free_some(
                *(first, last, self.steps, folders, trash, self._text, self._places, self._sources, self._work)
            )
            done()

    # -- calls ----------------------------------------------------------------------------------------------------
    def _calls(self) -> Iterator[tuple[int, int]]:
        """Cut the rows into what goes into one call."""
        first, size = 0, 0
        for row, more in enumerate(self.sizes):
            if row > first and (row - first == self._ahead.rows or size + more > self._ahead.size_bytes):
                yield first, row
                first, size = row, 0
            size += more
        if self.sizes:
            yield first, len(self.sizes)

    def _digests(self, first: int, last: int, step: int) -> Iterator[tuple[int, str]]:
        """Yield (row, digest of its bytes in the buffer) of the rows of a call that are at a step."""
        view, at, digest_of = self._data.data, 0, xxhash.xxh3_128_hexdigest
        for row, (size, found) in enumerate(
            zip(self.sizes[first:last], self.steps[first:last].tolist(), strict=True), first
        ):
            if found == step:
                yield row, digest_of(view[at : at + size])
            at += size

    def _close(self, first: int, last: int) -> None:
        for fd in self._open[first:last][self._open[first:last] >= 0].tolist():
            os.close(fd)
        self._open[first:last] = -1

    def _shared(self) -> list[str]:
        """Folders of several rows: for one alone the look at the end of a hold would cost as much as it spares."""
        counts = Counter(self._folder.tolist())
        return [folder for code, folder in enumerate(self._folders) if counts[code] > 1]

    def _descriptors(self, known: Sequence[dict[str, int]]) -> NDArray[np.int32]:
        """Descriptors int32 (n, 2) of each row's folder, −1 where it is not held; of one side or of both."""
        found = np.full((len(self.keys), 2), -1, np.int32)
        for side, folders in enumerate(known):
            found[:, side] = np.array([folders.get(folder, -1) for folder in self._folders], np.int32)[self._folder]
        return found

    def _renamed(
        self, folders: NDArray[np.int32], work: int, versions: NDArray[np.int64], step: int, *, freed: bool
    ) -> list[Renamed]:
        rows = [row for row in range(len(self.keys)) if self.steps[row] in {step, kernel_files.MOVED}]
        return [
            Renamed(int(folders[row]), self._names[row], work, self.move_ids[row], version, freed=freed)
            for row, version in zip(rows, _fingerprints(versions[rows]), strict=True)
        ]


def plain(moves: Sequence[tuple[str, MoveId, int]], *, most_bytes: int) -> list[int]:
    """Return the places of moves that may be rows: neither empty nor large, of plain names, not alone in their folders."""
    most = min(most_bytes, MOST_BYTES)
    folders = Counter([key.rpartition("/")[0] for key, _, _ in moves])
    found: list[int] = []
    for place, (key, _, size) in enumerate(moves):
        folder, _, name = key.rpartition("/")
        if 0 < size <= most and folders[folder] > 1 and _PLAIN_NAME.fullmatch(name):
            found.append(place)
    return found


@cache
def _names_descriptors() -> bool:
    """Whether a file without a name can be given one."""
    return bool(NAMELESS_FLAGS) and os.path.isdir(_OPEN_FILES)  # noqa: PTH112  no path of an object


def _find_writable(hold: LocalHold) -> None:
    """Find those of the held folders that may be emptied afterwards."""
    for folder, fd in hold.folders.items():
        if fd not in hold.writable:
            with suppress(OSError, ObjectUnreadable):
                require_writable_parent(folder, fd)
                hold.writable.add(fd)


def _joined(names: Sequence[str], move_ids: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Names and move ids, each with a NUL, after the kernels' head; and where each of both begins, int64 (n, 2). All are ASCII."""
    text = kernel_files.HEAD + "\0".join([*names, *move_ids, ""])
    lengths = np.fromiter(map(len, [*names, *move_ids]), np.int64, 2 * len(names)) + 1
    places = len(kernel_files.HEAD) + np.cumsum(lengths) - lengths
    return np.array(bytearray(text, "ascii"), np.uint8), np.ascontiguousarray(places.reshape(2, -1).T)


def _columns(versions: NDArray[np.int64]) -> Versions:
    sizes, mtimes_ns, inodes, devices = (np.ascontiguousarray(column) for column in versions.T)
    return sizes.tolist(), mtimes_ns.tolist(), inodes.view(np.uint64).tolist(), devices.view(np.uint64).tolist()


def _fingerprints(versions: NDArray[np.int64]) -> list[Fingerprint]:
    return [Fingerprint(*version) for version in zip(*_columns(versions), strict=True)]
