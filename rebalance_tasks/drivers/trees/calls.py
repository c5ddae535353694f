"""What a driver of folders and files asks of the place where they are: `drivers.trees.driver` is built on it, SFTP and fsspec answer it.

A tree knows names below one root and the few calls that change them; it knows nothing of nodes, moves or the trash. It raises what
its own library raises, and `Words` say what that means.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.base import ObjectMetadata
from rebalance_tasks.drivers.local.errors import validate_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import SourceHandle, StagedWriter
    from rebalance_tasks.drivers.node_parts import Part

    Says = Callable[[Exception], RebalanceError]

TMP: Final = f"{RESERVED}/tmp"  # noqa: S108  below our own folder


def aside_name(move_id: MoveId) -> str:
    """Name of a move's copy aside. Raises: InvalidArgument."""
    return f"{TMP}/{validate_name(move_id, 'move id')}"


def trash_name(move_id: MoveId) -> str:
    """Name of what a move has freed. Raises: InvalidArgument."""
    return f"{RESERVED}/trash/{validate_name(move_id, 'move id')}"


class Kind(StrEnum):
    """What is at a name."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "symlink"
    SPECIAL = "special_file"
    HARD_LINK = "hard_link"


class Found(NamedTuple):
    """What a look at a name shows.

    Attributes:
        changed_ns: when its bytes or its name changed, in ns since the epoch; 0 where only the time of writing is told.
        mode: its permissions, where they are told.
        atime_ns: when it was read last, where that is told.
    """

    kind: Kind
    fingerprint: Fingerprint
    changed_ns: int = 0
    mode: int | None = None
    atime_ns: int | None = None

    @property
    def metadata(self) -> ObjectMetadata:
        """What travels with its bytes."""
        return ObjectMetadata(mode=self.mode, mtime_ns=self.fingerprint.mtime_ns or None, atime_ns=self.atime_ns)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, whatever number of names it has."""
        return self.kind in {Kind.FILE, Kind.HARD_LINK}


@dataclass(frozen=True, slots=True)
class Words:
    """What the errors of a tree mean.

    Attributes:
        gone: of them, those that say that nothing is at a name.
        taken: those that say that something is.
        translated: a context that raises what a function makes of any of them.
        node_error: (node, error, what was done) → what it means for the node.
        source_error: (node, key, error, what was done) → for an object that is read or freed.
        target_error: the same → for an object that is written.
    """

    gone: tuple[type[Exception], ...]
    taken: tuple[type[Exception], ...]
    translated: Callable[[Says], AbstractContextManager[None]]
    node_error: Callable[[str, Exception, str], RebalanceError]
    source_error: Callable[[str, str, Exception, str], RebalanceError]
    target_error: Callable[[str, str, Exception, str], RebalanceError]


def translating(*foreign: type[Exception]) -> Callable[[Says], AbstractContextManager[None]]:
    """Return a context that raises what a function makes of these errors, and lets ours pass."""

    @contextmanager
    def translated(say: Says) -> Iterator[None]:
        try:
            yield
        except RebalanceError:
            raise
        except foreign as exc:
            raise say(exc) from exc

    return translated


class Tree(Protocol):
    """Names below one root; ``""`` is the root itself."""

    @property
    def label(self) -> str:
        """What it is called in errors, without secrets."""
        ...

    def space(self) -> tuple[int | None, int | None]:
        """(all, free) bytes, where that is told."""
        ...

    def look(self, name: str) -> Found | None:
        """What is at a name, links not followed; None when nothing is."""
        ...

    def regular(self, name: str) -> Found | None:
        """What is at a name, if it is a file that may be an object, or a copy of ours."""
        ...

    def entries(self, folder: str) -> list[tuple[str, Found]]:
        """(name, what it is) of what is in a folder; nothing where there is none."""
        ...

    def reader(self, node_id: str, name: str, label: str, found: Found) -> SourceHandle:
        """Read a file that was just looked at; node and label are for errors."""
        ...

    def writer(self, node_id: str, name: str, label: str, offset: int) -> StagedWriter:
        """Write a file of ours from ``offset``, where it has been cut; at 0 it is made anew."""
        ...

    def require_real_folder(self, key: str) -> None:
        """Make sure that no folder of a key is a symbolic link. Raises: ObjectUnreadable."""
        ...

    def make_folder(self, key: str) -> None:
        """Make the folders of a key. Raises: TargetExists when one of them is something else."""
        ...

    def give_name(self, source: str, target: str) -> None:
        """Rename a file of ours to a name that is not taken, making its folders; raises one of `Words.taken` where it is."""
        ...

    def move_aside(self, source: str, target: str) -> None:
        """Rename a file that strangers write to, in one step, to a name of ours that is not taken."""
        ...

    def replace(self, source: str, target: str) -> None:
        """Rename a file of ours over another one of ours."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        ...

    def read_whole(self, name: str, *, size_bytes: int | None = None) -> bytes:
        """Read a small file, whose size may be known; raises one of `Words.gone`."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, durably where that can be asked for."""
        ...

    def cut(self, name: str, size_bytes: int) -> None:
        """Shorten a file of ours."""
        ...

    def close(self) -> None:
        """Let go of connections; a later call makes new ones."""
        ...


def walked(entries: Callable[[str], list[tuple[str, Found]]], part: Part | None = None) -> Iterator[tuple[str, Found]]:
    """Walk a tree, or a part of it, by a listing of one folder: (path below the root, what it is) of everything but folders."""
    folders = [""]
    while folders:
        folder = folders.pop()
        prefix = f"{folder}/" if folder else ""
        held = part is None or part.holds(prefix)
        for name, found in entries(folder):
            path = prefix + name
            if found.kind is Kind.FOLDER:
                if part is None or part.enters(path):
                    folders.append(path)
            elif held and (part is None or part.covers(prefix, path)):
                yield path, found
