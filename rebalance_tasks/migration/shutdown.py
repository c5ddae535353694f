"""Tells every slice of a worker that the worker is to end, in whichever of its processes or threads the slice runs.

Only the main process of a worker hears of its shutdown. The flag is a byte of memory that it shares with the processes
which it forks, so that a look at it costs no system call and a slice may look before each write. It is raised by
Celery's ``worker_shutting_down`` (`rebalance_tasks.tasks`), and a slice that sees it hands back at once.
"""

from __future__ import annotations

import mmap
from typing import Final


class SharedFlag:
    """A flag that a process shares with those forked from it; with spawned ones it shares nothing."""

    def __init__(self) -> None:
        """Create it, lowered; what is forked from now on sees its changes."""
        self._byte = mmap.mmap(-1, 1)

    def __call__(self) -> bool:
        """Whether it is raised."""
        return self._byte[0] != 0

    def set(self) -> None:
        """Raise it."""
        self._byte[0] = 1

    def clear(self) -> None:
        """Lower it."""
        self._byte[0] = 0


#: Made when this module is imported, which a worker does before it forks.
SHUTTING_DOWN: Final = SharedFlag()
