"""The worker's app of a host that hands in no hash of its keys, and keeps few candidates: ``celery -A tests.support.apart worker``."""

from __future__ import annotations

from rebalance_tasks.celery import app
from rebalance_tasks.control import survey
from rebalance_tasks.control.surveying import other_keys

__all__ = ["app"]

other_keys.FLEET_HASHES = 0  # type: ignore[misc]
survey.LEAST_ROWS = survey.FLEET_ROWS = 24  # type: ignore[misc]
