"""A throttle by the hour: which entry counts, on whose clock, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.pacing.timetable import HourlyRate, parse_timetable, throttle_at

hours = st.integers(0, 23)
MIB = 2**20


def at(hour: int) -> datetime:
    return datetime(2026, 1, 31, hour, 30, tzinfo=UTC)


@settings(deadline=None)
@given(st.lists(st.tuples(hours, hours, st.integers(1, 10**9)).filter(lambda row: row[0] != row[1]), max_size=5), hours)
def test_the_first_entry_that_holds_the_hour_counts_and_else_the_usual_rate(
    rows: list[tuple[int, int, int]], hour: int
) -> None:
    options = RebalancerOptions(throttle_timetable=[f"{start}-{end} {rate}" for start, end, rate in rows])
    expected = 50 * MIB
    for start, end, rate in reversed(rows):
        held = {(start + step) % 24 for step in range((end - start) % 24)}
        expected = rate if hour in held else expected
    assert throttle_at(options, at(hour)) == expected


def test_an_entry_may_lift_the_limit_and_wraps_midnight() -> None:
    options = RebalancerOptions(throttle_timetable="8-18 10MiB/s, 22-6 none", throttle_bytes_per_sec="50MiB/s")
    assert [throttle_at(options, at(hour)) for hour in (7, 8, 17, 18, 22, 3, 6)] == [
        *(50 * MIB, 10 * MIB, 10 * MIB, 50 * MIB),
        *(None, None, 50 * MIB),
    ]


def test_the_hours_are_those_of_the_fleets_clock() -> None:
    options = RebalancerOptions(throttle_timetable=["8-18 1MiB/s"], quiet_hours_timezone="Asia/Tokyo")
    assert throttle_at(options, at(0)) == MIB
    assert throttle_at(options, at(10)) == 50 * MIB


def test_what_was_read_can_be_written_down_and_read_again() -> None:
    made = RebalancerOptions(throttle_timetable="8-18 10MiB/s, 22-6 none")
    assert made.throttle_timetable == (HourlyRate(8, 18, 10 * MIB), HourlyRate(22, 6, 0))
    assert RebalancerOptions.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("word", ["none", "None", []])
def test_no_timetable_is_none(word: object) -> None:
    assert parse_timetable(word) == ()


@pytest.mark.parametrize(
    "wrong",
    ["8-18", "10MiB/s", "8-8 1MiB/s", "8-25 1MiB/s", "8-18 0", "8-18 fast", 7, "8-18 1MiB/s, x", [["8", "9", 1]]],
)
def test_an_entry_that_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"8-18|hours|rate|timetable|size"):
        parse_timetable(wrong)
