"""Freed sources that can still be brought back, and when each may be purged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from rebalance_tasks.store.records import TrashRecord
from rebalance_tasks.store.versions import NewerVersion

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Trash that a newer release has put on record stands aside for so long, so that it does not fill every batch.
NEWER_AGAIN_MS: Final = 15 * 60 * 1000


class TrashStore:
    """Trash of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def due(self, *, limit: int) -> list[tuple[str, TrashRecord]]:
        """Up to ``limit`` (move id, record) whose grace is over."""
        result: list[tuple[str, TrashRecord]] = []
        for move_id in self._redis.zrange_due(self._keys.trash_due, self._redis.now_ms(), limit):
            raw = self._redis.hget(self._keys.trash, move_id)
            if raw is None:
                self._redis.client.zrem(self._keys.trash_due, move_id)
                continue
            try:
                result.append((move_id, TrashRecord.model_validate_json(raw)))
            except NewerVersion:  # a newer release's cleanup purges it
                self.postpone(move_id, delay_ms=NEWER_AGAIN_MS)
        return result

    def add(self, move_id: str, record: TrashRecord, *, delay_ms: int) -> None:
        """Put a freed source on record, to be purged after ``delay_ms``."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.hset(self._keys.trash, move_id, record.model_dump_json())
        pipe.zadd(self._keys.trash_due, {move_id: self._redis.now_ms() + delay_ms})
        pipe.hincrby(self._keys.awaiting, record.node, record.size)
        pipe.execute()

    def known(self, move_id: str) -> bool:
        """Whether the trash of a move is on record."""
        return bool(self._redis.client.hexists(self._keys.trash, move_id))

    def known_ids(self) -> set[str]:
        """Move ids of all trash on record."""
        return {name.decode() for name in cast("list[bytes]", self._redis.client.hkeys(self._keys.trash))}

    def purged(self, move_id: str, record: TrashRecord) -> None:
        """Forget trash that is gone from its node."""
        keys = [self._keys.trash, self._keys.trash_due, self._keys.awaiting]
        self._redis.run("trash_purged", keys, [record.node, record.size, move_id])

    def postpone(self, move_id: str, *, delay_ms: int) -> None:
        """Look at it again later (its node is missing, or its content changed after it was freed)."""
        self._redis.client.zadd(self._keys.trash_due, {move_id: self._redis.now_ms() + delay_ms})
