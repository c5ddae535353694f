"""How far each receiver of notices has been told: a cursor into the history, and the attempts of the one that waits."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.store.events import BEGINNING

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: A receiver that is new is told what happened in the last minute, not the whole history.
LOOK_BACK_MS: Final = 60_000
#: Longer than one run of the task that delivers; two would tell things twice and out of order.
LOCK_MS: Final = 150_000


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one receiver was told.

    Attributes:
        cursor: the last event it was told, or does not want.
        attempts: failed deliveries of the next one.
        due_ms: not before then.
    """

    cursor: str
    attempts: int = 0
    due_ms: int = 0


class NoticeStore:
    """Marks of a fleet's receivers."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def mark(self, receiver: str) -> Mark:
        """How far a receiver was told."""
        raw = self._redis.hget(self._keys.notices, receiver)
        if raw is None:
            begin_ms = max(0, self._redis.now_ms() - LOOK_BACK_MS)
            return Mark(f"{begin_ms}-0" if begin_ms else BEGINNING)
        cursor, attempts, due_ms = raw.decode().split()
        return Mark(cursor, int(attempts), int(due_ms))

    def set_mark(self, receiver: str, mark: Mark) -> None:
        """Note how far a receiver was told."""
        self._redis.hset(self._keys.notices, {receiver: f"{mark.cursor} {mark.attempts} {mark.due_ms}"})

    def acquire(self) -> int | None:
        """Become the one who delivers; ``None`` when another one does."""
        keys = [self._keys.notices_lock, self._keys.notices_fence]
        return int(self._redis.run("check_acquire", keys, [LOCK_MS, uuid.uuid4().hex])) or None

    def release(self, token: int) -> None:
        """Let others deliver."""
        self._redis.run("check_release", [self._keys.notices_lock], [token])
