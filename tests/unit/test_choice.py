"""Choosing between two ways by what whole stretches are found to cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from rebalance_tasks.core.pacing.choice import (
    CLEARLY,
    FIRST_LOOK,
    LEAST_TRIED,
    LOOK_EVERY,
    TRIED,
    Choice,
    to_try,
    tried,
    went,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Cost = float | None


class Run:
    """Batches that go by what is known; a way of no cost never brings one through."""

    def __init__(self, costs: Callable[[int], tuple[Cost, Cost]]) -> None:
        self.choice = Choice()
        self.costs = costs
        #: objects that went by each way
        self.taken = [0, 0]
        self.spent = 0.0

    def _go(self, way: int, objects: int) -> Cost:
        cost = self.costs(sum(self.taken))[way]
        self.taken[way] += objects
        self.spent += objects * (cost or 0.0)
        return cost

    def batches(self, *sizes: int) -> Run:
        for size in sizes:
            count = to_try(self.choice, size)
            if count:
                before, second, after = self._go(0, count // 2), self._go(1, count), self._go(0, count - count // 2)
                first = None if before is None or after is None else (before + after) / 2
                self.choice = tried(self.choice, (first, second))
            rest = size - 2 * count
            came_through = rest if self._go(self.choice.better, rest) is not None else 0
            self.choice = went(self.choice, rest, came_through)
        return self


def steady(first: Cost, second: Cost) -> Run:
    return Run(lambda _: (first, second))


COSTS = st.floats(0.01, 1e4)
BATCHES = st.lists(st.integers(0, 1024), min_size=1, max_size=80)


@given(first=COSTS, of_it=st.floats(0.1, 10), sizes=BATCHES)
def test_little_is_lost_against_always_taking_the_cheaper_way(first: float, of_it: float, sizes: Sequence[int]) -> None:
    run = steady(first, first * of_it).batches(*sizes)
    total = sum(sizes)
    trials = 2 + math.log2(1 + total / FIRST_LOOK) + total / LOOK_EVERY
    # What is too few to be tried goes by the way that is trusted.
    untried = (
        total if run.choice.trials == 0 else sum(sizes[: next(i for i, n in enumerate(sizes) if n >= 2 * LEAST_TRIED)])
    )
    best = min(first, first * of_it)
    lost = abs(first - first * of_it) * (trials * TRIED + untried) + (1 / CLEARLY - 1) * best * total
    assert run.spent <= best * total + lost * (1 + 1e-9)


@given(first=COSTS, of_it=st.floats(0.1, 0.94) | st.floats(0.96, 10))
def test_the_second_way_is_taken_where_it_is_clearly_cheaper(first: float, of_it: float) -> None:
    run = steady(first, first * of_it).batches(*[312] * 64)
    assert run.choice.better == int(of_it < CLEARLY)
    assert run.taken[1 - run.choice.better] <= 9 * TRIED


@given(cost=COSTS, barred=st.integers(0, 1))
def test_a_way_by_which_nothing_comes_through_is_only_tried(cost: float, barred: int) -> None:
    run = steady(*((None, cost) if barred == 0 else (cost, None))).batches(*[1024] * 40)
    assert run.choice.better != barred
    assert run.taken[barred] <= run.choice.trials * TRIED


@given(before=st.floats(0.2, 5), after=st.floats(0.2, 5), at=st.integers(0, 60_000))
def test_a_server_that_costs_otherwise_than_before_is_found_out(before: float, after: float, at: int) -> None:
    assume(abs(after - CLEARLY) > 0.15)
    run = Run(lambda gone: (1.0, before if gone < at else after))
    run.batches(*[500] * ((at + LOOK_EVERY + 20 * FIRST_LOOK) // 500 + 4))
    assert run.choice.better == int(after < CLEARLY)


@given(drift=st.floats(0.9, 1.1), of_it=st.sampled_from([0.88, 1.02]))
def test_a_server_that_grows_slower_all_the_time_speaks_for_neither(drift: float, of_it: float) -> None:
    scale = [1.0]

    def costs(_: int) -> tuple[float, float]:
        # Each stretch by so much slower than the one before.
        scale[0] = min(max(scale[0] * drift, 1e-200), 1e200)
        return scale[0], scale[0] * of_it

    run = Run(costs).batches(*[512] * 60)
    assert run.choice.better == int(of_it < CLEARLY)


def test_a_way_that_nothing_comes_through_any_more_is_left_at_once() -> None:
    closed = [False]
    run = Run(lambda _: (1.0, None if closed[0] else 0.5)).batches(*[512] * 4)
    assert run.choice.better == 1
    closed[0] = True
    run.batches(512, 512)
    assert run.choice.better == 0
    closed[0] = False
    assert run.batches(*[512] * 40).choice.better == 1


@given(sizes=st.lists(st.integers(0, 2 * LEAST_TRIED - 1), min_size=1, max_size=50))
def test_batches_too_small_to_tell_go_by_the_way_that_is_trusted(sizes: Sequence[int]) -> None:
    run = steady(1.0, 0.1).batches(*sizes)
    assert run.taken == [sum(sizes), 0]
