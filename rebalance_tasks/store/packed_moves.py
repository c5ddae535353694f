"""The moves of a plan as Redis keeps them: compressed chunks of columns, validated where they are read (`store.plans`).

Columns, since reading a hundred thousand moves one by one takes longer than copying some of their objects.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter

from rebalance_tasks.core.inventory_columns import Coded, text
from rebalance_tasks.core.models import LATER, Identifier, KeyText, Money, RebalanceMove, Unit
from rebalance_tasks.core.move_columns import MoveColumns
from rebalance_tasks.store.records import PACKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")

#: From this form on a plan keeps its moves so; before, each chunk was a list of moves.
_IN_COLUMNS: Final = 3
#: Moves a chunk: one does not hold up Redis, and a thousand compress as well as more.
CHUNK_MOVES: Final = 1000

_Whole: TypeAlias = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
_Code: TypeAlias = Annotated[int, Field(ge=0, lt=CHUNK_MOVES)]


class _Packed(NamedTuple, Generic[T]):
    """A column of few values; without codes all moves have the only one."""

    values: list[T]
    codes: list[_Code]


class _Chunk(NamedTuple):
    keys: list[KeyText]
    size_bytes: list[Annotated[int, Field(ge=0, lt=1 << 63)]]
    source: _Packed[Identifier]
    target: _Packed[Identifier]
    priority: _Packed[_Whole]
    gravity: _Packed[Unit]
    cost: _Packed[Money]
    reason: _Packed[Annotated[str, Field(max_length=500)]]


_CHUNK: Final = TypeAdapter(_Chunk, config=LATER)
_MOVES: Final = TypeAdapter(tuple[RebalanceMove, ...], config=LATER)


def pack_moves(moves: MoveColumns) -> list[bytes]:
    """Pack moves into compressed chunks of `CHUNK_MOVES`."""
    starts = range(0, len(moves), CHUNK_MOVES)
    rows = (np.arange(start, min(start + CHUNK_MOVES, len(moves))) for start in starts)
    return [zlib.compress(_CHUNK.dump_json(_chunk(moves.take(some))), level=PACKING) for some in rows]


def unpack(chunks: Iterable[bytes], *, form: int) -> MoveColumns:
    """Read the chunks of a plan of some form. Raises: ValueError (also a ValidationError), zlib.error, InvalidArgument."""
    if form < _IN_COLUMNS:
        older = [move for chunk in chunks for move in json.loads(zlib.decompress(chunk))]
        return MoveColumns.of(_MOVES.validate_python(older))
    parts = [_CHUNK.validate_json(zlib.decompress(chunk)) for chunk in chunks]
    for part in parts:
        if len(part.keys) != len(part.size_bytes):
            msg = f"a chunk of moves has {len(part.keys)} keys and {len(part.size_bytes)} sizes"
            raise ValueError(msg)
    priority, gravity = (_joined(parts, name) for name in ("priority", "gravity"))
    return MoveColumns(
        keys=text([key for part in parts for key in part.keys]),
        size_bytes=np.array([size for part in parts for size in part.size_bytes], np.int64),
        source=_joined(parts, "source"),
        target=_joined(parts, "target"),
        priority=np.array(priority.values, np.int64)[priority.codes],
        gravity=np.array(gravity.values, np.float64)[gravity.codes],
        cost=_joined(parts, "cost"),
        reason=_joined(parts, "reason"),
    )


def _chunk(moves: MoveColumns) -> _Chunk:
    return _Chunk(
        moves.keys.to_pylist(),
        moves.size_bytes.tolist(),
        _packed(moves.source.values, moves.source.codes),
        _packed(moves.target.values, moves.target.codes),
        _packed(*np.unique(moves.priority, return_inverse=True)),
        _packed(*np.unique(moves.gravity, return_inverse=True)),
        _packed(moves.cost.values, moves.cost.codes),
        _packed(moves.reason.values, moves.reason.codes),
    )


def _packed(values: Any, codes: Any) -> _Packed[Any]:  # noqa: ANN401  columns of any kind
    """Return a column with just those values that come up."""
    used, codes = np.unique(codes, return_inverse=True)
    kept = [values[place] for place in used.tolist()]
    return _Packed([_plain(value) for value in kept], [] if len(kept) == 1 else codes.tolist())


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.item() if isinstance(value, np.generic) else value


def _joined(parts: Sequence[_Chunk], name: str) -> Coded[Any]:
    """Put a column of all chunks together, under common codes. Raises: ValueError."""
    place: dict[Any, int] = {}
    joined: list[np.ndarray[Any, np.dtype[np.int32]]] = [np.empty(0, np.int32)]
    for part in parts:
        column: _Packed[Any] = getattr(part, name)
        codes = np.array(column.codes or [0] * len(part.keys), np.int32)
        if len(codes) != len(part.keys) or (codes >= len(column.values)).any():
            msg = f"column {name} of a chunk does not go with its {len(part.keys)} keys"
            raise ValueError(msg)
        common = np.array([place.setdefault(value, len(place)) for value in column.values], np.int32)
        joined.append(common[codes])
    return Coded(np.concatenate(joined), tuple(place))
