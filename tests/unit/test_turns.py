"""Fleets that share workers take turns by their priorities: nobody waits for ever, nobody saves turns up, and a turn counts for its length."""

from __future__ import annotations

import heapq
from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.pacing.turns import HIGHEST_PRIORITY, Shares, Turns
from rebalance_tasks.core.routes import PLAIN_QUEUES, BrokerQueues, fleet_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST_MS = 20_000
PRIORITIES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, HIGHEST_PRIORITY), min_size=2)


def data(fleet: str, queue: str = "rebalance.data") -> str:
    return BrokerQueues(fleet).named(queue)


def taking(priorities: dict[str, int], queues: Iterable[str] | None = None) -> Turns:
    turns = Shares(priorities)()
    turns.update([data(fleet) for fleet in priorities] if queues is None else queues)
    return turns


def take(turns: Turns, waiting: Sequence[str]) -> str:
    """What BRPOP does: the first queue in the order in which something waits."""
    order = turns.consume(1000)
    return turns.rotate(next(queue for queue in order if queue in waiting))


@given(PRIORITIES, st.lists(st.sets(st.sampled_from("abcdef")), max_size=60), st.data())
def test_while_two_fleets_have_work_neither_gets_a_turn_more_than_its_share(
    priorities: dict[str, int], working: list[set[str]], drawn: st.DataObject
) -> None:
    """Theorem 1 of the paper: in any stretch of time the shares of two fleets differ by a turn of each at most."""
    one, other = drawn.draw(st.permutations(sorted(priorities)))[:2]
    turns = taking(priorities)
    taken: list[str] = []
    for some in working:
        fleets = (some & priorities.keys()) | {one, other}
        taken.append(fleet_of(take(turns, [data(fleet) for fleet in fleets])))
    start = drawn.draw(st.integers(0, len(taken)))
    count = Counter(taken[start:])
    share = {fleet: Fraction(count[fleet], priorities[fleet]) for fleet in (one, other)}
    assert abs(share[one] - share[other]) <= Fraction(1, priorities[one]) + Fraction(1, priorities[other])


@given(PRIORITIES)
def test_over_many_turns_each_fleet_gets_what_its_priority_says(priorities: dict[str, int]) -> None:
    turns = taking(priorities)
    total = sum(priorities.values())
    count = Counter(fleet_of(take(turns, [data(fleet) for fleet in priorities])) for _ in range(total))
    assert count == priorities


@given(PRIORITIES, st.data())
def test_no_fleet_waits_longer_than_the_priorities_of_the_others_say(
    priorities: dict[str, int], drawn: st.DataObject
) -> None:
    late = drawn.draw(st.sampled_from(sorted(priorities)))
    turns = taking(priorities)
    others = [fleet for fleet in priorities if fleet != late]
    for _ in range(drawn.draw(st.integers(0, 50))):
        take(turns, [data(fleet) for fleet in others])
    waited = 0
    while fleet_of(take(turns, [data(fleet) for fleet in priorities])) != late:
        waited += 1
    # Whoever begins starts where the turn that was taken last did: before it are those that are to start there as well.
    assert waited <= len(others)


# -- what a turn counts for -------------------------------------------------------------------------------------------
@given(PRIORITIES, st.lists(st.integers(0, LONGEST_MS), min_size=1, max_size=60), st.data())
def test_while_two_fleets_have_work_their_shares_of_the_time_are_what_their_priorities_say(
    priorities: dict[str, int], lengths: list[int], drawn: st.DataObject
) -> None:
    """Theorem 1 once more, where turns differ in length and nobody knows it before they end."""
    one, other = drawn.draw(st.permutations(sorted(priorities)))[:2]
    most_ms = {one: drawn.draw(st.sampled_from([1, 1_000, LONGEST_MS])), other: LONGEST_MS}
    shares = Shares(priorities)
    turns = shares()
    turns.update([data(fleet) for fleet in priorities])
    taken: list[tuple[str, int]] = []
    for length in lengths:
        queue = take(turns, [data(one), data(other)])
        taken.append((fleet_of(queue), length % (most_ms[fleet_of(queue)] + 1)))
        shares.end(queue, taken[-1][1])
    start = drawn.draw(st.integers(0, len(taken)))
    had = {fleet: sum(took for who, took in taken[start:] if who == fleet) for fleet in (one, other)}
    share = {fleet: Fraction(had[fleet], priorities[fleet]) for fleet in (one, other)}
    assert abs(share[one] - share[other]) <= sum(Fraction(most_ms[fleet], priorities[fleet]) for fleet in (one, other))


@pytest.mark.parametrize("priorities", [{"short": 1, "long": 1}, {"short": 4, "long": 1}, {"short": 1, "long": 4}])
@pytest.mark.parametrize("processes", [1, 2, 8])
def test_a_fleet_of_short_turns_gets_its_share_of_several_processes(priorities: dict[str, int], processes: int) -> None:
    """Counted by turns it would get a twentieth of what it is due."""
    lengths = {"short": LONGEST_MS // 20, "long": LONGEST_MS}
    shares = Shares(priorities)
    turns = shares()
    queues = [data(fleet) for fleet in priorities]
    turns.update(queues)
    had: Counter[str] = Counter()
    running: list[tuple[int, int, str]] = []
    now = number = 0
    while now < 50 * LONGEST_MS:
        while len(running) < processes:
            number += 1
            queue = take(turns, queues)
            heapq.heappush(running, (now + lengths[fleet_of(queue)], number, queue))
        now, _, queue = heapq.heappop(running)
        shares.end(queue, lengths[fleet_of(queue)])
        had[fleet_of(queue)] += lengths[fleet_of(queue)]
    due = priorities["short"] / sum(priorities.values())
    assert had["short"] / had.total() == pytest.approx(due, abs=0.1)


def test_turns_are_counted_for_all_connections_of_a_worker_and_only_of_data() -> None:
    shares = Shares({"a": 1, "b": 1})
    first = shares()
    first.update([data("a"), data("b")])
    assert take(first, [data("a")]) == data("a")
    shares.end(data("a"), 10)
    shares.end(data("a", "rebalance.control"), 10**9)
    shares.end("celery", 10**9)
    # The connection was lost; the next one's order goes on where this one was.
    second = shares()
    second.update([data("a"), data("b")])
    assert take(second, [data("a"), data("b")]) == data("b")
    shares.end(data("b"), 20)
    assert take(second, [data("a"), data("b")]) == data("a")


def test_a_fleet_that_had_no_work_has_saved_up_no_turns() -> None:
    turns = taking({"a": 1, "b": 1})
    for _ in range(100):
        take(turns, [data("a")])
    both = [data("a"), data("b")]
    assert Counter(fleet_of(take(turns, both)) for _ in range(10)) == {"a": 5, "b": 5}


def test_a_fleet_of_higher_priority_gets_the_next_turn_when_its_work_begins() -> None:
    turns = taking({"low": 1, "high": 5})
    for _ in range(7):
        take(turns, [data("low")])
    assert take(turns, [data("low"), data("high")]) == data("high")


def test_control_and_data_come_in_turn_however_many_messages_of_data_wait() -> None:
    control = data("a", "rebalance.control")
    turns = taking({"a": 9, "b": 1}, [control, data("a"), data("b"), "celery"])
    kinds = [take(turns, [control, data("a"), data("b"), "celery"]) for _ in range(9)]
    assert kinds.count(control) == kinds.count("celery") == 3


def test_several_queues_of_one_fleet_share_its_turns() -> None:
    queues = [data("a"), data("a", "rebalance.data.h1"), data("b")]
    turns = taking({"a": 1, "b": 1}, queues)
    assert Counter(take(turns, queues) for _ in range(8)) == {queues[0]: 2, queues[1]: 2, queues[2]: 4}


def test_a_queue_that_is_served_no_more_is_asked_no_more() -> None:
    turns = taking({"a": 1, "b": 1})
    take(turns, [data("a")])
    turns.update([data("b")])
    assert turns.consume(5) == [data("b")]


# -- names on the broker ----------------------------------------------------------------------------------------------
def test_queues_of_a_fleet_that_shares_workers_bear_its_name_and_no_other_fleet_takes_them_for_its_own() -> None:
    ours, theirs = BrokerQueues("a"), BrokerQueues("b")
    assert ours.named("rebalance.data.h1") == "rebalance.data.h1@a"
    on_broker = [*map(ours.named, ("rebalance.control", "rebalance.data.h1")), theirs.named("rebalance.data"), "celery"]
    assert ours.own(on_broker) == ["rebalance.control", "rebalance.data.h1"]
    assert theirs.own(on_broker) == ["rebalance.data"]


@pytest.mark.parametrize("queue", ["rebalance.control", "rebalance.data", "rebalance.data.h1"])
def test_a_fleet_that_shares_none_has_the_plain_names(queue: str) -> None:
    assert PLAIN_QUEUES.named(queue) == queue
    assert PLAIN_QUEUES.own([queue, "celery"]) == [queue, "celery"]
    assert fleet_of(queue) == ""
