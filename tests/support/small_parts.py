"""Our Celery app in whose workers large objects are small: a round of chaos dies and resumes between the parts of one, and of an upload at its key.

``celery -A tests.support.small_parts worker``
"""

from __future__ import annotations

from rebalance_tasks.celery import app
from rebalance_tasks.drivers.object_stores import files
from rebalance_tasks.migration import copying

__all__ = ["app"]

copying.PART_BYTES = files.AT_KEY_BYTES = 64 << 10  # type: ignore[misc]
