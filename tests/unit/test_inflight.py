"""How many objects go at once: many small ones, few large ones, fewer when a node slows down, and back when that is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.pacing.inflight import LARGE_AT_ONCE, LARGE_BYTES, InFlight, begin, step
from rebalance_tasks.migration.crowd import Crowd, Crowds

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL, LARGE = 4_096, 8 * LARGE_BYTES


def after(known: InFlight, steps: int, *, capacity: float, round_trip_ms: float, mean_bytes: float) -> InFlight:
    """So many batches later, at a node that takes ``capacity`` objects at once and lets the others wait."""
    for _ in range(steps):
        latency_ms = round_trip_ms * max(1.0, known.at_once / capacity)
        known = step(known, latency_ms=latency_ms, mean_bytes=mean_bytes)
    return known


@given(st.floats(0, 2**40), st.integers(1, 64))
def test_small_objects_begin_with_all_that_the_nodes_take_and_large_ones_with_few(mean_bytes: float, most: int) -> None:
    known = begin(mean_bytes=mean_bytes, most=most)
    assert known.at_once == known.start == (most if mean_bytes <= LARGE_BYTES else min(most, LARGE_AT_ONCE))
    assert known.at_once <= known.most <= most


@given(
    st.lists(st.tuples(st.floats(0.01, 1e5), st.floats(0, 2**30)), max_size=60),
    st.integers(1, 16),
    st.sampled_from([SMALL, LARGE]),
)
def test_whatever_is_measured_at_least_one_goes_and_never_too_many(
    measured: list[tuple[float, float]], most: int, mean_bytes: float
) -> None:
    known = begin(mean_bytes=mean_bytes, most=most)
    for latency_ms, size in measured:
        known = step(known, latency_ms=latency_ms, mean_bytes=size)
        assert 1 <= known.at_once <= known.most <= most


@pytest.mark.parametrize("mean_bytes", [SMALL, LARGE])
def test_a_node_that_slows_down_gets_fewer_at_once_and_all_again_when_it_is_well(mean_bytes: int) -> None:
    well = after(begin(mean_bytes=mean_bytes, most=16), 5, capacity=16, round_trip_ms=80, mean_bytes=mean_bytes)
    assert well.at_once >= well.start
    slow = after(well, 12, capacity=16, round_trip_ms=800, mean_bytes=mean_bytes)
    assert slow.at_once == 1
    assert slow.at_once < well.start
    back = after(slow, 40, capacity=16, round_trip_ms=80, mean_bytes=mean_bytes)
    assert back.at_once >= back.start


def test_more_large_objects_go_at_once_only_as_long_as_each_one_more_brings_more_through() -> None:
    begun = begin(mean_bytes=LARGE, most=16)
    wide = after(begun, 30, capacity=16, round_trip_ms=400, mean_bytes=LARGE)
    assert wide.at_once == wide.most == 2 * LARGE_AT_ONCE
    # A line that four objects fill: a fifth is tried once.
    narrow = after(begun, 30, capacity=LARGE_AT_ONCE, round_trip_ms=400, mean_bytes=LARGE)
    assert narrow.at_once == LARGE_AT_ONCE + 1


def test_an_object_of_twice_the_size_may_take_twice_as_long() -> None:
    known = begin(mean_bytes=LARGE, most=16)
    for size in (LARGE, 2 * LARGE, 8 * LARGE, 32 * LARGE) * 5:
        known = step(known, latency_ms=size / LARGE * 100, mean_bytes=size)
    assert known.at_once >= LARGE_AT_ONCE


# -- what a process learns ------------------------------------------------------------------------------------------------
def crowd(crowds: Crowds, now: list[float], mean_bytes: float = SMALL, most: int = 16) -> Crowd:
    source, target = (cast("Any", SimpleNamespace(node_id=name)) for name in ("a", "b"))
    return Crowd(source, target, mean_bytes=mean_bytes, most=most, crowds=crowds, clock=lambda: now[0])


def carry(
    crowds: Crowds,
    *,
    seconds: float,
    waits: float = 0.0,
    objects: int = 20,
    mean_bytes: float = SMALL,
    tell: list[tuple[str, str, str]] | None = None,
) -> int:
    """A batch whose objects take so long each, and wait so long for the throttle besides; return how many went at once."""
    now, control = [0.0], SimpleNamespace(waited_s=0.0)
    batch = crowd(crowds, now, mean_bytes)

    def act() -> None:
        now[0] += seconds + waits
        control.waited_s += waits

    for _ in range(objects):
        batch.timed(act, cast("Any", control))
    batch.learn(lambda *told: (tell if tell is not None else []).append(told))
    return batch.at_once


def test_the_next_batch_of_the_pair_goes_by_what_the_last_one_took() -> None:
    crowds = Crowds()
    assert [carry(crowds, seconds=0.05) for _ in range(3)] == [16, 16, 16]
    slower = [carry(crowds, seconds=1.0) for _ in range(4)]
    assert slower == sorted(slower, reverse=True)
    assert slower[-1] < 16
    assert carry(crowds, seconds=0.05, mean_bytes=LARGE) == LARGE_AT_ONCE, "large objects are another matter"


def test_waits_for_the_throttle_say_nothing_of_a_node() -> None:
    crowds = Crowds()
    assert [carry(crowds, seconds=0.05, waits=waits) for waits in (0, 0, 5, 5, 5, 5)] == [16] * 6


def test_a_batch_of_one_object_teaches_nothing() -> None:
    crowds = Crowds()
    for _ in range(3):
        carry(crowds, seconds=0.05)
    for _ in range(9):
        carry(crowds, seconds=9.0, objects=1)
    assert carry(crowds, seconds=0.05) == 16


def test_an_operator_is_told_why_fewer_are_in_flight_until_all_are_again() -> None:
    crowds = Crowds()
    told: list[tuple[str, str, str]] = []
    for seconds in (0.05, 0.05):
        carry(crowds, seconds=seconds, tell=told)
    assert told == []
    for _ in range(4):
        carry(crowds, seconds=1.0, tell=told)
    assert {pair[:2] for pair in told} == {("a", "b")}
    assert told[-1][2].startswith("2 objects at once instead of 16: they take ")
    assert told[-1][2].endswith("usually 52.0 ms")
    while told[-1][2]:
        carry(crowds, seconds=0.05, tell=told)
    assert "the number recovers" in told[-2][2]
    told.clear()
    carry(crowds, seconds=0.05, tell=told)
    assert told == []


def test_objects_that_go_together_count_as_long_as_so_many_are_under_way() -> None:
    """Sixteen at once, a hundred in two seconds: each took a third of a second."""
    now, control, crowds = [0.0], SimpleNamespace(waited_s=0.0), Crowds()
    batch = crowd(crowds, now)

    def copies() -> Iterator[bool]:
        for number in range(104):
            now[0] += 0.02 + (1.0 if number == 50 else 0.0)
            control.waited_s += 1.0 if number == 50 else 0.0
            yield number % 26 != 0

    assert sum(batch.together(copies(), cast("Any", control))) == 100
    batch.learn(lambda *_: None)
    known = crowds.of(batch._source, batch._target, mean_bytes=SMALL, most=16)
    assert known.pace.smoothed_ms == pytest.approx(104 * 20 * 16 / 100)
