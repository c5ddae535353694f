"""The best way for a pair of nodes: several objects at once where each costs a round trip, no reading back where it proves nothing.

What a driver can do besides the protocol it says in attributes that others lack (`drivers.base.Remote`); this module asks for
them, so that the steps of a batch need not.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final, TypeVar

from rebalance_tasks.migration.copying import Copier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.control import Steering
    from rebalance_tasks.migration.item import BatchContext

T = TypeVar("T")

#: More requests at once made nothing faster on two cores.
MOST_AT_ONCE: Final = 16


def arrives_checked(target: Driver) -> bool:
    """Whether the target refuses bytes that are not what was sent, as a probe has shown: then a copy need not be read back."""
    return bool(getattr(target, "checks_writes", False))


def lanes(*drivers: Driver) -> int:
    """How many objects may go through a step at once between these nodes."""
    return min(MOST_AT_ONCE, max(int(getattr(driver, "parallel", 1)) for driver in drivers))


class SharedControl:
    """A slice's control for several threads: one of them at a time spends, waits and looks at the flags."""

    def __init__(self, control: Steering) -> None:
        """Share ``control``."""
        self._control = control
        self._lock = threading.Lock()

    @property
    def chunk_bytes(self) -> int:
        """See `SliceControl.chunk_bytes`."""
        with self._lock:
            return self._control.chunk_bytes

    @property
    def overdue(self) -> bool:
        """See `SliceControl.overdue`."""
        return self._control.overdue

    def check(self) -> None:
        """See `SliceControl.check`."""
        with self._lock:
            self._control.check()

    def spend(self, size_bytes: int) -> None:
        """See `SliceControl.spend`."""
        with self._lock:
            self._control.spend(size_bytes)


def for_lanes(context: BatchContext) -> BatchContext:
    """Return the context with a control and a copier that several threads may use, if the pair wants them."""
    if lanes(context.source, context.target) == 1:
        return context
    control = SharedControl(context.control)
    return replace(context, control=control, copier=Copier(control))


def each(items: Sequence[T], act: Callable[[T], object], *, at_once: int) -> None:
    """Do something with each item, some of them at once; the first error ends it when those under way have ended.

    Args:
        items: with what.
        act: what to do; it settles what is wrong with one object itself.
        at_once: 1 stays in the caller's thread; more is `MOST_AT_ONCE` threads, for all slices of this process.
    """
    if at_once == 1 or len(items) <= 1:
        for item in items:
            act(item)
        return
    pool = _pool(os.getpid())
    futures = [pool.submit(act, item) for item in items]
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        future.cancel()
    wait(futures)
    for future in futures:
        if not future.cancelled():
            future.result()


@cache
def _pool(_pid: int) -> ThreadPoolExecutor:
    """Threads that stay, since each has a connection to Redis of its own; a fork has none of its parent's."""
    return ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="rebalance-lane")
