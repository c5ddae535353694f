"""The sweep re-drives what stalls: lost messages, dead workers, missed wake-ups, quiet hours, jobs nobody closed.

Redis holds the truth and messages are hints (invariant 4): everything here is decided from Redis alone, each step is
idempotent, and running two sweeps at once is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.start import admit
from rebalance_tasks.core.quiet_hours import in_quiet_hours
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)


@dataclass(slots=True)
class SweepReport:
    """What a sweep did."""

    redriven: int = 0
    finished: int = 0
    admitted: int = 0
    finalized: int = 0


def run_sweep(context: FleetContext) -> SweepReport:
    """Sweep the fleet's active job, if there is one."""
    report = SweepReport()
    job_id = context.jobs.active()
    if job_id is None:
        return report
    if not context.jobs.exists(job_id):
        log.warning("sweep.job_lost", job_id=job_id)
        context.jobs.clear_active(job_id)
        return report
    _quiet_hours(context, job_id)
    for group_id, group in context.jobs.groups(job_id).items():
        match context.jobs.redrive(job_id, group_id):
            case "publish":
                context.messenger.publish_group(job_id, group)
                report.redriven += 1
            case "finish":
                lifecycle.finish_group(context, job_id, group_id)
                report.finished += 1
            case _:
                pass
    report.admitted = admit(context, job_id)
    job = context.jobs.load(job_id)
    if job.groups_done == job.groups_total and lifecycle.finalize(context, job_id) == "finalized":
        report.finalized = 1
    if report != SweepReport():
        log.info(
            "sweep.done", job_id=job_id, redriven=report.redriven, finished=report.finished, admitted=report.admitted
        )
    return report


def _quiet_hours(context: FleetContext, job_id: str) -> None:
    job = context.jobs.load(job_id)
    quiet = in_quiet_hours(context.settings.options, now=context.now())
    held = lifecycle.QUIET_HOURS in job.paused_reasons
    if quiet and not held and not job.cancel_requested:
        lifecycle.pause(context, job_id, reason=lifecycle.QUIET_HOURS)
    elif held and not quiet:
        lifecycle.resume(context, job_id, reason=lifecycle.QUIET_HOURS)
