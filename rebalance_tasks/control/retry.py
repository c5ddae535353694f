"""A retry: a plan of the moves of an ended job that failed, started as a job of its own under a name that follows.

The job that failed stays as it ended: its counts are final (invariant 3). The retry's id is a function of it, so asking
twice is one retry.
"""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.start import start_job
from rebalance_tasks.core.errors import InvalidArgument, MoveError, PlanNotFound, UnknownNode
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.store.outcomes import PlannedMove

log = get_logger(__name__)

#: Why moves are skipped that may well go another time; what was deleted or planned on a wrong picture is not among them.
TRANSIENT: Final = frozenset({"budget_egress", "budget_cost", "budget_cost_day", "source_changed", "cancelled"})
_SUFFIX: Final = re.compile(r"^(?P<first>.+)-retry(?P<number>\d+)(?:-skipped)?$")
#: An id holds at most 128 characters; a longer name is cut and told apart by a digest.
_MOST: Final = 100
_GB: Final = 10**9


def retry_failed(context: FleetContext, job_id: str, *, skipped: bool = False, requested_by: str = "") -> RebalanceJob:
    """Start the failed moves of an ended job again.

    Args:
        context: the fleet.
        job_id: the job that ended.
        skipped: also the moves that were skipped for a cause that passes (`TRANSIENT`).
        requested_by: who asks, kept with the new job.

    Returns:
        The new job, or the one that an earlier call started.

    Raises:
        JobNotFound, JobActive (another job runs).
        InvalidArgument: the job has not ended, nothing failed, or nothing of it is left to move.
        NodeError: a source cannot be reached.
    """
    job = context.jobs.load(job_id)
    if not job.status.terminal:
        msg = f"job {job_id!r} is {job.status.value}: only what has ended can be retried; `rebalance watch {job_id}` follows it"
        raise InvalidArgument(msg)
    retry_id = retry_job_id(job_id, skipped=skipped)
    if context.jobs.exists(retry_id):
        return context.jobs.load(retry_id)
    chosen = _chosen(context, job_id, skipped=skipped)
    if not chosen:
        raise InvalidArgument(_nothing(job, skipped=skipped))
    plan = _plan(context, job, chosen, plan_id=retry_id)
    if not plan.moves:
        gone = ", ".join(f"{why} {count}" for why, count in plan.not_moved.items())
        msg = f"nothing of job {job_id!r} is left to move ({gone}); `rebalance check` plans anew"
        raise InvalidArgument(msg)
    log.info("job.retry", job_id=job_id, retry_id=retry_id, moves=len(plan.moves))
    return start_job(context, plan, job_id=retry_id, requested_by=requested_by)


def retry_job_id(job_id: str, *, skipped: bool = False) -> str:
    """Id of the retry of a job: ``<job>-retry1``, whose own retry is ``<job>-retry2``."""
    match = _SUFFIX.match(job_id)
    first, number = (match["first"], int(match["number"])) if match else (job_id, 0)
    if len(first) > _MOST:
        digest = hashlib.blake2b(first.encode(), digest_size=6).hexdigest()
        first = f"{first[: _MOST - len(digest) - 1]}-{digest}"
    return f"{first}-retry{number + 1}" + ("-skipped" if skipped else "")


def _chosen(context: FleetContext, job_id: str, *, skipped: bool) -> list[PlannedMove]:
    """The moves to try again, in their order."""
    states = context.outcomes.states(job_id)
    indices = {index for index, state in enumerate(states) if state is MoveState.FAILED}
    if skipped:
        indices |= _passing(context, job_id, states)
    moves = context.outcomes.moves(job_id, indices)
    return [moves[index] for index in sorted(moves)]


def _passing(context: FleetContext, job_id: str, states: list[MoveState]) -> set[int]:
    """Skipped moves whose cause passes. A group that a cancel kept from starting noted none: start verifies its moves again."""
    noted = {outcome.index: outcome.cause for outcome in context.outcomes.of(job_id)}
    cancelled = "cancelled" in context.jobs.load(job_id).failures
    skipped = (index for index, state in enumerate(states) if state is MoveState.SKIPPED)
    return {index for index in skipped if noted.get(index, "cancelled" if cancelled else "") in TRANSIENT}


def _nothing(job: RebalanceJob, *, skipped: bool) -> str:
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(job.failures.items()))
    told = f" ({causes})" if causes else ""
    if skipped:
        return f"job {job.job_id!r}: no move failed or was skipped for a cause that passes{told}"
    more = "; --skipped also takes those whose cause passes" if job.skipped_moves else ""
    return f"job {job.job_id!r}: no move failed, {job.skipped_moves} were skipped{told}{more}"


def _plan(context: FleetContext, job: RebalanceJob, chosen: Iterable[PlannedMove], *, plan_id: str) -> RebalancePlan:
    """A plan of these moves, with the sizes of now and what the first plan, where it is kept, said of them."""
    try:
        known = {
            (move.object_key, move.source_node, move.target_node): move
            for move in context.plans.load(job.plan_id).moves
        }
    except PlanNotFound:
        known = {}
    moves: list[RebalanceMove] = []
    left_out: dict[str, int] = {}
    for planned in chosen:
        found = _size_now(context, planned)
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + 1
            continue
        group = planned.group
        before = known.get((planned.key, group.source, group.target))
        moves.append(
            RebalanceMove(
                object_key=planned.key,
                source_node=group.source,
                target_node=group.target,
                size_bytes=found,
                priority=0 if before is None else before.priority,
                gravity=0.0 if before is None else before.gravity,
                cost=Decimal(group.cost_per_gb) * found / _GB,
                reason=f"retry of {job.job_id}",
            )
        )
    spread = job.imbalance_after or 0.0
    return RebalancePlan(
        plan_id=plan_id,
        fleet=context.settings.fleet,
        # Every source was looked at just now.
        epoch=context.fleet.epoch(),
        created_utc=context.now(),
        moves=tuple(moves),
        estimated_egress_bytes=sum(move.size_bytes for move in moves),
        estimated_cost=sum((move.cost for move in moves), Decimal(0)),
        imbalance_before=spread,
        imbalance_after=spread,
        not_moved=left_out,
    )


def _size_now(context: FleetContext, planned: PlannedMove) -> int | str:
    """Size of the source now, or why it cannot be moved."""
    try:
        found = context.driver(planned.group.source).stat(planned.key)
    except UnknownNode:
        return "unknown_node"
    except MoveError as exc:
        return exc.cause
    return "source_gone" if found is None else found.size_bytes
