"""The doctor's look at Redis: there, durable, not forgetting, and ours alone."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from rebalance_tasks.control.examining.findings import Finding
from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.settings.redis import is_redis_url
from rebalance_tasks.store.connection import connect
from rebalance_tasks.store.errors import StateForbidden

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.control.context import FleetContext

#: Enough of a crowded database to meet its neighbours.
KEYS_LOOKED_AT: Final = 5_000
#: What Celery keeps for any application that sends our tasks or asks our workers.
_CELERYS: Final = (
    "celery-task-meta-",
    "celery-taskset-meta-",
    "unacked",
    "celeryev.",
    "_kombu.binding.reply.",
    "_kombu.binding.celeryev",
)
_OURS: Final = (
    "rebalance.",
    "_kombu.binding.rebalance.",
    "_kombu.binding_permanent.rebalance.",
    "_kombu.binding.celery.pidbox",
)


def examine_redis(context: FleetContext) -> list[Finding]:
    """Reachable, durable, not evicting, and without neighbours."""
    shown = masked_url(context.settings.redis_url)
    client = context.connection.client
    try:
        info: dict[str, Any] = client.info()
    except StateForbidden:
        client.ping()
        return [Finding("redis", "ok", f"{shown} answers"), _unseen("durability"), _neighbours(context)]
    except RedisError as exc:
        # Our errors say what is wrong, what the server said in brackets, and the way out.
        told, bracket, step = str(exc).partition("); ")
        return [Finding("redis", "fail", f"{told})" if bracket else f"{shown} does not answer: {told}", step)]
    version = info.get("valkey_version", info.get("redis_version", "?"))
    return [
        Finding("redis", "ok", f"{shown} answers (version {version})"),
        judge_durability(info),
        judge_eviction(str(info.get("maxmemory_policy", "unknown"))),
        _neighbours(context),
    ]


def _unseen(name: str) -> Finding:
    return Finding(name, "warn", "our user may not ask (INFO)", "give it +info, or look by hand")


def judge_durability(info: dict[str, Any]) -> Finding:
    """Jobs and locations live in Redis: without the append-only file they die with it."""
    if not int(info.get("aof_enabled", 0)):
        detail = "the append-only file is off: a crash of Redis forgets jobs and locations"
        return Finding("durability", "warn", detail, "set `appendonly yes`")
    if str(info.get("aof_last_write_status", "ok")) != "ok":
        return Finding(
            "durability", "fail", "the last write of the append-only file failed", "see to Redis' disk and log"
        )
    return Finding("durability", "ok", "the append-only file is on")


def judge_eviction(policy: str) -> Finding:
    """Any policy but noeviction may throw away a running job."""
    if policy == "noeviction":
        return Finding("eviction", "ok", "noeviction")
    detail = f"maxmemory-policy is {policy}: Redis may throw away a running job"
    return Finding("eviction", "fail", detail, "set `maxmemory-policy noeviction`")


def _neighbours(context: FleetContext) -> Finding:
    """Workers of other applications on the broker's database, with other settings, make long tasks run twice."""
    settings = context.settings
    if settings.message_prefix:
        return Finding("neighbours", "ok", f"messages stand apart under {settings.message_prefix!r}")
    if not is_redis_url(settings.broker_url):
        return Finding("neighbours", "ok", "the broker is no Redis")
    try:
        with connect(settings.broker_url) as client:
            keys = (key.decode("utf-8", "replace") for key in client.scan_iter(count=1_000))
            strangers = sorted(set(_strangers(islice(keys, KEYS_LOOKED_AT), settings.key_prefix)))
    except StateForbidden:
        return _unseen("neighbours")
    if not strangers:
        return Finding("neighbours", "ok", "nobody else uses the broker's database")
    return Finding(
        "neighbours",
        "warn",
        f"others use the broker's database: {', '.join(strangers[:5])}{' …' if len(strangers) > 5 else ''}",  # noqa: PLR2004
        "give the fleet a database of its own, or set message_prefix; a neighbour's workers may run our tasks twice",
    )


def _strangers(keys: Iterator[str], prefix: str) -> Iterator[str]:
    """Shapes of keys that are neither ours nor Celery's of any application."""
    for key in keys:
        if key.startswith((f"{prefix}:", *_OURS, *_CELERYS)) or key.endswith(".reply.celery.pidbox"):
            continue
        yield f"{key.partition(':')[0][:40]}:…" if ":" in key else key[:40]
