"""What is written into Redis and read back: moves packed in chunks, groups, journal entries. Validated on the way in."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as text
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from pydantic import AwareDatetime, Field, NonNegativeInt, TypeAdapter, model_serializer, model_validator

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import LATER, Frozen, Identifier, KeyText
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.versions import STAMP, require_known, upgraded

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How hard zlib tries: the default takes more than twice the time and saves an eighth of the room.
PACKING: Final = 1

_KEYS: Final = TypeAdapter(list[tuple[str, NonNegativeInt]], config=LATER)


@dataclass(slots=True, unsafe_hash=True)
class MoveRecord:
    """One move of a job; made anew, never changed (freezing it would cost more than making it).

    Attributes:
        index: its place in the job's state string.
        move_id: names its staged copy and its trash; unique over all jobs.
    """

    index: int
    move_id: MoveId
    key: str
    size_bytes: int


class GroupRecord(Frozen):
    """What never changes about a group: one (source, target) pair and its contiguous range of moves."""

    group_id: Identifier
    source: Identifier
    target: Identifier
    offset: NonNegativeInt
    size: NonNegativeInt
    total_bytes: NonNegativeInt
    queue: str = Field(max_length=200)
    cost_per_gb: str = "0"


@dataclass(slots=True)
class Part:
    """A verified or verifiable stretch of a staged copy."""

    length: NonNegativeInt
    digest: str


@dataclass(slots=True)
class JournalEntry:
    """The progress of one move in flight; made anew, never changed.

    No pydantic model, since four of them for each object cost more than the system calls that copy a small one; it is
    validated where it is read.

    Attributes:
        open: an attempt runs; if it is found open by the next runner, the last one died.
        deaths: workers that died on it.
        tries: copies thrown away because the source changed or the copy did not verify.
        booked: bytes that this try has booked on the budgets.
        source: fingerprint of the source that is being copied.
        parts: stretches already staged, in order.
        verified: number of parts read back and found right.
        staged: fingerprint of the whole, verified copy; its inode recognises it once published.
    """

    open: bool = False
    deaths: NonNegativeInt = 0
    tries: NonNegativeInt = 0
    booked: NonNegativeInt = 0
    source: Fingerprint | None = None
    parts: tuple[Part, ...] = ()
    verified: NonNegativeInt = 0
    staged: Fingerprint | None = None

    def model_dump_json(self, *, exclude_defaults: bool = True) -> str:  # noqa: ARG002  as pydantic calls it
        """Return what `model_validate_json` reads; what is empty is left out."""
        fields = ['"open":true'] if self.open else []
        for name in ("deaths", "tries", "booked", "verified"):
            value = getattr(self, name)
            if value:
                fields.append(f'"{name}":{value}')
        if self.source is not None:
            fields.append(f'"source":{fingerprint_json(self.source)}')
        if self.parts:
            parts = ",".join([f'{{"length":{part.length},"digest":{text(part.digest)}}}' for part in self.parts])
            fields.append(f'"parts":[{parts}]')
        if self.staged is not None:
            fields.append(f'"staged":{fingerprint_json(self.staged)}')
        return f"{{{','.join(fields)}}}"

    @staticmethod
    def model_validate_json(raw: bytes | str) -> JournalEntry:
        """Read and validate. Raises: ValidationError."""
        return _JOURNAL.validate_json(raw)

    def model_copy(self, *, update: Mapping[str, Any]) -> JournalEntry:
        """Return a copy with some fields changed."""
        return replace(self, **update)

    def fingerprint(self) -> Fingerprint | None:
        """The source's fingerprint."""
        return self.source

    def staged_fingerprint(self) -> Fingerprint | None:
        """The staged copy's fingerprint."""
        return self.staged


_JOURNAL: Final = TypeAdapter(JournalEntry)


def fingerprint_json(fingerprint: Fingerprint) -> str:
    """Return a fingerprint as JSON."""
    return (
        f'{{"size_bytes":{fingerprint.size_bytes},"mtime_ns":{fingerprint.mtime_ns},"inode":{fingerprint.inode},'
        f'"device":{fingerprint.device},"etag":{text(fingerprint.etag)}}}'
    )


class Stamped(Frozen):
    """A record that stands alone in Redis as JSON: it says in ``v`` in which form it was written.

    Reading brings an older form up to date and refuses a newer one (`rebalance_tasks.store.versions`).
    """

    kind: ClassVar[str]

    v: int = 1

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:  # noqa: ANN401  pydantic's
        """Read what was stored. Raises: NewerVersion, ValidationError."""
        data = json.loads(json_data)
        return cls.model_validate(upgraded(cls.kind, data) if isinstance(data, dict) else data, **options)


class TrashRecord(Stamped):
    """A freed source that can still be brought back.

    Stored as a list, in the order below: there may be a hundred thousand of them within the grace, and the names of the
    fields would be half of each. The mapping of earlier days is read as well.
    """

    kind = "trash"

    node: Identifier
    key: KeyText
    size: NonNegativeInt
    fingerprint: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: Any) -> Any:  # noqa: ANN401  whatever was stored
        if not isinstance(data, list):
            return data
        version, node, key, size, *fingerprint = data
        require_known(cls.kind, version)
        named = dict(zip(_FINGERPRINT, fingerprint, strict=False))
        return {STAMP: version, "node": node, "key": key, "size": size, "fingerprint": named}

    @model_serializer
    def _to_list(self) -> list[Any]:
        fingerprint = Fingerprint.from_json(self.fingerprint).to_json()
        return [self.v, self.node, self.key, self.size, *(fingerprint[name] for name in _FINGERPRINT)]


#: A fingerprint's fields as a trash record lists them.
_FINGERPRINT: Final = ("size_bytes", "mtime_ns", "inode", "device", "etag")


@dataclass(slots=True)
class Freed:
    """A `TrashRecord` on its way to Redis, without the cost of a model for each object."""

    node: str
    key: str
    size: int
    version: Fingerprint

    def model_dump_json(self) -> str:
        """Return what `TrashRecord` reads."""
        found = self.version
        return (
            f"[1,{text(self.node)},{text(self.key)},{self.size},{found.size_bytes},{found.mtime_ns},{found.inode},"
            f"{found.device},{text(found.etag)}]"
        )


class UndoRecord(Stamped):
    """A copy that was never flipped and could not be taken off its target when its move ended."""

    kind = "undo"

    source: Identifier
    target: Identifier
    key: KeyText
    fingerprint: dict[str, Any]


class CheckRecord(Stamped):
    """Why a check ran or skipped, and what it decided; the fleet keeps the newest ones."""

    kind = "check"

    at: AwareDatetime
    verdict: str
    reason: str
    plan_id: str | None = None
    imbalance: float | None = None
    forced: bool = False


def pack_keys(first: int, moves: list[tuple[str, int]]) -> bytes:
    """Pack a stretch's (key, size) pairs, all that a slice needs of a move; ``"<first> <count>"`` stands before them."""
    packed = zlib.compress(_KEYS.dump_json(moves), level=PACKING)
    return f"{first} {len(moves)}\n".encode() + packed


def unpack_keys(packed: bytes) -> list[tuple[str, int]]:
    """Read what `pack_keys` wrote, without the line before it. Raises: ValueError, zlib.error."""
    return _KEYS.validate_json(zlib.decompress(packed))


def unfinished_moves(job_id: str, first: int, states: str, packed: bytes) -> list[tuple[MoveRecord, MoveState]]:
    """Pair a stretch's keys (without the line before them) with their states; return those that are not terminal yet."""
    # A state is looked up once for all moves that are in it.
    unfinished = {state.value: state for state in map(MoveState, set(states)) if not state.terminal}
    return [
        (MoveRecord(index, MoveId(f"{job_id}.{index}"), key, size), unfinished[byte])
        for index, (byte, (key, size)) in enumerate(zip(states, unpack_keys(packed), strict=True), first)
        if byte in unfinished
    ]


def from_ms(value: bytes | None) -> datetime | None:
    """Read a time kept as milliseconds."""
    return None if value is None else datetime.fromtimestamp(int(value) / 1000, tz=UTC)
