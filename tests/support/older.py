"""The app as the release before this one had it: its workers do not say which queues they serve, and its chores know no queue.

``celery -A tests.support.older worker`` stands in for a worker of that release beside ours: what it reads and writes in Redis is
of the same form (docs/operations.md, "Upgrades"), what it is sent may hold an argument that it does not know, or the name of a part
that is cut in a way it does not know.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from rebalance_tasks import tasks
from rebalance_tasks.celery import app
from rebalance_tasks.store.presence import Presence, PresenceStore

__all__ = ["app"]

_publish = PresenceStore.publish


def publish(self: PresenceStore, presence: Presence) -> None:
    """Without queues."""
    _publish(self, replace(presence, queues=None))


def _as_before(task: Any) -> None:
    """A task that takes the fleet alone; whatever else it is sent is a TypeError."""
    now = task.run

    def run(*, fleet: str | None = None) -> Any:
        return now(fleet=fleet)

    task.run = run


class SurveyArguments(tasks.TokenArguments):
    """Parts of a node are told by folders alone."""

    node_ids: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*(#[0-9]{1,2}of[0-9]{1,2})?$")], ...]


tasks.SurveyArguments = SurveyArguments  # type: ignore[misc, assignment]
PresenceStore.publish = publish  # type: ignore[method-assign]
app.finalize()
for name in ("sweep", "cleanup"):
    _as_before(app.tasks[getattr(tasks, name).name])
