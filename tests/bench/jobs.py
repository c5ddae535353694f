"""One job from start to final status, as a check begins it, watched at no cost that would count as the job's."""

from __future__ import annotations

import sys
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, cast

from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.client import Rebalancer

TIMEOUT_S: Final = 600.0
_ENDS: Final = frozenset({EventKind.JOB_COMPLETED, EventKind.JOB_FAILED, EventKind.JOB_CANCELLED})


def move_all(
    rebalancer: Rebalancer, keys: Sequence[str], size: int, *, before: Callable[[], None] = lambda: None
) -> float:
    """Move objects of one size from a to b; return the seconds from start to final status.

    The plan is as a check leaves it: of the present epoch, and kept in Redis. ``before`` is called right before the start.
    """
    context = rebalancer._context
    plan = RebalancePlan(
        plan_id=f"bench-{uuid.uuid4().hex[:8]}",
        fleet="test",
        epoch=context.fleet.epoch(),
        moves=tuple(RebalanceMove(object_key=key, source_node="a", target_node="b", size_bytes=size) for key in keys),
        estimated_egress_bytes=size * len(keys),
    )
    context.plans.save(plan, fence=None)
    before()
    seen = context.events.last_id()
    begun = time.perf_counter()
    job = rebalancer.start(plan.plan_id)
    wait_for_end(rebalancer, job.job_id, after=seen)
    job = rebalancer.status(job.job_id)
    seconds = time.perf_counter() - begun
    if job.completed_moves != len(keys):
        sys.exit(f"only {job.completed_moves} of {len(keys)} objects moved: {job.failures}")
    return seconds


def wait_for_end(rebalancer: Rebalancer, job_id: str, *, after: str) -> None:
    """Wait for a job's last event in one blocking call an event: asking again and again would count as the job's."""
    context, deadline = rebalancer._context, time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = cast("list[Any]", context.connection.client.xread({context.keys.events: after}, block=1_000))
        for entry_id, fields in found[0][1] if found else ():
            after = entry_id
            if fields.get(b"job") == job_id.encode() and fields[b"kind"].decode() in _ENDS:
                return
    sys.exit(f"{job_id} is not done after {TIMEOUT_S:.0f} s")
