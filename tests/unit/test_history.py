"""The checker that judges readers and writers tells a register from what only looks like one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.support.history import Op, Step, linearizable, steps_of, violations


def read(begun: float, ended: float, value: str | None) -> Op:
    return Op("k", "read", begun, ended, value)


def write(begun: float, ended: float, value: str, error: str = "") -> Op:
    return Op("k", "write", begun, ended, value, error)


def judged(*ops: Op) -> bool:
    return linearizable(steps_of(ops), "0")


def test_a_read_sees_the_last_write_that_had_ended_or_one_that_overlaps_it() -> None:
    assert judged(write(0, 1, "1"), read(2, 3, "1"))
    assert judged(write(0, 3, "1"), read(1, 2, "0"), read(2.5, 4, "1"))
    assert not judged(write(0, 1, "1"), read(2, 3, "0"))


def test_a_value_never_comes_back() -> None:
    assert not judged(write(0, 9, "1"), read(1, 2, "1"), read(3, 4, "0"))
    assert not judged(write(0, 1, "1"), write(2, 3, "2"), read(4, 5, "2"), read(6, 7, "1"))


def test_a_lost_write_shows() -> None:
    assert not judged(write(0, 1, "1"), write(2, 3, "2"), read(4, 5, "1"))


def test_a_change_that_failed_may_have_been_made_at_any_time_or_never() -> None:
    assert judged(write(0, 1, "1", "OSError"), read(2, 3, "0"), read(4, 5, "1"))
    assert judged(write(0, 1, "1", "OSError"), read(2, 3, "0"))
    assert not judged(write(0, 1, "1", "OSError"), read(2, 3, "1"), read(4, 5, "0"))


def test_what_was_removed_is_missing_afterwards() -> None:
    removed = Op("k", "remove", 0, 1)
    assert judged(removed, read(2, 3, None))
    assert not judged(removed, read(2, 3, "0"))
    assert len(violations([removed, read(2, 3, "0")], {"k": "0"})) == 1


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Up to six overlapping steps over two values."""
    steps = []
    for _ in range(draw(st.integers(0, 6))):
        begun = draw(st.integers(0, 12))
        ended = begun + draw(st.integers(1, 6))
        steps.append(Step(begun, ended, draw(st.booleans()), draw(st.sampled_from(["0", "1"])), False))
    return sorted(steps)


@given(histories())
def test_the_search_agrees_with_trying_every_order(steps: list[Step]) -> None:
    def fits(order: tuple[Step, ...]) -> bool:
        held = "0"
        for place, step in enumerate(order):
            if any(later.ended < step.begun for later in order[place + 1 :]):
                return False
            if step.reads and step.value != held:
                return False
            held = held if step.reads else str(step.value)
        return True

    assert linearizable(steps, "0") == any(fits(order) for order in itertools.permutations(steps))
