"""How often objects are read and written through the fleet file system: sampled where it happens, added up by day here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Yesterday's and today's are read, so a day's counts may go two days after it.
KEPT: Final = timedelta(days=3)
READ: Final = "r"
WRITE: Final = "w"
_SINCE: Final = "since"


class AccessStore:
    """Access counts of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis, self._keys = connection, keys

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts, by `READ` or `WRITE` and object key, to today's."""
        now_ms = self._redis.now_ms()
        day = self._keys.accesses(_day(now_ms))
        pipe = self._redis.client.pipeline(transaction=False)
        pipe.hsetnx(day, _SINCE, now_ms)
        for name, count in counts.items():
            pipe.hincrby(day, name, count)
        pipe.expire(day, KEPT)
        pipe.execute()

    def recent(self) -> tuple[dict[str, tuple[int, int]], float]:
        """Return key → (reads, writes) of yesterday and today, and the hours since the first of them (at least one)."""
        now_ms = self._redis.now_ms()
        yesterday = now_ms - int(timedelta(days=1).total_seconds() * 1000)
        counts: dict[str, tuple[int, int]] = {}
        since = now_ms
        for at_ms in (yesterday, now_ms):
            for name, raw in self._redis.hgetall(self._keys.accesses(_day(at_ms))).items():
                if name == _SINCE:
                    since = min(since, int(raw))
                    continue
                reads, writes = counts.get(name[1:], (0, 0))
                count = int(raw)
                counts[name[1:]] = (reads + count, writes) if name[0] == READ else (reads, writes + count)
        return counts, max(1.0, (now_ms - since) / 3_600_000)


def _day(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, tz=UTC).strftime("%Y-%m-%d")
