"""A server that crashes: killed, its append-only file cut by its last seconds, its clock moved, its queues tampered with.

A ``kill -9`` alone loses nothing that was acknowledged, since the page cache survives it. What a power cut or a failover
loses is simulated by cutting the file back to what it was some time before the kill, at a write or in the middle of one
(``aof-load-truncated yes``). The clock of the server cannot be set; a jump is simulated by moving every time that the state
holds the other way: leases, waiting times, due times and expiries.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

import redis

from rebalance_tasks.embedded import EmbeddedServer, start_server

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

#: How often the length of the append-only file is noted.
SAMPLE_S: Final = 0.02
#: A number within so many days of now is a time.
NEAR_MS: Final = 3 * 86_400_000
QUEUES: Final = ("rebalance.control", "rebalance.data")


class FragileServer:
    """One server on one port over several lives."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._server: EmbeddedServer = start_server(data_dir)
        self.port = self._server.port
        self.client: redis.Redis = redis.Redis.from_url(
            self._server.url, decode_responses=True, encoding_errors="surrogateescape", socket_timeout=10
        )
        self._lengths: deque[tuple[float, int]] = deque(maxlen=400)
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="aof-sampler", daemon=True)
        self._sampler.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def crash(self, *, lose_s: float = 0.0, tear: int = 0) -> int:
        """``kill -9``; optionally lose the last seconds, and some bytes more so that a command is torn. Returns bytes lost."""
        self._server.kill()
        aof = self._aof()
        if lose_s <= 0 or aof is None:
            return 0
        since = time.monotonic() - lose_s
        length = next((size for at, size in reversed(self._lengths) if at <= since), None)
        now = aof.stat().st_size
        if length is None:
            return 0  # the server has not lived so long
        length = max(0, min(length, now) - tear)
        with aof.open("r+b") as file:
            file.truncate(length)
        return now - length

    def start(self) -> None:
        """Start it again on the same port and what is left of its data."""
        self._lengths.clear()
        self._server = start_server(self.data_dir, port=self.port)

    def close(self) -> None:
        self._over.set()
        self._sampler.join(5)
        self.client.close()
        self._server.kill()

    def _aof(self) -> Path | None:
        files = sorted(self.data_dir.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime_ns)
        return files[-1] if files else None

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            with contextlib.suppress(OSError):
                aof = self._aof()
                if aof is not None:
                    self._lengths.append((time.monotonic(), aof.stat().st_size))


# -- the clock ----------------------------------------------------------------------------------------------------------
def jump(client: redis.Redis, prefix: str, by_ms: int) -> int:
    """Let the server's clock jump by ``by_ms`` as the fleet sees it; returns how many times were moved."""
    seconds, micros = client.time()
    now = seconds * 1000 + micros // 1000
    moved = 0
    for key in list(client.scan_iter(f"{prefix}*", count=1000)):
        kind = client.type(key)
        if kind == "hash":
            moved += _move_fields(client, key, now, by_ms)
        elif kind == "zset":
            for member, score in cast("list[tuple[str, float]]", client.zrange(key, 0, -1, withscores=True)):
                if abs(score - now) < NEAR_MS:
                    # Only what is there still: it may be taken out at this moment.
                    client.zadd(key, {member: score - by_ms}, xx=True)
                    moved += 1
        left = client.pttl(key)
        if left > 0:
            client.pexpire(key, max(1, left - by_ms))
    return moved


#: The same comparison and write as one step, so that no newer value is put back.
_MOVE: Final = (
    "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end"
)


def _move_fields(client: redis.Redis, key: str, now: int, by_ms: int) -> int:
    moved = 0
    for name, value in cast("dict[str, str]", client.hgetall(key)).items():
        if not value.isdigit():
            continue
        number = int(value)
        for unit in (1, 1000):  # ms, and µs as the throttle keeps them
            if abs(number // unit - now) < NEAR_MS:
                client.eval(_MOVE, 1, key, name, value, str(number - by_ms * unit))
                moved += 1
    return moved


# -- the queues -----------------------------------------------------------------------------------------------------------
def double(client: redis.Redis, dice: random.Random, queues: Sequence[str] = QUEUES) -> bool:
    """Put a waiting message in twice: as the very same delivery, or as one of its own."""
    queue = dice.choice(queues)
    waiting = cast("list[str]", client.lrange(queue, 0, -1))
    if not waiting:
        return False
    message: dict[str, Any] = json.loads(dice.choice(waiting))
    if dice.random() < 0.5:
        message["properties"]["delivery_tag"] = str(uuid.UUID(int=dice.getrandbits(128)))
    client.lpush(queue, json.dumps(message))
    return True


def reorder(client: redis.Redis, dice: random.Random, queues: Sequence[str] = QUEUES) -> bool:
    """Send the message that is next to the end of its queue."""
    queue = dice.choice(queues)
    moved = False
    for _ in range(dice.randint(1, 4)):
        moved = client.rpoplpush(queue, queue) is not None or moved
    return moved


def lose(client: redis.Redis, dice: random.Random, queues: Sequence[str] = QUEUES) -> bool:
    """Lose a waiting message."""
    return client.rpop(dice.choice(queues)) is not None
