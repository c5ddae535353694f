"""Accesses are counted cheaply: one in so many, weighed by that, and sent together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.control.access import accesses
from rebalance_tasks.control.access.accesses import MOST_COUNTS, SAMPLE, AccessSampler
from rebalance_tasks.core.errors import ServerUnavailable
from rebalance_tasks.store.accesses import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


class Store:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.calls = 0

    def add(self, counts: Mapping[str, int]) -> None:
        self.calls += 1
        self.counts.update(counts)


def sampler(store: object, sample: int = SAMPLE) -> AccessSampler:
    return AccessSampler(store, sample=sample)  # type: ignore[arg-type]


@given(st.integers(2, 64))
def test_one_access_in_so_many_is_counted_and_weighed_so_that_the_sum_is_right(sample: int) -> None:
    store = Store()
    counted = sampler(store, sample)
    rounds = 4000
    for _ in range(rounds * sample // 4):
        for kind, key in ((READ, "often"), (READ, "often"), (READ, "often"), (WRITE, "seldom")):
            counted.note(kind, key)
    counted.send()
    total = rounds * sample
    # A gap between two samples is uniform over 1 … 2n − 1: its deviation is below 0.58 n, that of 4,000 gaps below 1 %.
    assert abs(sum(store.counts.values()) - total) < 0.08 * total
    assert abs(store.counts[READ + "often"] - 0.75 * total) < 0.12 * total
    assert all(count % sample == 0 for count in store.counts.values())


def test_nobody_is_asked_before_there_is_enough_to_send() -> None:
    store = Store()
    counted = sampler(store, sample=1)
    for number in range(MOST_COUNTS - 1):
        counted.note(READ, f"k{number}")
        counted.note(READ, f"k{number}")
    assert store.calls == 0
    counted.note(READ, "one more")
    assert store.calls == 1
    assert sum(store.counts.values()) == 2 * MOST_COUNTS - 1


def test_what_was_counted_is_sent_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    counted = sampler(store, sample=1)
    counted.note(READ, "k")
    monkeypatch.setattr(accesses, "SEND_EVERY_S", -1.0)
    counted.note(READ, "k")
    assert (store.calls, store.counts[READ + "k"]) == (1, 2)


def test_with_a_sample_of_0_nothing_is_counted() -> None:
    store = Store()
    counted = sampler(store, sample=0)
    for _ in range(100):
        counted.note(READ, "k")
    counted.send()
    assert store.calls == 0


def test_a_reader_does_not_fail_because_counts_cannot_be_sent() -> None:
    class Away:
        def add(self, _: Mapping[str, int]) -> None:
            why = "away"
            raise ServerUnavailable(why)

    counted = sampler(Away(), sample=1)
    counted.note(READ, "k")
    counted.send()
