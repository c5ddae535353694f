"""What a burst tells adaptive throttling: how long an object took, whole lots only, without what it waited for leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.migration.measured import TELL_EVERY_S
from rebalance_tasks.migration.measured_burst import COUNTED_BYTES, LEAST_COUNTED, MeasuredBurst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

SIZE = 4096
WAIT_S = 7.0


class Told:
    """Keeps what a gauge is told."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.calls: list[int] = []
        self.size_bytes: list[int] = []

    def tell_together(self, *, seconds: float, calls: int, size_bytes: int) -> None:
        self.seconds.append(seconds)
        self.calls.append(calls)
        self.size_bytes.append(size_bytes)

    @property
    def means(self) -> list[float]:
        return [seconds / calls for seconds, calls in zip(self.seconds, self.calls, strict=True)]


class InLots(NoBurst):
    """Takes a time for each lot, all of it before the first result, and asks for leave before that."""

    def __init__(self, lot: int, object_s: Callable[[], float], *, declines: bool = False) -> None:
        self.lot, self.object_s, self.declines, self.now = lot, object_s, declines, 0.0

    def clock(self) -> float:
        return self.now

    def stage(
        self, objects: Iterable[tuple[str, MoveId, int] | None], spend: Callable[[int], None]
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        wanted = list(objects)
        for start in range(0, len(wanted), self.lot):
            some = wanted[start : start + self.lot]
            for one in some:
                spend(one[2] if one else 0)
            self.now += len(some) * self.object_s()
            for _ in some:
                yield None if self.declines else (Fingerprint(SIZE), "digest")

    def copy(
        self, objects: Sequence[tuple[str, Fingerprint]], spend: Callable[[int], None], *, at_once: int
    ) -> Iterator[bool]:
        del at_once
        staged = self.stage([(key, MoveId(key), version.size_bytes) for key, version in objects], spend)
        return (one is not None for one in staged)


def run(inner: InLots, objects: int, *, size_bytes: int = SIZE) -> tuple[Told, Told]:
    read, write = Told(), Told()

    def spend(_: int) -> None:
        inner.now += WAIT_S

    with MeasuredBurst(inner, cast("Any", read), cast("Any", write), clock=inner.clock) as burst:
        moves = [(str(number), MoveId(str(number)), size_bytes) for number in range(objects)]
        done = [copied for _, copied in zip(moves, burst.stage(iter(moves), spend), strict=False)]
    assert len(done) == objects
    return read, write


@given(lot=st.integers(1, 64), objects=st.integers(LEAST_COUNTED, 600), object_s=st.floats(1e-4, 0.3))
def test_an_object_takes_what_it_takes_whatever_the_lots_and_waits_are_none_of_it(
    lot: int, objects: int, object_s: float
) -> None:
    read, write = run(InLots(lot, lambda: object_s), objects)
    assert (read.seconds, read.calls) == (write.seconds, write.calls)
    assert all(abs(mean - object_s) <= 1e-6 * object_s for mean in write.means)
    # The last few of a burst may say nothing.
    assert objects - LEAST_COUNTED < sum(write.calls) <= objects
    assert sum(write.size_bytes) == SIZE * sum(write.calls)


def test_a_node_that_slows_down_within_a_burst_is_told_before_the_burst_ends() -> None:
    paces = iter([0.001] * 10 + [0.1] * 10)
    _, write = run(InLots(64, lambda: next(paces)), 64 * 20)
    assert write.means[0] < 0.002
    assert write.means[-1] > 0.09
    assert len(write.means) > 5


def test_a_large_object_counts_for_several() -> None:
    _, write = run(InLots(2, lambda: TELL_EVERY_S), 100, size_bytes=16 * COUNTED_BYTES)
    assert sum(write.calls) == 1600


def test_few_objects_and_what_is_declined_tell_nothing() -> None:
    for told in (*run(InLots(8, lambda: 1.0), LEAST_COUNTED - 1), *run(InLots(8, lambda: 1.0, declines=True), 500)):
        assert told.calls == []


def test_of_a_copy_straight_to_its_key_only_the_target_is_told() -> None:
    inner, read, write = InLots(1, lambda: 0.01), Told(), Told()
    with MeasuredBurst(inner, cast("Any", read), cast("Any", write), clock=inner.clock) as burst:
        objects = [(str(number), Fingerprint(SIZE)) for number in range(100)]
        assert list(burst.copy(objects, lambda _: None, at_once=16)) == [True] * 100
    assert 100 - LEAST_COUNTED < sum(write.calls) <= 100
    assert read.calls == []


def test_a_burst_that_declines_without_looking_is_passed_on() -> None:
    read, write = Told(), Told()
    with MeasuredBurst(NoBurst(), cast("Any", read), cast("Any", write)) as burst:
        moves = [("a", MoveId("a"), 1)] * 3
        assert [one for _, one in zip(moves, burst.stage(moves, lambda _: None), strict=False)] == [None] * 3
        assert burst.alone is False
