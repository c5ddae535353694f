"""Looking at a fleet: everything that the state in Redis answers, without Celery, and without drivers but to find an object."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.control import causes
from rebalance_tasks.control.context import PlacesContext, StateContext
from rebalance_tasks.core.errors import InvalidArgument, JobNotFound
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.lazily import module
from rebalance_tasks.settings import Settings, configured_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.control import locate as locations
    from rebalance_tasks.control import throttles
    from rebalance_tasks.control.locate import Location, Locator
    from rebalance_tasks.control.throttles import NodeThrottle
    from rebalance_tasks.core.events import Event
    from rebalance_tasks.core.models import FailureGroup, RebalanceJob, RebalancePlan
    from rebalance_tasks.store.fleet import ChoreRecord
    from rebalance_tasks.store.holds import Hold
    from rebalance_tasks.store.snapshots import Snapshot
else:
    # Loaded when first used: who asks for a job's status does not wait for NumPy.
    locations, throttles = (module(f"rebalance_tasks.control.{name}") for name in ("locate", "throttles"))

__all__ = ["Viewer"]

#: `watch` looks this often; a change shows within it.
WATCH_EVERY_S: Final = 0.25


class Viewer:
    """What may be asked of a fleet without acting on it."""

    def __init__(self, fleet: str | Settings | None = None, redis_url: str | None = None) -> None:
        """Read the configuration; nothing is connected before it is used.

        Args:
            fleet: name of a configured fleet (default: the first one), or settings of your own.
            redis_url: where the state lives, instead of what the configuration says.

        Raises:
            ConfigurationError: the configuration is wrong.
            InvalidArgument: the configuration is for another fleet.
        """
        settings = fleet if isinstance(fleet, Settings) else configured_fleet(fleet)
        if isinstance(fleet, str) and fleet != settings.fleet:
            if settings.nodes:
                msg = f"fleet={fleet!r}, but the configuration is for fleet {settings.fleet!r}; see REBALANCE_CONFIG"
                raise InvalidArgument(msg)
            settings = settings.model_copy(update={"fleet": fleet})
        if redis_url is not None:
            followers = {
                name: redis_url
                for name in ("broker_url", "result_backend")
                if getattr(settings, name) == settings.redis_url
            }
            settings = settings.model_copy(update={"redis_url": redis_url, **followers})
        self.settings = settings

    @cached_property
    def _state(self) -> StateContext:
        """What is enough to look."""
        return StateContext.open(self.settings)

    @cached_property
    def _places(self) -> PlacesContext:
        """What is enough to find objects; no Celery."""
        from rebalance_tasks.drivers.opened import Drivers  # noqa: PLC0415  drivers load NumPy

        return PlacesContext.reaching(self.settings, driver=Drivers(self.settings).reached)

    @cached_property
    def _locator(self) -> Locator:
        return locations.Locator(self._places)

    # -- jobs ----------------------------------------------------------------------------------------------------------
    def status(self, job_id: str) -> RebalanceJob:
        """The job as it is at this instant. Raises: JobNotFound."""
        return self._state.jobs.load(job_id)

    def jobs(self, status: RebalanceStatus | str | None = None) -> list[RebalanceJob]:
        """Known jobs, newest first, optionally of one status."""
        wanted = None if status is None else RebalanceStatus(status)
        found: list[RebalanceJob] = []
        for job_id in self._state.jobs.ids():
            try:
                job = self._state.jobs.load(job_id)
            except JobNotFound:
                continue
            if wanted is None or job.status is wanted:
                found.append(job)
        return found

    def failures(self, job_id: str) -> list[FailureGroup]:
        """Failed and skipped moves by cause, each cause with an example and the way out. Raises: JobNotFound."""
        return causes.failure_groups(self._state, self.status(job_id))

    def watch(self, job_id: str) -> Iterator[RebalanceJob]:
        """Yield the job whenever it has changed, the last time at its terminal status. Raises: JobNotFound."""
        shown: RebalanceJob | None = None
        while True:
            job = self.status(job_id)
            if shown is None or _visible(job) != _visible(shown):
                shown = job
                yield job
            if job.status.terminal:
                return
            time.sleep(WATCH_EVERY_S)

    # -- limits --------------------------------------------------------------------------------------------------------
    def holds(self) -> list[Hold]:
        """Every hold on a node: by whom (``operator``, ``missing``) and since when."""
        return self._state.holds.all()

    def node_throttles(self) -> list[NodeThrottle]:
        """Limits of nodes that are in force, and what holds nodes back (`adaptive_throttle`)."""
        return throttles.node_throttles(self._state)

    def in_flight(self) -> dict[tuple[str, str], str]:
        """(source, target) → why fewer objects than usual are in flight between them; nothing while all are."""
        return self._state.paces.in_flight()

    # -- the fleet -----------------------------------------------------------------------------------------------------
    def workers(self) -> dict[str, Sequence[str]]:
        """The workers that live, as they said themselves within half a minute: name → the queues each serves."""
        return self._state.presence.queues_of(now_ms=self._state.connection.now_ms())

    def last_chore(self, name: str) -> ChoreRecord | None:
        """When the last ``sweep`` or ``cleanup`` ran and what it did; ``None`` when none ever ran."""
        return self._state.fleet.last_chore(name)

    def locate(self, key: str) -> Location:
        """Return the node that holds an object (a node id with ``.url`` and ``.via``). Raises: ObjectNotFound, InvalidKey."""
        return self._locator.locate(key)

    def load_plan(self, plan_id: str) -> RebalancePlan:
        """Return a kept plan. Raises: PlanNotFound."""
        return self._state.plans.load(plan_id)

    def plans(self, limit: int = 20) -> list[str]:
        """Ids of the newest plans."""
        return self._state.plans.newest(limit)

    def checks(self, limit: int = 20) -> list[dict[str, Any]]:
        """Why the last checks ran or skipped, newest first."""
        return [record.model_dump(mode="json") for record in self._state.fleet.checks(limit)]

    def events(self, *, limit: int = 100, job_id: str | None = None) -> list[Event]:
        """The newest events of the fleet, or of a job: what was decided, what happened, who asked; oldest first."""
        return self._state.events.newest(limit, job_id=job_id)

    def events_after(self, event_id: str, *, limit: int = 500, job_id: str | None = None) -> list[Event]:
        """Events after an id, oldest first. Raises: InvalidArgument."""
        return self._state.events.after(event_id, limit=limit, job_id=job_id)

    def follow_events(self, event_id: str | None = None) -> Iterator[Event]:
        """Yield events as they happen, without an end: those after an id, by default those from now on."""
        return self._state.events.follow(event_id)

    def snapshots(self, limit: int = 20) -> list[Snapshot]:
        """What the last checks saw and decided, newest first, for as long as `check_retention` keeps it."""
        return self._state.snapshots.newest(limit)


def _visible(job: RebalanceJob) -> RebalanceJob:
    """Leave out what changes by the mere passing of time."""
    return job.model_copy(update={"throughput": 0.0, "eta": None})
