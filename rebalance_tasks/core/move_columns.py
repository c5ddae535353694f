"""The moves of a plan as columns: what verifies a plan, keeps it and cuts it into groups never makes a Python object a move.

Order in the flow: planner → `RebalancePlan` → **`MoveColumns`** → verify, Redis, job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.inventory_columns import Coded, text
from rebalance_tasks.core.models import LATER, RebalanceMove

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from decimal import Decimal
    from typing import Self

    from numpy.typing import NDArray

T = TypeVar("T", bound="Hashable")

#: Sums of sizes stay well inside int64 below this.
_MOST_BYTES: Final = 1 << 62

_MOVES: Final = TypeAdapter(tuple[RebalanceMove, ...], config=LATER)


@dataclass(frozen=True, eq=False, kw_only=True)
class MoveColumns:
    """Moves, one row each, in the order of the plan; columns of equal length n.

    Attributes:
        keys: object keys (Arrow large_string, no nulls).
        size_bytes: int64 (n,), ≥ 0, adding up to less than 2⁶².
        source: ids of the nodes, dictionary-coded; so are ``target``, ``cost`` (exact) and ``reason``.
        priority: int64 (n,).
        gravity: float64 (n,) in [0, 1].
    """

    keys: pa.LargeStringArray
    size_bytes: NDArray[np.int64]
    source: Coded[str]
    target: Coded[str]
    priority: NDArray[np.int64]
    gravity: NDArray[np.float64]
    cost: Coded[Decimal]
    reason: Coded[str]

    def __post_init__(self) -> None:
        """Refuse sizes whose sums would overflow. Raises: InvalidArgument."""
        if (total := float(self.size_bytes.sum(dtype=np.float64))) >= _MOST_BYTES:
            msg = f"the moves' size_bytes add up to {total:.3g}, more than any fleet holds; are they in bytes?"
            raise InvalidArgument(msg)

    @classmethod
    def of(cls, moves: Sequence[RebalanceMove]) -> Self:
        """Read the moves of a plan. Raises: InvalidArgument (a number does not fit into 64 bits), InvalidInventory (a key is no text)."""
        return cls(
            keys=text([move.object_key for move in moves]),
            size_bytes=whole("size_bytes", [move.size_bytes for move in moves]),
            source=coded([move.source_node for move in moves]),
            target=coded([move.target_node for move in moves]),
            priority=whole("priority", [move.priority for move in moves]),
            gravity=np.array([move.gravity for move in moves], np.float64),
            cost=coded([move.cost for move in moves]),
            reason=coded([move.reason for move in moves]),
        )

    def __len__(self) -> int:
        """Number of moves."""
        return len(self.size_bytes)

    def key(self, at: int) -> str:
        """Return the key of one move."""
        return str(self.keys[at].as_py())

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some moves, int64 (m,), in that order."""
        return type(self)(
            keys=self.keys.take(pa.array(rows)),
            size_bytes=self.size_bytes[rows],
            source=_taken(self.source, rows),
            target=_taken(self.target, rows),
            priority=self.priority[rows],
            gravity=self.gravity[rows],
            cost=_taken(self.cost, rows),
            reason=_taken(self.reason, rows),
        )

    def nodes(self) -> set[str]:
        """Return the ids of all nodes that give or take."""
        return {
            column.values[code] for column in (self.source, self.target) for code in np.unique(column.codes).tolist()
        }

    def pairs(self) -> tuple[list[tuple[str, str]], NDArray[np.int64]]:
        """Return the (source, target) pairs there are, and int64 (n,): each move's place among them."""
        width = len(self.target.values)
        numbers = self.source.codes.astype(np.int64) * width + self.target.codes
        # There are few pairs, so nothing need be sorted to find them.
        there = np.bincount(numbers) > 0
        pairs = [
            (self.source.values[number // width], self.target.values[number % width])
            for number in np.flatnonzero(there).tolist()
        ]
        return pairs, (np.cumsum(there) - 1)[numbers]

    def in_groups(self) -> tuple[list[tuple[str, str]], NDArray[np.int64], list[int]]:
        """Cut the moves into groups; equal moves are cut equally, whenever and wherever.

        Returns:
            The pairs of nodes, the most urgent one first; int64 (n,), the moves in that order; where each pair's moves end.
        """
        pairs, place = self.pairs()
        urgency = np.full(len(pairs), np.iinfo(np.int64).min)
        np.maximum.at(urgency, place, self.priority)
        ranked = sorted(range(len(pairs)), key=lambda number: (-int(urgency[number]), pairs[number]))
        # NumPy sorts the smallest integers without comparing them.
        rank = np.empty(len(pairs), np.min_scalar_type(len(pairs)))
        rank[ranked] = np.arange(len(pairs))
        ends = np.cumsum(np.bincount(place, minlength=len(pairs))[ranked])
        return [pairs[number] for number in ranked], np.argsort(rank[place], kind="stable"), ends.tolist()

    def repeated(self) -> NDArray[np.bool_]:
        """Return bool (n,): an earlier move takes the same object."""
        # Codes are given in the order in which keys come up first, so a new key's is one higher than all before.
        codes = pc.dictionary_encode(self.keys).indices.to_numpy(zero_copy_only=False)
        highest = np.concatenate([np.array([-1], codes.dtype), np.maximum.accumulate(codes)[:-1]])
        repeated: NDArray[np.bool_] = codes <= highest[: len(codes)]
        return repeated

    def to_moves(self) -> tuple[RebalanceMove, ...]:
        """Return the moves as models."""
        columns = zip(
            self.keys.to_pylist(),
            _written(self.source),
            _written(self.target),
            self.size_bytes.tolist(),
            self.priority.tolist(),
            self.gravity.tolist(),
            _written(self.cost),
            _written(self.reason),
            strict=True,
        )
        names = tuple(RebalanceMove.model_fields)
        return _MOVES.validate_python([dict(zip(names, row, strict=True)) for row in columns])


def coded(values: Iterable[T]) -> Coded[T]:
    """Dictionary-code values of any kind, in the order in which they come up first."""
    place: dict[T, int] = {}
    codes = np.fromiter((place.setdefault(value, len(place)) for value in values), np.int32)
    return Coded(codes, tuple(place))


def whole(name: str, values: Sequence[int]) -> NDArray[np.int64]:
    """Return whole numbers as int64 (n,). Raises: InvalidArgument, naming the field and the value."""
    try:
        return np.array(values, np.int64)
    except OverflowError as exc:
        worst = max(values, key=abs)
        msg = f"a move's {name} is {worst}, which does not fit into 64 bits"
        raise InvalidArgument(msg) from exc


def _taken(column: Coded[T], rows: NDArray[np.int64]) -> Coded[T]:
    return Coded(column.codes[rows], column.values)


def _written(column: Coded[T]) -> list[T]:
    return [column.values[code] for code in column.codes.tolist()]
