"""A listing that is kept, so that the next one of the same node reads only what has changed.

A survey keeps it as a file of Arrow columns beside the worker (`control.surveying.memory`); the driver says what may be taken from
it. What is remembered is never truer than what is there: a file that was written to in place shows in no folder, so whoever acts on
an object looks at it again, and now and then everything is listed anew.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias

import numpy as np
import pyarrow as pa
import xxhash

from rebalance_tasks.core.inventory_columns import Listed

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from rebalance_tasks.drivers.node_parts import Part

#: Key of the schema's metadata under which everything but the columns stands.
_BESIDE: Final = b"rebalance"


Rows: TypeAlias = "tuple[pa.LargeStringArray, NDArray[np.int64], NDArray[np.int64]]"


class Remembered:
    """All objects of a node as columns of equal length n, and the folders they lie in.

    Attributes:
        left_out: as in `Listing`.
        folders: what the driver wants to know again, plain JSON each.
        settled: whether every change since would show in ``folders``.
        atime_ns: as in `Listing`. It is not kept: reading an object shows in no folder.
    """

    def __init__(
        self,
        rows: Rows | Callable[[], Rows],
        left_out: Mapping[str, int],
        folders: tuple[tuple[Any, ...], ...] = (),
        *,
        settled: bool = False,
        content: str = "",
        atime_ns: NDArray[np.int64] | None = None,
    ) -> None:
        """Take (keys, sizes, times of change), or what reads them once somebody wants them, and their `content`."""
        self._given = rows
        self.atime_ns = atime_ns
        self._content = content
        self.left_out = left_out
        self.folders = folders
        self.settled = settled

    @property
    def keys(self) -> pa.LargeStringArray:
        """Arrow large_string (n,)."""
        return self._rows[0]

    @property
    def size_bytes(self) -> NDArray[np.int64]:
        """int64 (n,)."""
        return self._rows[1]

    @property
    def mtime_ns(self) -> NDArray[np.int64]:
        """int64 (n,), nanoseconds since 1970."""
        return self._rows[2]

    @property
    def columns(self) -> Listed:
        """All of them, as `Inventory.from_listings` takes them."""
        return Listed(self.keys, self.size_bytes, self.mtime_ns, self.atime_ns)

    @cached_property
    def _rows(self) -> Rows:
        return self._given() if callable(self._given) else self._given

    @cached_property
    def content(self) -> str:
        """Of all sizes and times of change: what was written to in place shows in no folder."""
        if self._content:
            return self._content
        found = xxhash.xxh3_64(np.ascontiguousarray(self.size_bytes).data)
        found.update(np.ascontiguousarray(self.mtime_ns).data)
        return found.hexdigest()

    def digest(self) -> str:
        """Equal for two listings of a node that found the same; empty where that cannot be told."""
        if not self.settled:
            return ""
        return xxhash.xxh3_64_hexdigest(f"{self.content} {json.dumps(self.folders)}".encode())

    def to_arrow(self, about: Mapping[str, Any]) -> pa.Table:
        """Return a table that `read` reads back, with more that is to be known about it (plain JSON)."""
        table = pa.table({"key": self.keys, "size_bytes": self.size_bytes, "mtime_ns": self.mtime_ns})
        left_out = dict(self.left_out)
        beside = {"about": dict(about), "left_out": left_out, "folders": self.folders, "settled": self.settled}
        beside["content"] = self.content
        return table.replace_schema_metadata({_BESIDE: json.dumps(beside).encode()})

    @classmethod
    def read(cls, schema: pa.Schema, table: Callable[[], pa.Table]) -> tuple[Self, dict[str, Any]]:
        """Read what `to_arrow` made; its columns when they are wanted.

        Returns:
            The listing, and what was to be known about it.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        beside = json.loads((schema.metadata or {})[_BESIDE])

        def rows() -> Rows:
            read = table()
            keys = read.column("key").cast(pa.large_string())
            text = keys.combine_chunks() if keys.num_chunks != 1 else keys.chunk(0)
            return text, read.column("size_bytes").to_numpy(), read.column("mtime_ns").to_numpy()

        left_out = {str(word): int(count) for word, count in beside["left_out"].items()}
        folders = tuple(tuple(folder) for folder in beside["folders"])
        found = cls(rows, left_out, folders, settled=bool(beside["settled"]), content=str(beside["content"]))
        return found, dict(beside["about"])


class Remembers(Protocol):
    """A driver that can tell what has changed since an earlier listing; asked for by name, others list everything anew."""

    def list_changed(
        self,
        before: Remembered | None,
        *,
        require_identity: bool = True,
        part: Part | None = None,
        most: int | None = None,
    ) -> Remembered:
        """List as `Driver.list_objects` does, reading only what has changed; ``before`` itself when nothing has.

        Args:
            before: an earlier listing of the same part.
            require_identity: as `Driver.list_objects`.
            part: only what lies in it; None: everything.
            most: objects to read, about; None: all.

        Raises:
            TooManyObjects: there are more.
            NodeMissing: as `Driver.list_objects`.
        """
        ...


class Columns:
    """The columns of a listing in progress: what was read now, and stretches of an earlier one."""

    def __init__(self, before: Remembered | None) -> None:
        """Take from ``before``, where there is one."""
        self.rows = 0
        self._before = before
        #: new columns, or (first, end) of a stretch of the earlier ones
        self._parts: list[Rows | tuple[int, int]] = []

    def add(self, keys: list[str], sizes: array[int], mtimes: array[int]) -> None:
        """Add rows that were read now."""
        if keys:
            text = pa.array(keys, type=pa.large_string())
            self._parts.append((text, np.frombuffer(sizes, np.int64), np.frombuffer(mtimes, np.int64)))
            self.rows += len(keys)

    def take(self, first: int, count: int) -> None:
        """Add rows of the earlier listing; neighbours join."""
        if not count:
            return
        last = self._parts[-1] if self._parts else None
        if last is not None and len(last) == 2 and last[1] == first:  # noqa: PLR2004  a stretch
            self._parts[-1] = (last[0], first + count)
        else:
            self._parts.append((first, first + count))
        self.rows += count

    def joined(self) -> Rows:
        """Return keys, sizes and times of change; without a copy where nothing has changed."""
        found = [part if len(part) == 3 else self._stretch(*part) for part in self._parts]  # noqa: PLR2004  as above
        if not found:
            return pa.array([], type=pa.large_string()), np.empty(0, np.int64), np.empty(0, np.int64)
        if len(found) == 1:
            return found[0]
        keys, sizes, mtimes = zip(*found, strict=True)
        return pa.concat_arrays(keys), np.concatenate(sizes), np.concatenate(mtimes)

    def _stretch(self, first: int, end: int) -> Rows:
        if self._before is None:
            msg = "there is no earlier listing to take from"
            raise ValueError(msg)
        return self._before.keys[first:end], self._before.size_bytes[first:end], self._before.mtime_ns[first:end]
