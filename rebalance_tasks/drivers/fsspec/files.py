"""Files behind fsspec as the engine reads and writes them: a window at a time, and nothing open between two calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import SourceChanged
from rebalance_tasks.drivers.base import ObjectTooLarge
from rebalance_tasks.drivers.fsspec.errors import source_error, target_error, translated
from rebalance_tasks.drivers.windowed import WindowedSource

if TYPE_CHECKING:
    from rebalance_tasks.drivers.base import ObjectMetadata
    from rebalance_tasks.drivers.fsspec.tree import FsspecTree
    from rebalance_tasks.drivers.trees.calls import Found

#: Bytes asked for, or sent, at once.
WINDOW_BYTES: Final = 8 * 1024**2
#: Where a file cannot be appended to, a copy is written at once, from memory.
WHOLE_BYTES: Final = 128 * 1024**2


class FsspecSource(WindowedSource):
    """A file being read; `SourceHandle`."""

    def __init__(self, tree: FsspecTree, node_id: str, name: str, key: str, found: Found) -> None:
        """Read ``name``, called ``key`` in errors, which was just looked at."""
        super().__init__()
        self._tree, self._node_id, self._name, self._key = tree, node_id, name, key
        self.fingerprint, self.metadata = found.fingerprint, found.metadata

    def _fetch(self, offset: int) -> bytes:
        length = min(WINDOW_BYTES, self.fingerprint.size_bytes - offset)
        with translated(lambda exc: source_error(self._node_id, self._key, exc, "read")):
            window = self._tree.read(self._name, offset, length)
        if not window:
            raise SourceChanged(self._key, "the source shrank while it was read")
        return window


class FsspecWriter:
    """A copy being made aside; `StagedWriter`."""

    def __init__(self, tree: FsspecTree, node_id: str, name: str, label: str, *, offset: int, appends: bool) -> None:
        """Go on after ``offset`` bytes that are there; a copy at 0 is made anew.

        Args:
            tree: where.
            node_id: whose, for errors.
            name: of the staged copy.
            label: names it in errors.
            offset: bytes of an earlier attempt that are kept.
            appends: whether the file can be written piece by piece.
        """
        self._tree, self._node_id, self._name, self._label, self._appends = tree, node_id, name, label, appends
        self._buffer = bytearray()
        self._made = offset > 0

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises: NodeFull, NodeMissing, NodeNotWritable, ObjectTooLarge."""
        self._buffer += data
        if self._appends:
            if len(self._buffer) >= WINDOW_BYTES:
                self._flush()
        elif len(self._buffer) > WHOLE_BYTES:
            message = f"this file system cannot append, so an object of more than {WHOLE_BYTES} bytes cannot be written; exclude it"
            raise ObjectTooLarge(self._label, message)

    def sync(self) -> None:
        """Write what is in memory, where that can be gone on with."""
        if self._appends:
            self._flush()

    def finish(self, metadata: ObjectMetadata) -> None:  # noqa: ARG002  no file system here takes any
        """Write the rest."""
        if self._buffer or not self._made:
            self._flush()

    def close(self) -> None:
        """Keep what is there."""
        if self._buffer:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._buffer)
        with translated(lambda exc: target_error(self._node_id, self._label, exc, "write a copy")):
            if not self._made:
                self._tree.write(self._name, data)
            elif data:
                self._tree.append(self._name, data)
        self._made = True
        self._buffer.clear()
