"""Reading one inventory column at a time: Arrow in, validated read-only NumPy out, a refusal names the row.

Part of `inventory`; others take from it only how columns of a listing are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.models import StorageClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Mask: TypeAlias = "NDArray[np.bool_] | pa.Array"
Shown: TypeAlias = "NDArray[np.int64] | NDArray[np.float64] | Coded[str] | None"

T = TypeVar("T")
S = TypeVar("S", bound=np.generic)

#: A time that is not known (NumPy's NaT as an integer; no clock ever says it).
UNKNOWN_TIME: Final = int(np.iinfo(np.int64).min)
#: Type of a column of moments.
MOMENT: Final = pa.timestamp("ns", "UTC")
#: Joins the words of one row while they are dictionary-encoded; no region or tag holds a unit separator.
_SEPARATOR: Final = "\x1f"


@dataclass(frozen=True, eq=False)
class Coded(Generic[T]):
    """A column of few distinct values: ``codes`` int32 (n,) index ``values``, −1 where there is none."""

    codes: NDArray[np.int32]
    values: tuple[T, ...]

    def to_arrow(self, value_type: pa.DataType) -> pa.Array:
        """Return the column with its values written out, null where there is none."""
        indices = pa.array(self.codes, mask=self.codes < 0)
        return pa.array(list(self.values), type=value_type).take(indices)

    def met(self) -> list[T]:
        """Return the values that some row has."""
        return [self.values[code] for code in np.unique(self.codes).tolist() if code >= 0]


class Listed(NamedTuple):
    """What a listing says of one node's objects, as columns of equal length n.

    Attributes:
        keys: text.
        size_bytes: int64 (n,).
        mtime_ns: int64 (n,), nanoseconds since 1970, or None.
        atime_ns: as mtime_ns, when each was read last; 0 where that is not known.
    """

    keys: Sequence[str]
    size_bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64] | None = None
    atime_ns: NDArray[np.int64] | None = None

    def last_access(self) -> pa.Array:
        """Return the access times as moments, null where they are not known."""
        if self.atime_ns is None:
            return pa.nulls(len(self.keys), MOMENT)
        return pa.array(self.atime_ns, mask=self.atime_ns == 0).view(MOMENT)


def text(values: Sequence[object]) -> pa.LargeStringArray:
    """Return keys as Arrow text.

    Raises:
        InvalidInventory: a key is not a string, or not valid Unicode (a lone surrogate).
    """
    try:
        return pa.array(values, type=pa.large_string())
    except (UnicodeEncodeError, pa.ArrowException, TypeError) as exc:
        for row, value in enumerate(values):
            if not isinstance(value, str) or not _encodable(value):
                msg = f"row {row}: object_key {value!a} is not valid Unicode text"
                raise InvalidInventory(msg) from exc
        msg = f"column object_key: {exc}"
        raise InvalidInventory(msg) from exc


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Reader:
    """Reads the columns of one table."""

    def __init__(self, table: pa.Table) -> None:
        """Take the table; columns are read when asked for."""
        self._table = table
        self._keys: pa.LargeStringArray | None = None

    # -- the three required columns -------------------------------------------------------------------------------
    def keys(self) -> pa.LargeStringArray:
        """Return ``object_key``, none missing, none empty."""
        keys = self._text("object_key")
        self._refuse(pc.is_null(keys), "object_key", "is missing")
        self._keys = keys
        self._refuse(pc.equal(pc.binary_length(keys), 0), "object_key", "is empty")
        return keys

    def sizes(self) -> NDArray[np.int64]:
        """Return ``size_bytes`` as int64, ≥ 0; whole floats are accepted (pandas makes them)."""
        return self._whole("size_bytes", self._array("size_bytes"), missing=None)

    def nodes(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """Return ``node_id`` as codes and the sorted ids."""
        column = self._table.column("node_id")
        if not pt.is_dictionary(column.type):
            self._refuse(pc.is_null(column), "node_id", "is missing")
            # A chunk at a time: written out, ten million ids are more than all the rest of the inventory.
            coded = [self._as_text("node_id", chunk).dictionary_encode() for chunk in column.chunks]
            column = pa.chunked_array(coded, type=pa.dictionary(pa.int32(), pa.large_string()))
        column = column.unify_dictionaries()
        if not column.num_chunks:
            return np.empty(0, np.int32), ()
        ids = self._as_text("node_id", column.chunk(0).dictionary).to_pylist()
        codes = np.concatenate(
            [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32) for chunk in column.chunks]
        )
        present = np.bincount(codes + 1, minlength=len(ids) + 1)[1:].astype(np.bool_)
        named = np.array([*(value is not None for value in ids), False])
        self._refuse(~named[codes], "node_id", "is missing")
        self._refuse(np.array([value == "" for value in ids] + [False])[codes], "node_id", "is empty")
        values = sorted({value for value, used in zip(ids, present.tolist(), strict=True) if used})
        place = {value: at for at, value in enumerate(values)}
        rank = np.array([place.get(value, -1) for value in ids] or [-1], np.int32)
        return _frozen(rank[codes]), tuple(values)

    # -- optional columns; None when absent -----------------------------------------------------------------------
    def floats(self, name: str, *, upper: float | None = None, missing: float = 0.0) -> NDArray[np.float64] | None:
        """Return a numeric column as float64 in [0, upper]; null is ``missing``, and where that is NaN, NaN may stand for itself."""
        column = self._optional(name)
        if column is None:
            return None
        if not _is_number(column.type):
            raise self._wrong_type(name, column.type, "a number")
        values = column.cast(pa.float64()).fill_null(missing).to_numpy(zero_copy_only=False)
        allowed = f"[0, {upper:g}]" if upper is not None else "[0, ∞)"
        good = np.isfinite(values) & (values >= 0) & (values <= (np.inf if upper is None else upper))
        self._refuse(~(good | (np.isnan(values) & np.isnan(missing))), name, f"lies outside {allowed}", values)
        return _frozen(values)

    def verdicts(self, name: str) -> NDArray[np.float64] | None:
        """Return a column of truths as float64: 1 true, 0 false, NaN where null; numbers in [0, 1] are taken too."""
        column = self._optional(name)
        if column is not None and pt.is_boolean(column.type):
            return _frozen(column.cast(pa.uint8()).cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False))
        return self.floats(name, upper=1.0, missing=np.nan)

    def counts(self, name: str) -> NDArray[np.int64] | None:
        """Return a column of counts as int64, ≥ 0; null is 0."""
        column = self._optional(name)
        return None if column is None else self._whole(name, column, missing=0)

    def flags(self, name: str) -> NDArray[np.bool_] | None:
        """Return a boolean column; null is false."""
        column = self._optional(name)
        if column is None:
            return None
        if not pt.is_boolean(column.type):
            raise self._wrong_type(name, column.type, "bool")
        return _frozen(column.fill_null(fill_value=False).to_numpy(zero_copy_only=False))

    def nanoseconds(self, name: str) -> NDArray[np.int64] | None:
        """Return a column of integer nanoseconds since 1970; null is `UNKNOWN_TIME`."""
        column = self._optional(name)
        if column is None:
            return None
        if not pt.is_integer(column.type):
            raise self._wrong_type(name, column.type, "int64 nanoseconds")
        return _frozen(self._cast(name, column, pa.int64()).fill_null(UNKNOWN_TIME).to_numpy(zero_copy_only=False))

    def times(self, name: str) -> NDArray[np.int64] | None:
        """Return a timestamp column as nanoseconds since 1970 UTC (naive is taken as UTC); null is `UNKNOWN_TIME`."""
        column = self._optional(name)
        if column is None:
            return None
        if not pt.is_timestamp(column.type):
            raise self._wrong_type(name, column.type, "a timestamp")
        nanos = self._cast(name, self._cast(name, column, pa.timestamp("ns", column.type.tz)), pa.int64())
        return _frozen(nanos.fill_null(UNKNOWN_TIME).to_numpy(zero_copy_only=False))

    def coded(self, name: str) -> Coded[str] | None:
        """Return a text column dictionary-coded; null and empty are −1."""
        if self._optional(name) is None:
            return None
        values = self._text(name)
        encoded = pc.if_else(
            pc.equal(pc.binary_length(values), 0), pa.scalar(None, pa.large_string()), values
        ).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return Coded(_frozen(codes), tuple(encoded.dictionary.to_pylist()))

    def storage_classes(self, name: str) -> Coded[str] | None:
        """Return storage classes dictionary-coded; a word that is no `StorageClass` is refused."""
        coded = self.coded(name)
        if coded is None:
            return None
        known = np.array([value in set(StorageClass) for value in coded.values] + [True])
        self._refuse(~known[coded.codes], name, f"is none of {', '.join(StorageClass)}", coded)
        return coded

    def text_sets(self, name: str) -> Coded[tuple[str, ...]] | None:
        """Return lists of words as coded sorted tuples; null and the empty list are −1 (no requirement)."""
        column = self._optional(name)
        if column is None:
            return None
        if not (pt.is_list(column.type) or pt.is_large_list(column.type)) or not (
            _is_text(column.type.value_type) or pt.is_null(column.type.value_type)
        ):
            raise self._wrong_type(name, column.type, "list<string>")
        column = column.cast(pa.list_(pa.string()))
        # binary_join answers null for a list that holds a null: that would read as "no requirement".
        joined = pc.binary_join(column, _SEPARATOR)
        self._refuse(pc.and_(pc.is_null(joined), pc.is_valid(column)), name, "holds a missing value")
        encoded = joined.dictionary_encode()
        raw = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        sets = [
            tuple(sorted({part for part in value.split(_SEPARATOR) if part}))
            for value in encoded.dictionary.to_pylist()
        ]
        values = tuple(sorted({regions for regions in sets if regions}))
        code = {regions: i for i, regions in enumerate(values)}
        translate = np.array([code.get(regions, -1) for regions in sets] + [-1], np.int32)
        return Coded(_frozen(translate[raw]), values)

    # -- inside ---------------------------------------------------------------------------------------------------
    def _array(self, name: str) -> pa.Array:
        column = self._table.column(name)
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)

    def _optional(self, name: str) -> pa.Array | None:
        if name not in self._table.column_names:
            return None
        column = self._array(name)
        return None if pt.is_null(column.type) else column

    def _text(self, name: str) -> pa.LargeStringArray:
        column = self._table.column(name)
        wide = pa.chunked_array([self._as_text(name, chunk) for chunk in column.chunks], type=pa.large_string())
        return wide.combine_chunks() if wide.num_chunks != 1 else wide.chunk(0)

    def _as_text(self, name: str, column: pa.Array) -> pa.LargeStringArray:
        if pt.is_null(column.type):
            return pa.nulls(len(column), pa.large_string())
        if not _is_text(column.type):
            raise self._wrong_type(name, column.type, "string")
        return column.cast(pa.large_string())

    def _whole(self, name: str, column: pa.Array, *, missing: int | None) -> NDArray[np.int64]:
        """Return int64 ≥ 0; null becomes ``missing``, or is refused when that is None."""
        if pt.is_null(column.type):
            column = column.cast(pa.int64())
        if not _is_number(column.type) or pt.is_decimal(column.type):
            raise self._wrong_type(name, column.type, "int64")
        if missing is None:
            self._refuse(pc.is_null(column), name, "is missing")
        else:
            column = column.fill_null(missing)
        if pt.is_floating(column.type):
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
            self._refuse(~np.isfinite(values), name, "is not finite", values)
            self._refuse(values != np.floor(values), name, "is not a whole number", values)
            self._refuse(np.abs(values) >= float(1 << 62), name, "is too large", values)
            whole = values.astype(np.int64)
        else:
            whole = self._cast(name, column, pa.int64()).to_numpy(zero_copy_only=False)
        self._refuse(whole < 0, name, "is negative", whole)
        return _frozen(whole)

    def _cast(self, name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
        try:
            return column.cast(kind)
        except pa.ArrowInvalid as exc:
            msg = f"column {name!r}: {exc}"
            raise InvalidInventory(msg) from exc

    def _wrong_type(self, name: str, found: pa.DataType, wanted: str) -> InvalidInventory:
        return InvalidInventory(f"column {name!r} has type {found}, expected {wanted}; cast it before handing it in")

    def _refuse(self, bad: Mask, name: str, what: str, values: Shown = None) -> None:
        """Raise for the first row of a mask (NumPy or Arrow)."""
        mask = bad if isinstance(bad, np.ndarray) else bad.fill_null(fill_value=False).to_numpy(zero_copy_only=False)
        if not mask.any():
            return
        row = int(np.argmax(mask))
        key = "" if self._keys is None else f" ({self._keys[row].as_py()!a})"
        if isinstance(values, Coded):
            shown = f" {values.values[values.codes[row]]!r}"
        else:
            shown = "" if values is None else f" {values[row]}"
        msg = f"row {row}{key}: {name}{shown} {what}"
        raise InvalidInventory(msg)


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _frozen(values: NDArray[S]) -> NDArray[S]:
    """Make an array read-only, so that an inventory can be shared."""
    if values.flags.writeable:
        values.flags.writeable = False
    return values
