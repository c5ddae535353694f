"""Where readers find an object: forwardings, placement overrides, the catalogue, pending frees."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys


class LocationStore:
    """Locations of a fleet's objects."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def lookup(self, key: str) -> tuple[str | None, str | None]:
        """Return (node of the forwarding, node of the override or catalogue) in one round trip."""
        pipe = self._redis.client.pipeline(transaction=False)
        pipe.hget(self._keys.forwarding, key)
        pipe.hget(self._keys.locations, key)
        pipe.time()
        forwarding, location, (seconds, micros) = pipe.execute()
        node: str | None = None
        if forwarding is not None:
            target, _, expires = forwarding.decode().rpartition("|")
            if int(expires) > seconds * 1000 + micros // 1000:
                node = target
        return node, None if location is None else location.decode()

    def last_moved(self) -> dict[str, int]:
        """Key -> when it was last moved, in ms; kept as long as the cooldown and the forwarding need it."""
        raw = cast("list[tuple[bytes, float]]", self._redis.client.zrange(self._keys.moved, 0, -1, withscores=True))
        return {key.decode(): int(at) for key, at in raw}

    def pending_frees(self) -> dict[tuple[str, str], str]:
        """(node, key) -> move id of sources that are flipped but not freed yet."""
        result: dict[tuple[str, str], str] = {}
        for field, move_id in self._redis.hgetall(self._keys.frees).items():
            node, _, key = field.partition("\0")
            result[node, key] = move_id.decode()
        return result

    def expire(self, *, keep_ms: int, limit: int) -> int:
        """Forget up to ``limit`` keys that were moved longer ago than ``keep_ms``, with their forwardings; return how many."""
        return int(self._redis.run("forwarding_expire", [self._keys.forwarding, self._keys.moved], [limit, keep_ms]))
