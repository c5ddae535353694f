"""What happened to a job, in sentences: from its own times, and from what changed between two looks at it."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from rebalance_tasks.core.models import RebalanceJob

#: Entries of one job, and jobs, that are remembered.
MOST_ENTRIES: Final = 200
MOST_JOBS: Final = 50


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


def milestones(job: RebalanceJob) -> Iterator[Entry]:
    """Yield what a job's own fields tell of its way; they outlive this process."""
    by = f" by {job.requested_by}" if job.requested_by else ""
    yield Entry(job.created_utc, "created", f"asked for{by}: {job.total_moves} moves in {job.groups_total} groups")
    if job.started_utc:
        yield Entry(job.started_utc, "started", "the first group was let in")
    if job.completed_utc:
        told = f"{job.completed_moves} moved, {job.failed_moves} failed, {job.skipped_moves} skipped"
        yield Entry(job.completed_utc, job.status.value, f"{told}; {job.error}" if job.error else told)


def changes(before: RebalanceJob | None, after: RebalanceJob, *, at: datetime) -> Iterator[Entry]:
    """Yield what happened between two looks at a running job; the first look only tells what holds it now."""
    old_reasons = set(before.paused_reasons) if before else set()
    new_reasons = set(after.paused_reasons)
    if not after.status.terminal:
        for reason in sorted(new_reasons - old_reasons):
            yield Entry(at, "paused", f"paused by {reason}")
        for reason in sorted(old_reasons - new_reasons):
            yield Entry(at, "resumed", f"no longer paused by {reason}")
    if after.cancel_requested and not (before and before.cancel_requested):
        yield Entry(at, "cancel_requested", f"cancel asked for by {after.cancelled_by or 'somebody'}")
    known = before.failures if before else {}
    for cause in sorted(set(after.failures) - set(known)):
        yield Entry(at, "trouble", f"the first move that failed or was skipped for {cause}")


class Timelines:
    """What this process saw of the newest jobs."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[Entry]] = OrderedDict()

    def note(self, before: RebalanceJob | None, after: RebalanceJob, *, at: datetime) -> list[Entry]:
        """Keep what happened between two looks, and return it."""
        fresh = list(changes(before, after, at=at))
        entries = self._seen.setdefault(after.job_id, deque(maxlen=MOST_ENTRIES))
        entries.extend(fresh)
        while len(self._seen) > MOST_JOBS:
            self._seen.popitem(last=False)
        return fresh

    def of(self, job: RebalanceJob) -> list[Entry]:
        """Everything known of a job's way, oldest first."""
        return sorted([*milestones(job), *self._seen.get(job.job_id, ())], key=lambda entry: entry.at)
