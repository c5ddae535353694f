"""Choosing between two ways by what they are found to cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.choice import CLEARLY, LOOK_EVERY, TRIALS, Choice, asked, told


def run(choice: Choice, costs_ms: tuple[float | None, float | None], objects: int) -> tuple[Choice, list[int]]:
    """Send objects; a way of no cost never brings one through. Return what is known, and the ways that were taken."""
    taken = []
    for _ in range(objects):
        way, is_trial, choice = asked(choice)
        taken.append(way)
        cost = costs_ms[way]
        if is_trial and cost is not None:
            choice = told(choice, way, took_ms=cost)
    return choice, taken


COSTS = st.floats(0.01, 1e4)


@given(first=COSTS, of_it=st.floats(0.1, 0.94) | st.floats(0.96, 10))
def test_the_second_way_is_taken_where_it_is_clearly_cheaper_and_the_other_is_looked_at(
    first: float, of_it: float
) -> None:
    costs = first, first * of_it
    choice, _ = run(Choice(), costs, 2 * TRIALS)
    _, taken = run(choice, costs, 10 * LOOK_EVERY)
    assert taken.count(int(of_it < CLEARLY)) == 10 * (LOOK_EVERY - 1)


@given(cost=COSTS, barred=st.integers(0, 1))
def test_a_way_by_which_nothing_comes_through_is_only_looked_at(cost: float, barred: int) -> None:
    costs = (None, cost) if barred == 0 else (cost, None)
    choice, _ = run(Choice(), costs, 2 * TRIALS)
    _, taken = run(choice, costs, 4 * LOOK_EVERY)
    assert taken.count(barred) == 4


def test_a_way_that_becomes_cheaper_is_found_again() -> None:
    choice, _ = run(Choice(), (1.0, 2.0), 10 * LOOK_EVERY)
    assert choice.better == 0
    choice, _ = run(choice, (1.0, 0.1), 200 * LOOK_EVERY)
    assert choice.better == 1


@given(drift=st.floats(1.001, 1.1))
def test_a_node_that_grows_slower_all_the_time_does_not_mislead(drift: float) -> None:
    choice, scale = Choice(), 1.0
    for turn in range(3000):
        way, is_trial, choice = asked(choice)
        scale *= drift if turn < 1000 else 1 / drift
        scale = min(max(scale, 1e-3), 1e12)
        if is_trial:
            choice = told(choice, way, took_ms=scale * (1.0, 0.8)[way])
    assert choice.better == 1
