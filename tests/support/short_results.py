"""Our Celery app, except that results (and what a chord has counted so far) are forgotten after a second.

``celery -A tests.support.short_results worker``
"""

from __future__ import annotations

from rebalance_tasks.celery import make_app
from rebalance_tasks.settings import load_settings

app = make_app(load_settings())
app.conf.result_expires = 1
