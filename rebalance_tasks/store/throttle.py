"""The byte bucket: how fast a group may write, shared by whoever works on the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection


class ByteBucket:
    """A token bucket in Redis; holders lease at most a tenth of a second's rate at a time."""

    def __init__(self, connection: Connection, key: str, *, rate_bytes_per_s: int) -> None:
        """Bind to a bucket."""
        self._redis = connection
        self._key = key
        self._rate = rate_bytes_per_s
        self.lease_bytes = max(1, rate_bytes_per_s // 10)

    def take(self) -> tuple[int, int]:
        """Lease bytes; return (granted, ms until the rest of a lease is there)."""
        granted, wait_ms = self._redis.run(
            "throttle_take", [self._key], [self._rate, self.lease_bytes, self.lease_bytes]
        )
        return int(granted), int(wait_ms)
