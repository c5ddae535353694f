"""One typed door to Redis: plain commands with concrete types, and the Lua scripts by name."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from rebalance_tasks.store.lane import LaneClosedError, ScriptLane

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Value: TypeAlias = str | bytes | int | float

#: A hung server must surface as an error before a lease (10 s) runs out.
SOCKET_TIMEOUT_S: Final = 8.0
#: Survive a server that restarts: 0.05 s doubling to 1 s, six times.
_RETRY: Final = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=6)


@cache
def script_source(name: str) -> str:
    """Return the text of ``lua/<name>.lua``."""
    return resources.files("rebalance_tasks.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


@cache
def script_hash(name: str) -> str:
    """Return the hash under which the server knows a script."""
    return hashlib.sha1(script_source(name).encode(), usedforsecurity=False).hexdigest()


def connect(url: str) -> redis.Redis:
    """Return a client (a pool; safe across fork) for the state's Redis."""
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=_RETRY,
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        health_check_interval=30,
        client_name="rebalance",
    )


class Connection:
    """Redis with concrete return types (bytes in, bytes out; text is encoded as UTF-8)."""

    def __init__(self, client: redis.Redis) -> None:
        """Wrap a client created with ``decode_responses=False``."""
        self.client = client
        self._lane = ScriptLane(client)
        #: scripts that the server was given
        self._sent: set[str] = set()

    def run(self, name: str, keys: Sequence[str], args: Sequence[Value] = ()) -> Any:  # noqa: ANN401  each script has a reply of its own
        """Run ``lua/<name>.lua`` (by hash; the server learns it on first use)."""
        return self.run_all([(name, keys, args)])[0]

    def run_all(self, calls: Sequence[tuple[str, Sequence[str], Sequence[Value]]]) -> list[Any]:
        """Run several scripts in order, in one round trip; returns their replies.

        A script that the server does not know is sent along before it is called: were it sent after, the scripts that
        follow it would have run before it. (A server that forgets its scripts later on runs them once out of order.)
        """
        new = [name for name, _, _ in calls if name not in self._sent]
        commands: list[Sequence[Value]] = [("SCRIPT LOAD", script_source(name)) for name in new]
        commands += [("EVALSHA", script_hash(name), len(keys), *keys, *args) for name, keys, args in calls]
        try:
            replies = self._lane.call(commands)[len(new) :]
        except LaneClosedError:
            self._sent.clear()
            return [self._retried(*call) for call in calls]
        self._sent.update(new)
        for place, (reply, call) in enumerate(zip(replies, calls, strict=True)):
            if isinstance(reply, NoScriptError):
                self._sent.discard(call[0])
                replies[place] = self._retried(*call)
            elif isinstance(reply, Exception):
                raise reply
        return replies

    def _retried(self, name: str, keys: Sequence[str], args: Sequence[Value]) -> Any:  # noqa: ANN401
        """Run a script through the client, which waits for a server that restarts."""
        return self.client.eval(script_source(name), len(keys), *keys, *args)

    def get(self, key: str) -> bytes | None:
        """GET."""
        return cast("bytes | None", self.client.get(key))

    def hget(self, key: str, name: str) -> bytes | None:
        """HGET."""
        return cast("bytes | None", self.client.hget(key, name))

    def hgetall(self, key: str) -> dict[str, bytes]:
        """HGETALL with text field names."""
        raw = cast("dict[bytes, bytes]", self.client.hgetall(key))
        return {name.decode(): value for name, value in raw.items()}

    def hset(self, key: str, mapping: Mapping[str, Value]) -> None:
        """HSET of several fields."""
        if mapping:
            self.client.hset(key, mapping=cast("Any", mapping))

    def hdel(self, key: str, *names: str) -> int:
        """HDEL."""
        return self.client.hdel(key, *names) if names else 0

    def smembers(self, key: str) -> set[str]:
        """SMEMBERS as text."""
        return {member.decode() for member in cast("set[bytes]", self.client.smembers(key))}

    def zrange_due(self, key: str, until_ms: int, limit: int) -> list[str]:
        """Members with a score up to ``until_ms``, oldest first."""
        raw = cast("list[bytes]", self.client.zrangebyscore(key, "-inf", until_ms, start=0, num=limit))
        return [member.decode() for member in raw]

    def write_durably(self, key: str, mapping: Mapping[str, Value], *, timeout_ms: int) -> bool | None:
        """Write a mark and wait until it, and so all that came before it, is in the append-only file on disk.

        The mark and WAITAOF travel together: Valkey 9.1 answers a WAITAOF that comes alone before the fsync is done.

        Returns:
            Whether it is there; ``None`` where the server cannot tell (before 7.2, or without an append-only file).
        """
        pipe = self.client.pipeline(transaction=False)
        pipe.hset(key, mapping=cast("Any", mapping))
        pipe.waitaof(1, 0, timeout_ms)
        _, reply = pipe.execute(raise_on_error=False)
        if isinstance(reply, ResponseError):
            return None
        if isinstance(reply, Exception):
            raise reply
        return int(reply[0]) >= 1

    def now_ms(self) -> int:
        """Redis' clock: the one clock that leases go by."""
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000
