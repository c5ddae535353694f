"""Our Celery app with a task that hears of no shutdown, and a second's patience with it.

``celery -A tests.support.stubborn worker``
"""

from __future__ import annotations

import time
from pathlib import Path

from rebalance_tasks.celery import make_app
from rebalance_tasks.settings import load_settings

app = make_app(load_settings())
app.conf.worker_soft_shutdown_timeout = 1


@app.task(name="tests.stubborn", acks_late=True, queue="rebalance.control")
def stubborn(path: str) -> None:
    """Touch a file and sleep for a minute."""
    Path(path).touch()
    time.sleep(60)
