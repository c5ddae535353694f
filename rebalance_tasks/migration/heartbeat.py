"""Keeps a runner's lease while it sits in a call that looks at nothing: a long sync, a slow disk, a stalled mount.

`SliceControl` renews the lease with every look at the flags, but a ``syncfs`` of a busy disk may take longer than a lease
lives; a successor would then begin the same batch, lose its lease the same way, and in the end every object of the batch
would be blamed for deaths that never were. One thread beats for all slices of a process. Fencing does not depend on it.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = get_logger(__name__)

#: Three beats fit into a lease (10 s).
BEAT_EVERY_S: Final = 3.0
#: A runner that shows no life for so long has lost its lease: the task's time limit is over as well.
LONGEST_S: Final = 120.0


class Heart:
    """Beats for the leases that are held right now; its thread ends when there are none."""

    def __init__(self, every_s: float = BEAT_EVERY_S, longest_s: float = LONGEST_S) -> None:
        """Nothing is started before the first lease is held."""
        self._every_s = every_s
        self._longest_s = longest_s
        self._lock = threading.Lock()
        self._held: dict[object, tuple[float, Callable[[], str]]] = {}
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    @contextmanager
    def keeping(self, beat: Callable[[], str]) -> Iterator[None]:
        """Renew a lease while the block runs; ``beat`` answers ``lost`` when there is nothing left to renew."""
        token = object()
        self._begin(token, beat)
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(token, None)

    def _begin(self, token: object, beat: Callable[[], str]) -> None:
        if self._pid != os.getpid():
            # A fork takes neither the thread nor the leases along.
            self._lock, self._held, self._thread, self._pid = threading.Lock(), {}, None, os.getpid()
        with self._lock:
            self._held[token] = (time.monotonic() + self._longest_s, beat)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rebalance-heart", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(self._every_s)
            with self._lock:
                held = list(self._held.items())
                if not held:
                    self._thread = None
                    return
            for token, (until, beat) in held:
                if time.monotonic() > until or not self._beats(beat):
                    with self._lock:
                        self._held.pop(token, None)

    @staticmethod
    def _beats(beat: Callable[[], str]) -> bool:
        try:
            return beat() != "lost"
        except Exception as exc:  # noqa: BLE001  Redis away for a moment: the next beat may reach it
            log.debug("heart.missed", error=str(exc))
            return True
