"""Leases in Redis: who works on which stretch of a group, until when, and under which epoch (invariant 12)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from rebalance_tasks.store.batches import journal_of_batches
from rebalance_tasks.store.records import GroupRecord, JournalEntry, unfinished_moves
from rebalance_tasks.store.versions import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rebalance_tasks.core.states import MoveState
    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys
    from rebalance_tasks.store.records import MoveRecord

#: A lease outlives three missed heartbeats of 3 s.
LEASE_MS: Final = 10_000
#: A header that was published should be picked up by then, or the sweep publishes it again.
REDRIVE_MS: Final = 15_000
#: … and at most so seldom while messages wait on its queue, where it may only be late: as the broker itself delivers again.
REDRIVE_MOST_MS: Final = 300_000
#: The gate's limit where nobody states one.
UNLIMITED_GROUPS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Lease:
    """What taking (or not getting) a lease in a group came to, with all that its runner needs.

    Attributes:
        code: ok, cancel (run only to wind up), terminal, gone, waiting, busy, paused, held (by a node)
            or newer (a newer release's job).
        epoch: fences every write of the runner.
        now_ms: Redis' clock.
        stretch: number of the stretch that the lease is for.
        first: index of its first move.
        size: number of its moves.
        moves: those of them that are not terminal yet, with their states, in order.
        journal: progress of those in flight, by index.
        capacities: bytes by node when the job started.
        more: stretches are left for another runner, and no message says so.
        room: more groups may be let through the gate, now that this one's message was picked up.
    """

    code: str
    epoch: int = 0
    now_ms: int = 0
    group: GroupRecord | None = None
    stretch: int = 0
    first: int = 0
    size: int = 0
    moves: Sequence[tuple[MoveRecord, MoveState]] = ()
    journal: Mapping[int, JournalEntry] = field(default_factory=dict)
    capacities: Mapping[str, int] = field(default_factory=dict)
    more: bool = False
    room: bool = False


class LeaseStore:
    """Leases in the groups of a fleet's jobs."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def acquire_lease(
        self, job_id: str, group_id: str, *, owner: str, limit: int | None = None, extra: bool = False
    ) -> Lease:
        """Become the runner of one of the group's stretches.

        Args:
            job_id: the job.
            group_id: the group.
            owner: names this very attempt; asking again under the same name gives the same stretch.
            limit: of the gate; a group beyond it goes back to wait.
            extra: called by an extra slice of a busy pair.
        """
        keys = self._keys.job(job_id)
        script_keys = [
            keys.base,
            keys.group(group_id),
            keys.paused,
            self._keys.paused,
            self._keys.permits,
            keys.groups,
            keys.states,
            keys.moves,
            keys.journal,
            keys.queue,
            self._keys.info,
            keys.waiting,
            self._keys.held_nodes,
            keys.held,
        ]
        most = UNLIMITED_GROUPS if limit is None else limit
        args: list[Value] = [
            *(f"{job_id}/{group_id}", owner, LEASE_MS, group_id, most, int(extra), REDRIVE_MS),
            VERSIONS["job"],
        ]
        code, epoch, now, *rest = self._redis.run("lease_acquire", script_keys, args)
        if not rest:
            return Lease(code.decode(), int(epoch), int(now))
        record, capacities, stretch, first, states, packed, journal, batches, more, room = rest
        moves = unfinished_moves(job_id, int(first), states.decode(), packed)
        return Lease(
            code.decode(),
            int(epoch),
            int(now),
            GroupRecord.model_validate_json(record),
            int(stretch),
            int(first),
            len(states),
            moves,
            _journal(moves, journal, batches),
            {str(node): int(value) for node, value in json.loads(capacities).items()},
            bool(more),
            bool(room),
        )

    def beat(self, job_id: str, group_id: str, stretch: int, *, epoch: int) -> tuple[str, int]:
        """Renew a lease and read the flags; return (code, now in ms), see ``lease_beat.lua``."""
        keys = self._keys.job(job_id)
        script_keys = [
            keys.base,
            keys.lease(group_id, stretch),
            keys.paused,
            self._keys.paused,
            keys.group(group_id),
            self._keys.held_nodes,
        ]
        code, now = self._redis.run("lease_beat", script_keys, [epoch, LEASE_MS])
        return code.decode(), int(now)

    def release_lease(self, job_id: str, group_id: str, stretch: int, *, epoch: int, extra: bool = False) -> str:
        """End a lease; see ``lease_release.lua`` for what it returns."""
        keys = self._keys.job(job_id)
        script_keys = [
            keys.base,
            keys.group(group_id),
            keys.lease(group_id, stretch),
            keys.paused,
            self._keys.paused,
            self._keys.held_nodes,
            keys.held,
            self._keys.permits,
        ]
        args: list[Value] = [epoch, int(extra), REDRIVE_MS, f"{job_id}/{group_id}", group_id, LEASE_MS]
        return cast("bytes", self._redis.run("lease_release", script_keys, args)).decode()

    def redrive(self, job_id: str, group_id: str, *, busy: Iterable[str] = ()) -> str:
        """Ask whether a group's header must be published again; see ``group_redrive.lua``.

        Args:
            job_id: the job.
            group_id: the group.
            busy: data queues on which messages wait; a header that was published there is given more time.
        """
        keys = self._keys.job(job_id)
        script_keys = [keys.base, keys.group(group_id), self._keys.permits, keys.paused, self._keys.paused]
        args: list[Value] = [f"{job_id}/{group_id}", REDRIVE_MS, REDRIVE_MOST_MS, *busy]
        return cast("bytes", self._redis.run("group_redrive", script_keys, args)).decode()

    def note_error(self, job_id: str, group_id: str) -> int:
        """Count an unexpected error of a group's runner; return how many there were."""
        return self._redis.client.hincrby(self._keys.job(job_id).group(group_id), "errors", 1)


def _journal(
    moves: Sequence[tuple[MoveRecord, MoveState]], entries: Sequence[bytes], batches: Sequence[bytes]
) -> dict[int, JournalEntry]:
    """What is known of the moves in flight: of those that have an entry of their own, that, else what their batch says."""
    found = journal_of_batches(moves, batches)
    for index, entry in zip(entries[::2], entries[1::2], strict=True):
        found[int(index)] = JournalEntry.model_validate_json(entry)
    return found
