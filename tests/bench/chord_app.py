"""The rival in one worker with ours: a bare Celery chord of chain(noop, noop) under the same app settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
from celery import chain, chord, group

from rebalance_tasks.celery import app

if TYPE_CHECKING:
    from celery import Celery, Signature

DONE = "bench:chord:done"


@app.task(name="bench.noop", ignore_result=True)
def noop() -> None:
    """Do nothing."""


@app.task(name="bench.done", ignore_result=True)
def done(token: str) -> None:
    """Tell the bench that the callback ran."""
    with redis.Redis.from_url(app.conf.broker_url) as client:
        client.rpush(DONE, token)


def send(sender: Celery, headers: int, token: str) -> Any:
    """Publish a chord of ``headers`` chains of two tasks through an app of the sender's own."""
    header = group(
        chain(*(_signature(sender, "noop", queue=queue) for queue in ("rebalance.data", "rebalance.control")))
        for _ in range(headers)
    )
    return chord(header, app=sender)(_signature(sender, "done", token, queue="rebalance.control"))


def _signature(sender: Celery, name: str, *args: str, queue: str) -> Signature[Any]:
    return sender.signature(f"bench.{name}", args=args, immutable=True, options={"queue": queue})
