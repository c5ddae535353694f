"""Fleets that share workers take turns by their priorities: nobody waits for ever, and nobody saves turns up."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.routes import PLAIN_QUEUES, BrokerQueues, fleet_of
from rebalance_tasks.core.turns import HIGHEST_PRIORITY, Turns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PRIORITIES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, HIGHEST_PRIORITY), min_size=2)


def data(fleet: str, queue: str = "rebalance.data") -> str:
    return BrokerQueues(fleet).named(queue)


def taking(priorities: dict[str, int], queues: Iterable[str] | None = None) -> Turns:
    turns = Turns(priorities)
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
