"""Folders kept open while one thread carries a batch through a step: opening them anew for each object is a third of its cost.

A folder that a stranger renames meanwhile would be written to under its old name. So whatever was renamed into or out of a
held folder is remembered, every held folder is looked up again by its path when the step ends, and what went through one
that is not there any more is taken back (`LocalHold.strays`) while its descriptor is still at hand.
"""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from rebalance_tasks.drivers.local.entries import regular

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from types import TracebackType

    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Fingerprint

#: A process may have 1,024 descriptors by default, and several threads may hold.
MOST_FOLDERS: Final = 64


class Renamed(NamedTuple):
    """One rename between a held folder and a working folder, where the file is called after its move."""

    parent: int
    name: str
    work: int
    move_id: MoveId
    version: Fingerprint
    #: out of the held folder, into the trash; else it was published
    freed: bool


class LocalHold:
    """What one thread holds below one root.

    Attributes:
        strays: moves whose rename was taken back, because their folder is not where it was; known once the hold has ended.
    """

    def __init__(
        self,
        open_folder: Callable[[str], int],
        rename: Callable[[str, str, int, int], None],
        ended: Callable[[], None],
        fresh: Collection[MoveId] = (),
    ) -> None:
        """Hold nothing yet.

        Args:
            open_folder: path below the root -> descriptor; raises `OSError`.
            rename: without overwriting.
            ended: called when the hold ends, before anything is looked up again.
            fresh: moves that were never attempted before: the working folders hold nothing of them.
        """
        self.fresh = fresh
        self.strays: set[MoveId] = set()
        #: path -> descriptor
        self.folders: dict[str, int] = {}
        #: those, and what was dropped since (`LocalTree.lost`): open until the end
        self.descriptors: dict[int, str] = {}
        #: descriptors of folders that were found writable
        self.writable: set[int] = set()
        self._renamed: list[Renamed] = []
        self._later: list[Callable[[], Iterable[Renamed]]] = []
        self._open = open_folder
        self._rename = rename
        self._ended = ended
        self._seen: set[str] = set()

    def offer(self, folder: str, fd: int) -> None:
        """Keep a folder that is used for the second time: for one object alone the look at the end would cost as much."""
        if folder not in self._seen:
            self._seen.add(folder)
        elif folder not in self.folders and self.has_room:
            self.keep(folder, fd)

    @property
    def has_room(self) -> bool:
        """Whether one more folder may be kept open."""
        return len(self.descriptors) < MOST_FOLDERS

    def keep(self, folder: str, fd: int) -> None:
        """Keep a folder that is not held yet."""
        self.folders[folder] = fd
        self.descriptors[fd] = folder

    def note(self, done: Renamed) -> None:
        """Remember a rename, if its folder is held: the descriptor of one that is not will soon be another's."""
        if done.parent in self.descriptors:
            self._renamed.append(done)

    def note_later(self, done: Callable[[], Iterable[Renamed]]) -> None:
        """Have renames listed when the hold ends, if it must know them: those whose folder is held."""
        self._later.append(done)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take back what went through folders that are not in their place any more, and close all."""
        self._ended()
        try:
            moved = {fd for fd, folder in self.descriptors.items() if not self._in_place(folder, fd)}
            if moved:
                self._take_back(moved)
        finally:
            for fd in self.descriptors:
                os.close(fd)

    def _in_place(self, folder: str, fd: int) -> bool:
        try:
            found = self._open(folder)
        except OSError:
            return False
        try:
            return os.path.samestat(os.fstat(found), os.fstat(fd))
        finally:
            os.close(found)

    def _take_back(self, moved: set[int]) -> None:
        for done in [*self._renamed, *chain.from_iterable(listed() for listed in self._later)]:
            if done.parent not in moved:
                continue
            ours = (done.move_id, done.work) if done.freed else (done.name, done.parent)
            back = (done.name, done.parent) if done.freed else (done.move_id, done.work)
            try:
                there = regular(*ours)
                if there is None or not there.same_file(done.version):
                    continue
                self._rename(ours[0], back[0], ours[1], back[1])
            except OSError:
                # A freed object that cannot go back stays in the trash: its copy is at the target.
                if done.freed:
                    continue
            self.strays.add(done.move_id)
