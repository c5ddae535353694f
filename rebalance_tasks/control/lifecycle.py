"""Pause, resume, cancel, finish: flags and counts in Redis first, messages as hints after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.control.start import admit
from rebalance_tasks.core.errors import JobNotFound
from rebalance_tasks.core.models import ControlResult, NodeState
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.store.connection import Call
    from rebalance_tasks.store.jobs import Finished
    from rebalance_tasks.store.records import GroupRecord

log = get_logger(__name__)

#: Reason to pause that belongs to whoever calls pause and resume.
OPERATOR: Final = "operator"
#: Reason to pause that belongs to the sweep.
QUIET_HOURS: Final = "quiet_hours"
#: What counting a group answers when it is terminal; of those that are not, or that are unknown, nothing is counted.
_ENDED: Final = frozenset({"finished", "already"})


def pause(context: FleetContext, job_id: str, *, reason: str = OPERATOR, by: str = "") -> ControlResult:
    """Pause a job for a reason; runners see the flag within 100 ms and park. Raises: JobNotFound."""
    code, status = context.jobs.pause(job_id, reason=reason, by=by)
    log.info("job.pause", job_id=job_id, reason=reason, code=code)
    why = {"terminal": f"the job is {status} and cannot be paused", "cancelling": "the job is being cancelled"}
    return ControlResult(job_id=job_id, status=RebalanceStatus(status), reason=why.get(code, ""))


def resume(context: FleetContext, job_id: str, *, reason: str = OPERATOR, by: str = "") -> ControlResult:
    """Lift one reason; when none is left, wake every group that holds a permit. Raises: JobNotFound."""
    code, status, left = context.jobs.resume(job_id, reason=reason, by=by)
    log.info("job.resume", job_id=job_id, reason=reason, code=code)
    if code == "resumed":
        wake(context, job_id)
        if admit(context, job_id):
            status = context.jobs.load(job_id).status  # a job that was paused before its first group runs now
    why = {
        "terminal": f"the job is {status} and cannot be resumed",
        "held": f"still paused by {', '.join(left)}",
        "not_paused": "the job is not paused",
    }
    return ControlResult(job_id=job_id, status=RebalanceStatus(status), reason=why.get(code, ""))


def cancel(context: FleetContext, job_id: str, *, requested_by: str) -> ControlResult:
    """Ask a job to stop; it is ``cancelled`` when its last lease has ended. Raises: JobNotFound."""
    code, status, left, waiting = context.jobs.cancel(job_id, by=requested_by)
    log.info("job.cancel", job_id=job_id, code=code, groups_left=left)
    if code == "terminal":
        return ControlResult(job_id=job_id, status=RebalanceStatus(status), reason=f"the job is {status} already")
    wake(context, job_id)
    _wake(context, job_id, waiting)
    if left == 0:
        finalize(context, job_id)
    reason = "" if code == "requested" else "a cancel was requested before"
    return ControlResult(job_id=job_id, status=context.jobs.load(job_id).status, reason=reason)


def wake(context: FleetContext, job_id: str) -> None:
    """Publish the headers of all groups that hold a permit, but for those that run or whose message is still out."""
    _wake(context, job_id, context.jobs.permits(job_id))


def _wake(context: FleetContext, job_id: str, group_ids: Iterable[str]) -> None:
    for group_id in group_ids:
        if context.jobs.redrive(job_id, group_id) != "publish":
            continue
        group = context.jobs.group(job_id, group_id)
        if group is not None:
            context.messenger.publish_group(job_id, group)


def finish_group(context: FleetContext, job_id: str, group_id: str) -> bool:
    """Count a terminal group, give its permit to the next one; False while the group is not terminal."""
    finished = context.jobs.count_group(job_id, group_id)
    _counted(context, job_id, finished)
    if finished.code == "finished":
        # Who has counted it before has let the next ones in as well, or the sweep does.
        admit(context, job_id)
    return finished.code in _ENDED


def ending(context: FleetContext, job_id: str, group_id: str, *, take_from: str) -> list[Call]:
    """What counts a group that has become terminal, gives its permit back and lets the next ones through the gate.

    Args:
        context: the fleet.
        job_id: the job.
        group_id: the group; while it is not terminal nothing is done.
        take_from: the data queue from which the caller goes on with a group at once.
    """
    options = context.settings.options
    return context.jobs.ending(
        job_id,
        group_id,
        limit=options.max_concurrent_migrations,
        per_node=options.max_concurrent_per_node,
        take_from=take_from,
    )


def pass_on(context: FleetContext, job_id: str, replies: Sequence[Any]) -> tuple[GroupRecord | None, bool]:
    """Publish what `ending` has let through the gate; return the group with which the caller is to go on, and whether its own is counted."""
    finished, following, admitted = context.jobs.ended(replies)
    _counted(context, job_id, finished)
    for group in admitted:
        context.messenger.publish_group(job_id, group)
    return following, finished.code in _ENDED


def _counted(context: FleetContext, job_id: str, finished: Finished) -> None:
    reached(Step.FINISH)
    if finished.code in _ENDED and finished.left == 0 and finished.cancel_requested:
        # Groups that never started sent no message, so the chord cannot count to its end.
        context.messenger.publish_finalize(job_id)


def finalize(context: FleetContext, job_id: str) -> str:
    """Close the job if all its moves are counted; idempotent. Returns the code of ``job_finalize.lua``."""
    try:
        job = context.jobs.load(job_id)
    except JobNotFound:
        return "unknown"
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(job.failures.items()))
    error = f"no move could be carried out: {causes or 'no cause noted'}"
    code, status = context.jobs.finalize(job_id, imbalance_after=_spread(context, job_id), error=error)
    reached(Step.FINALIZE)
    if code in {"finalized", "already"}:
        # Also when somebody else closed it: they may have died before they could retire it.
        context.jobs.retire(job_id, keep=context.settings.options.job_retention)
        context.outcomes.compact(job_id)
        reached(Step.RETIRE)
    if code == "finalized":
        log.info("job.finalized", job_id=job_id, status=status)
    return code


def _spread(context: FleetContext, job_id: str) -> float | None:
    """Imbalance from the usage that flips keep current, over the nodes the job knew."""
    used = context.fleet.usage()
    capacities = context.jobs.capacities(job_id)
    by_pool: dict[str, list[float]] = {}
    for node in context.nodes():
        capacity = capacities.get(node.node_id, 0)
        if node.state is NodeState.ACTIVE and capacity > 0:
            by_pool.setdefault(node.pool, []).append(used.get(node.node_id, 0) / capacity)
    if not used or not by_pool:
        return None
    return max(max(shares) - min(shares) for shares in by_pool.values())
