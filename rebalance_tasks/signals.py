"""Celery signals for what a fleet's host application may want to know; sent in a worker, by the task `rebalance.notify`.

Each is sent at least once, in the order of the history, with the `rebalance_tasks.core.events.Event` as ``event``. A receiver that
raises is logged by Celery and holds up nobody.

Example:
    >>> from rebalance_tasks.signals import job_completed
    >>> @job_completed.connect
    ... def tell(sender, event, **_):
    ...     print(event.job_id, event.data["completed"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from celery.utils.dispatch import Signal

from rebalance_tasks.core.events import EventKind

if TYPE_CHECKING:
    from rebalance_tasks.core.events import Event

job_started: Final = Signal(name="job_started", providing_args={"event"})
job_paused: Final = Signal(name="job_paused", providing_args={"event"})
job_completed: Final = Signal(name="job_completed", providing_args={"event"})
job_failed: Final = Signal(name="job_failed", providing_args={"event"})
job_stuck: Final = Signal(name="job_stuck", providing_args={"event"})

#: Every notice has its signal.
SIGNALS: Final = {
    EventKind.JOB_STARTED.value: job_started,
    EventKind.JOB_PAUSED.value: job_paused,
    EventKind.JOB_COMPLETED.value: job_completed,
    EventKind.JOB_FAILED.value: job_failed,
    EventKind.JOB_STUCK.value: job_stuck,
}


def send(event: Event) -> None:
    """Send an event's signal, if it has one; the sender is the fleet's name."""
    signal = SIGNALS.get(event.kind)
    if signal is not None:
        signal.send(sender=event.fleet, event=event)
