"""A service's own Celery app that also carries the rebalancer's tasks, on the workers the team already runs.

    celery -A stock_app worker -Q celery,rebalance.control,rebalance.data

Broker and result backend are the app's own; where the rebalancer keeps its state is ``redis_url`` in ``rebalance.toml``
(``REBALANCE_CONFIG``). Commands and other clients of the fleet send to the app's broker: tell them its URL as
``broker_url`` there.
"""

from __future__ import annotations

import os
from datetime import timedelta

from celery import Celery

app = Celery("stock", include=["rebalance_tasks.tasks"])
app.conf.update(
    broker_url=os.environ.get("STOCK_BROKER_URL", "redis://127.0.0.1:6379/1"),
    result_backend=os.environ.get("STOCK_RESULT_BACKEND", "redis://127.0.0.1:6379/2"),
    # Must exceed every task's time limit, or Redis hands a running task to a second worker (check: 580 s).
    broker_transport_options={"visibility_timeout": 3600},
    # A full Redis is to be waited for, not died of.
    broker_channel_error_retry=True,
    # Celery's own consumer ends its worker when a connection is lost at an unlucky moment, at a failover of Redis for example.
    worker_consumer="rebalance_tasks.worker:SteadyConsumer",
    # What `celery -A beat_schedule beat` would do, from this app's own beat.
    beat_schedule={
        f"rebalance-{task}": {
            "task": f"rebalance.{task}",
            "schedule": every,
            "options": {"queue": "rebalance.control", "expires": every.total_seconds()},
        }
        for task, every in {
            "check": timedelta(minutes=5),
            "sweep": timedelta(seconds=5),
            "cleanup": timedelta(minutes=1),
        }.items()
    },
)


@app.task  # type: ignore[untyped-decorator]
def add(x: int, y: int) -> int:
    """One of the service's own tasks, in the app's default queue."""
    return x + y
