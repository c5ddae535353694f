"""Notices: tell the outside what the history says. Each receiver has a cursor, so nothing is lost and nobody waits.

sweep ─▶ notify ── events after the cursor ▸ signal, signed POST ▸ cursor ──▶ the next one, or later again

A receiver is told at least once, in order, and apart from the others: one that hangs holds up neither them nor any job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.webhooks import post, receiver_id
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.store.notices import Mark, NoticeStore
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.events import Event
    from rebalance_tasks.settings.model import Webhook

log = get_logger(__name__)

#: The receiver that stands for all receivers of Celery signals.
SIGNALS: Final = "signals"
#: 5 s, doubled each time up to ten minutes: the last attempt is made about 75 minutes after the first.
FIRST_DELAY_MS: Final = 5_000
MOST_DELAY_MS: Final = 600_000
MOST_ATTEMPTS: Final = 14
#: One run goes no longer, since the task has a time limit of 120 s and a receiver may take 10 s; the next run goes on.
RUN_S: Final = 60.0
EVENTS_PER_RUN: Final = 500


@dataclass(slots=True)
class NoticeReport:
    """What one run did: events told by signal, POSTs taken, refused, and given up."""

    signalled: int = 0
    delivered: int = 0
    failed: int = 0
    given_up: int = 0


def behind(context: FleetContext) -> bool:
    """Whether something happened that a receiver was not told and may be told now."""
    last, store, now_ms = context.events.last_id(), NoticeStore(context.connection, context.keys), None
    for receiver in (SIGNALS, *map(receiver_id, context.settings.webhooks)):
        mark = store.mark(receiver)
        if _place(mark.cursor) < _place(last):
            now_ms = context.connection.now_ms() if now_ms is None else now_ms
            if mark.due_ms <= now_ms:
                return True
    return False


def deliver(context: FleetContext, *, signal: Callable[[Event], None]) -> NoticeReport:
    """Tell every receiver what it was not told yet; does nothing while another process does that.

    Args:
        context: the fleet.
        signal: sends an event's Celery signal.
    """
    report = NoticeReport()
    store = NoticeStore(context.connection, context.keys)
    token = store.acquire()
    if token is None:
        return report
    try:
        until = time.monotonic() + RUN_S
        _signal(context, store, signal, report)
        for webhook in context.settings.webhooks:
            _webhook(context, store, webhook, report, until)
    finally:
        store.release(token)
    counts = {"delivered": report.delivered, "failed": report.failed, "given_up": report.given_up}
    context.counters.add({f"notices:{name}": count for name, count in counts.items() if count})
    return report


def _signal(context: FleetContext, store: NoticeStore, signal: Callable[[Event], None], report: NoticeReport) -> None:
    for event in context.events.after(store.mark(SIGNALS).cursor, limit=EVENTS_PER_RUN):
        signal(event)
        store.set_mark(SIGNALS, Mark(event.event_id))
        report.signalled += 1


def _webhook(context: FleetContext, store: NoticeStore, webhook: Webhook, report: NoticeReport, until: float) -> None:
    receiver = receiver_id(webhook)
    mark = store.mark(receiver)
    now_ms = context.connection.now_ms()
    if mark.due_ms > now_ms:
        return
    for event in context.events.after(mark.cursor, limit=EVENTS_PER_RUN):
        wanted = event.kind in webhook.events
        if wanted and time.monotonic() > until:
            break
        problem = post(webhook, event) if wanted else ""
        if problem and mark.attempts + 1 < MOST_ATTEMPTS:
            delay_ms = min(FIRST_DELAY_MS << mark.attempts, MOST_DELAY_MS)
            mark = Mark(mark.cursor, mark.attempts + 1, now_ms + delay_ms)
            log.warning("notice.failed", receiver=receiver, event_id=event.event_id, problem=problem)
            report.failed += 1
            break
        if problem:
            _give_up(context, receiver, event, problem)
            report.given_up += 1
        report.delivered += 1 if wanted and not problem else 0
        mark = Mark(event.event_id)
        if wanted:
            store.set_mark(receiver, mark)
    store.set_mark(receiver, mark)


def _give_up(context: FleetContext, receiver: str, event: Event, problem: str) -> None:
    log.error("notice.given_up", receiver=receiver, event_id=event.event_id, problem=problem)
    told = {"receiver": receiver, "event": event.kind, "event_id": event.event_id, "problem": problem}
    context.events.note(EventKind.NOTICE_GIVEN_UP, by="notify", job_id=event.job_id, data=told)


def _place(event_id: str) -> tuple[int, int]:
    ms, _, number = event_id.partition("-")
    return int(ms), int(number)
