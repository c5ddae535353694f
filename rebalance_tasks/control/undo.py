"""The way back of a whole job: what it completed, planned in the other direction and kept like any other plan.

A job that ended is never reopened (invariant 3): its undo is a plan of its own, started by `start`, verified like any
other. (`rebalance_tasks.migration.undo` is another thing: it takes back the half-made copy of one move.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rebalance_tasks.control.carrying import with_losses
from rebalance_tasks.control.check import left_today
from rebalance_tasks.control.custody import entries_of
from rebalance_tasks.control.surveying.waited import all_seen
from rebalance_tasks.core.errors import InvalidArgument, JobActive
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.core.undo import Made, WayBack, plan_way_back
from rebalance_tasks.core.verify import verify_plan
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)


def plan_undo(context: FleetContext, job_id: str) -> WayBack:
    """Plan the way back of a job that has ended; the plan is kept, not started.

    Only what the job completed, and of that only objects that are still where it put them, as it put them.

    Args:
        context: the fleet.
        job_id: the job.

    Returns:
        The plan, and why the rest of what was completed stays.

    Raises:
        JobNotFound; JobActive: a job is moving objects about.
        InvalidArgument: the job has not ended, completed nothing, or nothing of it can be taken back.
        NodeError: a node is missing: nothing is planned from half an inventory. RetryableError: a check has the nodes looked at.
    """
    job = context.jobs.load(job_id)
    if not job.status.terminal:
        msg = f"job {job_id!r} is {job.status.value}: only what has ended can be undone; `rebalance cancel {job_id}` ends it"
        raise InvalidArgument(msg)
    active = context.jobs.active()
    if active is not None:
        raise JobActive(active)
    made = _made(context, job_id)
    if not made:
        msg = f"job {job_id!r} completed no move; there is nothing to take back"
        raise InvalidArgument(msg)
    seen = all_seen(context)
    context.fleet.set_usage(seen.inventory.used_bytes())
    settings, now = context.settings, context.now()
    prices = settings.price_matrix
    back = plan_way_back(
        seen.nodes,
        seen.inventory,
        made,
        options=settings.options,
        job_id=job_id,
        now=now,
        fleet=settings.fleet,
        epoch=context.fleet.epoch(),
        prices=prices,
        remaining_cost_today=left_today(context),
        ended=job.completed_utc,
    )
    if not back.plan.moves:
        why = ", ".join(f"{reason} {count}" for reason, count in back.left.items())
        msg = f"nothing of job {job_id!r} can be taken back ({why})"
        raise InvalidArgument(msg)
    verify_plan(back.plan, seen.nodes, seen.inventory, settings.options, prices=prices, now=now)
    back = replace(back, plan=with_losses(back.plan, settings.nodes))
    context.plans.save(back.plan, fence=None)
    log.info("job.undo_planned", job_id=job_id, plan_id=back.plan.plan_id, moves=len(back.plan.moves))
    return back


def _made(context: FleetContext, job_id: str) -> list[Made]:
    """The moves that the job completed, in its order, with what the manifests say of their copies."""
    states = context.outcomes.states(job_id)
    completed = {index for index, state in enumerate(states) if state is MoveState.COMPLETED}
    moves = context.outcomes.moves(job_id, completed)
    published = entries_of(context, {f"{job_id}.{index}" for index in moves})
    made: list[Made] = []
    for index in sorted(moves):
        move = moves[index]
        entry = published.get(f"{job_id}.{index}")
        fingerprint = None if entry is None else entry.published_fingerprint()
        made.append(
            Made(
                key=move.key,
                source=move.group.source,
                target=move.group.target,
                # A source that grew while it was moved was copied again: the manifest knows how large it ended.
                size_bytes=move.size_bytes if fingerprint is None else fingerprint.size_bytes,
                mtime_ns=None if fingerprint is None else fingerprint.mtime_ns,
            )
        )
    return made
