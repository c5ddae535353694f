"""All objects of a fleet as columns: what the planner reads and the verifier checks against.

A fleet holds millions of objects, so there is never a Python object per object here: keys stay in Arrow, everything else
is NumPy. Rows are validated once, on the way in, and a refusal names the row; after that the arrays are read-only and
every consumer may trust them. Order in the flow: survey (or a host's own table) → `Inventory` → plan → verify.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core import inventory_columns as columns
from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.inventory_columns import UNKNOWN_TIME, Coded, Listed
from rebalance_tasks.core.placement.hashing import hash_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["COLUMNS", "UNKNOWN_TIME", "Coded", "Inventory", "Listed"]

REQUIRED_COLUMNS: Final = ("object_key", "size_bytes", "node_id")
#: Every column that is understood; others are ignored unless they look like a misspelling of one of these.
COLUMNS: Final = (
    *REQUIRED_COLUMNS,
    "gravity",
    "reads_per_hour",
    "writes_per_hour",
    "last_access_utc",
    "colocated_dependencies",
    "egress_cost_per_gb",
    "latency_ms",
    "compliant",
    "replica_group",
    "required_regions",
    "required_storage_class",
    "required_tags",
    "pinned",
    "last_moved_utc",
    "mtime_utc",
    "mtime_ns",
)
#: Columns that are written as they are held.
_PLAIN: Final = (
    *("gravity", "reads_per_hour", "writes_per_hour", "colocated_dependencies"),
    *("egress_cost_per_gb", "latency_ms", "compliant", "pinned"),
)
#: How alike an unknown column must be to a known one to count as a misspelling. "pined" (0.91) would silently unpin.
_LOOKS_ALIKE: Final = 0.85
#: Sums of sizes stay well inside int64 below this.
_MAX_TOTAL_BYTES: Final = 1 << 62
#: Arrow's plain `string` holds at most 2 GiB in one chunk.
_MAX_STRING_BYTES: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Objects that are known only as numbers: they are on the nodes and count, and no plan moves them.

    Attributes:
        objects: reason (a word of `planner_candidates.REASONS`) → how many.
        movable_bytes: of those that nothing but their number keeps from being rows.
    """

    objects: Mapping[str, int] = field(default_factory=dict)
    movable_bytes: int = 0

    def __len__(self) -> int:
        """Number of objects."""
        return sum(self.objects.values())

    def __add__(self, other: Unlisted) -> Unlisted:
        """Return both together."""
        return Unlisted(dict(Counter(self.objects) + Counter(other.objects)), self.movable_bytes + other.movable_bytes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Inventory:
    """Every object of a fleet, one row an object on a node; columns of equal length n, all read-only.

    Build it with `from_arrow`, `from_listings` or `concat`; the constructor does not validate.

    Attributes:
        keys: object keys (Arrow large_string, no nulls, none empty).
        size_bytes: int64 (n,), ≥ 0.
        node_index: int32 (n,), index into ``node_ids``.
        node_ids: ids of the nodes that appear, sorted.
        gravity: float64 (n,) in [0, 1]; ``None`` without such a column.
        reads_per_hour: float64 (n,), ≥ 0, or ``None``; so are writes_per_hour and colocated_dependencies (int64).
        egress_cost_per_gb: float64 (n,), money for 10⁹ bytes of it that leave its node, ≥ 0, NaN where only the node's price is
            known, or ``None``; so are latency_ms (of its node to those who use it) and compliant (1 where its node's region is
            one that it asks for, 0 where not, NaN where only the rules say).
        mtime_ns: int64 (n,) nanoseconds since 1970 UTC, `UNKNOWN_TIME` where unknown, or ``None``; so are
            last_access_ns and last_moved_ns.
        pinned: bool (n,) or ``None``.
        replica_group: dictionary-coded; objects of one group must stay on different hosts.
        required_regions: dictionary-coded tuples of regions in which the object may live.
        required_storage_class: dictionary-coded storage class.
        required_tags: dictionary-coded tuples of ``key=value``, all of which the node must carry.
        ignored_columns: columns of the table that mean nothing here.
        unlisted: objects that are no rows, since there are too many (`core.keeping.candidates`).
    """

    keys: pa.LargeStringArray
    size_bytes: NDArray[np.int64]
    node_index: NDArray[np.int32]
    node_ids: tuple[str, ...]
    gravity: NDArray[np.float64] | None = None
    reads_per_hour: NDArray[np.float64] | None = None
    writes_per_hour: NDArray[np.float64] | None = None
    last_access_ns: NDArray[np.int64] | None = None
    colocated_dependencies: NDArray[np.int64] | None = None
    egress_cost_per_gb: NDArray[np.float64] | None = None
    latency_ms: NDArray[np.float64] | None = None
    compliant: NDArray[np.float64] | None = None
    replica_group: Coded[str] | None = None
    required_regions: Coded[tuple[str, ...]] | None = None
    required_storage_class: Coded[str] | None = None
    required_tags: Coded[tuple[str, ...]] | None = None
    pinned: NDArray[np.bool_] | None = None
    last_moved_ns: NDArray[np.int64] | None = None
    mtime_ns: NDArray[np.int64] | None = None
    ignored_columns: tuple[str, ...] = ()
    unlisted: Unlisted = field(default_factory=Unlisted)

    # -- building -------------------------------------------------------------------------------------------------
    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        """Read and validate a table.

        Args:
            table: columns ``object_key`` (string), ``size_bytes`` (integer), ``node_id`` (string or dictionary) and any
                other of `COLUMNS`. Times may be naive, then they are UTC. A null in an optional column means "not
                known" or "no requirement". A misspelt column is refused, a foreign one ignored.

        Raises:
            InvalidInventory: a column is missing or has the wrong type; a size is negative, missing or not finite; a
                key is missing; gravity lies outside [0, 1]; (object_key, node_id) appears twice. Names the row.
        """
        ignored = _check_names(table.column_names)
        reader = columns.Reader(table)
        keys = reader.keys()
        node_index, node_ids = reader.nodes()
        inventory = cls(
            keys=keys,
            size_bytes=reader.sizes(),
            node_index=node_index,
            node_ids=node_ids,
            gravity=reader.floats("gravity", upper=1.0),
            reads_per_hour=reader.floats("reads_per_hour"),
            writes_per_hour=reader.floats("writes_per_hour"),
            last_access_ns=reader.times("last_access_utc"),
            colocated_dependencies=reader.counts("colocated_dependencies"),
            egress_cost_per_gb=reader.floats("egress_cost_per_gb", missing=np.nan),
            latency_ms=reader.floats("latency_ms", missing=np.nan),
            compliant=reader.verdicts("compliant"),
            replica_group=reader.coded("replica_group"),
            required_regions=reader.text_sets("required_regions"),
            required_storage_class=reader.storage_classes("required_storage_class"),
            required_tags=reader.text_sets("required_tags"),
            pinned=reader.flags("pinned"),
            last_moved_ns=reader.times("last_moved_utc"),
            mtime_ns=reader.nanoseconds("mtime_ns") if "mtime_ns" in table.column_names else reader.times("mtime_utc"),
            ignored_columns=ignored,
        )
        inventory._check_duplicates()
        inventory._check_total()
        return inventory

    @classmethod
    def from_listings(
        cls,
        listings: Mapping[str, Listed | tuple[Sequence[str], NDArray[np.int64], NDArray[np.int64] | None]],
    ) -> Self:
        """Build from what surveying each node returned.

        Args:
            listings: node_id → its columns, or the first three of them.

        Raises:
            InvalidInventory: see `from_arrow`.
        """
        order = sorted(listings)
        parts = [Listed(*listings[node_id]) for node_id in order]
        lengths = [len(part.keys) for part in parts]
        for node_id, part in zip(order, parts, strict=True):
            if any(column is not None and len(column) != len(part.keys) for column in part):
                msg = f"node {node_id!r}: keys, sizes and times differ in length"
                raise InvalidInventory(msg)
        table = {
            "object_key": pa.chunked_array([columns.text(part.keys) for part in parts], type=pa.large_string()),
            "size_bytes": np.concatenate([np.asarray(part.size_bytes) for part in parts] or [np.empty(0, np.int64)]),
            "node_id": pa.DictionaryArray.from_arrays(
                pa.array(np.repeat(np.arange(len(order), dtype=np.int32), lengths)),
                pa.array(order, type=pa.string()),
            ),
        }
        if any(part.mtime_ns is not None for part in parts):
            table["mtime_ns"] = pa.chunked_array(
                [
                    pa.nulls(len(part.keys), pa.int64())
                    if part.mtime_ns is None
                    else pa.array(part.mtime_ns, pa.int64())
                    for part in parts
                ],
            )
        if any(part.atime_ns is not None for part in parts):
            table["last_access_utc"] = pa.chunked_array([part.last_access() for part in parts])
        return cls.from_arrow(pa.table(table))

    @classmethod
    def from_columns(
        cls,
        node_id: str,
        keys: Sequence[str],
        size_bytes: NDArray[np.int64],
        mtime_ns: NDArray[np.int64] | None = None,
    ) -> Self:
        """Build from one node's listing; join several with `concat` (or `from_listings` at once)."""
        return cls.from_listings({node_id: (keys, size_bytes, mtime_ns)})

    @classmethod
    def concat(cls, parts: Iterable[Inventory]) -> Self:
        """Join inventories; a column that only some of them have is unknown for the others.

        Raises:
            InvalidInventory: the same (object_key, node_id) is in two of them.
        """
        tables = [part.to_arrow() for part in parts]
        if not tables:
            return cls.from_listings({})
        return cls.from_arrow(pa.concat_tables(tables, promote_options="permissive"))

    # -- reading --------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        """Number of rows."""
        return len(self.size_bytes)

    def key(self, row: int) -> str:
        """Return the key in one row."""
        return str(self.keys[row].as_py())

    def used_bytes(self) -> dict[str, int]:
        """Return node_id → bytes of the objects on it (nodes without objects are absent)."""
        totals = np.zeros(len(self.node_ids), np.int64)
        np.add.at(totals, self.node_index, self.size_bytes)
        return dict(zip(self.node_ids, totals.tolist(), strict=True))

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some rows (int64 (m,)) as an inventory of its own; whether a key is ambiguous is found out anew."""
        changed: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                changed[column.name] = value[rows]
            elif isinstance(value, Coded):
                changed[column.name] = Coded(value.codes[rows], value.values)
        return replace(self, keys=self.keys.take(pa.array(rows)), **changed)

    @cached_property
    def ambiguous(self) -> NDArray[np.bool_]:
        """Bool (n,): the key is on more than one node, so nobody can say which copy is the object."""
        # A table of ten million keys takes eight times the room of their hashes; the few that meet are compared.
        hashes = hash_keys(self.keys)
        ordered = np.sort(hashes)
        met = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        mask = np.zeros(len(self), np.bool_)
        if len(met):
            at = np.minimum(np.searchsorted(met, hashes), len(met) - 1)
            rows = np.flatnonzero(met[at] == hashes)
            codes = self._codes(rows)
            mask[rows] = np.bincount(codes)[codes] > 1
        mask.flags.writeable = False
        return mask

    def _codes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Equal numbers for rows with equal keys."""
        codes = pc.dictionary_encode(self.keys.take(pa.array(rows))).indices
        found: NDArray[np.int64] = codes.to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def ambiguous_keys(self) -> list[str]:
        """Return the keys that are on more than one node, sorted."""
        found: list[str] = pc.unique(self.keys.filter(pa.array(self.ambiguous))).to_pylist()
        return sorted(found)

    def to_arrow(self) -> pa.Table:
        """Return a table that `from_arrow` reads back (times as int64 or timestamps in UTC, nulls where unknown)."""
        small = self.keys.nbytes < _MAX_STRING_BYTES
        out: dict[str, object] = {
            "object_key": self.keys.cast(pa.string()) if small else self.keys,
            "size_bytes": self.size_bytes,
            "node_id": pa.DictionaryArray.from_arrays(
                pa.array(self.node_index), pa.array(self.node_ids, type=pa.string())
            ),
        }
        for name in _PLAIN:
            if (plain := getattr(self, name)) is not None:
                out[name] = plain
        for name in ("replica_group", "required_regions", "required_storage_class", "required_tags"):
            if (coded := getattr(self, name)) is not None:
                lists = name in {"required_regions", "required_tags"}
                out[name] = coded.to_arrow(pa.list_(pa.string()) if lists else pa.string())
        for name, nanos in (("last_access_utc", self.last_access_ns), ("last_moved_utc", self.last_moved_ns)):
            if nanos is not None:
                out[name] = pa.array(nanos, mask=nanos == UNKNOWN_TIME).cast(pa.timestamp("ns", "UTC"))
        if self.mtime_ns is not None:
            out["mtime_ns"] = pa.array(self.mtime_ns, mask=self.mtime_ns == UNKNOWN_TIME)
        return pa.table(out)

    # -- validating what needs more than one column ---------------------------------------------------------------
    def _check_duplicates(self) -> None:
        rows = np.flatnonzero(self.ambiguous)
        if not len(rows):
            return
        pairs = self._codes(rows) * len(self.node_ids) + self.node_index[rows]
        _, first = np.unique(pairs, return_index=True)
        if len(first) == len(rows):
            return
        again = np.ones(len(rows), np.bool_)
        again[first] = False
        row = int(rows[np.argmax(again)])
        node_id = self.node_ids[self.node_index[row]]
        msg = f"row {row} ({self.key(row)!a}): this object is listed twice on node {node_id!r}; a key is one object per node"
        raise InvalidInventory(msg)

    def _check_total(self) -> None:
        total = (int((self.size_bytes >> 32).sum()) << 32) + int((self.size_bytes & 0xFFFFFFFF).sum())
        if total >= _MAX_TOTAL_BYTES:
            msg = f"column size_bytes: the sizes add up to {total} bytes, more than any fleet holds; are they in bytes?"
            raise InvalidInventory(msg)


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse missing, doubled and misspelt columns; return the foreign ones."""
    for required in REQUIRED_COLUMNS:
        if required not in names:
            msg = f"column {required!r} is missing; an inventory needs {', '.join(REQUIRED_COLUMNS)}"
            raise InvalidInventory(msg)
    if len(set(names)) != len(names):
        msg = f"a column name appears twice among {', '.join(names)}"
        raise InvalidInventory(msg)
    foreign = tuple(name for name in names if name not in COLUMNS)
    for name in foreign:
        if close := difflib.get_close_matches(name, COLUMNS, n=1, cutoff=_LOOKS_ALIKE):
            msg = f"column {name!r} is not known; did you mean {close[0]!r}? Rename or drop it"
            raise InvalidInventory(msg)
    return foreign
