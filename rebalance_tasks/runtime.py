"""The composition root: the only place where settings, Redis, drivers, messages and the engine are wired together."""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.catalogue import AWAY
from rebalance_tasks.control.context import FleetContext
from rebalance_tasks.control.lifecycle import QUIET_HOURS
from rebalance_tasks.control.start import admit
from rebalance_tasks.control.throttles import Throttles
from rebalance_tasks.core.errors import UnknownFleet
from rebalance_tasks.core.quiet_hours import in_quiet_hours
from rebalance_tasks.drivers.opened import Drivers
from rebalance_tasks.messages import CeleryMessenger
from rebalance_tasks.migration.committing import Host
from rebalance_tasks.migration.control import SliceControl
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.item import BatchContext
from rebalance_tasks.migration.measured import measured
from rebalance_tasks.migration.slice import Slice, SliceWorld
from rebalance_tasks.settings import Settings, load_fleets
from rebalance_tasks.store.attempts import AttemptStore
from rebalance_tasks.store.moves import UNLIMITED, Budgets, Ending, MoveStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import WSGIApplication

    from celery import Celery
    from prometheus_client import CollectorRegistry

    from rebalance_tasks.control.metrics import FleetCollector
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.records import GroupRecord

#: Money is counted in 10⁻⁹ of the currency, so that Redis adds it up exactly.
NANO: Final = 10**9
#: A freed source stays in the trash at least so long, whatever the grace: longer than an append-only file can lag.
MIN_PURGE_DELAY: Final = timedelta(seconds=5)


class Runtime:
    """One fleet in one process."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        """Wire a fleet; nothing is connected before it is used."""
        self.settings = settings
        self._app = app
        self._drivers = Drivers(settings)

    @cached_property
    def context(self) -> FleetContext:
        """What the verbs of `control` work with."""
        messenger = CeleryMessenger(self._app, fleet=self.settings.fleet, queues=self.settings.broker_queues)
        return FleetContext.wired(self.settings, driver=self._drivers, messenger=messenger)

    def metrics_registry(self) -> CollectorRegistry:
        """The fleet's metrics, for a server of prometheus-client's."""
        from prometheus_client import CollectorRegistry  # noqa: PLC0415  as below

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._collector)
        return registry

    def metrics_app(self) -> WSGIApplication:
        """What Prometheus scrapes, as a WSGI application: `rebalance metrics` serves it."""
        from rebalance_tasks.control.metering.text import metrics_app  # noqa: PLC0415  as below

        return metrics_app(self._collector, self.metrics_registry())

    @cached_property
    def _collector(self) -> FleetCollector:
        from rebalance_tasks.control import metrics  # noqa: PLC0415  no task needs it

        return metrics.FleetCollector(self.context, self.context.messenger.queue_depths)

    def drivers_of(self, queue: str) -> Callable[[str], Driver]:
        """The drivers of the hosts of a Celery queue."""
        return self._drivers.of_queue(queue)

    def _pair(self, group: GroupRecord, queue: str) -> tuple[Driver, Driver]:
        drivers = self._drivers.of_queue(queue)
        return drivers(group.source), drivers(group.target)

    def slice(
        self,
        job_id: str,
        group_id: str,
        *,
        owner: str,
        queue: str = "",
        extra: bool = False,
        ending: Ending | None = None,
    ) -> Slice:
        """Return a slice of one group, ready to run.

        Args:
            job_id: the job.
            group_id: the group.
            owner: names this very attempt, see `Slice`.
            queue: where its message came from, and so where extra slices find somebody; default the group's.
            extra: see `Slice`.
            ending: asked along with the count of moves.
        """
        context = self.context
        world = SliceWorld(
            jobs=context.jobs,
            limit=self.settings.options.max_concurrent_migrations,
            move_store=lambda lease: MoveStore(
                self.context.connection, context.keys, job_id=job_id, lease=lease, ending=ending
            ),
            drivers=lambda group: self._pair(group, queue or group.queue),
            context=lambda lease, store, drivers, slice_s: self._batch_context(job_id, lease, store, drivers, slice_s),
            spread=lambda group: context.messenger.publish_extra(
                job_id, group.model_copy(update={"queue": queue or group.queue})
            ),
            attempts=lambda lease: AttemptStore(self.context.connection, context.keys, job_id=job_id, lease=lease),
            admit=lambda: admit(context, job_id),
            missing=context.holds.missing,
            host=self._host,
            catalogue_away=lambda: context.jobs.pause(job_id, reason=AWAY, by="runner"),
        )
        return Slice(world, job_id=job_id, group_id=group_id, owner=owner, extra=extra)

    def _host(self, lease: Lease) -> Host | None:
        catalogue, group = self.context.catalogue, lease.group
        if catalogue is None or group is None:
            return None
        catalogue.open()
        return Host(catalogue, group.source, group.target, lease.now_ms, self.context.locations.marks)

    @cached_property
    def _throttles(self) -> Throttles:
        return Throttles(self.context)

    def _batch_context(
        self,
        job_id: str,
        lease: Lease,
        store: MoveStore,
        drivers: tuple[Driver, Driver],
        slice_s: float,
    ) -> BatchContext:
        group = lease.group
        if group is None:
            msg = f"a lease with code {lease.code} has no group to work on"
            raise ValueError(msg)
        options = self.settings.options
        beat = _Beat(self.context, job_id, group.group_id, lease.stretch, lease.epoch)
        # Quiet hours are no flag in Redis before somebody has seen the clock.
        looks = options.quiet_hours is not None
        control = SliceControl(
            beat,
            bucket=self._throttles.of(job_id, group, now=_from_ms(lease.now_ms)),
            look_at_once=looks,
            slice_s=slice_s,
        )
        store.along = control.first_leases
        per_gb = Decimal(group.cost_per_gb)
        begun = time.monotonic()
        if options.adaptive_throttle:
            drivers = (measured(drivers[0], self.context.paces), measured(drivers[1], self.context.paces))
        source, target = drivers
        return BatchContext(
            source=source,
            target=target,
            store=store,
            copier=Copier(control),
            control=control,
            budgets=self._budgets(lease.capacities.get(group.target), self.settings.node(group.target).reserved_bytes),
            cost_nano=(lambda size: int(size * per_gb)) if per_gb else lambda _: 0,
            now=lambda: _from_ms(lease.now_ms + int((time.monotonic() - begun) * 1000)),
            validate=options.validate_checksums,
            forwarding_ttl_ms=_ms(options.forwarding_ttl) if options.enable_read_forwarding else 0,
            keep_locations=self.settings.locator != "union" and self.context.catalogue is None,
            purge_delay_ms=_ms(max(options.grace, MIN_PURGE_DELAY)),
            # Epochs go back when Redis loses its tail: a name of its own keeps what an earlier run wrote.
            manifest_prefix=f"{job_id}.{group.group_id}.{lease.epoch}.{uuid.uuid4().hex[:8]}",
            host=self._host(lease),
            tell_in_flight=self.context.paces.note_in_flight,
        )

    def _budgets(self, capacity: int | None, reserved: int) -> Budgets:
        options = self.settings.options
        per_day = options.max_cost_per_day
        return Budgets(
            egress_bytes=options.max_egress_bytes_per_cycle,
            cost_nano=int(options.max_cost_per_cycle * NANO),
            cost_nano_day=UNLIMITED if per_day is None else int(per_day * NANO),
            target_bytes=UNLIMITED if capacity is None else int(capacity * options.max_utilisation) - reserved,
        )


@dataclass(slots=True)
class _Beat:
    """Renews a lease, reads the flags, and looks at the clock for quiet hours."""

    context: FleetContext
    job_id: str
    group_id: str
    stretch: int
    epoch: int

    def __call__(self) -> str:
        code, now_ms = self.context.jobs.beat(self.job_id, self.group_id, self.stretch, epoch=self.epoch)
        options = self.context.settings.options
        if code == "ok" and options.quiet_hours is not None:
            now = _from_ms(now_ms)
            if in_quiet_hours(options, now=now):
                self.context.jobs.pause(self.job_id, reason=QUIET_HOURS, by="runner")
                return "paused"
        return code


#: (app, process) → fleet → its runtime, the default fleet's first.
_runtimes: dict[tuple[int, int], dict[str, Runtime]] = {}
#: In a pool of threads two first tasks may come at once.
_wiring: Final = threading.Lock()


def runtimes_for(app: Celery) -> dict[str, Runtime]:
    """Return this process' runtimes, one for each fleet that it serves, the default fleet's first.

    Args:
        app: the Celery app whose messages they send.

    Raises:
        ConfigurationError: the settings are wrong.
    """
    place = (id(app), os.getpid())
    runtimes = _runtimes.get(place)
    if runtimes is None:
        with _wiring:
            runtimes = _runtimes.get(place)
            if runtimes is None:
                fleets = getattr(app, "rebalance_fleets", None) or load_fleets()
                runtimes = _runtimes[place] = {settings.fleet: Runtime(settings, app) for settings in fleets}
    return runtimes


def runtime_for(app: Celery, fleet: str | None = None) -> Runtime:
    """Return this process' runtime of a fleet.

    Args:
        app: the Celery app whose messages it sends.
        fleet: the fleet a message names; ``None`` is the default one.

    Raises:
        UnknownFleet: this process is not configured for that fleet.
        ConfigurationError: the settings are wrong.
    """
    runtimes = runtimes_for(app)
    if fleet is None:
        return next(iter(runtimes.values()))
    if fleet not in runtimes:
        raise UnknownFleet(fleet, ", ".join(runtimes))
    return runtimes[fleet]


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def _from_ms(now_ms: int) -> datetime:
    return datetime.fromtimestamp(now_ms / 1000, tz=UTC)
