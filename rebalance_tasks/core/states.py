"""The state machines of jobs, groups and moves: one table each, drawn once.

Every Lua script that changes a state takes its allowed origins from these tables, so a state changes by compare-and-set
along an arrow drawn here or not at all.

Jobs and groups (the same six states)::

                     ┌────────────── cancel ───────────────┐
                     │                                     ▼
      ┌─────────┐  admit  ┌─────────┐  last move   ┌───────────┐
      │ pending ├────────▶│ running ├─────────────▶│ completed │      cancelled: an operator stopped it
      └──┬───┬──┘         └──┬───▲──┘  terminal    └───────────┘      failed: nothing could be moved,
         │   │ pause   pause │   │ resume (last reason lifted)                or the job broke
         │   └──────┐        ▼   │
         │          └────▶┌──────┴──┐
         │                │ paused  ├─ cancel ─▶ cancelled     (a paused job whose last lease has ended may
         └─ cancel ─▶ …   └─────────┘            still complete: what was published is finished, never torn)

Moves::

      pending ──flip──▶ flipped ──settle──▶ completed
         │                 │ retract (the source changed after all)
         │                 └──▶ pending
         ├──settle──▶ failed        (with a cause)
         └──settle──▶ skipped       (vanished, stale plan, cancelled …)
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class RebalanceStatus(StrEnum):
    """State of a job, and of each of its groups."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow this state."""
        return self in TERMINAL


class MoveState(StrEnum):
    """State of one move; the value is the one byte that Redis keeps per move."""

    PENDING = "p"
    FLIPPED = "l"
    COMPLETED = "c"
    FAILED = "f"
    SKIPPED = "s"

    @property
    def terminal(self) -> bool:
        """Whether the move has been counted."""
        return self in {MoveState.COMPLETED, MoveState.FAILED, MoveState.SKIPPED}


TERMINAL: Final[frozenset[RebalanceStatus]] = frozenset(
    {RebalanceStatus.COMPLETED, RebalanceStatus.FAILED, RebalanceStatus.CANCELLED},
)

#: state -> states that may follow it (jobs and groups).
TRANSITIONS: Final[Mapping[RebalanceStatus, frozenset[RebalanceStatus]]] = MappingProxyType(
    {
        RebalanceStatus.PENDING: frozenset(
            {RebalanceStatus.RUNNING, RebalanceStatus.PAUSED, *TERMINAL},
        ),
        RebalanceStatus.RUNNING: frozenset({RebalanceStatus.PAUSED, *TERMINAL}),
        RebalanceStatus.PAUSED: frozenset({RebalanceStatus.RUNNING, *TERMINAL}),
        RebalanceStatus.COMPLETED: frozenset(),
        RebalanceStatus.FAILED: frozenset(),
        RebalanceStatus.CANCELLED: frozenset(),
    },
)

#: state -> states that may follow it (moves).
MOVE_TRANSITIONS: Final[Mapping[MoveState, frozenset[MoveState]]] = MappingProxyType(
    {
        MoveState.PENDING: frozenset({MoveState.FLIPPED, MoveState.FAILED, MoveState.SKIPPED}),
        MoveState.FLIPPED: frozenset({MoveState.PENDING, MoveState.COMPLETED}),
        MoveState.COMPLETED: frozenset(),
        MoveState.FAILED: frozenset(),
        MoveState.SKIPPED: frozenset(),
    },
)


def origins(status: RebalanceStatus) -> frozenset[RebalanceStatus]:
    """Return the states from which ``status`` may be entered."""
    return frozenset(state for state, following in TRANSITIONS.items() if status in following)


def move_origins(state: MoveState) -> frozenset[MoveState]:
    """Return the move states from which ``state`` may be entered."""
    return frozenset(before for before, following in MOVE_TRANSITIONS.items() if state in following)
