"""The fleet's history: a bounded Redis stream of every decision and transition, written once, read by anybody.

A job's transitions are written by the script that makes them, so none is missing and none stands twice; what concerns the
whole fleet or a node is written by the verb that did it. Readers keep no state here: they ask for what came after an id.

Example:
    >>> for event in EventStore(connection, keys).follow():
    ...     print(event.at, event.kind, event.job_id, event.by)
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Final, cast

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis.client import Pipeline

    from rebalance_tasks.core.events import EventKind
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Events kept, about 300 bytes each; the scripts in ``lua`` say the same number.
EVENTS_KEPT: Final = 10_000
#: `follow` looks this often. It does not block in Redis: a blocked client holds a connection, and a right of its own.
FOLLOW_EVERY_S: Final = 0.1
#: Before every event.
BEGINNING: Final = "0-0"
_ID: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)
_Entry = tuple[bytes, "dict[bytes, bytes]"]


class EventStore:
    """History of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    # -- writing --------------------------------------------------------------------------------------------------
    def note(self, kind: EventKind, *, by: str, job_id: str = "", data: Mapping[str, Any] | None = None) -> str:
        """Write an event and return its id."""
        raw = self._redis.client.xadd(
            self._keys.events, _fields(kind, by, job_id, data), maxlen=EVENTS_KEPT, approximate=True
        )
        return cast("bytes", raw).decode()

    # -- reading --------------------------------------------------------------------------------------------------
    def after(self, event_id: str = BEGINNING, *, limit: int = 500, job_id: str | None = None) -> list[Event]:
        """Events after an id, oldest first.

        Args:
            event_id: the last one that is known; by default none.
            limit: look at so many entries at most.
            job_id: only those of this job.

        Raises:
            InvalidArgument: that is no id of an event.
        """
        found = self._redis.client.xrange(self._keys.events, min=f"({valid_id(event_id)}", count=limit)
        return self._read(cast("list[_Entry]", found), job_id)

    def newest(self, limit: int = 100, *, job_id: str | None = None) -> list[Event]:
        """The newest events, oldest of them first; of a job, those among all that are kept."""
        count = limit if job_id is None else EVENTS_KEPT
        found = cast("list[_Entry]", self._redis.client.xrevrange(self._keys.events, count=count))
        return self._read(found, job_id)[:limit][::-1]

    def last_id(self) -> str:
        """Id of the newest event, `BEGINNING` when there is none."""
        found = cast("list[_Entry]", self._redis.client.xrevrange(self._keys.events, count=1))
        return found[0][0].decode() if found else BEGINNING

    def follow(
        self, event_id: str | None = None, *, stop: Callable[[], bool] | None = None, every_s: float = FOLLOW_EVERY_S
    ) -> Iterator[Event]:
        """Yield events as they happen, without an end unless ``stop`` says so.

        Args:
            event_id: begin after this one; ``None`` begins with what happens from now on.
            stop: asked at each look.
            every_s: how often to look.
        """
        last = self.last_id() if event_id is None else valid_id(event_id)
        while stop is None or not stop():
            found = self.after(last)
            for event in found:
                last = event.event_id
                yield event
            if not found:
                time.sleep(every_s)

    def _read(self, entries: list[_Entry], job_id: str | None) -> list[Event]:
        events = [_event(self._keys.fleet, raw_id, raw) for raw_id, raw in entries]
        return [event for event in events if job_id is None or event.job_id == job_id]


def queue_event(
    pipe: Pipeline, keys: FleetKeys, kind: EventKind, *, by: str, job_id: str = "", data: Mapping[str, Any]
) -> None:
    """Write an event in the transaction that makes the change."""
    pipe.xadd(keys.events, _fields(kind, by, job_id, data), maxlen=EVENTS_KEPT, approximate=True)


def valid_id(event_id: str) -> str:
    """Return an id of an event, or refuse it. Raises: InvalidArgument."""
    if _ID.fullmatch(event_id) is None:
        msg = f"event id {event_id[:60]!a} refused: it is written 1700000000000-0, as `rebalance events --json` shows them"
        raise InvalidArgument(msg)
    return event_id


def _fields(kind: EventKind, by: str, job_id: str, data: Mapping[str, Any] | None) -> dict[Any, Any]:
    fields = {"kind": kind.value, "job": job_id, "by": by, "data": json.dumps(dict(data)) if data else ""}
    return {name: value for name, value in fields.items() if value}


def _event(fleet: str, raw_id: bytes, raw: Mapping[bytes, bytes]) -> Event:
    fields = {name.decode(): value.decode("utf-8", "replace") for name, value in raw.items()}
    try:
        data = json.loads(fields.get("data") or "{}")
    except ValueError:
        data = {}
    return Event.of(raw_id.decode(), fleet=fleet, fields=fields, data=data if isinstance(data, dict) else {})
