"""One task that looks at Redis and tells every open page what changed; pages never poll, however many there are.

Redis holds the truth and nothing is announced there, so somebody has to look: one reader a process, every 200 ms while
anybody watches (an event is on the page within half a second), every two seconds else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.cli.output import error_story, jsonable
from rebalance_tasks.console.shapes import fleet_json, job_json
from rebalance_tasks.console.timeline import entry_of
from rebalance_tasks.core.errors import JobNotFound
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.control.overview import Overview
    from rebalance_tasks.control.survey import NodeReport
    from rebalance_tasks.core.events import Event as History
    from rebalance_tasks.core.models import RebalanceJob

log = get_logger(__name__)

#: Half of what a page is promised, with as much left for the read and the way to the browser.
LOOK_EVERY_S: Final = 0.2
#: Nobody watches: a page that opens is told at once how things stood, and a moment later how they stand.
IDLE_EVERY_S: Final = 2.0
#: A node that vanishes shows within so long; a look at every node costs a call each.
GLANCE_EVERY_S: Final = 15.0
#: Before every event of the history.
BEGINNING: Final = "0-0"
#: A page that does not read its stream loses what is older; it asks for everything when it is told so.
QUEUE_LENGTH: Final = 256


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to tell the pages.

    Attributes:
        topic: ``fleet``, ``usage``, ``job``, ``timeline``, ``check``, ``offline`` or ``resync``.
    """

    topic: str
    data: dict[str, Any]


@dataclass(slots=True)
class Look:
    """What one look found; the fleet in numbers beside it, so that no look is counted up twice."""

    seen: Overview
    fleet: dict[str, Any]
    job: RebalanceJob | None = None
    check: dict[str, Any] | None = None
    happened: list[History] = field(default_factory=list)


@dataclass(slots=True)
class Watcher:
    """Looks, compares and tells."""

    client: Rebalancer
    _looking: threading.Lock = field(default_factory=threading.Lock)
    _glances: list[NodeReport] | None = None
    _glance_now: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: tuple[float, Overview] | None = None
    _changed_at: float = float("-inf")
    _last: Look | None = None
    _newest: str | None = None
    _watched: str | None = None
    _pages: set[asyncio.Queue[Event]] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    # -- what the API asks -----------------------------------------------------------------------------------------
    def overview(self) -> Overview:
        """The fleet of at most `LOOK_EVERY_S` ago and after the last change made here, its nodes of `GLANCE_EVERY_S` ago."""
        # A page asks several things at once: one looks, the others wait for what it sees.
        with self._looking:
            seen = self._seen
            return seen[1] if seen is not None and time.monotonic() - seen[0] < LOOK_EVERY_S else self._overview()

    def _overview(self) -> Overview:
        begun = time.monotonic()
        if self._glances is None:
            self._glances = self.client.glances()
        seen = self.client.overview(self._glances)
        # Another thread may have changed something since this look began.
        if begun >= self._changed_at:
            self._seen = begun, seen
        return seen

    def forget(self) -> None:
        """Look again at the next occasion, at the nodes as well: somebody has just changed something."""
        self._changed_at = time.monotonic()
        self._seen = None
        self._glance_now.set()

    def follow(self, job_id: str) -> None:
        """Look at a job that has just been started, even if it ends before it is seen active."""
        self._watched = job_id

    async def events(self) -> AsyncGenerator[Event]:
        """Yield the fleet and the job of now, then every change."""
        queue: asyncio.Queue[Event] = asyncio.Queue(QUEUE_LENGTH)
        for event in _changes(None, self._last) if self._last else ():
            queue.put_nowait(event)
        self._pages.add(queue)
        self._wake.set()
        try:
            while True:
                yield await queue.get()
        finally:
            self._pages.discard(queue)

    # -- the tasks -------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Look until cancelled; Redis may go away and come back."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_on())
            tasks.create_task(self._glance_on())

    async def _look_on(self) -> None:
        while True:
            try:
                self._tell(await asyncio.to_thread(self._look))
            except Exception as exc:  # noqa: BLE001  whatever it is, the next look may succeed; the pages say so meanwhile
                message, cause = error_story(exc)
                log.warning("console.look_failed", cause=cause, error=message)
                self._last = None
                self._publish(Event("offline", {"error": message, "cause": cause}))
                await asyncio.sleep(1)
            self._wake.clear()
            if self._pages:
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                await _either(self._wake, IDLE_EVERY_S)

    async def _glance_on(self) -> None:
        """Look at the nodes themselves, apart from the looks at Redis: a thousand slow ones must not hold up an event."""
        while True:
            await _either(self._glance_now, GLANCE_EVERY_S)
            self._glance_now.clear()
            # What fails here is told by the look at Redis, or at the node, that comes next.
            with contextlib.suppress(Exception):
                self._glances = await asyncio.to_thread(self.client.glances)

    def _look(self) -> Look:
        with self._looking:
            seen = self._overview()
        # The job that was active at the last look is followed to its end.
        job_id = seen.active_job or self._watched
        job = None
        if job_id is not None:
            with contextlib.suppress(JobNotFound):
                job = self.client.status(job_id)
        checks = self.client.checks(1)
        fleet = fleet_json(seen, self.client.settings)
        return Look(seen, fleet, job, checks[0] if checks else None, self._happened())

    def _happened(self) -> list[History]:
        """What the fleet's history has more than at the last look; nothing at the first."""
        if self._newest is None:
            newest = self.client.events(limit=1)
            self._newest = newest[0].event_id if newest else BEGINNING
            return []
        found = self.client.events_after(self._newest)
        self._newest = found[-1].event_id if found else self._newest
        return found

    def _tell(self, now: Look) -> None:
        before = self._last
        for event in _changes(before, now):
            self._publish(event)
        for happened in now.happened:
            entry = entry_of(happened)
            if entry is not None:
                self._publish(Event("timeline", {"job_id": happened.job_id, **jsonable(entry)}))
        self._watched = now.job.job_id if now.job and not now.job.status.terminal else None
        self._last = now

    def _publish(self, event: Event) -> None:
        for queue in self._pages:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(Event("resync", {}))
            queue.put_nowait(event)


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _changes(before: Look | None, now: Look) -> list[Event]:
    """What the pages have to be told; with nothing before, everything."""
    found: list[Event] = []
    if before is None or now.fleet != before.fleet:
        found.append(Event("fleet", now.fleet))
    if before is not None:
        old = {entry.node.node_id: entry for entry in before.seen.nodes}
        moved = {
            entry.node.node_id: entry.used_bytes
            for entry in now.seen.nodes
            if entry.node.node_id in old and old[entry.node.node_id].used_bytes != entry.used_bytes
        }
        if moved:
            found.append(Event("usage", moved))
    if now.job is not None and (before is None or now.job != before.job):
        found.append(Event("job", job_json(now.job)))
    if now.check is not None and (before is None or now.check != before.check):
        found.append(Event("check", now.check))
    return found
