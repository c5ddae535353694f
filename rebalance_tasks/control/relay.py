"""A runner that has ended a group goes on with the next one that the gate lets through, while its time lasts.

Small groups would else cost two messages each, and the messages would cost more than the moves. Nothing depends on the
relay: the next group holds its own permit and lease, and if the runner dies the sweep publishes that group's header
within 15 s, as after any lost message (invariant 4). Each group that is ended here is handed to its own monitor.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.start import admit
from rebalance_tasks.core.errors import JobNotFound
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.store.moves import Ending
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)

#: No further group is begun after this long: with its slice of 20 s the task ends far below its time limit.
RELAY_S: Final = 10.0


def run_relay(
    context: FleetContext,
    job_id: str,
    group_id: str,
    *,
    queue: str,
    run_slice: Callable[[str, str, bool, Ending], SliceOutcome],
    extra: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> SliceOutcome:
    """Run a slice of the group that a message names, then of groups that the gate admits in its place.

    Args:
        context: the fleet.
        job_id: the message's job.
        group_id: the message's group.
        queue: the queue that this worker evidently consumes; groups of others are left to theirs.
        run_slice: runs one slice of (job, group, extra), with what is to be asked when it counts the group's last move.
        extra: the message is an extra slice of a busy pair, with no monitor chained to it.
        clock: monotonic seconds.

    Returns:
        ``TERMINAL`` when the message's own group is ended and its chain is to go on to the monitor; ``HANDED`` when a
        group is ended whose monitor was told here; else what became of the last slice.
    """
    until = clock() + RELAY_S
    current, chained = group_id, not extra
    while True:
        calls = partial(lifecycle.ending, context, job_id, current, take_from=queue)
        ending = Ending(lambda calls=calls: calls() if clock() < until else ())  # type: ignore[misc]
        outcome = run_slice(job_id, current, extra, ending)
        if outcome is SliceOutcome.AGAIN:
            _publish_again(context, job_id, current, queue=queue, extra=extra)
        if outcome is SliceOutcome.PARKED:
            # Where it was a node that is held, the group gave its permit back.
            admit(context, job_id)
        replies = ending.replies
        if replies is None and outcome is SliceOutcome.TERMINAL and (further := ending.calls()):
            replies = context.connection.run_all(further)
        following, counted = (None, False) if replies is None else lifecycle.pass_on(context, job_id, replies)
        if outcome is not SliceOutcome.TERMINAL:
            if following is not None:  # let in for a runner that has been overtaken
                context.messenger.publish_group(job_id, following)
            return outcome
        if following is None and chained:
            return outcome
        context.messenger.publish_monitor(job_id, current, counted=counted)
        if following is None:
            return SliceOutcome.HANDED
        log.info("relay.next", job_id=job_id, group_id=following.group_id)
        current, chained, extra = following.group_id, False, False


def _publish_again(context: FleetContext, job_id: str, group_id: str, *, queue: str, extra: bool) -> None:
    """Publish what is left where this runner took it from: that queue is evidently served, the group's own may not be."""
    group = context.jobs.group(job_id, group_id)
    if group is None:
        raise JobNotFound(job_id)
    group = group.model_copy(update={"queue": queue or group.queue})
    if extra:
        context.messenger.publish_extra(job_id, group)
    else:
        context.messenger.publish_group(job_id, group)
