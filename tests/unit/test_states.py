"""The state tables of jobs, groups and moves."""

from __future__ import annotations

import re
from itertools import product

import pytest

from rebalance_tasks.core import states
from rebalance_tasks.core.states import (
    MOVE_TRANSITIONS,
    TERMINAL,
    TRANSITIONS,
    MoveState,
    RebalanceStatus,
    move_origins,
    origins,
)

S = RebalanceStatus
M = MoveState


def test_every_status_has_a_row() -> None:
    assert set(TRANSITIONS) == set(RebalanceStatus)
    assert set(MOVE_TRANSITIONS) == set(MoveState)


def test_the_six_statuses_are_those_of_the_design() -> None:
    assert [str(status) for status in RebalanceStatus] == [
        "pending",
        "running",
        "paused",
        "completed",
        "failed",
        "cancelled",
    ]


def test_terminal_states_and_only_they_have_no_exit() -> None:
    assert {status for status, following in TRANSITIONS.items() if not following} == TERMINAL
    assert {status for status in RebalanceStatus if status.terminal} == TERMINAL == {S.COMPLETED, S.FAILED, S.CANCELLED}
    counted = {state for state in MoveState if state.terminal}
    assert {state for state, following in MOVE_TRANSITIONS.items() if not following} == counted
    assert counted == {M.COMPLETED, M.FAILED, M.SKIPPED}


@pytest.mark.parametrize(
    ("before", "after", "allowed"),
    [
        (S.PENDING, S.RUNNING, True),
        (S.PENDING, S.PAUSED, True),
        (S.PENDING, S.CANCELLED, True),
        (S.RUNNING, S.PAUSED, True),
        (S.PAUSED, S.RUNNING, True),
        (S.PAUSED, S.CANCELLED, True),
        (S.PAUSED, S.COMPLETED, True),
        (S.RUNNING, S.PENDING, False),
        (S.PAUSED, S.PENDING, False),
        (S.CANCELLED, S.RUNNING, False),
        (S.COMPLETED, S.CANCELLED, False),
        (S.FAILED, S.RUNNING, False),
    ],
)
def test_jobs_go_along_the_arrows_only(before: RebalanceStatus, after: RebalanceStatus, allowed: bool) -> None:
    assert (after in TRANSITIONS[before]) is allowed


def test_no_state_follows_itself() -> None:
    assert not [state for state, following in TRANSITIONS.items() if state in following]
    assert not [move for move, after in MOVE_TRANSITIONS.items() if move in after]


def test_every_state_but_the_first_can_be_reached() -> None:
    assert set().union(*TRANSITIONS.values()) == set(RebalanceStatus) - {S.PENDING}
    assert set().union(*MOVE_TRANSITIONS.values()) == set(MoveState)


def test_origins_are_the_table_read_backwards() -> None:
    for before, after in product(RebalanceStatus, repeat=2):
        assert (before in origins(after)) == (after in TRANSITIONS[before])
    for earlier, later in product(MoveState, repeat=2):
        assert (earlier in move_origins(later)) == (later in MOVE_TRANSITIONS[earlier])
    assert move_origins(M.COMPLETED) == {M.FLIPPED}


def test_a_flipped_move_can_be_neither_failed_nor_skipped() -> None:
    # Published and flipped, it is where readers look: it is finished, or taken back first.
    assert MOVE_TRANSITIONS[M.FLIPPED] == {M.PENDING, M.COMPLETED}


def test_a_move_state_is_one_byte_and_all_differ() -> None:
    assert all(len(state.value.encode()) == 1 for state in MoveState)
    assert len({state.value for state in MoveState}) == len(MoveState)


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[S.COMPLETED] = frozenset({S.RUNNING})  # type: ignore[index]


def test_the_diagram_mentions_each_state() -> None:
    words = set(re.findall(r"[a-z]+", states.__doc__ or ""))
    assert {status.value for status in RebalanceStatus} <= words
    assert {state.name.lower() for state in MoveState} <= words
