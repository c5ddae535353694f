"""The fsspec file system behind ``fleet://<fleet>/<key>``.

It only translates: names, calls and errors. Where objects are and how they are written safely while they move is
`control.access.reading` and `control.access.writing`. An instance holds nothing but its options, so it is pickled and forked like any value.
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fsspec.spec import AbstractFileSystem

from rebalance_tasks.control.access.accesses import SAMPLE
from rebalance_tasks.core.errors import InvalidKey, ObjectNotFound, RebalanceError
from rebalance_tasks.fleetfs.errors import as_os_error
from rebalance_tasks.fleetfs.files import FleetFile
from rebalance_tasks.fleetfs.opened import open_fleet
from rebalance_tasks.store.accesses import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.fleetfs.opened import OpenFleet

#: Ranges that are read at a time.
SIDE_BY_SIDE: Final = 8
_COPY_BYTES: Final = 1 << 20
_NS: Final = 10**9


class FleetFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """The objects of a fleet, as files.

    Example:
        >>> import fsspec
        >>> with fsspec.open("fleet://archive/reports/2026.csv") as file:
        ...     head = file.readline()
    """

    protocol: ClassVar[str] = "fleet"
    #: what is costly to make is kept per process (`fleetfs.opened`), and follows ``REBALANCE_CONFIG``
    cachable = False

    def __init__(self, config: str | None = None, *, sample: int = SAMPLE, **options: Any) -> None:  # noqa: ANN401  fsspec's
        """Name a fleet's configuration; nothing is read before it is used.

        Args:
            config: path of ``rebalance.toml``; by default what ``REBALANCE_CONFIG`` names.
            sample: one access in so many is counted for gravity; 0 counts none.
            options: of `AbstractFileSystem`.
        """
        super().__init__(config=config, sample=sample, **options)
        self._config, self._sample = config, sample

    # -- names ----------------------------------------------------------------------------------------------------
    def _at(self, path: str) -> tuple[OpenFleet, str]:
        """Return the fleet and the key of a path, as `_strip_protocol` leaves it. Raises: FileNotFoundError."""
        name, _, key = path.partition("/")
        fleet = open_fleet(self._config, sample=self._sample)
        if name != fleet.settings.fleet:
            why = f"no fleet {name!r} is configured here, only {fleet.settings.fleet!r}; write fleet://{fleet.settings.fleet}/key"
            raise FileNotFoundError(errno.ENOENT, why, path)
        return fleet, key

    def _object(self, path: str) -> tuple[OpenFleet, str, str]:
        """Return fleet, key and plain path of what a caller names."""
        plain = self._strip_protocol(path)
        return *self._at(plain), plain

    # -- looking --------------------------------------------------------------------------------------------------
    def info(self, path: str, **_: Any) -> dict[str, Any]:  # noqa: ANN401  fsspec's
        """Return name, size, type and mtime (seconds since the epoch). Raises: FileNotFoundError."""
        plain = self._strip_protocol(path)
        if not plain:
            return _folder(plain)
        fleet, key = self._at(plain)
        if not key:
            return _folder(plain)
        try:
            return _file(plain, fleet.reader.stat(key))
        except ObjectNotFound as exc:
            if exc.__cause__ is None and fleet.browser.holds_any(key):
                return _folder(plain)
            raise as_os_error(exc, plain) from exc
        except RebalanceError as exc:
            raise as_os_error(exc, plain) from exc

    def exists(self, path: str, **_: Any) -> bool:  # noqa: ANN401  fsspec's
        """Tell whether something is there. Raises: OSError when a node that may hold it cannot be asked."""
        try:
            self.info(path)
        except (FileNotFoundError, InvalidKey):
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: ANN401, FBT001, FBT002  fsspec's
        """List what is right below a folder, or the object itself. Raises: FileNotFoundError; OSError as `exists`."""
        plain = self._strip_protocol(path)
        entries = self._ls(plain)
        return entries if detail else [entry["name"] for entry in entries]

    def _ls(self, plain: str) -> list[dict[str, Any]]:
        if not plain:
            return [_folder(open_fleet(self._config, sample=self._sample).settings.fleet)]
        fleet, key = self._at(plain)
        try:
            found = fleet.browser.list(key)
            files = any(version is not None for version in found.values())
            if key and not files and not (found and fleet.browser.holds_any(key)):
                return [self.info(plain)]
        except RebalanceError as exc:
            raise as_os_error(exc, plain) from exc
        return [
            _folder(f"{plain}/{name}") if version is None else _file(f"{plain}/{name}", version)
            for name, version in sorted(found.items())
        ]

    def modified(self, path: str) -> datetime:
        """When an object was written."""
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    # -- reading --------------------------------------------------------------------------------------------------
    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:  # noqa: ANN401  fsspec's
        """Return the bytes of an object, or a stretch of them. Raises: FileNotFoundError, OSError."""
        fleet, key, plain = self._object(path)
        fleet.accesses.note(READ, key)
        try:
            return fleet.reader.read(key, start, end)
        except RebalanceError as exc:
            raise as_os_error(exc, plain) from exc

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Sequence[int | None] | int | None,
        ends: Sequence[int | None] | int | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,  # noqa: ANN401  fsspec's
    ) -> list[bytes | Exception]:
        """Read ranges, some at a time.

        Args:
            paths: one for each range.
            starts: first bytes, or one for all.
            ends: the bytes after the last, or one for all.
            max_gap: not used.
            on_error: ``return`` puts exceptions in the places of their ranges, ``raise`` raises the first.
        """
        del max_gap
        firsts = list(starts) if isinstance(starts, list | tuple) else [starts] * len(paths)
        lasts = list(ends) if isinstance(ends, list | tuple) else [ends] * len(paths)
        if not len(paths) == len(firsts) == len(lasts):
            msg = f"paths, starts and ends have {len(paths)}, {len(firsts)} and {len(lasts)} entries; give one of each a range"
            raise ValueError(msg)

        def read(path: str, start: int | None, end: int | None) -> bytes | Exception:
            try:
                return self.cat_file(path, start, end)
            except Exception as exc:
                if on_error == "raise":
                    raise
                return exc

        with ThreadPoolExecutor(min(SIDE_BY_SIDE, max(1, len(paths)))) as pool:
            return list(pool.map(read, paths, firsts, lasts))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> FleetFile:  # noqa: ANN401  fsspec's
        if mode not in {"rb", "wb", "xb"}:
            msg = f"mode {mode!r}: objects are read, or written whole; use 'rb', 'wb' or 'xb'"
            raise NotImplementedError(msg)
        fleet, key, plain = self._object(path)
        self._require_key(key, plain)
        if mode != "rb":
            fleet.require_writable()
        fleet.accesses.note(READ if mode == "rb" else WRITE, key)
        return FleetFile(self, plain, mode, fleet=fleet, key=key, **options)

    @staticmethod
    def _require_key(key: str, plain: str) -> None:
        if not key:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), plain)

    # -- writing --------------------------------------------------------------------------------------------------
    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:  # noqa: ANN401  fsspec's
        """Write an object in one go; ``mode="create"`` only if nothing is there. Raises: FileExistsError, OSError."""
        fleet, key, plain = self._object(path)
        self._require_key(key, plain)
        fleet.require_writable()
        fleet.accesses.note(WRITE, key)
        try:
            draft = fleet.writer.begin(key)
            draft.write(value)
            fleet.writer.commit(draft, new=mode == "create")
        except RebalanceError as exc:
            raise as_os_error(exc, plain) from exc
        fleet.reader.forget(key)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:  # noqa: ANN401  fsspec's
        """Copy an object under another key. Raises: FileNotFoundError, OSError."""
        if self.isdir(path1):
            return  # folders are there as soon as something is in them
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            while chunk := source.read(_COPY_BYTES):
                target.write(chunk)

    def rm_file(self, path: str) -> None:
        """Remove an object. Raises: FileNotFoundError, OSError."""
        fleet, key, plain = self._object(path)
        self._require_key(key, plain)
        fleet.require_writable()
        try:
            fleet.writer.remove(key)
        except RebalanceError as exc:
            raise as_os_error(exc, plain) from exc
        fleet.reader.forget(key)

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: FBT001, FBT002  fsspec's
        """Remove objects; with ``recursive`` all below a folder. Raises: FileNotFoundError, IsADirectoryError, OSError."""
        for name in reversed(self.expand_path(path, recursive=recursive, maxdepth=maxdepth)):
            try:
                self.rm_file(name)
            except (FileNotFoundError, IsADirectoryError):
                if recursive:  # a folder, or removed by somebody else meanwhile
                    continue
                if self.isdir(name):
                    raise IsADirectoryError(errno.EISDIR, "use recursive=True to remove all below it", name) from None
                raise

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: ANN401, FBT001, FBT002  fsspec's
        """Do nothing: a folder is there as soon as something is in it."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002  fsspec's
        """Do nothing, as `mkdir`."""

    def rmdir(self, path: str) -> None:
        """Do nothing: a folder is gone with the last object in it."""


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(name: str, version: Fingerprint) -> dict[str, Any]:
    return {"name": name, "size": version.size_bytes, "type": "file", "mtime": version.mtime_ns / _NS}
