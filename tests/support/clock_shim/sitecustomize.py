"""A clock of its own for each process that finds this folder on its path: the system's, and as many seconds more as a file says.

Read at the start and twice a second, in children that are forked too. Only the wall clock is wrong, as on a host whose clock
somebody sets; what counts seconds (``time.monotonic``) goes on.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from time import sleep, time

import time_machine

#: Names the file with the offset in seconds.
CLOCK = "TEST_CLOCK"
LOOK_EVERY_S = 0.5


class Clock:
    """The wall clock of this process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset_s = 0.0
        self._travel: time_machine.travel | None = None
        self.look()
        self.watch()
        os.register_at_fork(after_in_child=self.watch)

    def watch(self) -> None:
        """Follow the file, from a thread of this process."""
        threading.Thread(target=self._follow, name="clock", daemon=True).start()

    def look(self) -> None:
        """Set the clock as the file says now."""
        try:
            offset_s = float(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not there yet, or being written
            return
        if offset_s == self._offset_s:
            return
        if self._travel is not None:
            self._travel.stop()
        self._offset_s = offset_s
        self._travel = time_machine.travel(time() + offset_s, tick=True)
        self._travel.start()

    def _follow(self) -> None:
        while True:
            sleep(LOOK_EVERY_S)
            self.look()


if CLOCK in os.environ:
    Clock(Path(os.environ[CLOCK]))
