"""Open files of a fleet: one version to read, whichever node it is on by then; a draft to write, seen by nobody before it is whole."""

from __future__ import annotations

import errno
import io
from typing import TYPE_CHECKING, Any, Final

from fsspec.spec import AbstractBufferedFile

from rebalance_tasks.control.access.reading import stretch
from rebalance_tasks.core.errors import RebalanceError, SourceChanged, SourceVanished
from rebalance_tasks.fleetfs.errors import as_os_error

if TYPE_CHECKING:
    from types import TracebackType

    from rebalance_tasks.control.access.writing import Draft
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import SourceHandle
    from rebalance_tasks.fleetfs.opened import OpenFleet

#: Enough to know what kind of file it is; most readers look at its end next.
FIRST_BYTES: Final = 1 << 16
_SECOND_NS: Final = 10**9


class FleetFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec ships no types
    """A file of a `FleetFileSystem`; buffering and seeking are fsspec's."""

    def __init__(self, fs: Any, path: str, mode: str, *, fleet: OpenFleet, key: str, **options: Any) -> None:  # noqa: ANN401  fsspec's
        """Open an object.

        Args:
            fs: the file system.
            path: of the object, as fsspec knows it.
            mode: ``rb``, ``wb`` or ``xb`` (fails when it is closed, if something is there).
            fleet: whose it is.
            key: its key.
            options: of `AbstractBufferedFile`.

        Raises:
            OSError: it cannot be opened (for reading: FileNotFoundError).
        """
        self._fleet, self._key = fleet, key
        self._source: SourceHandle | None = None
        self._draft: Draft | None = None
        if mode == "rb":
            try:
                self._source, _ = fleet.reader.open(key, length=FIRST_BYTES)
            except RebalanceError as exc:
                raise as_os_error(exc, path) from exc
            self._version = self._source.fingerprint
            options["size"] = self._version.size_bytes
        super().__init__(fs, path, mode, **options)

    # -- reading --------------------------------------------------------------------------------------------------
    def _fetch_range(self, start: int, end: int) -> bytes:
        try:
            try:
                return stretch(self._open_source(), self._key, start, end)
            except (SourceVanished, SourceChanged):
                # It moved, or was replaced: only the same version may go on.
                self._let_go()
                self._fleet.reader.forget(self._key)
                return stretch(self._open_source(start, end - start), self._key, start, end)
        except RebalanceError as exc:
            raise as_os_error(exc, self.path) from exc

    def _open_source(self, start: int = 0, length: int = FIRST_BYTES) -> SourceHandle:
        if self._source is None:
            self._source, _ = self._fleet.reader.open(self._key, start=start, length=length)
            if not same_version(self._source.fingerprint, self._version):
                self._let_go()
                raise OSError(errno.ESTALE, "the object was replaced while it was read; open it again", self.path)
        return self._source

    def _let_go(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    # -- writing --------------------------------------------------------------------------------------------------
    def _initiate_upload(self) -> None:
        self._draft = self._asked(lambda: self._fleet.writer.begin(self._key))

    def _upload_chunk(self, final: bool = False) -> bool:  # noqa: FBT001, FBT002  fsspec's signature
        draft = self._draft
        if draft is not None:
            self._asked(lambda: draft.write(self.buffer.getbuffer()))
            if final and self.autocommit:
                self.commit()
        return True

    def commit(self) -> None:
        """Let readers see it."""
        draft, self._draft = self._draft, None
        if draft is not None:
            self._asked(lambda: self._fleet.writer.commit(draft, new="x" in self.mode))
            self._fleet.reader.forget(self._key)

    def discard(self) -> None:
        """Throw away what was written."""
        draft, self._draft = self._draft, None
        if draft is not None:
            self._asked(lambda: self._fleet.writer.discard(draft))

    def _asked(self, act: Any) -> Any:  # noqa: ANN401
        try:
            return act()
        except RebalanceError as exc:
            self._draft = None
            raise as_os_error(exc, self.path) from exc

    # -- the end --------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Close; what was written becomes the object (unless a transaction waits)."""
        try:
            super().close()
        finally:
            self._let_go()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; a writer whose block was left by an exception leaves the object as it was."""
        if kind is not None and self.mode != "rb":
            self.discard()
            self.buffer = io.BytesIO()
            self.closed = True
        self.close()


def same_version(found: Fingerprint, version: Fingerprint) -> bool:
    """Tell whether this is the version that was opened, on whichever node: its bytes and its time travel with it.

    Some servers keep whole seconds. An object that was written to is not moved for a minute, so a second is close enough.
    """
    if found.size_bytes != version.size_bytes:
        return False
    if found.etag and found.etag == version.etag:
        return True
    if found.mtime_ns % _SECOND_NS and version.mtime_ns % _SECOND_NS:
        return found.mtime_ns == version.mtime_ns
    return found.mtime_ns // _SECOND_NS == version.mtime_ns // _SECOND_NS
