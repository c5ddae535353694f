"""What happens in a fleet, by name: every decision and every transition is one of these.

Scripts in ``store/lua`` write the names of a job's transitions themselves, in the step that makes them; a test holds
both lists against each other. `docs/reference/events.md` describes each.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pydantic import AwareDatetime, Field

from rebalance_tasks.core.models import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping


class EventKind(StrEnum):
    """A decision or a transition."""

    CHECKED = "check.decided"
    JOB_STARTED = "job.started"
    JOB_PAUSED = "job.paused"
    JOB_RESUMED = "job.resumed"
    PAUSE_LIFTED = "job.pause_lifted"
    CANCEL_REQUESTED = "job.cancel_requested"
    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_STUCK = "job.stuck"
    FLEET_PAUSED = "fleet.paused"
    FLEET_RESUMED = "fleet.resumed"
    FLEET_LIMIT = "fleet.limit"
    FLEET_THROTTLE = "fleet.throttle"
    NODE_PAUSED = "node.paused"
    NODE_RESUMED = "node.resumed"
    NODE_HELD = "node.held"
    NODE_BACK = "node.back"
    NODE_GIVEN_UP = "node.given_up"
    NODE_STATE = "node.state"
    NOTICE_GIVEN_UP = "notice.given_up"


#: Events that are told to the outside: Celery signals and webhooks.
NOTICES: Final = (
    EventKind.JOB_STARTED,
    EventKind.JOB_PAUSED,
    EventKind.JOB_COMPLETED,
    EventKind.JOB_FAILED,
    EventKind.JOB_STUCK,
)


class Event(Frozen):
    """One entry of a fleet's history.

    Attributes:
        event_id: its place, ``<ms>-<n>``; later events have greater ids.
        at: when, by Redis' clock.
        kind: what happened, mostly an `EventKind`; an older or newer release may know other words.
        fleet: where.
        job_id: the job, empty when it is about the fleet or a node.
        by: who or what asked: ``user@host``, ``task:<id>``, ``sweep``, ``runner``.
        data: what else is to be said, plain JSON.
    """

    event_id: str = Field(pattern=r"^\d+-\d+$")
    at: AwareDatetime
    kind: str
    fleet: str
    job_id: str = ""
    by: str = ""
    data: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, event_id: str, *, fleet: str, fields: Mapping[str, str], data: dict[str, Any]) -> Event:
        """Build it from what a stream holds; the time is a part of the id."""
        at = datetime.fromtimestamp(int(event_id.partition("-")[0]) / 1000, tz=UTC)
        return cls(
            event_id=event_id,
            at=at,
            kind=fields.get("kind", ""),
            fleet=fleet,
            job_id=fields.get("job", ""),
            by=fields.get("by", ""),
            data=data,
        )
