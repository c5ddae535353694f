"""What steers a slice: the deadline under a slow throttle, and the heart that keeps a lease through a long call."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.local import LocalDriver
from rebalance_tasks.migration.control import SliceControl, SliceInterrupted
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


class Bucket:
    """A byte bucket on that clock."""

    def __init__(self, clock: Clock, rate: int) -> None:
        self.clock, self.rate, self.last = clock, rate, clock()
        self.lease_bytes = max(1, rate // 10)

    def take(self) -> tuple[int, int]:
        granted = int(min(self.lease_bytes, (self.clock() - self.last) * self.rate))
        self.last += granted / self.rate
        return granted, int((self.lease_bytes - granted) * 1000 / self.rate)


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
