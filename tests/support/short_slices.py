"""Our Celery app with slices that are over, and handed back, after half a second: many turns in little time.

``celery -A tests.support.short_slices worker``
"""

from __future__ import annotations

from typing import Final

from rebalance_tasks.celery import app
from rebalance_tasks.control import relay
from rebalance_tasks.migration import control
from rebalance_tasks.migration import slice as slices

__all__ = ["app"]

SLICE_S: Final = 0.5

slices.SLICE_S = SLICE_S  # type: ignore[attr-defined]
control.SLICE_S = SLICE_S  # type: ignore[misc]
relay.RELAY_S = SLICE_S  # type: ignore[misc]
