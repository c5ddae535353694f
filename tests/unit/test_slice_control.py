"""What steers a slice: the deadline under a slow throttle, and the heart that keeps a lease through a long call."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration.control import Interrupt, SliceControl, SliceInterrupted
from rebalance_tasks.migration.copying import Copier, StagedCopy
from rebalance_tasks.migration.heartbeat import Heart
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def spend_often(control: SliceControl, size_bytes: int) -> None:
    for _ in range(3):
        control.spend(size_bytes)


class Bucket:
    """A byte bucket on that clock, empty at first, that saves up one lease."""

    free_at = float("-inf")

    def __init__(self, clock: Clock, rate: int) -> None:
        self.clock, self.last, self.tokens = clock, clock(), 0.0
        self.set_to(rate)

    def set_to(self, rate: int) -> None:
        """What is in force; known to a slice from its next lease on."""
        self.rate = rate
        self.lease_bytes: int | None = None if rate == 0 else max(1, rate // 10)

    def take(self, *, back: int = 0) -> tuple[int, int]:
        if self.lease_bytes is None:
            return 0, 0
        self.tokens = min(self.lease_bytes, self.tokens + back + (self.clock() - self.last) * self.rate)
        self.last, granted = self.clock(), int(self.tokens)
        self.tokens -= granted
        return granted, int((self.lease_bytes - self.tokens) * 1000 / self.rate)


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[LocalDriver, LocalDriver]:
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(LocalDriver(name, str(tmp_path / name)))
        made[-1].adopt()
    (tmp_path / "a/object").write_bytes(bytes(range(250)) * 400)
    return made[0], made[1]


def stage(copier: Copier, nodes: tuple[LocalDriver, LocalDriver], resume: StagedCopy | None) -> StagedCopy:
    """Stage the object; return how far it came."""
    seen: list[StagedCopy] = []
    with suppress(SliceInterrupted):
        return copier.stage(*nodes, "object", MoveId("m"), size_bytes=100_000, resume=resume, progress=seen.append)
    return seen[-1]


@pytest.mark.parametrize("rate", [100, 1000, 4000])
def test_a_slice_ends_in_time_and_gets_on_however_slow_the_throttle(
    nodes: tuple[LocalDriver, LocalDriver], rate: int
) -> None:
    clock = Clock()
    bucket = Bucket(clock, rate)
    control = SliceControl(lambda: "ok", bucket=bucket, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    copy = stage(Copier(control), nodes, None)
    assert clock() - 100 <= 20.5
    assert copy.staged_bytes == pytest.approx(20 * rate, rel=0.1)
    control = SliceControl(lambda: "ok", bucket=None)
    assert stage(Copier(control), nodes, copy).staged_bytes == 100_000


def test_a_slice_stops_at_the_first_byte_after_the_shutdown_is_known_and_asks_nobody() -> None:
    stopping: list[bool] = []
    beats, beat = counting()
    control = SliceControl(beat, bucket=None, look_at_once=True, stopping=lambda: bool(stopping))
    control.spend(1)
    stopping.append(True)
    for look in (control.check, lambda: control.spend(1)):
        with pytest.raises(SliceInterrupted) as caught:
            look()
        assert caught.value.why is Interrupt.SHUTDOWN
    assert len(beats) == 1


def test_a_slice_that_waits_for_the_throttle_hears_of_the_shutdown_within_100_ms() -> None:
    clock = Clock()
    bucket: Any = Bucket(clock, 10)
    control = SliceControl(
        lambda: "ok", bucket=bucket, clock=clock, sleep=clock.sleep, stopping=lambda: clock() >= 100.3
    )
    with pytest.raises(SliceInterrupted):
        control.spend(10)
    assert clock() - 100.3 < 0.1


def test_a_throttle_that_was_lowered_far_ends_the_slice_instead_of_keeping_its_chunk_waiting() -> None:
    clock = Clock()
    bucket = Bucket(clock, 10_000_000)
    control = SliceControl(lambda: "ok", bucket=bucket, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    chunk = control.chunk_bytes
    assert chunk == 1_000_000
    bucket.set_to(1000)
    with pytest.raises(SliceInterrupted) as caught:
        spend_often(control, chunk)
    assert caught.value.why is Interrupt.DEADLINE
    assert clock() - 100 < 1
    begun = clock()
    following = SliceControl(lambda: "ok", bucket=bucket, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    following.spend(following.chunk_bytes)
    assert clock() - begun < 1


def test_a_slice_without_a_throttle_notices_one_within_a_second() -> None:
    clock = Clock()
    bucket = Bucket(clock, 0)
    control = SliceControl(lambda: "ok", bucket=bucket, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    control.spend(control.chunk_bytes)
    assert clock() == 100, "nothing was waited for"
    bucket.set_to(100)
    clock.sleep(0.6)
    control.spend(50)
    assert clock() > 101
    assert control.chunk_bytes == 10


def test_what_a_slice_leased_before_it_stalled_goes_back() -> None:
    clock = Clock()
    bucket = Bucket(clock, 1000)
    clock.sleep(1)
    control = SliceControl(lambda: "ok", bucket=bucket, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    control.spend(40)
    clock.sleep(5)
    begun = clock()
    for _ in range(30):
        control.spend(10)
    # 100 saved up by the bucket at most, none beside it.
    assert clock() - begun >= 0.19


def test_reading_a_large_copy_back_ends_with_the_slice_and_goes_on_in_the_next(
    nodes: tuple[LocalDriver, LocalDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebalance_tasks.migration.copying.PART_BYTES", 10_000)
    copy = stage(Copier(SliceControl(lambda: "ok", bucket=None)), nodes, None)
    overdue = Copier(SliceControl(lambda: "ok", bucket=None, slice_s=0))
    for verified in range(1, 10):
        with pytest.raises(SliceInterrupted):
            overdue.verify(nodes[1], "object", MoveId("m"), copy)
        assert copy.verified == verified
    overdue.verify(nodes[1], "object", MoveId("m"), copy)
    assert copy.verified == 10


# -- the heart --------------------------------------------------------------------------------------------------------
def counting(answer: str = "ok") -> tuple[list[int], Callable[[], str]]:
    beats: list[int] = []

    def beat() -> str:
        beats.append(1)
        return answer

    return beats, beat


def test_the_heart_beats_while_a_lease_is_held_and_its_thread_ends_afterwards() -> None:
    heart = Heart(every_s=0.01)
    beats, beat = counting()
    with heart.keeping(beat):
        wait_until(lambda: len(beats) >= 3, 10, "the heart has beaten three times")
        assert heart._thread is not None
    wait_until(lambda: heart._thread is None, 10, "the thread has ended")
    seen = len(beats)
    with heart.keeping(counting()[1]):
        wait_until(lambda: heart._thread is not None, 10, "it beats again")
    assert len(beats) == seen


def test_the_heart_stops_for_a_lease_that_is_lost_and_goes_on_for_the_others() -> None:
    heart = Heart(every_s=0.01)
    lost, beat_lost = counting("lost")
    kept, beat_kept = counting()
    with heart.keeping(beat_lost), heart.keeping(beat_kept):
        wait_until(lambda: len(kept) >= 3, 10, "the other one is kept")
        assert len(lost) == 1


def test_the_heart_survives_a_redis_that_is_away_for_a_moment() -> None:
    heart = Heart(every_s=0.01)
    tries: list[int] = []
    back = threading.Event()

    def beat() -> str:
        tries.append(1)
        if not back.is_set():
            raise ConnectionError
        return "ok"

    with heart.keeping(beat):
        wait_until(lambda: len(tries) >= 2, 10, "it has tried twice")
        back.set()
        wait_until(lambda: len(tries) >= 4, 10, "it has gone on")


@pytest.mark.parametrize(("rate", "expected"), [(0, None), (1000, 10_000), (50 << 20, 500 << 20)])
def test_what_a_throttle_lets_through_in_half_a_slice_is_known(rate: int, expected: int | None) -> None:
    clock = Clock()
    control = SliceControl(lambda: "ok", bucket=Bucket(clock, rate), clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    assert control.slice_bytes == expected


def test_without_a_bucket_a_slice_lets_everything_through() -> None:
    assert SliceControl(lambda: "ok", bucket=None).slice_bytes is None
