"""Moves in Redis: the journal, the flip and the count of a batch, all fenced by the group's lease epoch."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.core.errors import StaleLease
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.batches import JOURNAL_FIELD, pack_journal, pack_versions, ranges_of
from rebalance_tasks.store.records import Freed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebalance_tasks.store.batches import JournalRow
    from rebalance_tasks.store.connection import Asked, Call, Connection, Value
    from rebalance_tasks.store.keys import FleetKeys, JobKeys
    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.records import JournalEntry, MoveRecord, TrashRecord

#: No limit, in the scripts' language.
UNLIMITED: Final = -1
#: What a script says that a newer runner has shut out, or that takes no batch as a whole.
STALE: Final = -1
EACH: Final = -2
#: What a script is told where the host's catalogue, and not Redis, says where objects are.
HOSTED: Final = 2
#: Cause of a completed move whose source still stands because its node could not be reached; cleanup frees it.
FREE_PENDING: Final = "free_pending"


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a job may still spend; -1 is no limit. Costs are in 10⁻⁹ of the currency."""

    egress_bytes: int = UNLIMITED
    cost_nano: int = UNLIMITED
    cost_nano_day: int = UNLIMITED
    target_bytes: int = UNLIMITED


@dataclass(slots=True)
class Attempt:
    """A move about to be copied: what is journalled, and what it takes of the budgets; made anew, never changed.

    Attributes:
        egress_bytes: still to be booked; room is reserved for the whole object.
    """

    move: MoveRecord
    entry: JournalEntry
    egress_bytes: int
    cost_nano: int


@dataclass(slots=True)
class Settlement:
    """The end of one move; made anew, never changed."""

    move: MoveRecord
    state: MoveState
    cause: str = ""
    detail: str = ""
    trash: TrashRecord | Freed | None = None


@dataclass(frozen=True, slots=True)
class Together:
    """Moves that ended as nearly all do, freed into the trash with nothing to say of them, to be counted as one.

    Attributes:
        indices: ascending.
        size_bytes: of them all.
        versions: what was freed, as `store.batches.pack_versions` writes it.
        each: asked for them one by one, where Redis does not take them as one.
    """

    indices: Sequence[int]
    size_bytes: int
    versions: bytes
    each: Callable[[], Sequence[Settlement]]


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
        #: field and ranges of the batch begun last, if it has one journal
        self._begun: tuple[str, str] | None = None
        #: what is asked in the same trip that begins a batch
        self.along: Callable[[], Sequence[Asked]] = tuple

    @property
    def one_journal(self) -> bool:
        """Whether the batch begun last is journalled as one, so that `write_journal` takes rows for it."""
        return self._begun is not None

    def begin(self, attempts: Sequence[Attempt], *, budgets: Budgets, day: str, fresh: bool = False) -> list[str]:
        """Reserve room, book the budgets and journal the attempts of a batch: as a whole if it fits, else each for itself.

        Args:
            attempts: in the order in which they are judged.
            budgets: what may still be spent.
            day: whose budget is booked, ``2026-01-31``.
            fresh: none of the moves was attempted before, so that one journal does for all.

        Returns:
            For each attempt ``ok``, or what forbids it: ``target_full``, ``budget_egress``, ``budget_cost``,
            ``budget_cost_day``.

        Raises:
            StaleLease: another runner has taken over.
        """
        self._begun = None
        if fresh and len(attempts) > 1:
            indices = sorted([attempt.move.index for attempt in attempts])
            begun = f"{JOURNAL_FIELD}{indices[0]}", ranges_of(indices)
            entry: list[Value] = [
                begun[0],
                pack_journal(begun[1]),
                sum([attempt.move.size_bytes for attempt in attempts]),
                sum([attempt.egress_bytes for attempt in attempts]),
                sum([attempt.cost_nano for attempt in attempts]),
            ]
            if self._begin(entry, budgets, day, together=True) == ["ok"]:
                self._begun = begun
                return ["ok"] * len(attempts)
        entries: list[Value] = []
        for attempt in attempts:
            entries += [
                attempt.move.index,
                attempt.entry.model_dump_json(exclude_defaults=True),
                attempt.move.size_bytes,
                attempt.egress_bytes,
                attempt.cost_nano,
            ]
        return self._begin(entries, budgets, day, together=False)

    def _begin(self, entries: Sequence[Value], budgets: Budgets, day: str, *, together: bool) -> list[str]:
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
            int(together),
            *entries,
        ]
        asked = self.along()
        codes, *replies = self._redis.run_all([("moves_begin", keys, args), *(call for call, _ in asked)])
        for (_, tell), reply in zip(asked, replies, strict=True):
            tell(reply)
        if codes == [b"stale"]:
            raise self._stale()
        return [code.decode() for code in codes]

    def write_journal(
        self, entries: Mapping[int, JournalEntry], rows: Sequence[JournalRow] = (), packed: str = ""
    ) -> None:
        """Keep the progress of moves in flight.

        Args:
            entries: by index; they win over what the batch's journal says.
            rows: of the batch begun last, which has one journal: one for each copy that is staged.
            packed: more of them, as `store.batches.pack_rows` writes them.

        Raises:
            StaleLease: another runner has taken over.
        """
        if not entries and not rows and not packed:
            return
        args: list[Value] = [self._lease.epoch, "", ""]
        if (rows or packed) and self._begun is not None:
            args[1:] = [self._begun[0], pack_journal(self._begun[1], rows, packed)]
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
        hosted: bool = False,
    ) -> set[int]:
        """Commit a batch: readers are sent to the target from here on.

        Args:
            moves: those that are not pending any more are left as they are.
            forwarding_ttl_ms: 0 writes no forwarding.
            keep_locations: write overrides, or the catalogue.
            hosted: the host's catalogue has sent readers to the target, so what was written there does not hold a move.

        Returns:
            Indices of moves that were not flipped, since somebody writes their object through the fleet, or did so while
            this job ran: it stays where it is.

        Raises:
            StaleLease: another runner has taken over.
        """
        head: list[Value] = [
            self._lease.epoch,
            self._group.source,
            self._group.target,
            forwarding_ttl_ms,
            HOSTED if hosted else int(keep_locations),
            self._name,
        ]
        keys = [*self._location_keys(), self._fleet.reserved(self._group.target), self._fleet.undos]
        writers = [self._fleet.claims, self._fleet.written]
        flipped = EACH
        # A record names all keys of the stretch: of a small part of them single entries take less room.
        if len(moves) > 1 and 2 * len(moves) >= self._lease.size:
            indices = sorted([move.index for move in moves])
            size_bytes = sum([move.size_bytes for move in moves])
            args = [*head, ranges_of(indices), size_bytes, *[move.key for move in moves]]
            flipped = int(self._redis.run("batch_flip", [*keys, self._job.moves, *self._batch_keys(), *writers], args))
        held: list[int] = []
        if flipped == EACH:
            args = head
            for move in moves:
                args += [move.index, move.key, move.size_bytes, move.move_id]
            flipped, *held = self._redis.run("moves_flip", [*keys, *writers], args)
        if flipped < 0:
            raise self._stale()
        return set(held)

    def retract(self, moves: Sequence[MoveRecord], *, keep_locations: bool) -> None:
        """Take flips back: the sources are the truth again. Raises: StaleLease."""
        args: list[Value] = [self._lease.epoch, self._group.source, self._group.target, int(keep_locations), self._name]
        for move in moves:
            args += [move.index, move.key, move.size_bytes]
        if int(self._redis.run("moves_retract", [*self._location_keys(), *self._batch_keys()], args)) < 0:
            raise self._stale()

    def settle(
        self, settlements: Sequence[Settlement], *, purge_delay_ms: int, together: Together | None = None
    ) -> int:
        """Count moves, each once only; return how many of the group are left.

        Args:
            settlements: how each ended.
            purge_delay_ms: how long what was freed stays in the trash.
            together: more moves.

        Raises:
            StaleLease: another runner has taken over.
        """
        each = settlements
        if together is None:
            together, each = _sorted_out(settlements)
        if together is not None:
            counted, left = self._settle(together, each, purge_delay_ms)
            if counted != EACH:
                return left
            each = [*each, *together.each()]
        return self._settle(None, each, purge_delay_ms)[1]

    def _settle(self, together: Together | None, each: Sequence[Settlement], purge_delay_ms: int) -> tuple[int, int]:
        """Count those that were freed into the trash as one batch, and others; return how many, and how many are left."""
        further = self._ending.calls() if self._ending else ()
        call = ("moves_settle", self._settle_keys(), self._settle_args(together, each, purge_delay_ms))
        (counted, left), *replies = self._redis.run_all([call, *further])
        if int(counted) == STALE:
            raise self._stale()
        if self._ending and replies and int(left) == 0 and int(counted) != EACH:
            self._ending.replies = replies
        return int(counted), int(left)

    def _settle_args(self, together: Together | None, each: Sequence[Settlement], purge_delay_ms: int) -> list[Value]:
        lease = self._lease
        args: list[Value] = [
            lease.epoch,
            self._name,
            self._group.source,
            purge_delay_ms,
            lease.stretch,
            lease.first,
            lease.first + lease.size - 1,
            *(
                ("", 0, "[]")
                if together is None
                else (ranges_of(together.indices), together.size_bytes, together.versions)
            ),
        ]
        for item in each:
            move = item.move
            outcome = json.dumps({"cause": item.cause, "detail": item.detail[:500]}) if item.cause else ""
            trash = "" if item.trash is None else item.trash.model_dump_json()
            args += [move.index, item.state.value, move.size_bytes, move.key, move.move_id, outcome, item.cause, trash]
        return args

    def _settle_keys(self) -> list[str]:
        return [
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
            self._job.moves,
            self._fleet.frees_batches,
            self._fleet.trash_batches,
        ]

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

    def _batch_keys(self) -> list[str]:
        return [self._fleet.moved_batches, self._fleet.frees_batches]

    def _stale(self) -> StaleLease:
        return StaleLease(f"stretch {self._name} has a newer runner; this one stops")


def _common(item: Settlement) -> bool:
    """Whether a move ended as nearly all do: freed into the trash, with nothing to say of it."""
    trash = item.trash
    return (
        isinstance(trash, Freed)
        and item.state is MoveState.COMPLETED
        and not item.cause
        and trash.version.size_bytes == trash.size == item.move.size_bytes
    )


def _sorted_out(settlements: Sequence[Settlement]) -> tuple[Together | None, list[Settlement]]:
    """Return those that can be counted as one, if there are several, and the others."""
    common = sorted(filter(_common, settlements), key=_index)
    if len(common) < 2:  # noqa: PLR2004
        return None, list(settlements)
    together = Together(
        [item.move.index for item in common],
        sum([item.move.size_bytes for item in common]),
        pack_versions([item.trash.version for item in common if isinstance(item.trash, Freed)]),
        lambda: common,
    )
    return together, [item for item in settlements if not _common(item)]


def _index(item: Settlement) -> int:
    return item.move.index
