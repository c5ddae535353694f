"""What a runner leaves of its attempts when it stops for a reason that is no move's fault; fenced by the lease's epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rebalance_tasks.core.errors import StaleLease
from rebalance_tasks.store.batches import JOURNAL_FIELD, journal_of_batches
from rebalance_tasks.store.records import JournalEntry, UndoRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys
    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.records import MoveRecord


class AttemptStore:
    """Attempts at the moves of one stretch, written under its lease."""

    def __init__(self, connection: Connection, keys: FleetKeys, *, job_id: str, lease: Lease) -> None:
        """Bind to the lease that writes. Raises: ValueError when it was not granted."""
        if lease.group is None:
            msg = f"a lease with code {lease.code} has nothing to write"
            raise ValueError(msg)
        self._redis = connection
        self._fleet = keys
        self._job = keys.job(job_id)
        self._group = lease.group
        self._epoch = lease.epoch
        self._moves = lease.moves
        self._name = f"{job_id}/{lease.group.group_id}/{lease.stretch}"
        self._lease_key = self._job.lease(lease.group.group_id, lease.stretch)

    def close(self, deaths: Mapping[int, int]) -> int:
        """Say of attempts that are open that nobody died on them: the next runner goes on from what is journalled.

        Args:
            deaths: move index → deaths known of it, for the moves of this stretch that are not counted yet.

        Returns:
            How many were open.

        Raises:
            StaleLease: another runner has taken over.
        """
        indices = sorted(deaths)
        if not indices:
            return 0
        found = cast("list[bytes | None]", self._redis.client.hmget(self._job.journal, [str(i) for i in indices]))
        fields = self._redis.hgetall(self._lease_key)
        of_batches = journal_of_batches(
            self._moves, [raw for name, raw in fields.items() if name.startswith(JOURNAL_FIELD)]
        )
        args: list[Value] = [self._epoch, "", ""]
        for index, raw in zip(indices, found, strict=True):
            entry = of_batches.get(index) if raw is None else JournalEntry.model_validate_json(raw)
            if entry is not None and entry.open:
                closed = entry.model_copy(update={"open": False, "deaths": max(entry.deaths, deaths[index])})
                args += [index, closed.model_dump_json()]
        opened = len(args) // 2 - 1
        if opened and self._redis.run("journal_write", [self._lease_key, self._job.journal], args) == b"stale":
            raise self._stale()
        return opened

    def note_undo(self, move: MoveRecord, copied: Fingerprint) -> bool:
        """Leave it to the cleanup to take an unflipped copy off its target: a node cannot be reached now.

        Returns:
            False when the move is flipped: its copy is where readers are sent.

        Raises:
            StaleLease: another runner has taken over, and makes the move.
        """
        record = UndoRecord(
            source=self._group.source, target=self._group.target, key=move.key, fingerprint=copied.to_json()
        )
        keys = [self._lease_key, self._job.states, self._fleet.undos]
        args: list[Value] = [self._epoch, move.index, move.move_id, record.model_dump_json()]
        code = cast("bytes", self._redis.run("undo_note", keys, args))
        if code == b"stale":
            raise self._stale()
        return code == b"noted"

    def _stale(self) -> StaleLease:
        return StaleLease(f"stretch {self._name} has a newer runner; this one stops")
