"""Moves in Redis: the journal, the flip and the count of a batch, all fenced by the group's lease epoch."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from rebalance_tasks.core.errors import StaleLease
from rebalance_tasks.store.records import UndoRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.states import MoveState
    from rebalance_tasks.store.connection import Call, Connection, Value
    from rebalance_tasks.store.keys import FleetKeys, JobKeys
    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.records import Freed, JournalEntry, MoveRecord, TrashRecord

#: No limit, in the scripts' language.
UNLIMITED: Final = -1
#: Cause of a completed move whose source still stands because its node could not be reached; cleanup frees it.
FREE_PENDING: Final = "free_pending"


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a job may still spend; -1 is no limit. Costs are in 10⁻⁹ of the currency."""

    egress_bytes: int = UNLIMITED
    cost_nano: int = UNLIMITED
    cost_nano_day: int = UNLIMITED
    target_bytes: int = UNLIMITED


@dataclass(frozen=True, slots=True)
class Attempt:
    """A move about to be copied: what is journalled, and what it takes of the budgets.

    Attributes:
        egress_bytes: still to be booked; room is reserved for the whole object.
    """

    move: MoveRecord
    entry: JournalEntry
    egress_bytes: int
    cost_nano: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of one move."""

    move: MoveRecord
    state: MoveState
    cause: str = ""
    detail: str = ""
    trash: TrashRecord | Freed | None = None


@dataclass(slots=True)
class Ending:
    """Scripts to be asked in the same trip that counts moves, for when these are the last of their group.

    Attributes:
        calls: what is to be asked, known when the trip is made.
        replies: what was answered, ``None`` while moves of the group are left.
    """

    calls: Callable[[], Sequence[Call]]
    replies: list[Any] | None = None


class MoveStore:
    """The moves of one stretch of a group, written under its lease."""

    def __init__(
        self, connection: Connection, keys: FleetKeys, *, job_id: str, lease: Lease, ending: Ending | None = None
    ) -> None:
        """Bind to the lease that writes. Raises: ValueError when it was not granted."""
        if lease.group is None:
            msg = f"a lease with code {lease.code} has nothing to write"
            raise ValueError(msg)
        self._redis = connection
        self._fleet = keys
        self._job: JobKeys = keys.job(job_id)
        self._group = lease.group
        self._lease = lease
        self._ending = ending
        self._lease_key = self._job.lease(lease.group.group_id, lease.stretch)
        #: under which room is reserved
        self._name = f"{job_id}/{lease.group.group_id}/{lease.stretch}"

    def begin(self, attempts: Sequence[Attempt], *, budgets: Budgets, day: str) -> list[str]:
        """Reserve room, book the budgets and journal the attempts of a batch, each move for itself.

        Returns:
            For each attempt ``ok``, or what forbids it: ``target_full``, ``budget_egress``, ``budget_cost``,
            ``budget_cost_day``.

        Raises:
            StaleLease: another runner has taken over.
        """
        target = self._group.target
        keys = [
            self._job.base,
            self._lease_key,
            self._job.journal,
            self._fleet.reserved(target),
            self._fleet.usage,
            self._fleet.spend(day),
        ]
        args: list[Value] = [
            self._lease.epoch,
            self._name,
            target,
            budgets.target_bytes,
            budgets.egress_bytes,
            budgets.cost_nano,
            budgets.cost_nano_day,
            uuid.uuid4().hex,
        ]
        for attempt in attempts:
            args += [
                attempt.move.index,
                attempt.entry.model_dump_json(exclude_defaults=True),
                attempt.move.size_bytes,
                attempt.egress_bytes,
                attempt.cost_nano,
            ]
        codes = cast("list[bytes]", self._redis.run("moves_begin", keys, args))
        if codes == [b"stale"]:
            raise self._stale()
        return [code.decode() for code in codes]

    def write_journal(self, entries: Mapping[int, JournalEntry]) -> None:
        """Keep the progress of moves in flight. Raises: StaleLease."""
        if not entries:
            return
        args: list[Value] = [self._lease.epoch]
        for index, entry in entries.items():
            args += [index, entry.model_dump_json(exclude_defaults=True)]
        keys = [self._lease_key, self._job.journal]
        if self._redis.run("journal_write", keys, args) == b"stale":
            raise self._stale()

    def flip(
        self,
        moves: Sequence[MoveRecord],
        *,
        forwarding_ttl_ms: int,
        keep_locations: bool,
    ) -> None:
        """Commit a batch: readers are sent to the target from here on.

        Args:
            moves: those that are not pending any more are left as they are.
            forwarding_ttl_ms: 0 writes no forwarding.
            keep_locations: write overrides, or the catalogue.

        Raises:
            StaleLease: another runner has taken over.
        """
        args: list[Value] = [
            self._lease.epoch,
            self._group.source,
            self._group.target,
            forwarding_ttl_ms,
            int(keep_locations),
            self._name,
        ]
        for move in moves:
            args += [move.index, move.key, move.size_bytes, move.move_id]
        keys = [*self._location_keys(), self._fleet.reserved(self._group.target), self._fleet.undos]
        if int(self._redis.run("moves_flip", keys, args)) < 0:
            raise self._stale()

    def retract(self, moves: Sequence[MoveRecord], *, keep_locations: bool) -> None:
        """Take flips back: the sources are the truth again. Raises: StaleLease."""
        args: list[Value] = [self._lease.epoch, self._group.source, self._group.target, int(keep_locations)]
        for move in moves:
            args += [move.index, move.key, move.size_bytes]
        if int(self._redis.run("moves_retract", self._location_keys(), args)) < 0:
            raise self._stale()

    def settle(self, settlements: Sequence[Settlement], *, purge_delay_ms: int) -> int:
        """Count moves, each once only; return how many of the group are left. Raises: StaleLease."""
        keys = [
            self._job.base,
            self._job.group(self._group.group_id),
            self._job.states,
            self._job.journal,
            self._job.outcomes,
            self._job.causes,
            self._fleet.frees,
            self._fleet.trash,
            self._fleet.trash_due,
            self._fleet.awaiting,
            self._fleet.reserved(self._group.target),
            self._lease_key,
        ]
        lease = self._lease
        args: list[Value] = [
            lease.epoch,
            self._name,
            self._group.source,
            purge_delay_ms,
            lease.stretch,
            lease.first,
            lease.first + lease.size - 1,
        ]
        for item in settlements:
            move = item.move
            outcome = json.dumps({"cause": item.cause, "detail": item.detail[:500]}) if item.cause else ""
            trash = "" if item.trash is None else item.trash.model_dump_json()
            args += [move.index, item.state.value, move.size_bytes, move.key, move.move_id, outcome, item.cause, trash]
        further = self._ending.calls() if self._ending else ()
        (counted, left), *replies = self._redis.run_all([("moves_settle", keys, args), *further])
        if self._ending and replies and int(left) == 0:
            self._ending.replies = replies
        if int(counted) < 0:
            raise self._stale()
        return int(left)

    def note_undo(self, move: MoveRecord, copied: Fingerprint) -> None:
        """Leave it to the cleanup to take an unflipped copy off its target: a node cannot be reached now."""
        record = UndoRecord(
            source=self._group.source, target=self._group.target, key=move.key, fingerprint=copied.to_json()
        )
        self._redis.hset(self._fleet.undos, {move.move_id: record.model_dump_json()})

    def _location_keys(self) -> list[str]:
        fleet = self._fleet
        return [
            self._lease_key,
            self._job.states,
            fleet.forwarding,
            fleet.moved,
            fleet.locations,
            fleet.frees,
            fleet.usage,
        ]

    def _stale(self) -> StaleLease:
        return StaleLease(f"stretch {self._name} has a newer runner; this one stops")
