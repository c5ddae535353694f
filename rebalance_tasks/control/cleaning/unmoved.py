"""Moves of an ended job that did not reach their target: cleanup looks whether they left a copy there all the same.

A job keeps no list of a stretch of which nothing was left to do when it began. It may have begun before, in a life of Redis that is
forgotten, and have left copies; so those moves are read from its plan, which is cut into groups in the same way each time.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from rebalance_tasks.core.errors import JobNotFound, PlanNotFound
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.versions import NewerVersion
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)


class Unmoved(NamedTuple):
    """A move that failed or was skipped."""

    move_id: MoveId
    key: str
    source: str
    target: str


def unmoved(context: FleetContext, job_id: str) -> Iterator[Unmoved]:
    """Yield the moves of an ended job that failed or were skipped, as far as the job or its plan still lists them."""
    states = context.outcomes.states(job_id)
    left = {index for index, state in enumerate(states) if state in {MoveState.FAILED, MoveState.SKIPPED}}
    kept = context.outcomes.moves(job_id, left)
    for index, move in kept.items():
        yield Unmoved(MoveId(f"{job_id}.{index}"), move.key, move.group.source, move.group.target)
    if left - kept.keys():
        yield from _planned(context, job_id, sorted(left - kept.keys()), total=len(states))


def _planned(context: FleetContext, job_id: str, indices: list[int], *, total: int) -> Iterator[Unmoved]:
    """Yield moves by their indices in the job, from its plan."""
    try:
        _, moves = context.plans.load_columns(context.jobs.load(job_id).plan_id)
    except (JobNotFound, PlanNotFound, NewerVersion) as exc:
        log.debug("unmoved.unlisted", job_id=job_id, moves=len(indices), why=str(exc))
        return
    pairs, order, ends = moves.in_groups()
    if len(order) != total:  # another plan was kept under that name since
        return
    for index in indices:
        yield Unmoved(MoveId(f"{job_id}.{index}"), moves.key(int(order[index])), *pairs[bisect_right(ends, index)])
