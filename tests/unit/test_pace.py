"""The controller of adaptive throttling holds a node back when its calls slow down, and lets it recover."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.pacing.pace import DECREASE, FLOOR, LEAST_RISE_MS, TOLERANCE, Pace, step

MB = 1_000_000
latencies = st.floats(min_value=0.01, max_value=10_000)
rates = st.floats(min_value=0, max_value=1e11)
measured = st.lists(st.tuples(latencies, rates), min_size=1, max_size=200)


def after(pace: Pace, latency_ms: float, *, steps: int, bytes_per_s: float = 100 * MB) -> Pace:
    for _ in range(steps):
        pace = step(pace, latency_ms=latency_ms, bytes_per_s=bytes_per_s)
    return pace


WELL = after(Pace(), 10.0, steps=20)


@settings(deadline=None)
@given(measured)
def test_a_rate_is_never_below_its_floor_nor_above_where_it_was(seen: list[tuple[float, float]]) -> None:
    pace = Pace()
    for latency_ms, bytes_per_s in seen:
        pace = step(pace, latency_ms=latency_ms, bytes_per_s=bytes_per_s)
        assert bool(pace.rate_bytes_per_s) == bool(pace.full_bytes_per_s) == bool(pace.reason)
        if pace.rate_bytes_per_s:
            assert max(1, int(pace.full_bytes_per_s * FLOOR)) <= pace.rate_bytes_per_s <= pace.full_bytes_per_s
        assert 0 < pace.usual_ms <= pace.smoothed_ms or pace.usual_ms == pytest.approx(pace.smoothed_ms)


@settings(deadline=None)
@given(measured, latencies)
def test_whatever_was_measured_a_steady_node_is_let_go_in_the_end(
    seen: list[tuple[float, float]], steady_ms: float
) -> None:
    pace = Pace()
    for latency_ms, bytes_per_s in seen:
        pace = step(pace, latency_ms=latency_ms, bytes_per_s=bytes_per_s)
    # What is usual rises by 1 % a step: a millionfold takes 1,400 of them.
    pace = after(pace, steady_ms, steps=1_500)
    assert pace.rate_bytes_per_s == 0
    assert pace.reason == ""


@settings(deadline=None)
@given(measured, latencies, latencies, rates)
def test_slower_calls_never_earn_a_higher_rate(
    seen: list[tuple[float, float]], one_ms: float, other_ms: float, bytes_per_s: float
) -> None:
    pace = Pace()
    for latency_ms, rate in seen:
        pace = step(pace, latency_ms=latency_ms, bytes_per_s=rate)
    fast, slow = sorted((one_ms, other_ms))
    quick = step(pace, latency_ms=fast, bytes_per_s=bytes_per_s).rate_bytes_per_s or float("inf")
    lazy = step(pace, latency_ms=slow, bytes_per_s=bytes_per_s).rate_bytes_per_s or float("inf")
    if pace.usual_ms:
        assert lazy <= quick


def test_a_node_at_its_usual_latency_is_not_held_back() -> None:
    assert WELL.rate_bytes_per_s == 0
    assert after(WELL, 10.0 * TOLERANCE * 0.95, steps=5).rate_bytes_per_s == 0


def test_small_rises_of_small_latencies_are_noise() -> None:
    quick = after(Pace(), 0.1, steps=20)
    assert after(quick, 0.1 + LEAST_RISE_MS * 0.9, steps=50).rate_bytes_per_s == 0


def test_a_node_that_slows_down_is_worked_at_less_and_less_and_says_why() -> None:
    slowing = [after(WELL, 80.0, steps=count) for count in range(1, 8)]
    held = [pace.rate_bytes_per_s for pace in slowing if pace.rate_bytes_per_s]
    assert held[0] == int(100 * MB * DECREASE)
    assert held == sorted(held, reverse=True)
    assert "is held back: its calls take" in slowing[-1].reason
    assert "usually" in slowing[-1].reason


def test_a_node_that_is_well_again_recovers_step_by_step_to_where_it_was_and_is_let_go() -> None:
    pace = after(WELL, 80.0, steps=5)
    rates_seen = []
    for _ in range(60):
        pace = after(pace, 10.0, steps=1)
        rates_seen.append(pace.rate_bytes_per_s)
        if not pace.rate_bytes_per_s:
            break
        if not pace.too_slow:
            assert "recovers" in pace.reason
    assert pace.rate_bytes_per_s == 0
    climbing = rates_seen[rates_seen.index(min(rate for rate in rates_seen if rate)) : -1]
    assert climbing == sorted(climbing)


def test_in_a_closed_loop_latency_ends_near_what_is_tolerated_and_the_rate_is_not_thrown_away() -> None:
    """A disk of 100 MB/s that somebody else uses for a while: queueing makes calls slower the nearer it is to full."""
    pace, wanted = Pace(), 90.0 * MB
    history: list[tuple[float, float]] = []
    for second in range(400):
        others = 70.0 * MB if 100 <= second < 250 else 0.0
        rate = min(wanted, pace.rate_bytes_per_s or wanted)
        load = min(0.99, (rate + others) / (100 * MB))
        latency_ms = 8.0 / (1 - load) if load < 0.99 else 800.0
        pace = step(pace, latency_ms=latency_ms, bytes_per_s=rate)
        history.append((rate, latency_ms))
    alone, shared, freed = history[50:100], history[130:180], history[330:]
    assert all(rate == wanted for rate, _ in alone)
    assert sum(rate for rate, _ in shared) / 50 < 40 * MB
    assert sum(latency for _, latency in shared) / 50 < 800.0 / 2
    assert sum(rate for rate, _ in freed) / len(freed) == pytest.approx(wanted, rel=0.05)
