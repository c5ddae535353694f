"""Sizes, rates and durations as people write them."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rebalance_tasks.core.units import MAX_SIZE_BYTES, parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10GiB", 10 * 2**30),
        ("4TB", 4 * 10**12),
        ("1_000", 1000),
        ("1_000kB", 1_000_000),
        (" 2 MiB ", 2 * 2**20),
        ("7B", 7),
        ("0", 0),
        ("+5", 5),
        ("1.5GiB", 1536 * 2**20),
        ("0.1kB", 100),
        ("1.0005kB", 1000),
        ("0.0001kB", 0),
        ("2gib", 2 * 2**30),
        ("2GB", 2 * 10**9),
        (12, 12),
        (1e9, 10**9),
        ("9223372036854775807", MAX_SIZE_BYTES),
    ],
)
def test_size_is_read_exactly(text: object, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("-1GB", "must not be negative, got '-1GB'"),
        (-1, "must not be negative, got -1"),
        ("10G", "write GB (powers of 1000) or GiB (powers of 1024)"),
        ("5m", "write MB (powers of 1000) or MiB"),
        ("1.5", "fraction of a byte"),
        ("1.5B", "fraction of a byte"),
        (1.5, "not a whole number of bytes"),
        (float("nan"), "not a whole number of bytes"),
        (float("inf"), "not a whole number of bytes"),
        (True, "not a size"),
        (None, "not a size"),
        ("", "not a size"),
        ("GiB", "not a size"),
        ("1e9", "not a size"),
        ("10 GiB extra", "not a size"),
        ("10Gibit", "not a size"),
        ("१GB", "not a size"),
        ("1__0", "not a size"),
        ("9223372036854775808", "largest size"),
        ("9999999EB", "largest size"),
    ],
)
def test_wrong_size_is_refused_with_a_hint(value: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_size(value)
    assert complaint in str(caught.value)


@given(st.integers(0, 2**40), st.sampled_from(["", "kB", "MB", "KiB", "MiB"]))
def test_whole_sizes_multiply_by_their_unit(number: int, unit: str) -> None:
    factor = {"": 1, "kB": 1000, "MB": 10**6, "KiB": 1024, "MiB": 2**20}[unit]
    assert parse_size(f"{number}{unit}") == number * factor


@given(st.decimals(0, 10**6, places=6), st.sampled_from([("GB", 10**9), ("GiB", 2**30)]))
def test_fractions_are_rounded_down_and_never_pass_through_a_float(number: object, unit: tuple[str, int]) -> None:
    name, factor = unit
    assert parse_size(f"{number}{name}") == Fraction(str(number)) * factor // 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [("50MiB/s", 50 * 2**20), ("200 MB / s", 2 * 10**8), ("1kB per second", 1000), ("5B/sec", 5), (7, 7), ("7", 7)],
)
def test_rate_is_a_size_with_or_without_per_second(value: object, expected: int) -> None:
    assert parse_rate(value) == expected


@pytest.mark.parametrize("value", ["50MiB/h", "/s", "-1/s", "fast", True, "50Mbit/s"])
def test_wrong_rate_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match='a rate is "50MiB/s"'):
        parse_rate(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5m", timedelta(minutes=5)),
        ("24h", timedelta(days=1)),
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("1h 30m", timedelta(minutes=90)),
        ("1w2d3h4m5s6ms", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5, milliseconds=6)),
        ("1.5h", timedelta(minutes=90)),
        ("0.1", timedelta(milliseconds=100)),
        ("250ms", timedelta(milliseconds=250)),
        ("300", timedelta(minutes=5)),
        (300, timedelta(minutes=5)),
        (0.5, timedelta(milliseconds=500)),
        ("0", timedelta(0)),
        ("PT5M", timedelta(minutes=5)),
        ("P1DT1H", timedelta(hours=25)),
        (timedelta(seconds=3), timedelta(seconds=3)),
    ],
)
def test_duration_is_read_exactly(value: object, expected: timedelta) -> None:
    assert parse_duration(value) == expected


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("-5m", "must not be negative"),
        (-3, "must not be negative"),
        ("-3", "must not be negative"),
        ("-PT5M", "must not be negative"),
        (timedelta(seconds=-1), "must not be negative"),
        ("30m1h", "from large to small"),
        ("5m5m", "from large to small"),
        ("1M", "not a duration"),
        ("5 minutes", "not a duration"),
        ("m", "not a duration"),
        ("", "not a duration"),
        ("1h30", "not a duration"),
        ("Pxx", "not a duration"),
        (True, "not a duration"),
        (None, "not a duration"),
        (float("nan"), "not a duration"),
        (float("inf"), "not a duration"),
        ("99999999999w", "longer than a duration can be"),
        (1e30, "longer than a duration can be"),
    ],
)
def test_wrong_duration_is_refused_with_an_example(value: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"1h30m") as caught:
        parse_duration(value)
    assert complaint in str(caught.value)


@given(st.timedeltas(timedelta(0), timedelta(days=10_000)))
def test_durations_survive_their_json_form(duration: timedelta) -> None:
    assert parse_duration(TypeAdapter(timedelta).dump_python(duration, mode="json")) == duration


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_rate, parse_duration):
        try:
            parse(text)
        except ValueError as exc:
            assert str(exc)  # noqa: PT017  whether it raises is the open question
