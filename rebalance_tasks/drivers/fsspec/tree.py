"""Names on a file system behind fsspec: confined to a root, looked at without caches, changed by the few calls that all of them have.

Instances are a thread's own, since few are safe to share (an FTP connection carries one command at a time), and forgotten when a
call fails for another reason than the name it was about: the next call connects anew.
"""

from __future__ import annotations

import io
import os
import posixpath
import threading
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

from rebalance_tasks.core.errors import ObjectUnreadable, TargetExists
from rebalance_tasks.drivers.fsspec.errors import OF_A_NAME, TAKEN
from rebalance_tasks.drivers.fsspec.files import FsspecSource, FsspecWriter
from rebalance_tasks.drivers.fsspec.info import found_of
from rebalance_tasks.drivers.fsspec.probe import Abilities, probe
from rebalance_tasks.drivers.trees.calls import Found, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.drivers.fsspec.options import FsspecPlace

T = TypeVar("T")

#: Tries of what only looks; each after the first connects anew.
TRIES: Final = 3
#: Folders remembered as real ones.
_MOST_FOLDERS: Final = 10_000
#: A rewritten copy is read by so much at a time.
_WINDOW_BYTES: Final = 8 * 1024**2


class FsspecTree:
    """Names below one root; raises what the file system raises, and `core.errors`."""

    def __init__(self, place: FsspecPlace) -> None:
        """Work below the path of the place's URL; nothing is connected yet."""
        self._place = place
        self._kind = fsspec.get_filesystem_class(place.protocol)
        self.root: str = self._kind._strip_protocol(place.url).rstrip("/")  # noqa: SLF001  how fsspec reads a URL
        self._from_url: dict[str, Any] = self._kind._get_kwargs_from_urls(place.url)  # noqa: SLF001
        self._local = threading.local()
        self._folders: set[str] = set()

    @property
    def label(self) -> str:
        """Its URL, without secrets."""
        return repr(self._place)

    def path(self, name: str) -> str:
        """Whole path of a name below the root."""
        return f"{self.root}/{name}" if name else self.root or "/"

    # -- the file system ------------------------------------------------------------------------------------------
    def _fs(self) -> Any:  # noqa: ANN401  fsspec is untyped
        if getattr(self._local, "pid", None) != os.getpid():
            options = {**self._from_url, **self._place.options, "skip_instance_cache": True}
            self._local.fs, self._local.pid = fsspec.filesystem(self._place.protocol, **options), os.getpid()
        return self._local.fs

    def close(self) -> None:
        """Let go of this thread's instance."""
        self._local.__dict__.clear()

    def _do(self, act: Callable[[Any], T], *, tries: int = 1) -> T:
        for left in reversed(range(tries)):
            try:
                return act(self._fs())
            except OF_A_NAME:
                raise
            except Exception:
                self.close()
                if not left:
                    raise
        raise AssertionError

    @cached_property
    def abilities(self) -> Abilities:
        """What the file system was seen to do, tried once."""
        return probe(self)

    @staticmethod
    def space() -> tuple[int | None, int | None]:
        """Unknown: fsspec has no call for it."""
        return None, None

    # -- looking --------------------------------------------------------------------------------------------------
    def look(self, name: str) -> Found | None:
        """What is at a name; None when nothing is."""

        def info(fs: Any) -> Found | None:  # noqa: ANN401
            fs.invalidate_cache()
            try:
                return found_of(fs.info(self.path(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self._do(info, tries=TRIES)

    def regular(self, name: str) -> Found | None:
        """What is at a name, if it is a file with one name."""
        found = self.look(name)
        return found if found is not None and found.kind is Kind.FILE else None

    def entries(self, folder: str) -> list[tuple[str, Found]]:
        """(name, what it is) of what is in a folder; nothing where there is none."""
        path = self.path(folder)

        def ls(fs: Any) -> list[tuple[str, Found]]:  # noqa: ANN401
            fs.invalidate_cache()
            with suppress(FileNotFoundError, NotADirectoryError):
                listed = [
                    (posixpath.basename(str(info["name"]).rstrip("/")), info) for info in fs.ls(path, detail=True)
                ]
                # Some stores list the marker of a folder in itself.
                return [
                    (name, found_of(info))
                    for name, info in listed
                    if name and str(info["name"]).strip("/") != path.strip("/")
                ]
            return []

        return self._do(ls, tries=TRIES)

    def require_real_folder(self, key: str) -> None:
        """Make sure that no folder of a key is a symbolic link, where the file system tells. Raises: ObjectUnreadable."""
        folder = posixpath.dirname(key)
        so_far = ""
        for component in folder.split("/") if folder else ():
            so_far = posixpath.join(so_far, component)
            if so_far in self._folders:
                continue
            found = self.look(so_far)
            if found is None:
                return
            if found.kind is Kind.LINK:
                raise ObjectUnreadable(key, "a folder of this key is a symbolic link; links are never followed")
            self._remember(so_far)

    def _remember(self, folder: str) -> None:
        if len(self._folders) >= _MOST_FOLDERS:
            self._folders.clear()
        self._folders.add(folder)

    def forget_folders(self) -> None:
        """Look at folders anew: one of them may be gone."""
        self._folders.clear()

    def reader(self, node_id: str, name: str, label: str, found: Found) -> FsspecSource:
        """Read a file that was just looked at."""
        return FsspecSource(self, node_id, name, label, found)

    def writer(self, node_id: str, name: str, label: str, offset: int) -> FsspecWriter:
        """Write a file of ours after ``offset`` bytes."""
        return FsspecWriter(self, node_id, name, label, offset=offset, appends=self.abilities.appends)

    # -- bytes ----------------------------------------------------------------------------------------------------
    def read(self, name: str, start: int, length: int) -> bytes:
        """Read a stretch of a file (fewer bytes at its end)."""
        path = self.path(name)
        data: bytes = self._do(lambda fs: fs.cat_file(path, start=start, end=start + length), tries=TRIES)
        return data

    def read_whole(self, name: str, *, size_bytes: int | None = None) -> bytes:
        """Read a small file. Raises: FileNotFoundError."""
        if size_bytes is None:
            found = self.regular(name)
            if found is None:
                raise FileNotFoundError(name)
            size_bytes = found.fingerprint.size_bytes
        return self.read(name, 0, size_bytes)

    def write(self, name: str, data: bytes) -> None:
        """Write a file anew, in one piece."""
        path = self.path(name)

        def put(fs: Any) -> None:  # noqa: ANN401
            # One block, or FTP and others begin a transfer for each.
            with fs.open(path, "wb", block_size=len(data) + 1) as file:
                file.write(data)

        self._do(put)

    def append(self, name: str, data: bytes) -> None:
        """Write after what is there."""
        path = self.path(name)

        def add(fs: Any) -> None:  # noqa: ANN401
            # fsspec's FTP takes "ab" and writes over what is there; the protocol has a word for it.
            store = getattr(getattr(fs, "ftp", None), "storbinary", None)
            if store is not None:
                store(f"APPE {path}", io.BytesIO(data))
                return
            with fs.open(path, "ab", block_size=len(data) + 1) as file:
                file.write(data)

        self._do(add)

    def cut(self, name: str, size_bytes: int) -> None:
        """Shorten a file of ours; where it is longer its beginning is written again, since no call shortens one everywhere."""
        found = self.regular(name)
        if found is None or found.fingerprint.size_bytes == size_bytes:
            return
        shorter = f"{name}~cut"
        self.write(shorter, self.read(name, 0, min(size_bytes, _WINDOW_BYTES)))
        for start in range(_WINDOW_BYTES, size_bytes, _WINDOW_BYTES):
            self.append(shorter, self.read(name, start, min(size_bytes - start, _WINDOW_BYTES)))
        self.remove(name)
        self.rename(shorter, name)

    # -- names ----------------------------------------------------------------------------------------------------
    def make_folder(self, key: str) -> None:
        """Make the folders of a key. Raises: TargetExists when one of them is something else."""
        folder = posixpath.dirname(key)
        if not folder or folder in self._folders:
            return
        self.require_folders(key)
        self._make(folder)
        self._remember(folder)

    def _make(self, folder: str) -> None:
        """Make a folder and those above it, unless somebody else is quicker with one of them: each says so in its own way."""
        for left in reversed(range(TRIES)):
            try:
                self._do(lambda fs: fs.makedirs(self.path(folder), exist_ok=True))
            except Exception:
                found = self.look(folder)
                if found is None and left:
                    continue
                if found is None or found.kind is not Kind.FOLDER:
                    raise
            return

    def require_folders(self, key: str) -> None:
        """Look whether what is there of a key's folders are folders. Raises: TargetExists."""
        so_far = ""
        for component in posixpath.dirname(key).split("/"):
            so_far = posixpath.join(so_far, component)
            found = self.look(so_far) if so_far else None
            if found is not None and found.kind is not Kind.FOLDER:
                raise TargetExists(key, "a folder of this key is a file or a symbolic link on the target")

    def rename(self, source: str, target: str) -> None:
        """Give a file another name; nothing may be at it (whoever calls has looked).

        Raises:
            FileNotFoundError: the source is gone.
            FileExistsError: the target is there after all.
        """
        old, new = self.path(source), self.path(target)

        def act(fs: Any) -> None:  # noqa: ANN401
            if type(fs).mv is AbstractFileSystem.mv:
                # The inherited one takes names for patterns.
                fs.cp_file(old, new)
                fs.rm_file(old)
            else:
                fs.mv(old, new)

        try:
            self._do(act)
        except Exception as exc:
            if self.look(source) is None:
                raise FileNotFoundError(old) from exc
            if self.look(target) is not None:
                raise FileExistsError(new) from exc
            raise

    move_aside = rename

    def give_name(self, source: str, target: str) -> None:
        """Rename to a name at which nothing is. Raises: FileExistsError, TargetExists."""
        self.forget_folders()
        self.make_folder(target)
        if self.look(target) is not None:
            raise FileExistsError(target)
        self.rename(source, target)

    def replace(self, source: str, target: str) -> None:
        """Rename over a file of ours; where a rename does not replace, a death in between leaves only the new one, aside."""
        try:
            self.rename(source, target)
        except TAKEN:
            self.remove(target)
            self.rename(source, target)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        path = self.path(name)
        try:
            self._do(lambda fs: fs.rm_file(path))
        except Exception:
            if self.look(name) is not None:
                raise

    def remove_folder(self, folder: str) -> None:
        """Remove a folder of ours and what is in it, as far as it goes."""
        for name, _ in self.entries(folder):
            self.remove(f"{folder}/{name}")
        with suppress(Exception):
            self._do(lambda fs: fs.rmdir(self.path(folder)))
        self.forget_folders()
