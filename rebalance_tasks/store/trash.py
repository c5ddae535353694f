"""Freed sources that can still be brought back, and when each may be purged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.store.batches import MARK, BatchRecord, Due
from rebalance_tasks.store.records import TrashRecord
from rebalance_tasks.store.versions import NewerVersion

if TYPE_CHECKING:
    from collections.abc import Collection

    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys

#: Trash that a newer release has put on record stands aside for so long, so that it does not fill every batch.
NEWER_AGAIN_MS: Final = 15 * 60 * 1000
#: Of so many entries for each that is wanted the due ones of some nodes are picked.
LOOKED_AT: Final = 4


class TrashStore:
    """Trash of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def due(self, *, limit: int, nodes: Collection[str] | None = None) -> list[Due]:
        """Trash whose grace is over: up to ``limit`` moves, but for the last batch, which comes as a whole.

        Args:
            limit: of moves.
            nodes: only trash of these nodes; what others have due must not stand in its way for ever.
        """
        result: list[Due] = []
        found = 0
        for member in self._redis.zrange_due(self._keys.trash_due, self._redis.now_ms(), limit * LOOKED_AT):
            if found >= limit:
                break
            due = self._due(member)
            if due is not None and (nodes is None or all(record.node in nodes for record in due.records.values())):
                result.append(due)
                found += len(due.records)
        return result

    def _due(self, member: str) -> Due | None:
        batch, name = member.startswith(MARK), member.removeprefix(MARK)
        raw = self._redis.hget(self._keys.trash_batches if batch else self._keys.trash, name)
        if raw is None:
            self._redis.client.zrem(self._keys.trash_due, member)
            return None
        try:
            records = _of_batch(name, raw) if batch else {MoveId(name): TrashRecord.model_validate_json(raw)}
        except NewerVersion:  # a newer release's cleanup purges it
            self._redis.client.zadd(self._keys.trash_due, {member: self._redis.now_ms() + NEWER_AGAIN_MS})
            return None
        return Due(name, batch, records)

    def add(self, move_id: str, record: TrashRecord, *, delay_ms: int) -> None:
        """Put a freed source on record, to be purged after ``delay_ms``."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.hset(self._keys.trash, move_id, record.model_dump_json())
        pipe.zadd(self._keys.trash_due, {move_id: self._redis.now_ms() + delay_ms})
        pipe.hincrby(self._keys.awaiting, record.node, record.size)
        pipe.execute()

    def known_ids(self) -> set[str]:
        """Move ids of all trash on record. Raises: NewerVersion."""
        ids = {name.decode() for name in cast("list[bytes]", self._redis.client.hkeys(self._keys.trash))}
        for name, raw in self._redis.hgetall(self._keys.trash_batches).items():
            ids.update(move.move_id for move in BatchRecord.read(name, raw).moves)
        return ids

    def purged(self, due: Due, *, left: Collection[MoveId], delay_ms: int) -> None:
        """Forget trash that is gone from its node.

        Args:
            due: what was to be purged.
            left: those of it that are not gone (their node is missing, or their content changed after they were freed).
            delay_ms: when to look at these again, each by itself from here on.
        """
        nodes = {record.node for record in due.records.values()}
        gone = sum(record.size for move_id, record in due.records.items() if move_id not in left)
        args: list[Value] = [int(due.batch), due.name, nodes.pop() if nodes else "", gone, delay_ms]
        for move_id in left:
            args += [move_id, due.records[move_id].model_dump_json()]
        keys = [self._keys.trash, self._keys.trash_batches, self._keys.trash_due, self._keys.awaiting]
        self._redis.run("trash_purged", keys, args)


def _of_batch(name: str, raw: bytes) -> dict[MoveId, TrashRecord]:
    record = BatchRecord.read(name, raw)
    return {
        move.move_id: TrashRecord(
            node=record.node, key=move.key, size=version.size_bytes, fingerprint=version.to_json()
        )
        for move, version in zip(record.moves, record.versions, strict=True)
    }
