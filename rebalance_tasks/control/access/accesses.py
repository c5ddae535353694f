"""Count accesses cheaply: one in so many, weighed by that, and sent together now and then."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import RebalanceError

if TYPE_CHECKING:
    from rebalance_tasks.store.accesses import AccessStore

#: One access in so many is counted, by default.
SAMPLE: Final = 16
#: Counts are sent when there are so many …
MOST_COUNTS: Final = 256
#: … or after so long.
SEND_EVERY_S: Final = 10.0


class AccessSampler:
    """Samples the accesses of one process."""

    def __init__(self, store: AccessStore, *, sample: int = SAMPLE) -> None:
        """Count one access in ``sample``; 0 counts none."""
        self._store, self._sample = store, sample
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._sent = time.monotonic()
        self._left = self._next()
        # What is left is sent when the process ends; a fork's copy is not the child's to send.
        weakref.finalize(self, _send, store, self._counts, os.getpid())

    def _next(self) -> int:
        # By chance, so that no pattern of access hides between two samples; 2n − 1 at most, n on average.
        return random.randrange(1, 2 * self._sample) if self._sample > 1 else self._sample  # noqa: S311  no secret

    def note(self, kind: str, key: str) -> None:
        """Note an access (`store.accesses.READ` or `WRITE`)."""
        self._left -= 1
        if self._left == 0:
            self._count(kind + key)

    def _count(self, name: str) -> None:
        with self._lock:
            self._left = self._next()
            self._counts[name] = self._counts.get(name, 0) + self._sample
            due = len(self._counts) >= MOST_COUNTS or time.monotonic() > self._sent + SEND_EVERY_S
        if due:
            self.send()

    def send(self) -> None:
        """Send what was counted."""
        with self._lock:
            counts = dict(self._counts)
            self._counts.clear()
            self._sent = time.monotonic()
        _send(self._store, counts, os.getpid())


def _send(store: AccessStore, counts: dict[str, int], pid: int) -> None:
    """Send counts; a hint is never a reason to fail."""
    if counts and pid == os.getpid():
        with suppress(RebalanceError):
            store.add(counts)
