"""Verbs for the whole fleet: hold everything, let it go on, change how many groups transfer at once and how fast.

The fleet's own set of reasons stops runners within 100 ms and keeps checks from starting. The active job carries the same
reason, so that its status says what is true and lifting the reason wakes it; the sweep mends what a crash between the two
leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.start import admit
from rebalance_tasks.core.errors import InvalidArgument, JobNotFound
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.models import ControlResult
from rebalance_tasks.store.holds import MISSING, OPERATOR
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)

#: Reason to pause that belongs to `pause_all` and `resume_all`.
GLOBAL: Final = "global"


def pause_all(context: FleetContext, *, by: str = "") -> ControlResult:
    """Pause the fleet: its active job, and every check and job to come. The job id is empty when none is active."""
    context.fleet.pause(GLOBAL)
    context.events.note(EventKind.FLEET_PAUSED, by=by)
    log.info("fleet.pause")
    active = context.jobs.active()
    if active is None:
        return ControlResult(job_id="", status=None)
    try:
        return lifecycle.pause(context, active, reason=GLOBAL, by=by)
    except JobNotFound:
        return ControlResult(job_id="", status=None)


def resume_all(context: FleetContext, *, by: str = "") -> ControlResult:
    """Lift the pause of the fleet and wake its active job, unless somebody else still holds it."""
    paused = GLOBAL in context.fleet.paused_reasons()
    context.fleet.resume(GLOBAL)
    if paused:
        context.events.note(EventKind.FLEET_RESUMED, by=by)
    log.info("fleet.resume", was_paused=paused)
    reason = "" if paused else "the fleet is not paused"
    active = context.jobs.active()
    if active is None:
        return ControlResult(job_id="", status=None, reason=reason)
    try:
        lifecycle.resume(context, active, reason=GLOBAL, by=by)
        job = context.jobs.load(active)
        if job.paused_reasons:
            reason = f"still paused by {', '.join(job.paused_reasons)}"
        elif admit(context, active):
            # It was started while the fleet was paused: pending, not paused, and nobody else opens the gate.
            job = context.jobs.load(active)
    except JobNotFound:
        return ControlResult(job_id="", status=None, reason=reason)
    return ControlResult(job_id=active, status=job.status, reason=reason)


def pause_node(context: FleetContext, node_id: str, *, by: str = "") -> ControlResult:
    """Hold one node: groups that touch it stop within 100 ms and wait, holding no permit; other groups go on.

    Returns:
        The active job (its id is empty when there is none) as it is now: ``paused`` only when all its groups are held.

    Raises:
        UnknownNode: it is not configured here.
    """
    context.node(node_id)
    context.holds.hold(node_id)
    context.events.note(EventKind.NODE_PAUSED, by=by, data={"node": node_id})
    log.info("node.pause", node=node_id)
    return _after_node(context, reason="")


def resume_node(context: FleetContext, node_id: str, *, by: str = "") -> ControlResult:
    """Let go of a node that an operator held; its groups go on as permits allow, unless the node is out of reach."""
    lifted = context.holds.lift(node_id, owner=OPERATOR)
    if lifted:
        context.events.note(EventKind.NODE_RESUMED, by=by, data={"node": node_id})
    log.info("node.resume", node=node_id, was_paused=lifted)
    reason = "" if lifted else f"node {node_id!r} is not paused"
    if MISSING in context.holds.owners(node_id):
        reason = f"node {node_id!r} is still held: it is out of reach, and goes on by itself when it is back"
    return _after_node(context, reason=reason)


def _after_node(context: FleetContext, *, reason: str) -> ControlResult:
    active = context.jobs.active()
    if active is None:
        return ControlResult(job_id="", status=None, reason=reason)
    context.holds.sort(active)
    admit(context, active)
    try:
        return ControlResult(job_id=active, status=context.jobs.load(active).status, reason=reason)
    except JobNotFound:
        return ControlResult(job_id="", status=None, reason=reason)


def set_limit(context: FleetContext, limit: int | None, *, by: str = "") -> int:
    """Set how many groups may transfer at once, at run time; ``None`` goes by the configuration again.

    Returns:
        The limit in force.

    Raises:
        InvalidArgument: below 1 (to hold everything there is `pause_all`).
    """
    if limit is not None and limit < 1:
        msg = f"limit {limit}: at least 1 group must be able to transfer; `rebalance pause --all` holds everything"
        raise InvalidArgument(msg)
    context.fleet.set_limit(limit)
    context.events.note(EventKind.FLEET_LIMIT, by=by, data={"limit": limit})
    log.info("fleet.limit", limit=limit)
    active = context.jobs.active()
    if active is not None:
        admit(context, active)
    return limit_in_force(context)


def set_throttle(context: FleetContext, rate_bytes_per_s: int | None, *, by: str = "") -> int | None:
    """Set how fast each group may write; those that run see it with their next lease. ``None`` lifts every throttle.

    Returns:
        The rate in force.

    Raises:
        InvalidArgument: below 1 byte a second (to hold everything there is `pause_all`).
    """
    if rate_bytes_per_s is not None and rate_bytes_per_s < 1:
        msg = f"throttle {rate_bytes_per_s}: at least 1 byte a second; `rebalance pause --all` holds everything"
        raise InvalidArgument(msg)
    context.fleet.set_throttle(rate_bytes_per_s or 0)
    context.events.note(EventKind.FLEET_THROTTLE, by=by, data={"bytes_per_s": rate_bytes_per_s or 0})
    log.info("fleet.throttle", rate_bytes_per_s=rate_bytes_per_s)
    return throttle_in_force(context)


def reset_throttle(context: FleetContext, *, by: str = "") -> int | None:
    """Let groups go by the configured rate again, and return it."""
    context.fleet.set_throttle(None)
    context.events.note(EventKind.FLEET_THROTTLE, by=by, data={"bytes_per_s": "configured"})
    log.info("fleet.throttle", rate_bytes_per_s="configured")
    return throttle_in_force(context)


def throttle_in_force(context: FleetContext) -> int | None:
    """Bytes a second that each group may write: what was set at run time, else what is configured; ``None``: no limit."""
    rate = context.fleet.throttle()
    return context.settings.options.throttle_bytes_per_sec if rate is None else rate or None


def limit_in_force(context: FleetContext) -> int:
    """How many groups may transfer at once: what was set at run time, else what is configured."""
    return context.fleet.limit() or context.settings.options.max_concurrent_migrations
