"""What happened to a job, in sentences: from the fleet's history, and from the job's own times where that has no more of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.core.events import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from rebalance_tasks.core.events import Event
    from rebalance_tasks.core.models import RebalanceJob


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened.

    Attributes:
        what: a stable word (``paused``).
        text: a sentence for people.
    """

    at: datetime
    what: str
    text: str


def timeline(job: RebalanceJob, events: Iterable[Event]) -> list[Entry]:
    """Return everything known of a job's way, oldest first.

    Args:
        job: as it is now; its own times outlive the fleet's history, which is bounded.
        events: of this job.
    """
    told = [entry for event in events if (entry := entry_of(event)) is not None]
    words = {entry.what for entry in told}
    own = [entry for entry in _milestones(job) if entry.what not in words]
    return sorted([*told, *own], key=lambda entry: entry.at)


def entry_of(event: Event) -> Entry | None:
    """Return an event of a job as an entry; ``None`` for what has no place in a timeline."""
    found = _SENTENCES.get(event.kind)
    if found is None:
        return None
    word, sentence = found
    return Entry(event.at, word, sentence(event.by or "somebody", event.data))


def _milestones(job: RebalanceJob) -> Iterator[Entry]:
    yield Entry(job.created_utc, "created", _asked(job.requested_by or "somebody", job.total_moves, job.groups_total))
    if job.started_utc:
        yield Entry(job.started_utc, "started", "the first group was let in")
    if job.completed_utc:
        counts = {"completed": job.completed_moves, "failed": job.failed_moves, "skipped": job.skipped_moves}
        yield Entry(job.completed_utc, job.status.value, _ended("", {**counts, "error": job.error}))


def _asked(by: str, moves: object, groups: object) -> str:
    return f"asked for by {by}: {moves} moves in {groups} groups"


def _ended(_by: str, data: Mapping[str, Any]) -> str:
    told = f"{data.get('completed', 0)} moved, {data.get('failed', 0)} failed, {data.get('skipped', 0)} skipped"
    return f"{told}; {data['error']}" if data.get("error") else told


#: Kind of an event → the word and the sentence of its entry.
_SENTENCES: Final[Mapping[str, tuple[str, Callable[[str, Mapping[str, Any]], str]]]] = {
    EventKind.JOB_STARTED: ("created", lambda by, data: _asked(by, data.get("moves"), data.get("groups"))),
    EventKind.JOB_PAUSED: ("paused", lambda by, data: f"held for {data.get('reason')}, by {by}"),
    EventKind.PAUSE_LIFTED: ("pause_lifted", lambda by, data: f"no longer for {data.get('reason')}, by {by}"),
    EventKind.JOB_RESUMED: ("resumed", lambda by, data: f"goes on: {data.get('reason')} was lifted by {by}"),
    EventKind.CANCEL_REQUESTED: ("cancel_requested", lambda by, _: f"cancel asked for by {by}"),
    EventKind.JOB_STUCK: ("stuck", lambda _, data: f"nothing has come on for {data.get('idle_seconds')} s"),
    EventKind.JOB_COMPLETED: ("completed", _ended),
    EventKind.JOB_FAILED: ("failed", _ended),
    EventKind.JOB_CANCELLED: ("cancelled", _ended),
}
