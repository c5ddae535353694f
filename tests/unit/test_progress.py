"""Rates and time left: what samples show, pauses left out, and nothing negative whatever is stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.store.progress import WINDOW_MS, Pace, Progress, rates

MINUTE = 60_000
counts = st.integers(0, 2**50)


def at(now_ms: int, **fields: int) -> Progress:
    return Progress.of({name: str(value).encode() for name, value in fields.items()}, now_ms=now_ms)


def test_the_pace_is_taken_from_the_oldest_sample_of_the_last_minute() -> None:
    now = at(10 * MINUTE, started_ms=1, bytes_moved=70_000, completed=70)
    old = 10 * MINUTE - WINDOW_MS - 1
    samples = f"{old},{old},0,0;{10 * MINUTE - 50_000},{10 * MINUTE - 50_001},20000,20".encode()
    assert rates(now, samples) == Pace(1_000.0, 1.0)


@pytest.mark.parametrize("samples", [b"", b"599500,599500,0,0"], ids=["none", "half a second old"])
def test_there_is_no_pace_without_a_sample_of_some_age(samples: bytes) -> None:
    assert rates(at(10 * MINUTE, started_ms=1, bytes_moved=5), samples) is None


def test_time_in_which_the_job_was_paused_does_not_count() -> None:
    resumed = at(10 * MINUTE, started_ms=MINUTE, paused_ms=8 * MINUTE, bytes_moved=60_000)
    assert resumed.active_ms == MINUTE
    assert resumed.mean().bytes_per_s == 1_000.0
    paused = at(10 * MINUTE, started_ms=MINUTE, paused_since_ms=2 * MINUTE, bytes_moved=60_000)
    assert paused.active_ms == MINUTE


def test_a_job_that_has_ended_is_measured_to_its_end() -> None:
    assert at(90 * MINUTE, started_ms=MINUTE, completed_ms=2 * MINUTE, bytes_moved=60_000).mean().bytes_per_s == 1_000.0


@pytest.mark.parametrize(
    ("pace", "bytes_left", "moves_left", "expected"),
    [
        (Pace(10.0, 1.0), 100, 5, 10.0),
        (Pace(0.0, 2.0), 100, 5, 2.5),
        (Pace(10.0, 2.0), 0, 5, 2.5),
        (Pace(0.0, 0.0), 100, 5, None),
        (Pace(0.0, 0.0), 100, 0, 0.0),
    ],
    ids=["by bytes", "empty objects so far", "empty objects left", "nothing moves", "nothing left"],
)
def test_the_time_left(*, pace: Pace, bytes_left: int, moves_left: int, expected: float | None) -> None:
    assert pace.time_left_s(bytes_left=bytes_left, moves_left=moves_left) == expected


@given(counts, counts, counts, counts, counts, counts, st.lists(st.tuples(counts, counts, counts, counts), max_size=5))
def test_whatever_is_stored_nothing_is_negative(
    now_ms: int, started: int, paused: int, since: int, moved: int, done: int, samples: list[tuple[int, ...]]
) -> None:
    """Clocks jump, and a lost tail takes counts back."""
    progress = at(
        now_ms, started_ms=started, paused_ms=paused, paused_since_ms=since, bytes_moved=moved, completed=done
    )
    assert progress.active_ms >= 0
    packed = ";".join(",".join(map(str, sample)) for sample in samples).encode()
    for pace in filter(None, [progress.mean(), rates(progress, packed)]):
        assert min(pace.bytes_per_s, pace.moves_per_s) >= 0
        left = pace.time_left_s(bytes_left=progress.bytes_left, moves_left=progress.moves_left)
        assert left is None or left >= 0
