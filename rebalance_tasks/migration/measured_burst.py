"""A burst whose copies are timed, for adaptive throttling: `migration.measured` for many objects at once.

What is told is how long an object took, and a large one counts for several. Objects of a burst come by the lot, the first of which takes
the time of all, so nothing is told in the middle of one, nor of so few that they show round trips. A burst reads
and writes as one; both its nodes are told, but of a copy that goes straight to its key only the target, whose server makes it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from rebalance_tasks.core.options import KIB
from rebalance_tasks.drivers.registry import burst
from rebalance_tasks.migration.measured import TELL_EVERY_S, gauge_of, unmeasured
from rebalance_tasks.store.pace import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.drivers.burst import Burst
    from rebalance_tasks.migration.measured import Gauge

R = TypeVar("R")

#: An object takes its time for itself up to this size, and for each so many bytes beyond.
COUNTED_BYTES: Final = 64 * KIB
#: Fewer than this show round trips, which more of them would have shared.
LEAST_COUNTED: Final = 32
#: A result that took less than this share of the others' mean came with the one before it.
AT_ONCE_SHARE: Final = 0.1


def burst_between(source: Driver, target: Driver, *, objects: int, largest: int) -> Burst:
    """Return `registry.burst` of two nodes, timed where they are measured."""
    chosen = burst(unmeasured(source), unmeasured(target), objects=objects, largest=largest)
    read, write = gauge_of(source, READ), gauge_of(target, WRITE)
    return chosen if read is None or write is None else MeasuredBurst(chosen, read, write)


class MeasuredBurst:
    """`Burst`, of which staging and copying are timed."""

    def __init__(
        self, inner: Burst, read: Gauge, write: Gauge, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Time ``inner``; ``clock`` tells seconds."""
        self._inner, self._read, self._write, self._clock = inner, read, write, clock
        self._meters: list[_Meter] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  what is not timed is the burst's own
        return getattr(self._inner, name)

    def __enter__(self) -> Self:
        """Return itself."""
        self._inner.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        """End the burst, and tell the rest."""
        self._inner.__exit__(*raised)
        for meter in self._meters:
            meter.tell()

    def stage(
        self, objects: Iterable[tuple[str, MoveId, int] | None], spend: Callable[[int], None]
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        """See `Burst.stage`."""
        sizes: deque[int] = deque()

        def noted() -> Iterator[tuple[str, MoveId, int] | None]:
            for one in objects:
                sizes.append(0 if one is None else one[2])
                yield one

        meter = self._meter((self._read, self._write), spend)
        return meter.timed(self._inner.stage(noted(), meter.spend), sizes)

    def copy(
        self, objects: Sequence[tuple[str, Fingerprint]], spend: Callable[[int], None], *, at_once: int
    ) -> Iterator[bool]:
        """See `Burst.copy`."""
        meter = self._meter((self._write,), spend)
        sizes = deque(version.size_bytes for _, version in objects)
        return meter.timed(self._inner.copy(objects, meter.spend, at_once=at_once), sizes)

    def _meter(self, gauges: Sequence[Gauge], spend: Callable[[int], None]) -> _Meter:
        meter = _Meter(gauges, spend, self._clock)
        self._meters.append(meter)
        return meter


class _Meter:
    """Adds up what the objects of one burst took, waits for the throttle left out, and tells it to gauges at ends of lots."""

    def __init__(self, gauges: Sequence[Gauge], spend: Callable[[int], None], clock: Callable[[], float]) -> None:
        self._gauges, self._spend, self._clock = gauges, spend, clock
        self._waited_s = 0.0
        self._told_at = clock()
        self._seconds, self._results, self._counted, self._bytes = 0.0, 0, 0, 0

    def spend(self, size_bytes: int) -> None:
        begun = self._clock()
        try:
            self._spend(size_bytes)
        finally:
            self._waited_s += self._clock() - begun

    def timed(self, results: Iterator[R], sizes: deque[int]) -> Iterator[R]:
        """Pass results on; ``sizes`` holds the bytes of those whose turn has come, as far as they were looked at."""
        while True:
            begun, waited = self._clock(), self._waited_s
            try:
                result = next(results)
            except StopIteration:
                return
            size = sizes.popleft() if sizes else 0
            self._add(self._clock() - begun - (self._waited_s - waited), size if result else None)
            yield result

    def _add(self, seconds: float, size_bytes: int | None) -> None:
        begins_a_lot = seconds * self._results >= AT_ONCE_SHARE * self._seconds
        if begins_a_lot and self._clock() - self._told_at >= TELL_EVERY_S:
            self.tell()
        self._seconds += seconds
        self._results += 1
        if size_bytes is not None:
            self._counted += max(1, size_bytes // COUNTED_BYTES)
            self._bytes += size_bytes

    def tell(self) -> None:
        """Tell what was added up, if it says anything."""
        if self._counted < LEAST_COUNTED:
            return
        for gauge in self._gauges:
            gauge.tell_together(seconds=self._seconds, calls=self._counted, size_bytes=self._bytes)
        self._seconds, self._results, self._counted, self._bytes = 0.0, 0, 0, 0
        self._told_at = self._clock()
