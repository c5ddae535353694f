"""The sweep re-drives what stalls: lost messages, dead workers, missed wake-ups, quiet hours, jobs nobody closed.

Redis holds the truth and messages are hints (invariant 4): everything here is decided from Redis alone, each step is
idempotent, and running two sweeps at once is harmless. What one run does is bounded; the next one goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.catalogue import AWAY
from rebalance_tasks.control.fleetwide import GLOBAL
from rebalance_tasks.control.reach import Routes
from rebalance_tasks.control.start import admit
from rebalance_tasks.control.survey import probe
from rebalance_tasks.control.surveying.round import redrive
from rebalance_tasks.core.errors import JobNotFound, NodeError, RetryableError, UnknownNode
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.quiet_hours import in_quiet_hours
from rebalance_tasks.store.abandon import abandon, lost_part
from rebalance_tasks.store.holds import MISSING
from rebalance_tasks.store.job_view import DEADLINE
from rebalance_tasks.store.versions import NewerVersion
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.store.holds import Hold

log = get_logger(__name__)

#: Groups published again or finished in one run; the next one goes on with the others.
GROUPS_PER_RUN: Final = 1_000
#: Ended jobs looked at for what their end left undone, and how often: nothing waits for it.
JOBS_PER_RUN: Final = 1_000
TIDY_EVERY_S: Final = 60
#: An ended job that noted more is packed (at most `DETAILS_KEPT` of each of some ten causes stay).
MANY_OUTCOMES: Final = 2_000
#: A part of 64 MiB takes as long at 110 KiB/s; a running job that does less is worth a look.
STUCK_AFTER_S: Final = 600


@dataclass(slots=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        redriven: groups whose header was published again.
        deserted: of these, groups whose nodes nobody is left to reach.
        finished: terminal groups that were counted.
        admitted: waiting groups that got a permit.
        finalized: jobs closed.
        deadlines: jobs cancelled because they were past their deadline.
        abandoned: jobs closed because Redis had lost a part of them.
        retired: ended jobs that got their expiry only now.
        compacted: ended jobs whose many outcomes were packed.
        permits: permits of jobs that are over, given back.
        nodes_back: nodes that are in reach again.
        nodes_given_up: nodes that were out of reach for so long that their moves are to fail.
        surveys: messages of a check's survey sent again, and nodes of it given up.
    """

    redriven: int = 0
    deserted: int = 0
    finished: int = 0
    admitted: int = 0
    finalized: int = 0
    deadlines: int = 0
    abandoned: int = 0
    retired: int = 0
    compacted: int = 0
    permits: int = 0
    nodes_back: int = 0
    nodes_given_up: int = 0
    surveys: int = 0


def run_sweep(context: FleetContext) -> SweepReport:
    """Sweep the fleet once: its active job, if there is one, and what ended jobs left undone."""
    report = SweepReport()
    routes = Routes(context)
    _nodes(context, routes, report)
    job_id = context.jobs.active()
    if job_id is not None:
        _sweep_job(context, job_id, routes, report)
    report.surveys = redrive(context)
    if context.fleet.due("tidy", every_s=TIDY_EVERY_S):
        _tidy(context, report)
    context.fleet.record_chore("sweep", asdict(report), now_ms=context.connection.now_ms())
    return report


def _sweep_job(context: FleetContext, job_id: str, routes: Routes, report: SweepReport) -> None:
    lost = lost_part(context.connection, context.keys, job_id)
    if lost:
        _give_up(context, job_id, lost, report)
        return
    _flags(context, context.jobs.load(job_id), report)
    _redrive(context, job_id, context.jobs.permits(job_id), routes, report)
    context.holds.sort(job_id)
    report.admitted = admit(context, job_id)
    job = context.jobs.load(job_id)
    if job.groups_done < job.groups_total and not context.jobs.permits(job_id):
        # Nothing runs though work is left: a group that is over may hide behind a permit that is gone.
        _redrive(context, job_id, context.jobs.groups(job_id), routes, report)
        job = context.jobs.load(job_id)
    context.progress.note(job_id)
    _stuck(context, job_id)
    if job.groups_done == job.groups_total and lifecycle.finalize(context, job_id) == "finalized":
        report.finalized = 1


def _stuck(context: FleetContext, job_id: str) -> None:
    """Say once that a running job has not come on for `STUCK_AFTER_S`."""
    idle_s = context.progress.idle_s(job_id)
    if idle_s is not None and idle_s >= STUCK_AFTER_S and context.progress.report_stuck(job_id):
        log.warning("job.stuck", job_id=job_id, idle_seconds=int(idle_s))
        context.events.note(EventKind.JOB_STUCK, by="sweep", job_id=job_id, data={"idle_seconds": int(idle_s)})


def _give_up(context: FleetContext, job_id: str, lost: str, report: SweepReport) -> None:
    """Close a job that Redis remembers only in part, or forget that one was active that is gone altogether."""
    log.warning("sweep.job_lost", job_id=job_id, lost=lost)
    if lost != "job":
        why = f"Redis has lost the job's {lost}; `rebalance reindex` finds every object again, then check anew"
        abandon(context.connection, context.keys, job_id, why=why, now_ms=context.connection.now_ms())
        context.jobs.retire(job_id)
        report.abandoned += 1
    context.jobs.clear_active(job_id)
    if context.jobs.active() == job_id and _over(context, job_id):
        context.connection.client.delete(context.keys.active)


def _redrive(context: FleetContext, job_id: str, group_ids: Iterable[str], routes: Routes, report: SweepReport) -> None:
    """Publish again or finish what stalls. All are looked at, so that none is always too late; few are acted on."""
    acted = 0
    for group_id in group_ids:
        if acted == GROUPS_PER_RUN:
            return
        match context.jobs.redrive(job_id, group_id, busy=routes.busy):
            case "publish":
                group = context.jobs.group(job_id, group_id)
                if group is not None:
                    reached = routes.publish(job_id, group)
                    report.redriven += 1
                    report.deserted += 0 if reached else 1
            case "finish":
                lifecycle.finish_group(context, job_id, group_id)
                report.finished += 1
            case _:
                continue
        acted += 1


# -- the flags of a job that the clock or the fleet sets ------------------------------------------------------------------
def _flags(context: FleetContext, job: RebalanceJob, report: SweepReport) -> None:
    if job.cancel_requested or job.status.terminal:
        return
    deadline = context.settings.options.job_deadline
    if deadline is not None and context.now() >= job.created_utc + deadline:
        log.warning("sweep.deadline", job_id=job.job_id, deadline=str(deadline))
        lifecycle.cancel(
            context, job.job_id, requested_by=f"{DEADLINE}: cancelled, since it was older than job_deadline {deadline}"
        )
        report.deadlines += 1
        return
    quiet = in_quiet_hours(context.settings.options, now=context.now())
    _hold(context, job, lifecycle.QUIET_HOURS, wanted=quiet)
    if AWAY in job.paused_reasons and context.catalogue is not None:
        _hold(context, job, AWAY, wanted=not context.catalogue.answers())
    # The fleet's own set of reasons holds its runners at once; the job's says so in its status, and wakes it when lifted.
    _hold(context, job, GLOBAL, wanted=GLOBAL in context.fleet.paused_reasons())


def _hold(context: FleetContext, job: RebalanceJob, reason: str, *, wanted: bool) -> None:
    """Let a job carry a reason to pause exactly as long as it holds."""
    held = reason in context.connection.smembers(context.keys.job(job.job_id).paused)
    if wanted and not held:
        lifecycle.pause(context, job.job_id, reason=reason, by="sweep")
    elif held and not wanted:
        lifecycle.resume(context, job.job_id, reason=reason, by="sweep")


# -- nodes that are out of reach ------------------------------------------------------------------------------------------
def _nodes(context: FleetContext, routes: Routes, report: SweepReport) -> None:
    """Let go of held nodes that are in reach again, or were away for too long; of far ones their hosts are asked."""
    asked: set[str] = set()
    for hold in _missing(context):
        queue = routes.to_ask(hold.node_id)
        if queue is not None:
            asked.add(queue)
        elif routes.out_of_reach(hold.node_id):
            _still_missing(context, hold, report)
        elif not routes.is_far(hold.node_id):
            _look_at(context, hold, report)
    for queue in sorted(asked):
        context.messenger.publish_chore("sweep", queue)


def look_at_nodes(context: FleetContext, nodes: Collection[str]) -> SweepReport:
    """Look at held nodes from where they can be reached, and do nothing else; the sweep asks for it."""
    report = SweepReport()
    for hold in _missing(context):
        if hold.node_id in nodes:
            _look_at(context, hold, report)
    return report


def _missing(context: FleetContext) -> list[Hold]:
    return [hold for hold in context.holds.all() if hold.owner == MISSING]


def _look_at(context: FleetContext, hold: Hold, report: SweepReport) -> None:
    if not _in_reach(context, hold.node_id):
        _still_missing(context, hold, report)
        return
    context.holds.lift(hold.node_id, owner=MISSING)
    context.events.note(EventKind.NODE_BACK, by="sweep", data={"node": hold.node_id})
    log.info("node.back", node=hold.node_id)
    report.nodes_back += 1


def _still_missing(context: FleetContext, hold: Hold, report: SweepReport) -> None:
    """Another sign of an outage, until it has lasted for too long."""
    if context.holds.missing(hold.node_id):
        return
    context.events.note(EventKind.NODE_GIVEN_UP, by="sweep", data={"node": hold.node_id})
    log.warning("node.given_up", node=hold.node_id, held_since_ms=hold.since_ms)
    report.nodes_given_up += 1


def _in_reach(context: FleetContext, node_id: str) -> bool:
    try:
        probe(context, context.node(node_id), adopted=context.fleet.adopted())
        context.driver(node_id).check_identity()
    except UnknownNode:  # not configured any more: nothing to wait for
        return True
    except NodeError as exc:
        return not isinstance(exc, RetryableError)
    return True


# -- what ended jobs left undone ------------------------------------------------------------------------------------------
def _tidy(context: FleetContext, report: SweepReport) -> None:
    """Retire jobs whose closer died before it could, and give back permits that nobody will."""
    job_ids = context.jobs.ids()[:JOBS_PER_RUN]
    pipe = context.connection.client.pipeline(transaction=False)
    for job_id in job_ids:
        pipe.ttl(context.keys.job(job_id).base)
        pipe.hlen(context.keys.job(job_id).outcomes)
    found = pipe.execute()
    for job_id, ttl, outcomes in zip(job_ids, found[::2], found[1::2], strict=True):
        if ttl == -1 and _over(context, job_id):
            context.jobs.retire(job_id)
            report.retired += 1
        if outcomes > MANY_OUTCOMES and _over(context, job_id):
            report.compacted += 1 if context.outcomes.compact(job_id) else 0
    permits = list(islice(context.connection.hgetall(context.keys.permits), GROUPS_PER_RUN))
    holders = {permit.rpartition("/")[0] for permit in permits}
    over = {job_id for job_id in holders if _over(context, job_id)}
    report.permits += context.connection.hdel(
        context.keys.permits, *(permit for permit in permits if permit.rpartition("/")[0] in over)
    )


def _over(context: FleetContext, job_id: str) -> bool:
    """Whether a job has ended, or is not known any more."""
    try:
        return context.jobs.load(job_id).status.terminal
    except JobNotFound:
        return True
    except NewerVersion:  # theirs to say
        return False
