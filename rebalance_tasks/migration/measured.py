"""A driver whose calls are timed, for adaptive throttling: a wrapper that changes nothing of what the driver does.

What is timed is what moves bytes (reads of a source, writes and the end of a copy, what goes straight to its key) and the sync that
makes them durable. Waiting for the throttle is no part of it. Bursts know plain drivers only, and are timed as bursts (`migration.measured_burst`).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

from rebalance_tasks.migration.control import CHUNK_BYTES
from rebalance_tasks.store.pace import INTERVAL_MS, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.store.pace import PaceStore

T = TypeVar("T")

#: Measurements are told at a fifth of the controller's interval, so that what several slices see comes together.
TELL_EVERY_S: Final = INTERVAL_MS / 1000 / 5


class Gauge:
    """Adds up what calls of a node in one direction took, and tells it now and then; for several threads."""

    def __init__(
        self, paces: PaceStore, node_id: str, direction: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Measure ``node_id`` in one direction; ``clock`` tells monotonic seconds."""
        self._paces, self._node_id, self._direction, self._clock = paces, node_id, direction, clock
        self._lock = threading.Lock()
        self._seconds, self._calls, self._bytes = 0.0, 0, 0
        self._told_at = clock()

    def timed(self, act: Callable[[], T], *, calls: int = 1, size_of: Callable[[T], int] = lambda _: 0) -> T:
        """Do something and note how long it took.

        Args:
            act: what.
            calls: how many calls it counts for; a sync counts for none, as it belongs to those before it.
            size_of: bytes that it moved, by what it returns.
        """
        begun = self._clock()
        done = act()
        now = self._clock()
        with self._lock:
            self._seconds += now - begun
            self._calls += calls
            self._bytes += size_of(done)
            if now - self._told_at < TELL_EVERY_S or not self._calls:
                return done
            seconds, took, moved = self._seconds, self._calls, self._bytes
            self._seconds, self._calls, self._bytes, self._told_at = 0.0, 0, 0, now
        self._paces.note(self._node_id, self._direction, seconds=seconds, calls=took, size_bytes=moved)
        return done

    def tell_together(self, *, seconds: float, calls: int, size_bytes: int) -> None:
        """Tell what objects of a burst took; see `PaceStore.note`."""
        self._paces.note(
            self._node_id, self._direction, seconds=seconds, calls=calls, size_bytes=size_bytes, together=True
        )


class _Timed:
    """Passes everything on to another object, some calls by way of a gauge."""

    def __init__(self, inner: Any, gauge: Gauge) -> None:  # noqa: ANN401  whatever a driver hands out
        self._inner, self._gauge = inner, gauge

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._inner, name)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._inner.__exit__(*raised)


class _Source(_Timed):
    def readinto(self, buffer: memoryview) -> int:
        count: int = self._gauge.timed(lambda: self._inner.readinto(buffer), size_of=lambda got: got)
        return count


class _Writer(_Timed):
    def write(self, data: memoryview) -> None:
        self._gauge.timed(lambda: self._inner.write(data), size_of=lambda _: len(data))

    def finish(self, metadata: Any) -> None:  # noqa: ANN401
        self._gauge.timed(lambda: self._inner.finish(metadata), calls=0)


class _Measured(_Timed):
    """A driver of which sources, writers and syncs are timed."""

    def __init__(self, inner: Driver, gauges: Mapping[str, Gauge]) -> None:
        super().__init__(inner, gauges[WRITE])
        self._gauges = gauges
        self._read = gauges[READ]

    def open_source(self, key: str) -> Any:  # noqa: ANN401
        return _Source(self._inner.open_source(key), self._read)

    def stage(self, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        return _Writer(self._inner.stage(*arguments, **more), self._gauge)

    def sync(self) -> None:
        self._gauge.timed(self._inner.sync, calls=0)

    # Drivers ask each other what they are.
    def direct_bytes(self, source: Driver, *, in_parts: bool = False) -> int:
        ask = getattr(self._inner, "direct_bytes", None)
        return 0 if ask is None else int(ask(unmeasured(source), in_parts=in_parts))

    def copy_from(self, source: Driver, key: str, version: Fingerprint, move_id: MoveId) -> Any:  # noqa: ANN401
        return self._gauge.timed(
            lambda: self._inner.copy_from(unmeasured(source), key, version, move_id),
            # A large object is no slow call: it counts for as many as a worker would have made.
            calls=max(1, version.size_bytes // CHUNK_BYTES),
            size_of=lambda _: version.size_bytes,
        )


def measured(driver: Driver, paces: PaceStore) -> Driver:
    """Return the driver with its calls timed, in both directions."""
    gauges = {direction: Gauge(paces, driver.node_id, direction) for direction in (READ, WRITE)}
    return cast("Driver", _Measured(driver, gauges))


def gauge_of(driver: Driver, direction: str) -> Gauge | None:
    """Return what a measured driver's calls in one direction are told to; ``None`` where nobody measures."""
    return driver._gauges[direction] if isinstance(driver, _Measured) else None  # noqa: SLF001


def unmeasured(driver: Driver) -> Driver:
    """Return the driver itself."""
    return cast("Driver", driver._inner) if isinstance(driver, _Measured) else driver  # noqa: SLF001
