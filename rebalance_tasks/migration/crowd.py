"""The objects of a batch that go through a step at once, and what this process learns from them for the next batch."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

from rebalance_tasks.core.pacing.inflight import LARGE_BYTES, InFlight, begin, step
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.control import Steering

T = TypeVar("T")

log = get_logger(__name__)

#: Fewer objects than this say nothing.
LEAST_OBJECTS: Final = 4


class Crowds:
    """What a process knows of its pairs of nodes, for small objects and for large ones; for several threads."""

    def __init__(self) -> None:
        """Know nothing."""
        self._known: dict[tuple[str, str, bool], InFlight] = {}
        self._lock = threading.Lock()

    def of(self, source: Driver, target: Driver, *, mean_bytes: float, most: int) -> InFlight:
        """What is known of objects of that size between two nodes, which take at most so many at once."""
        with self._lock:
            known = self._known.get(_kind(source, target, mean_bytes))
        fresh = begin(mean_bytes=mean_bytes, most=most)
        return known if known is not None and known.most == fresh.most else fresh

    def learn(
        self, source: Driver, target: Driver, before: InFlight, *, mean_bytes: float, latency_ms: float
    ) -> InFlight:
        """Take a step, and return what is known then; of several slices that learn at once the last one counts."""
        after = step(before, latency_ms=latency_ms, mean_bytes=mean_bytes)
        with self._lock:
            self._known[_kind(source, target, mean_bytes)] = after
        if after.at_once != before.at_once:
            log.debug(
                "batch.in_flight",
                source=source.node_id,
                target=target.node_id,
                mean_bytes=int(mean_bytes),
                at_once=after.at_once,
                usual_ms=round(after.pace.usual_ms, 1),
                now_ms=round(after.pace.smoothed_ms, 1),
            )
        return after


def _kind(source: Driver, target: Driver, mean_bytes: float) -> tuple[str, str, bool]:
    return source.node_id, target.node_id, mean_bytes > LARGE_BYTES


#: A fork goes on from what its parent knew.
CROWDS: Final = Crowds()


class Crowd:
    """The objects of one batch."""

    def __init__(
        self,
        source: Driver,
        target: Driver,
        *,
        mean_bytes: float,
        most: int,
        crowds: Crowds = CROWDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Look up what is known; ``most`` is what the nodes take at once, ``clock`` tells seconds."""
        self._source, self._target, self._mean_bytes, self._crowds = source, target, mean_bytes, crowds
        self._known = crowds.of(source, target, mean_bytes=mean_bytes, most=most)
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds, self._objects = 0.0, 0

    @property
    def at_once(self) -> int:
        """How many objects may go at once."""
        return self._known.at_once

    def timed(self, act: Callable[[], T], control: Steering) -> T:
        """Carry one object, and note how long it took; what it waited for the throttle is no part of that."""
        begun, waited_before = self._clock(), waited_s(control)
        done = act()
        seconds = self._clock() - begun - (waited_s(control) - waited_before)
        with self._lock:
            self._seconds += seconds
            self._objects += 1
        return done

    def together(self, copies: Iterator[bool], control: Steering) -> Iterator[bool]:
        """Pass on what becomes of objects that go at once in this thread, and note how long each of those that went took."""
        begun, waited_before = self._clock(), waited_s(control)
        went = 0
        try:
            for copied in copies:
                went += copied
                yield copied
        finally:
            seconds = self._clock() - begun - (waited_s(control) - waited_before)
            with self._lock:
                # Little's law: so many were under way all the time.
                self._seconds += seconds * self.at_once if went else 0.0
                self._objects += went

    def learn(self, tell: Callable[[str, str, str], None]) -> None:
        """Let the next batch know, and tell (source, target, why) while fewer go at once, and once when all do again."""
        if self._objects >= min(LEAST_OBJECTS, self.at_once) and self._known.most > 1 and self._seconds > 0:
            latency_ms = self._seconds * 1000 / self._objects
            after = self._crowds.learn(
                self._source, self._target, self._known, mean_bytes=self._mean_bytes, latency_ms=latency_ms
            )
            if self._known.reason or after.reason:
                tell(self._source.node_id, self._target.node_id, after.reason)
        self._seconds, self._objects = 0.0, 0


def waited_s(control: Steering) -> float:
    """Seconds that this thread has spent asking a control for leave (`ways.SharedControl`); 0 where nobody counts them."""
    return float(getattr(control, "waited_s", 0.0))
