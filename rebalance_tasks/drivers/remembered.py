"""A listing that is kept, so that the next one of the same node reads only what has changed.

A survey keeps it as a file of Arrow columns beside the worker (`control.survey_memory`); the driver says what may be taken from
it. What is remembered is never truer than what is there: a file that was written to in place shows in no folder, so whoever acts on
an object looks at it again, and now and then everything is listed anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Key of the schema's metadata under which everything but the columns stands.
_BESIDE: Final = b"rebalance"


@dataclass(frozen=True, slots=True)
class Remembered:
    """All objects of a node as columns of equal length n, and the folders they lie in.

    Attributes:
        keys: Arrow large_string (n,).
        size_bytes: int64 (n,); mtime_ns likewise.
        left_out: as in `Listing`.
        folders: what the driver wants to know again, plain JSON each.
    """

    keys: pa.LargeStringArray
    size_bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    left_out: Mapping[str, int]
    folders: tuple[tuple[Any, ...], ...] = ()

    def to_arrow(self, about: Mapping[str, Any]) -> pa.Table:
        """Return a table that `from_arrow` reads back, with more that is to be known about it (plain JSON)."""
        table = pa.table({"key": self.keys, "size_bytes": self.size_bytes, "mtime_ns": self.mtime_ns})
        beside = {"about": dict(about), "left_out": dict(self.left_out), "folders": self.folders}
        return table.replace_schema_metadata({_BESIDE: json.dumps(beside).encode()})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> tuple[Self, dict[str, Any]]:
        """Read what `to_arrow` made. Raises: KeyError, TypeError, ValueError when it is something else."""
        beside = json.loads((table.schema.metadata or {})[_BESIDE])
        keys = table.column("key").cast(pa.large_string())
        made = cls(
            keys.combine_chunks() if keys.num_chunks != 1 else keys.chunk(0),
            table.column("size_bytes").to_numpy(),
            table.column("mtime_ns").to_numpy(),
            {str(word): int(count) for word, count in beside["left_out"].items()},
            tuple(tuple(folder) for folder in beside["folders"]),
        )
        return made, dict(beside["about"])


class Remembers(Protocol):
    """A driver that can tell what has changed since an earlier listing; asked for by name, others list everything anew."""

    def list_changed(self, before: Remembered | None, *, require_identity: bool = True) -> Remembered:
        """List as `Driver.list_objects` does, reading only what has changed. Raises: as `Driver.list_objects`."""
        ...


class Columns:
    """The columns of a listing in progress: what was read now, and stretches of an earlier one."""

    def __init__(self, before: Remembered | None) -> None:
        """Take from ``before``, where there is one."""
        self.rows = 0
        self._before = before
        #: new columns, or (first, end) of a stretch of the earlier ones
        self._parts: list[tuple[pa.LargeStringArray, NDArray[np.int64], NDArray[np.int64]] | tuple[int, int]] = []

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

    def joined(self) -> tuple[pa.LargeStringArray, NDArray[np.int64], NDArray[np.int64]]:
        """Return keys, sizes and times of change; without a copy where nothing has changed."""
        found = [part if len(part) == 3 else self._stretch(*part) for part in self._parts]  # noqa: PLR2004  as above
        if not found:
            return pa.array([], type=pa.large_string()), np.empty(0, np.int64), np.empty(0, np.int64)
        if len(found) == 1:
            return found[0]
        keys, sizes, mtimes = zip(*found, strict=True)
        return pa.concat_arrays(keys), np.concatenate(sizes), np.concatenate(mtimes)

    def _stretch(self, first: int, end: int) -> tuple[pa.LargeStringArray, NDArray[np.int64], NDArray[np.int64]]:
        if self._before is None:
            msg = "there is no earlier listing to take from"
            raise ValueError(msg)
        return self._before.keys[first:end], self._before.size_bytes[first:end], self._before.mtime_ns[first:end]
