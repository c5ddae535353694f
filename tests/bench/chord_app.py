"""The rival in one worker with ours: a bare Celery chord of chain(noop, noop) under the same app settings."""

from __future__ import annotations

from typing import Any

import redis
from celery import chain, chord, group

from rebalance_tasks.celery import app

DONE = "bench:chord:done"


@app.task(name="bench.noop", ignore_result=True)
def noop() -> None:
    """Do nothing."""


@app.task(name="bench.done", ignore_result=True)
def done(token: str) -> None:
    """Tell the bench that the callback ran."""
    with redis.Redis.from_url(app.conf.broker_url) as client:
        client.rpush(DONE, token)


def send(headers: int, token: str) -> Any:
    """Publish a chord of ``headers`` chains of two tasks."""
    header = group(
        chain(noop.si().set(queue="rebalance.data"), noop.si().set(queue="rebalance.control")) for _ in range(headers)
    )
    return chord(header)(done.si(token).set(queue="rebalance.control"))
