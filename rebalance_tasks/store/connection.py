"""One typed door to Redis: plain commands with concrete types, and the Lua scripts by name."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.settings.redis import check_files, read_address
from rebalance_tasks.store.errors import StateForbidden, translated
from rebalance_tasks.store.lane import LaneClosedError, ScriptLane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
Value: TypeAlias = str | bytes | int | float
#: A script with its keys and arguments.
Call: TypeAlias = "tuple[str, Sequence[str], Sequence[Value]]"
#: A script that is run along with others, and who is told its reply.
Asked: TypeAlias = "tuple[Call, Callable[[Any], object]]"

#: A hung server must surface as an error before a lease (10 s) runs out.
SOCKET_TIMEOUT_S: Final = 8.0
#: A server that restarts, or a Sentinel failover's last moments, is waited for that long, by attempts 0.05 s apart and more.
RETRY_S: Final = 4.0


#: A script names the helpers that it stands on; they are files below ``lua/with``.
_WITH: Final = re.compile(r"^-- WITH (\w+)$", re.MULTILINE)


@cache
def script_source(name: str) -> str:
    """Return the text of ``lua/<name>.lua``, after the helpers that it names."""
    folder = resources.files("rebalance_tasks.store").joinpath("lua")
    script = folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")
    helpers = [folder.joinpath("with", f"{part}.lua").read_text(encoding="utf-8") for part in _WITH.findall(script)]
    return "".join([*helpers, script])


@cache
def script_hash(name: str) -> str:
    """Return the hash under which the server knows a script."""
    return hashlib.sha1(script_source(name).encode(), usedforsecurity=False).hexdigest()


class BoundedRetry(Retry):
    """Waits for a server that restarts, but never longer than `RETRY_S` in all.

    redis-py nests its retries (a command's around those of its reconnection), and a hung server costs a whole socket
    timeout each: unbounded, one call could take a minute, six times as long as a lease.
    """

    _running = threading.local()

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002  redis-py's signature
    ) -> T:
        """Call, and call again until it succeeds or the time is up; raise the last error then."""
        outer: float | None = getattr(self._running, "until", None)
        until = self._running.until = time.monotonic() + RETRY_S if outer is None else outer
        failures = 0
        try:
            while True:
                try:
                    return do()
                except self._supported_errors as error:
                    if is_retryable is not None and not is_retryable(error):
                        raise
                    failures += 1
                    fail(*((error, failures) if with_failure_count else (error,)))
                    # A refused login will be refused again.
                    if time.monotonic() >= until or isinstance(error, AuthenticationError | AuthorizationError):
                        raise
                time.sleep(self._backoff.compute(failures))
        finally:
            self._running.until = outer


class StateClient(redis.Redis):
    """A client that says which server is meant, and what to do, when something is wrong with it."""

    #: the URL as it was given, secrets included
    url = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  redis-py's signature
        """Run a command. Raises: StateUnreachable, StateFull, StateForbidden, StateLoginRefused."""
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisError as exc:
            raise translated(exc, self.url) from exc

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002  as above
        """Return a pipeline whose errors are translated as well."""
        pipe = StatePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.url = self.url
        return pipe


class StatePipeline(Pipeline):
    """A pipeline of a `StateClient`."""

    url = ""

    def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002  redis-py's signature
        """Send what was queued. Raises: as `StateClient.execute_command`."""
        try:
            return super().execute(raise_on_error)
        except RedisError as exc:
            raise translated(exc, self.url) from exc


def connect(url: str) -> StateClient:
    """Return a client (a pool; safe across fork) for the state's Redis.

    Args:
        url: in any spelling of `rebalance_tasks.settings.redis`.

    Raises:
        ConfigurationError: the URL cannot be read, or names a certificate that is not there.
    """
    try:
        address = check_files(read_address(url))
    except ValueError as exc:
        msg = f"redis_url {masked_url(url)!r} {exc}"
        raise ConfigurationError(msg) from None
    options: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": SOCKET_TIMEOUT_S,
        "retry": BoundedRetry(ExponentialBackoff(cap=1.0, base=0.05), retries=-1),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
        "health_check_interval": 30,
        "client_name": "rebalance",
    }
    if address.sentinels:
        login = {"username": address.username, "password": address.password, "db": address.db}
        make: Any = Sentinel  # untyped
        sentinels = make(
            address.sentinels, sentinel_kwargs=address.sentinel_kwargs, **options, **login, **address.connection_kwargs
        )
        client = sentinels.master_for(address.master, redis_class=StateClient)
    else:
        client = StateClient.from_url(address.url, **options, **address.tls)
    made = cast("StateClient", client)
    made.url = url
    return made


class Connection:
    """Redis with concrete return types (bytes in, bytes out; text is encoded as UTF-8)."""

    def __init__(self, client: redis.Redis) -> None:
        """Wrap a client created with ``decode_responses=False``."""
        self.client = client
        self._url: str = getattr(client, "url", "")
        self._lane = ScriptLane(client)
        #: scripts that the server was given
        self._sent: set[str] = set()

    def run(self, name: str, keys: Sequence[str], args: Sequence[Value] = ()) -> Any:  # noqa: ANN401  each script has a reply of its own
        """Run ``lua/<name>.lua`` (by hash; the server learns it on first use)."""
        return self.run_all([(name, keys, args)])[0]

    def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """Run several scripts in order, in one round trip; returns their replies.

        A script that the server does not know is sent along before it is called: were it sent after, the scripts that
        follow it would have run before it. (A server that forgets its scripts later on runs them once out of order.)
        When the answers are lost the scripts are sent again: each one must bear being repeated.
        """
        new = [name for name, _, _ in calls if name not in self._sent]
        commands: list[Sequence[Value]] = [("SCRIPT LOAD", script_source(name)) for name in new]
        commands += [("EVALSHA", script_hash(name), len(keys), *keys, *args) for name, keys, args in calls]
        begun = time.monotonic()
        try:
            replies = self._lane.call(commands)[len(new) :]
        except LaneClosedError as exc:
            self._sent.clear()
            if isinstance(exc.__cause__, RedisError) and time.monotonic() - begun >= RETRY_S:
                # Waited for long enough: what a lease allows is nearly used up.
                raise translated(exc.__cause__, self._url) from exc
            return [self._retried(*call) for call in calls]
        self._sent.update(new)
        for place, (reply, call) in enumerate(zip(replies, calls, strict=True)):
            if isinstance(reply, NoScriptError):
                self._sent.discard(call[0])
                replies[place] = self._retried(*call)
            elif isinstance(reply, ReadOnlyError):
                # Its name may belong to another server by now: ask again where it is.
                self._lane.close()
                self.client.connection_pool.disconnect(inuse_connections=False)
                raise translated(reply, self._url) from reply
            elif isinstance(reply, RedisError):
                raise translated(reply, self._url) from reply
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
        mark, reply = pipe.execute(raise_on_error=False)
        if isinstance(mark, RedisError):
            # Nothing was written, so a WAITAOF that came along says nothing.
            raise translated(mark, self._url) from mark
        if isinstance(reply, ResponseError):
            return None
        if isinstance(reply, Exception):
            raise reply
        return int(reply[0]) >= 1

    def warnings(self) -> list[str]:
        """What is wrong with the server's own settings, each with the way out; empty when all is well or it will not say."""
        try:
            info = self.client.info()
        except StateForbidden:
            return []
        found: list[str] = []
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction":
            found.append(
                f"maxmemory-policy is {policy}: under memory pressure Redis may throw away jobs and locations; set it to noeviction"
            )
        if not int(info.get("aof_enabled", 1)):
            found.append(
                "the append-only file is off: a crash of Redis forgets jobs and locations; set appendonly to yes"
            )
        return found

    def run_id(self) -> str:
        """Names this life of the server: another one after a restart or a failover; '' when it will not say."""
        try:
            return str(self.client.info("server").get("run_id", ""))
        except StateForbidden:
            return ""

    def now_ms(self) -> int:
        """Redis' clock: the one clock that leases go by."""
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000
