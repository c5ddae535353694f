"""Where readers find an object: forwardings, placement overrides, the catalogue, pending frees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys
T = TypeVar("T")

#: Fields written per command when an index is rebuilt: long enough to be fast, short enough not to hold up the server.
BATCH: Final = 1_000


@dataclass(frozen=True, slots=True)
class MovedObject:
    """An object of which a manifest says when it came to its node."""

    key: str
    node: str
    at_ms: int


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

    # -- rebuilding -----------------------------------------------------------------------------------------------
    def place(self, places: Mapping[str, str]) -> int:
        """Write overrides, or the catalogue: key → node; return how many of them were not there or were others."""
        changed = 0
        for batch in _batches(places.items()):
            keys = [key for key, _ in batch]
            known = cast("list[bytes | None]", self._redis.client.hmget(self._keys.locations, keys))
            fresh = {key: node for (key, node), old in zip(batch, known, strict=True) if old != node.encode()}
            self._redis.hset(self._keys.locations, fresh)
            changed += len(fresh)
        return changed

    def unplace(self, keys: Iterable[str]) -> int:
        """Remove overrides; return how many there were."""
        return sum(self._redis.hdel(self._keys.locations, *batch) for batch in _batches(keys))

    def remember_moves(self, moved: Iterable[MovedObject], *, forwarding_ttl_ms: int, now_ms: int) -> int:
        """Note objects that were moved (for the cooldown) and forwardings that are not over; return how many are new.

        Args:
            moved: the newest move of each object.
            forwarding_ttl_ms: 0 writes no forwarding.
            now_ms: the time.
        """
        written = 0
        for batch in _batches(moved):
            live = [entry for entry in batch if entry.at_ms + forwarding_ttl_ms > now_ms] if forwarding_ttl_ms else []
            self._redis.client.zadd(self._keys.moved, {entry.key: entry.at_ms for entry in batch}, gt=True)
            if not live:
                continue
            known = cast(
                "list[bytes | None]", self._redis.client.hmget(self._keys.forwarding, [entry.key for entry in live])
            )
            fresh = {
                entry.key: f"{entry.node}|{entry.at_ms + forwarding_ttl_ms}"
                for entry, old in zip(live, known, strict=True)
                if old is None or old.rpartition(b"|")[0] != entry.node.encode()
            }
            self._redis.hset(self._keys.forwarding, fresh)
            written += len(fresh)
        return written

    def expect_free(self, node: str, key: str, move_id: str) -> bool:
        """Note a source that is still to be freed; False when it was noted before."""
        return bool(self._redis.client.hsetnx(self._keys.frees, f"{node}\0{key}", move_id))

    def freed(self, node: str, key: str) -> None:
        """Forget a pending free: it is done."""
        self._redis.hdel(self._keys.frees, f"{node}\0{key}")


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
