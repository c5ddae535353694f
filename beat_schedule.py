"""The beat entry point: `celery -A beat_schedule beat`; intervals come from the fleet's settings.

A host application that runs its own beat can take the entries instead:
``app.conf.beat_schedule |= beat_schedule(load_settings().options)``.
"""

from __future__ import annotations

from rebalance_tasks.celery import app, beat_schedule

__all__ = ["app", "beat_schedule"]
