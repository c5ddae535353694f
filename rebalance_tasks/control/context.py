"""What every verb works with: one fleet's settings, stores and drivers, and a way to send messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, Self

from rebalance_tasks.core.errors import UnknownNode
from rebalance_tasks.lazily import module
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.counters import CounterStore
from rebalance_tasks.store.events import EventStore
from rebalance_tasks.store.fleet import FleetStore
from rebalance_tasks.store.holds import HoldStore
from rebalance_tasks.store.jobs import JobStore
from rebalance_tasks.store.keys import FleetKeys
from rebalance_tasks.store.outcomes import OutcomeStore
from rebalance_tasks.store.plans import PlanStore
from rebalance_tasks.store.presence import PresenceStore
from rebalance_tasks.store.progress import ProgressStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rebalance_tasks.control import catalogue as host_catalogue
    from rebalance_tasks.core.models import NodeDescriptor, NodeState
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.settings import Settings
    from rebalance_tasks.store import locations as location_store
    from rebalance_tasks.store import pace as pace_store
    from rebalance_tasks.store import snapshots as snapshot_store
    from rebalance_tasks.store import surveys as survey_store
    from rebalance_tasks.store import trash as trash_store
    from rebalance_tasks.store.records import GroupRecord
else:
    # Not for those who only look at a job.
    location_store, pace_store, snapshot_store, survey_store, trash_store = (
        module(f"rebalance_tasks.store.{name}") for name in ("locations", "pace", "snapshots", "surveys", "trash")
    )
    host_catalogue = module("rebalance_tasks.control.catalogue")


class Messenger(Protocol):
    """Sends the fleet's messages; each is a hint that may be lost, doubled or late (invariant 4)."""

    def open_chord(self, job_id: str, groups: int) -> None:
        """Tell the result backend how many groups the job's chord counts."""
        ...

    def publish_group(self, job_id: str, group: GroupRecord) -> None:
        """Publish a group's header: chain(migrate, monitor), with ids that are a function of job and group."""
        ...

    def publish_extra(self, job_id: str, group: GroupRecord) -> None:
        """Publish one more slice of a busy pair: a plain message, no header of the chord."""
        ...

    def publish_monitor(self, job_id: str, group_id: str, *, counted: bool = False) -> None:
        """Publish the monitor of a group that was ended without a message of its own."""
        ...

    def publish_finalize(self, job_id: str) -> None:
        """Publish the job's finalize."""
        ...

    def publish_survey(self, token: int, node_ids: Sequence[str], *, queue: str) -> None:
        """Publish the survey of some nodes, for the check that holds this token."""
        ...

    def publish_conclude(self, token: int) -> None:
        """Publish the rest of a check whose nodes are all in."""
        ...

    def publish_start(self, plan_id: str, job_id: str) -> None:
        """Publish a start."""
        ...

    def publish_chore(self, name: str, queue: str) -> None:
        """Have the hosts of a queue do their part of a chore (``sweep``, ``cleanup``): what takes reaching their nodes."""
        ...

    def queue_depths(self, queues: Sequence[str]) -> Mapping[str, int]:
        """Count the messages that wait on queues; a broker that does not answer says nothing of any."""
        ...

    def worker_queues(self) -> Mapping[str, Sequence[str]]:
        """Ask the workers that answer within a second or two which queues each takes messages from."""
        ...


@dataclass(frozen=True, slots=True)
class StateContext:
    """One fleet as Redis knows it: enough to look at jobs, and quickly there, since it needs no driver and no Celery."""

    settings: Settings
    connection: Connection
    keys: FleetKeys
    fleet: FleetStore
    jobs: JobStore
    plans: PlanStore
    #: node_id → the state it would have, for who only wants to know what that would come to
    assumed: Mapping[str, NodeState] = field(default_factory=dict, kw_only=True)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Wire the stores of a fleet; nothing is connected before it is used."""
        return cls(**_stores(settings))

    @property
    def outcomes(self) -> OutcomeStore:
        """Why moves of a job failed or were skipped."""
        return OutcomeStore(self.connection, self.keys)

    @property
    def events(self) -> EventStore:
        """The fleet's history."""
        return EventStore(self.connection, self.keys)

    @property
    def paces(self) -> pace_store.PaceStore:
        """How fast each node may be worked."""
        return pace_store.PaceStore(self.connection, self.keys)

    @property
    def counters(self) -> CounterStore:
        """What was ever counted."""
        return CounterStore(self.connection, self.keys)

    @property
    def holds(self) -> HoldStore:
        """Nodes that are held, and the groups that wait for them."""
        return HoldStore(self.connection, self.keys)

    @property
    def presence(self) -> PresenceStore:
        """Who is there."""
        return PresenceStore(self.connection, self.keys)

    def digests(self) -> dict[str, str]:
        """Configuration digests of the workers that live."""
        return {one.worker: one.digest for one in self.presence.living(now_ms=self.connection.now_ms())}

    @property
    def snapshots(self) -> snapshot_store.SnapshotStore:
        """What checks saw and decided."""
        return snapshot_store.SnapshotStore(self.connection, self.keys)

    @property
    def surveys(self) -> survey_store.SurveyStore:
        """The survey that tasks carry out for the check."""
        return survey_store.SurveyStore(self.connection, self.keys)

    @property
    def progress(self) -> ProgressStore:
        """Samples of how far the running job is."""
        return ProgressStore(self.connection, self.keys)

    def now(self) -> datetime:
        """Redis' clock, aware UTC."""
        return datetime.fromtimestamp(self.connection.now_ms() / 1000, tz=UTC)

    def nodes(self) -> list[NodeDescriptor]:
        """Configured nodes, with the states that were set at run time, or that are assumed."""
        states = {**self.fleet.node_states(), **self.assumed}
        return [
            node.model_copy(update={"state": states[node.node_id]}) if node.node_id in states else node
            for node in self.settings.nodes
        ]

    def node(self, node_id: str) -> NodeDescriptor:
        """One configured node. Raises: UnknownNode."""
        for node in self.nodes():
            if node.node_id == node_id:
                return node
        raise UnknownNode(node_id)


@dataclass(frozen=True, slots=True)
class PlacesContext(StateContext):
    """One fleet with its nodes: enough to find, read and write objects; no Celery."""

    locations: location_store.LocationStore
    driver: Callable[[str], Driver]
    #: the host's, where Redis does not keep it
    catalogue: host_catalogue.Catalogue | None

    @classmethod
    def reaching(cls, settings: Settings, *, driver: Callable[[str], Driver]) -> Self:
        """Wire a fleet with its drivers."""
        stores = _stores(settings)
        return cls(
            **stores,
            locations=location_store.LocationStore(stores["connection"], stores["keys"]),
            driver=driver,
            catalogue=host_catalogue.Catalogue.of(settings),
        )


@dataclass(frozen=True, slots=True)
class FleetContext(PlacesContext):
    """One fleet, wired."""

    trash: trash_store.TrashStore
    messenger: Messenger

    @classmethod
    def wired(cls, settings: Settings, *, driver: Callable[[str], Driver], messenger: Messenger) -> Self:
        """Wire a fleet with its drivers and its messages."""
        stores = _stores(settings)
        place = stores["connection"], stores["keys"]
        return cls(
            **stores,
            locations=location_store.LocationStore(*place),
            trash=trash_store.TrashStore(*place),
            driver=driver,
            catalogue=host_catalogue.Catalogue.of(settings),
            messenger=messenger,
        )


def _stores(settings: Settings) -> dict[str, Any]:
    connection, keys = Connection(connect(settings.redis_url)), FleetKeys(settings.fleet, settings.key_prefix)
    return {
        "settings": settings,
        "connection": connection,
        "keys": keys,
        "fleet": FleetStore(connection, keys),
        "jobs": JobStore(connection, keys),
        "plans": PlanStore(connection, keys),
    }
