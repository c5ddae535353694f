"""What can go wrong with Redis, said so that an operator knows which server is meant and what to do.

redis-py's errors are translated where they are met (`rebalance_tasks.store.connection`). Each error is also the redis-py error it
stands for, so that whoever handles ``RedisError`` need not know it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from rebalance_tasks.core.errors import PermanentError, RebalanceError, RetryableError
from rebalance_tasks.core.masking import masked_text, masked_url

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a server says, before and since Redis 7 and inside a script: "… to run the 'hset' command", "… run the 'acl|list' command".
_COMMAND: Final = re.compile(r"run the '([^']+)' command")
#: redis-py hides a refused login that it met while it connected behind these words of the server.
_LOGIN: Final = ("WRONGPASS", "NOAUTH", "invalid username-password", "Authentication required", "invalid password")
_NO_PERMISSION: Final = ("NOPERM", "ACL failure", "o permissions to access", "no permissions to")


class StateUnreachable(RetryableError, RedisConnectionError):
    """Redis does not answer, or answers that it cannot serve now (loading its file, being a replica)."""

    cause = "redis_unreachable"


class StateFull(RetryableError, OutOfMemoryError):
    """Redis has reached its ``maxmemory`` and refuses to write; what was refused was not done by half."""

    cause = "redis_full"


class StateForbidden(PermanentError, NoPermissionError):
    """The user we log in as lacks a right."""

    cause = "redis_forbidden"


class StateLoginRefused(PermanentError, AuthenticationError):
    """Redis refuses user name or password."""

    cause = "redis_login"


def _forbidden(error: RedisError, told: str) -> bool:
    said = isinstance(error, ResponseError) and any(word in told for word in _NO_PERMISSION)
    return said or isinstance(error, NoPermissionError)


def _login(error: RedisError, told: str) -> bool:
    return isinstance(error, AuthenticationError | AuthorizationError) or any(word in told for word in _LOGIN)


def _full(error: RedisError, told: str) -> bool:
    return isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and told.startswith("OOM"))


def _replica(error: RedisError, _: str) -> bool:
    return isinstance(error, ReadOnlyError)


def _unreachable(error: RedisError, _: str) -> bool:
    return isinstance(error, RedisConnectionError | RedisTimeoutError)


#: How each kind is recognised, and what is said of it after "Redis at …"; the first that fits is it.
_KINDS: Final[tuple[tuple[Callable[[RedisError, str], bool], type[RebalanceError], str], ...]] = (
    (_forbidden, StateForbidden, "forbids it ({told}): {right}; see docs/operations.md, Least privilege"),
    (
        _login,
        StateLoginRefused,
        "refuses the login ({told}); set user and password in the URL (redis://user:password@host), or look at ACL LIST there",
    ),
    (
        _full,
        StateFull,
        "is full ({told}): nothing of this was written; raise maxmemory or make room there, and try again (running jobs go on by themselves)",
    ),
    (
        _replica,
        StateUnreachable,
        "is a replica and takes no writes ({told}); point redis_url at the master, or write sentinel://h1,h2/master/0",
    ),
    (
        _unreachable,
        StateUnreachable,
        "does not answer ({told}); is it running, and is redis_url in [fleet] of rebalance.toml right? Jobs lose nothing meanwhile",
    ),
)


def translated(error: RedisError, url: str) -> RedisError:
    """Return our error for one of redis-py's; one that says nothing about the server (a wrong type …) comes back as it is.

    Args:
        error: what was met.
        url: of the server, with its secrets; they are masked here.
    """
    if isinstance(error, RebalanceError):
        return error
    told = masked_text(str(error)).rstrip(". ") or type(error).__name__
    for matches, kind, story in _KINDS:
        if matches(error, told):
            said = story.format(told=told, right=_right(told))
            return cast("RedisError", kind(f"Redis at {masked_url(url)} {said}"))
    return error


def _right(told: str) -> str:
    """The right that is missing, as ``ACL SETUSER`` takes it."""
    found = _COMMAND.search(told)
    if found is not None:
        return f"give the user +{found[1].lower()}"
    if "channel" in told:
        return "give the user the channels it needs (&*)"
    return "give the user the keys it needs (~‹key_prefix›:*, by default ~rebalance:*)"
