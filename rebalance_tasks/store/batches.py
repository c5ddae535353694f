"""What Redis keeps of a batch as one value, where each object had a value of its own before (ADR 14).

Four things are kept this way while a batch goes its common way: its journal (a field of the lease), what it has moved,
what is still to be freed of it, and what is in the trash. A move that leaves the common way is taken out and kept by
itself, as ever; what is kept by itself wins. All of it is validated where it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from pydantic import NonNegativeInt, TypeAdapter

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import LATER
from rebalance_tasks.store.records import JournalEntry, Part, unpack_keys
from rebalance_tasks.store.versions import VERSIONS, require_known

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebalance_tasks.core.states import MoveState
    from rebalance_tasks.store.records import MoveRecord, TrashRecord

#: Begins the name of a batch among members that are keys or move ids: neither holds a NUL.
MARK: Final = "\0"
#: Begins the lease's field that is a batch's journal; the index of its first move follows. ``lease_acquire.lua`` knows it.
JOURNAL_FIELD: Final = "j:"

#: Columns: sizes, mtimes in ns, inodes, devices; no entity tags.
Versions: TypeAlias = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]
#: size, mtime in ns, inode, device, entity tag
_Version: TypeAlias = tuple[NonNegativeInt, int, NonNegativeInt, NonNegativeInt, str]
#: index, digest of the one part, number of parts verified, source, staged copy
_Row: TypeAlias = tuple[NonNegativeInt, str, NonNegativeInt, _Version, _Version]
_JOURNAL: Final = TypeAdapter(tuple[int, str, list[_Row]], config=LATER)
_VERSIONS: Final[TypeAdapter[list[tuple[int, int, int, int, str]]]] = TypeAdapter(list[_Version], config=LATER)


# -- indices ----------------------------------------------------------------------------------------------------------
def ranges_of(indices: Sequence[int]) -> str:
    """Write ascending indices as ranges, ``"0-4,7-7"``."""
    if indices and indices[-1] - indices[0] == len(indices) - 1:
        return f"{indices[0]}-{indices[-1]}"
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(f"{first}-{last}" for first, last in spans)


def indices_of(ranges: str) -> list[int]:
    """Read what `ranges_of` wrote. Raises: ValueError."""
    spans = (span.split("-") for span in ranges.split(",")) if ranges else ()
    return [index for first, last in spans for index in range(int(first), int(last) + 1)]


# -- the journal ------------------------------------------------------------------------------------------------------
class JournalRow(NamedTuple):
    """What a batch's journal says of a staged copy of one part, as long as its source; ``move`` is the move's index."""

    move: int
    digest: str
    verified: int
    source: Fingerprint
    staged: Fingerprint


def pack_journal(ranges: str, rows: Sequence[JournalRow] = (), packed: str = "") -> bytes:
    """Return the journal of a batch: the moves that were begun, and a row for each copy that is staged whole.

    Args:
        ranges: of the moves that were begun.
        rows: of staged copies.
        packed: more of them, as `pack_rows` writes them.
    """
    text = _JOURNAL.dump_json((VERSIONS["batch"], ranges, list(rows)))
    return text[:-2] + f"{',' if rows and packed else ''}{packed}]]".encode() if packed else text


def pack_rows(moves: Sequence[int], digests: Sequence[str], sources: Versions, staged: Versions) -> str:
    """Return the rows of copies without entity tags, as the journal of a batch holds them.

    Args:
        moves: indices.
        digests: of what was copied, in hex.
        sources: what was copied, in columns.
        staged: the copies.
    """
    return ",".join(
        [
            f'[{move},"{digest}",0,[{size},{mtime},{inode},{device},""],[{size_2},{mtime_2},{inode_2},{device_2},""]]'
            for move, digest, size, mtime, inode, device, size_2, mtime_2, inode_2, device_2 in zip(
                moves, digests, *sources, *staged, strict=True
            )
        ]
    )


def pack_versions(versions: Iterable[Fingerprint]) -> bytes:
    """Return the versions of freed sources as a batch's record of the trash keeps them."""
    return _VERSIONS.dump_json(list(versions))


def pack_plain_versions(versions: Versions) -> bytes:
    """Return versions without entity tags as `pack_versions` does."""
    rows = [f'[{size},{mtime},{inode},{device},""]' for size, mtime, inode, device in zip(*versions, strict=True)]
    return f"[{','.join(rows)}]".encode()


def unpack_journal(raw: bytes | str, sizes: Mapping[int, int]) -> dict[int, JournalEntry]:
    """Read a batch's journal.

    Args:
        raw: what `pack_journal` wrote.
        sizes: bytes that each move was planned with, and so has booked; moves that are not in it are left out.

    Raises:
        NewerVersion: a newer release wrote it.
        ValueError: it is no journal.
    """
    version, ranges, rows = _JOURNAL.validate_json(raw)
    require_known("batch", version)
    found = {index: JournalEntry(open=True, booked=sizes[index]) for index in indices_of(ranges) if index in sizes}
    for index, digest, verified, source, staged in rows:
        if index in found:
            parts = (Part(source[0], digest),)
            found[index] = JournalEntry(
                open=True,
                booked=sizes[index],
                source=Fingerprint(*source),
                parts=parts,
                verified=verified,
                staged=Fingerprint(*staged),
            )
    return found


def journal_of_batches(
    moves: Iterable[tuple[MoveRecord, MoveState]], batches: Iterable[bytes]
) -> dict[int, JournalEntry]:
    """What the journals of a stretch's batches say of its moves, by index. Raises: as `unpack_journal`."""
    found: dict[int, JournalEntry] = {}
    for raw in batches:
        found |= unpack_journal(raw, {move.index: move.size_bytes for move, _ in moves})
    return found


# -- what was moved, is to be freed, is in the trash ------------------------------------------------------------------
class BatchMove(NamedTuple):
    """One move of a batch's record."""

    move_id: MoveId
    key: str


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What is kept of the moves of one stretch that went together.

    Attributes:
        node: what was moved there, is to be freed there, or lies in its trash.
        moves: which.
        versions: of trash, the version of each move's source; empty else.
    """

    node: str
    moves: list[BatchMove]
    versions: list[Fingerprint]

    @classmethod
    def read(cls, name: str, raw: bytes) -> BatchRecord:
        """Read what ``lua/with/batches.lua`` keeps.

        Args:
            name: ``<job>/<group>/<stretch>``.
            raw: the value.

        Raises:
            NewerVersion: a newer release wrote it.
            ValueError: it is no such record.
        """
        node, indices, keys, rows = _read(name, raw)
        job_id = name.partition("/")[0]
        moves = [BatchMove(MoveId(f"{job_id}.{index}"), key) for index, key in zip(indices, keys, strict=True)]
        versions = [Fingerprint(*found) for found in _VERSIONS.validate_json(rows)] if rows else []
        return cls(node, moves, versions)


def moved_keys(name: str, raw: bytes) -> list[str]:
    """Return the keys of a batch's record, of which there may be very many, without an object for each. Raises: as `BatchRecord.read`."""
    return _read(name, raw)[2]


def _read(name: str, raw: bytes) -> tuple[str, list[int], list[str], bytes]:
    """Return the node, the indices and keys of the moves, and the rows of a batch's record."""
    version, _, rest = raw.partition(b" ")
    require_known("batch", version)
    head, rows, place, packed = rest.split(b"\n", 3)
    node, ranges = head.decode().split(" ")
    first = int(place.split()[0])
    keys = unpack_keys(packed)
    indices = indices_of(ranges)
    if indices and not first <= indices[0] <= indices[-1] < first + len(keys):
        msg = f"the record of batch {name!r} speaks of moves {ranges}, its stretch has {len(keys)} from {first}"
        raise ValueError(msg)
    return node, indices, [keys[index - first][0] for index in indices], rows


class Due(NamedTuple):
    """Trash whose grace is over: of one move, or of a batch.

    Attributes:
        name: move id, or the batch's name.
        batch: whether it is a batch's.
        records: by move id.
    """

    name: str
    batch: bool
    records: dict[MoveId, TrashRecord]
