"""Quiet hours (invariant 11): inside, outside, midnight, time zones, clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.quiet_hours import in_quiet_hours, parse_quiet_hours

HOURS = st.integers(0, 23)


def quiet(hours: tuple[int, int] | None, now: datetime, zone: str = "UTC") -> bool:
    return in_quiet_hours(RebalancerOptions(quiet_hours=hours, quiet_hours_timezone=zone), now=now)


def at(hour: int, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 1, 15, hour, minute, second, tzinfo=UTC)


def test_without_quiet_hours_no_hour_is_quiet() -> None:
    assert not any(quiet(None, at(hour)) for hour in range(24))


def test_equal_hours_mean_none() -> None:
    assert not any(quiet((hour, hour), at(now)) for hour in range(24) for now in range(24))


def test_start_is_inclusive_and_end_exclusive_to_the_microsecond() -> None:
    before = timedelta(microseconds=1)
    assert not quiet((8, 18), at(8) - before)
    assert quiet((8, 18), at(8))
    assert quiet((8, 18), at(18) - before)
    assert not quiet((8, 18), at(18))


def test_wrapping_midnight_covers_both_sides_of_it() -> None:
    before = timedelta(microseconds=1)
    assert not quiet((22, 6), at(22) - before)
    assert quiet((22, 6), at(22))
    assert quiet((22, 6), at(0) - before)
    assert quiet((22, 6), at(0))
    assert quiet((22, 6), at(6) - before)
    assert not quiet((22, 6), at(6))
    assert not quiet((22, 6), at(12))


def test_end_at_midnight_is_written_zero() -> None:
    assert quiet((22, 0), at(23, 59, 59))
    assert not quiet((22, 0), at(0))


@given(start=HOURS, end=HOURS, hour=HOURS, minute=st.integers(0, 59))
def test_equals_the_set_of_hours_walked_from_start_to_end(start: int, end: int, hour: int, minute: int) -> None:
    walked, clock = set(), start
    while clock != end:
        walked.add(clock)
        clock = (clock + 1) % 24
    assert quiet((start, end), at(hour, minute)) == (hour in walked)


def test_the_hour_is_read_off_the_configured_zone() -> None:
    noon_utc = at(12)  # 21:00 in Tokyo, 07:00 in New York, 17:45 in Kathmandu
    assert quiet((21, 22), noon_utc, "Asia/Tokyo")
    assert quiet((7, 8), noon_utc, "America/New_York")
    assert quiet((17, 18), noon_utc, "Asia/Kathmandu")
    assert not quiet((12, 13), noon_utc, "Asia/Tokyo")


@given(
    moment=st.datetimes(datetime(2000, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  hypothesis adds the zone
    offset=st.integers(-14 * 60, 14 * 60),
    hours=st.tuples(HOURS, HOURS),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
def test_the_same_moment_gives_the_same_answer_in_whatever_zone_it_is_told(
    moment: datetime, offset: int, hours: tuple[int, int], zone: str
) -> None:
    other: tzinfo = timezone(timedelta(minutes=offset))
    assert quiet(hours, moment, zone) == quiet(hours, moment.astimezone(other), zone)


# Berlin, 29 March 2026: at 01:00 UTC the clock jumps from 02:00 to 03:00.
SPRING = datetime(2026, 3, 29, tzinfo=UTC)
# Berlin, 25 October 2026: at 01:00 UTC the clock goes from 03:00 back to 02:00.
AUTUMN = datetime(2026, 10, 25, tzinfo=UTC)


def quiet_minutes(day: datetime, hours: tuple[int, int]) -> list[int]:
    """Minutes (UTC, since midnight UTC) of the night that are quiet in Berlin."""
    return [minute for minute in range(6 * 60) if quiet(hours, day + timedelta(minutes=minute), "Europe/Berlin")]


def test_a_skipped_hour_is_never_quiet() -> None:
    assert quiet_minutes(SPRING, (2, 3)) == []


def test_a_span_over_the_skipped_hour_is_an_hour_shorter() -> None:
    # 01:00 to 05:00 on the wall clock is 00:00 to 03:00 UTC: three hours that exist.
    assert quiet_minutes(SPRING, (1, 5)) == list(range(3 * 60))


def test_a_repeated_hour_is_quiet_both_times() -> None:
    # 02:00 to 03:00 on the wall clock comes at 00:00 and again at 01:00 UTC.
    assert quiet_minutes(AUTUMN, (2, 3)) == list(range(2 * 60))


def test_a_repeated_hour_outside_is_loud_both_times() -> None:
    # From 03:00 on: the wall clock reaches it only once, at 02:00 UTC.
    assert quiet_minutes(AUTUMN, (3, 5)) == list(range(2 * 60, 4 * 60))


def test_both_folds_of_an_ambiguous_local_time_are_told_apart() -> None:
    # Told in a zone of its own: 02:30 in Berlin twice, of which only UTC tells which is meant.
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=0)
    second = datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=1)
    assert quiet((0, 1), first)
    assert not quiet((0, 1), second)


def test_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        quiet((22, 6), datetime(2026, 1, 1))  # noqa: DTZ001  the point


class _NoOffset(tzinfo):
    """A zone that cannot tell its offset; Python calls such a datetime naive too."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "?"


def test_time_with_a_zone_that_knows_no_offset_is_refused_as_naive() -> None:
    with pytest.raises(ValueError, match="aware"):
        quiet(None, datetime(2026, 1, 1, tzinfo=_NoOffset()))


@pytest.mark.parametrize("hours", [(24, 6), (22, 24), (-1, 6), (22, 99), "22-24", "25,6"])
def test_hours_out_of_range_are_refused(hours: object) -> None:
    with pytest.raises(ValidationError, match="from 0 to 23"):
        RebalancerOptions.model_validate({"quiet_hours": hours})


@pytest.mark.parametrize("value", [(22, 6), [22, 6], "22-6", "22,6", " 22 - 6 ", "22:00-06:00", "22–6"])
def test_quiet_hours_are_read_as_people_write_them(value: object) -> None:
    assert parse_quiet_hours(value) == (22, 6)


@pytest.mark.parametrize(
    "value", ["22:30-6", "22", "22-6-7", "ten to six", (22,), (22, 6, 7), (22.5, 6), (True, 6), {"start": 22}, 22, None]
)
def test_what_is_not_a_pair_of_whole_hours_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="two whole hours from 0 to 23"):
        parse_quiet_hours(value)
