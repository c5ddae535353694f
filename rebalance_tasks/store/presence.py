"""Who is there: what each worker says of itself while it lives, and since when a queue has had nobody.

A worker that dies says nothing any more; one that ends takes its entry along. Entries of older releases name no queues:
such a worker may serve any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: A configuration's digest counts for so long after its worker last said it.
DIGEST_TTL_MS: Final = 30_000
#: A worker serves its queues for so long after it last said so: three of its turns.
SERVES_MS: Final = 15_000
#: A queue of which nobody has said for so long that they serve it is asked about: long enough for a worker that restarts.
DESERTED_MS: Final = 10_000
#: Workers that say nothing (an older release in an app of its own) are asked again this often.
ASK_EVERY_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Presence:
    """What one worker said of itself.

    Attributes:
        at_ms: when, by Redis' clock.
        skew_ms: by how much its clock is ahead of Redis'.
        queues: what it takes messages from; ``None`` when its release does not say.
    """

    worker: str
    digest: str
    at_ms: int
    skew_ms: int = 0
    queues: tuple[str, ...] | None = None


class PresenceStore:
    """The workers of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def publish(self, presence: Presence) -> None:
        """Say that a worker is there."""
        entry = {"digest": presence.digest, "at": presence.at_ms, "skew_ms": presence.skew_ms}
        queues = {} if presence.queues is None else {"queues": list(presence.queues)}
        self._redis.hset(self._keys.digests, {presence.worker: json.dumps({**entry, **queues})})

    def forget(self, worker: str) -> None:
        """Take out a worker that ends."""
        self._redis.hdel(self._keys.digests, worker)

    def living(self, *, now_ms: int) -> list[Presence]:
        """Workers that said something within `DIGEST_TTL_MS`, by name; the others are forgotten."""
        found: list[Presence] = []
        gone: list[str] = []
        for worker, value in sorted(self._redis.hgetall(self._keys.digests).items()):
            entry = json.loads(value)
            at_ms = int(entry["at"])
            if now_ms - at_ms > DIGEST_TTL_MS:
                gone.append(worker)
                continue
            queues = entry.get("queues")
            found.append(
                Presence(
                    worker=worker,
                    digest=str(entry["digest"]),
                    at_ms=at_ms,
                    skew_ms=int(entry.get("skew_ms", 0)),
                    queues=None if queues is None else tuple(map(str, queues)),
                )
            )
        self._redis.hdel(self._keys.digests, *gone)
        return found

    def served(self, *, now_ms: int) -> frozenset[str] | None:
        """Queues that somebody serves; ``None`` when nobody knows: no worker says so, or one of an older release lives."""
        here = [worker for worker in self.living(now_ms=now_ms) if now_ms - worker.at_ms <= SERVES_MS]
        if not here or any(worker.queues is None for worker in here):
            return None
        return frozenset(queue for worker in here for queue in worker.queues or ())

    def doubt(self, unserved: Collection[str], *, now_ms: int) -> tuple[set[str], set[str]]:
        """Note since when queues have been unserved; return those that are deserted, and those to ask the workers about.

        Args:
            unserved: every queue that nobody says to serve; marks of others are taken back.
            now_ms: Redis' clock.
        """
        marks = {
            queue: tuple(map(int, mark.split())) for queue, mark in self._redis.hgetall(self._keys.deserted).items()
        }
        self._redis.hdel(self._keys.deserted, *(queue for queue in marks if queue not in unserved))
        # What lies ahead is left from before the server's clock was set back.
        known = {queue: mark for queue, mark in marks.items() if queue in unserved and mark[0] <= now_ms}
        self._redis.hset(self._keys.deserted, {queue: f"{now_ms} 0" for queue in unserved if queue not in known})
        late = {queue: asked for queue, (since, asked) in known.items() if now_ms - since >= DESERTED_MS}
        ask = {queue for queue, asked in late.items() if now_ms - asked >= ASK_EVERY_MS}
        return late.keys() - ask, ask

    def answered(self, served: Collection[str], deserted: Collection[str], *, now_ms: int) -> None:
        """Note what workers answered: queues that somebody serves after all, and those that nobody does."""
        self._redis.hdel(self._keys.deserted, *served)
        self._redis.hset(self._keys.deserted, dict.fromkeys(deserted, f"{now_ms - DESERTED_MS} {now_ms}"))

    def queues_of(self, *, now_ms: int) -> dict[str, Sequence[str]]:
        """Worker → its queues; none where its release does not say."""
        return {worker.worker: worker.queues or () for worker in self.living(now_ms=now_ms)}
