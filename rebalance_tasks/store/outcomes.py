"""Why moves of a job failed or were skipped, and which moves those were: read only, for people and for a retry."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.records import GroupRecord, unpack_keys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: An example of each cause is looked for among so many outcomes: a status must not read a hundred thousand.
LOOKED_AT: Final = 5_000
_SCAN: Final = 1_000
#: Details kept of each cause when a job has ended.
DETAILS_KEPT: Final = 100
#: Field that holds {cause: indices} of the rest.
PACKED: Final = b"packed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was noted of a move that failed or was skipped."""

    index: int
    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One move of a job as it was frozen when the job was created."""

    index: int
    key: str
    size_bytes: int
    group: GroupRecord


class OutcomeStore:
    """Outcomes of a fleet's jobs."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def of(self, job_id: str) -> Iterator[Outcome]:
        """Yield the outcome of every move that failed or was skipped for a cause, in no particular order."""
        # HSCAN may give a field twice while the hash grows; what is packed may still be there by itself.
        seen: set[int] = set()
        packed: dict[str, list[int]] = {}
        for field, raw in self._redis.client.hscan_iter(self._keys.job(job_id).outcomes, count=_SCAN):
            if field == PACKED:
                packed = json.loads(zlib.decompress(raw))
            elif int(field) not in seen:
                seen.add(int(field))
                data = json.loads(raw)
                yield Outcome(int(field), str(data["cause"]), str(data["detail"]))
        for cause, indices in packed.items():
            yield from (Outcome(index, cause, "") for index in indices if index not in seen)

    def compact(self, job_id: str) -> int:
        """Of an ended job with many outcomes keep a few details a cause, and the causes of all the rest in little room.

        Ten thousand sentences about ten thousand objects of one full disk are worth no more than the first of them.

        Returns:
            How many lost their detail.
        """
        key = self._keys.job(job_id).outcomes
        if self._redis.client.hlen(key) <= DETAILS_KEPT:
            return 0
        kept: Counter[str] = Counter()
        packed: dict[str, list[int]] = {}
        dropped: list[str] = []
        for outcome in sorted(self.of(job_id), key=lambda outcome: outcome.index):
            kept[outcome.cause] += 1
            if kept[outcome.cause] > DETAILS_KEPT or not outcome.detail:
                packed.setdefault(outcome.cause, []).append(outcome.index)
                dropped.append(str(outcome.index))
        if not dropped:
            return 0
        # In this order: a crash between the two leaves both, and nothing is counted twice.
        self._redis.hset(key, {PACKED.decode(): zlib.compress(json.dumps(packed, separators=(",", ":")).encode())})
        return sum(self._redis.hdel(key, *dropped[at : at + _SCAN]) for at in range(0, len(dropped), _SCAN))

    def examples(self, job_id: str) -> dict[str, Outcome]:
        """One outcome of each cause: that of the first move, as far as `LOOKED_AT` of them show it."""
        found: dict[str, Outcome] = {}
        for outcome in islice(self.of(job_id), LOOKED_AT):
            first = found.get(outcome.cause)
            if first is None or outcome.index < first.index:
                found[outcome.cause] = outcome
        return found

    def states(self, job_id: str) -> list[MoveState]:
        """State of each move, by index."""
        raw = self._redis.get(self._keys.job(job_id).states) or b""
        return [MoveState(chr(byte)) for byte in raw]

    def moves(self, job_id: str, indices: Collection[int]) -> dict[int, PlannedMove]:
        """The moves at these indices; those that were skipped before the job began are not kept and left out."""
        if not indices:
            return {}
        wanted = set(indices)
        job = self._keys.job(job_id)
        groups = self._redis.hgetall(job.groups)
        found: dict[int, PlannedMove] = {}
        for field, packed in self._redis.hgetall(job.moves).items():
            group_id = field.rpartition(":")[0]
            first, moves = _unpack(packed)
            here = wanted.intersection(range(first, first + len(moves)))
            if here and group_id in groups:  # Redis may have lost a part of a job that was given up
                group = GroupRecord.model_validate_json(groups[group_id])
                for index in here:
                    key, size = moves[index - first]
                    found[index] = PlannedMove(index, key, size, group)
        return found


def _unpack(packed: bytes) -> tuple[int, list[tuple[str, int]]]:
    """Read what `records.pack_keys` wrote, with its line "<first> <count>" before it."""
    head, _, body = packed.partition(b"\n")
    return int(head.split()[0]), unpack_keys(body)
