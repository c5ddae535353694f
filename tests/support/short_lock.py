"""Our Celery app with a redbeat lock that is over three seconds after its holder died.

``celery -A tests.support.short_lock beat -S redbeat.RedBeatScheduler``
"""

from __future__ import annotations

from typing import Final

from rebalance_tasks.celery import make_app
from rebalance_tasks.settings import load_settings

LOCK_S: Final = 3
LOOP_S: Final = 1

app = make_app(load_settings())
app.conf.redbeat_lock_timeout = LOCK_S
app.conf.beat_max_loop_interval = LOOP_S
