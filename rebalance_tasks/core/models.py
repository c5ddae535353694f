"""The types that cross a boundary: frozen pydantic models with bytes as ints and times as aware UTC.

Millions of objects never travel as these models (see `inventory`); nodes, decisions, plans and jobs do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
)

from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.core.units import parse_rate, parse_size

if TYPE_CHECKING:
    import pyarrow as pa

#: An identifier that is safe in Redis keys, file names, queue names and URLs.
Identifier = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
#: An object key as the planner sees it; drivers confine it to their root (`keys.validate_key`).
KeyText = Annotated[str, Field(min_length=1, max_length=1024)]
#: A score or share.
Unit = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
#: Bytes; text with a unit ("4TB") is read too.
Size = Annotated[NonNegativeInt, BeforeValidator(parse_size)]
#: A name of a queue: part of the name of a Celery queue, and of Redis keys.
_QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def _queue_names(value: object) -> object:
    """Read one name, several with commas, or a list of them; the first is the preferred one."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        msg = 'should be a name, such as "host1", or a list of names'
        raise ValueError(msg)
    names = [part.strip() for part in parts if part.strip()]
    for name in names:
        if not _QUEUE_NAME.fullmatch(name):
            msg = f"{name[:80]!a} is no queue's name: letters, digits, '.', '_' and '-', the first a letter or digit"
            raise ValueError(msg)
    return ",".join(dict.fromkeys(names))


#: Names of queues, separated by commas.
QueueNames = Annotated[str, BeforeValidator(_queue_names)]
#: Bytes a second; text with a unit ("50MiB/s") is read too.
Rate = Annotated[PositiveInt, BeforeValidator(parse_rate)]
#: Money, exact.
Money = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


#: Validators are built when they are first used: most commands use few of them.
LATER: Final = ConfigDict(defer_build=True)


class Frozen(BaseModel):
    """Base of every model: immutable, and an unknown field is an error rather than a silent typo."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="utf8", **LATER)


class StorageClass(StrEnum):
    """What kind of storage a node offers or an object needs."""

    HOT = "hot"
    WARM = "warm"
    COOL = "cool"
    COLD = "cold"
    ARCHIVE = "archive"
    NVME = "nvme"
    SSD = "ssd"
    HDD = "hdd"
    TAPE = "tape"


class NodeState(StrEnum):
    """Whether a node takes and gives objects: active both, draining only gives, maintenance neither."""

    ACTIVE = "active"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"


class ConstraintType(StrEnum):
    """What a `PlacementConstraint` looks at."""

    ZONE = "zone"
    RACK = "rack"
    HOST = "host"
    TAG = "tag"
    STORAGE_CLASS = "storage_class"
    COMPLIANCE = "compliance"


class NodeDescriptor(Frozen):
    """A place that holds objects under keys and has a URL.

    Attributes:
        url: where it is (``file:///srv/disk1``, ``s3://bucket/prefix``).
        queue: of the hosts that reach it, or several with commas; none: every host does (`rebalance_tasks.core.routes`).
        remote_url: the same place as other hosts reach it (``sftp://host-b/srv/disk1``); they push objects there.
        pool: nodes exchange objects only within their pool.
        capacity_bytes: what it can hold; ``None`` asks the file system (not possible for object stores).
        used_bytes: bytes of objects on it; ``None`` means "what the inventory says".
        reserved_bytes: of its capacity, what nothing is planned into; a survey makes it more where the file system has less room.
        weight: share of the data that placement gives it; 0 receives nothing.
        egress_cost_per_gb: money for 10⁹ bytes that leave it.
        read_bytes_per_sec/write_bytes_per_sec: how fast all workers together read from it and write to it; ``None`` is no limit.
        requests_per_sec: copies that its own server makes, of all workers together; ``None`` is no limit.
        include/exclude: glob patterns over keys; an object that is not included is left alone.
    """

    node_id: Identifier
    url: str = Field(default="", max_length=2048)
    pool: Identifier = "default"
    zone: str = ""
    rack: str = ""
    host: str = ""
    region: str = ""
    queue: QueueNames = ""
    remote_url: str = Field(default="", max_length=2048)
    tags: Mapping[str, str] = Field(default_factory=dict)
    storage_classes: tuple[StorageClass, ...] = ()
    capacity_bytes: Size | None = None
    used_bytes: Size | None = None
    reserved_bytes: Size = 0
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    egress_cost_per_gb: Money = Decimal(0)
    storage_cost_per_gb_month: Money = Decimal(0)
    latency_ms: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    read_bytes_per_sec: Rate | None = None
    write_bytes_per_sec: Rate | None = None
    requests_per_sec: PositiveInt | None = None
    state: NodeState = NodeState.ACTIVE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    storage_options: Mapping[str, Any] = Field(default_factory=dict, repr=False)

    @property
    def queues(self) -> tuple[str, ...]:
        """Names of the queues of the hosts that reach it, the preferred one first; empty: every host does."""
        return tuple(self.queue.split(",")) if self.queue else ()


class PlacementTarget(Frozen):
    """An object for which a place is sought, with what it needs of that place."""

    object_key: KeyText
    object_size: NonNegativeInt = 0
    replica_count: int = Field(default=1, ge=1, le=64)
    required_storage_class: StorageClass | None = None
    required_zones: tuple[str, ...] = ()
    required_tags: Mapping[str, str] = Field(default_factory=dict)
    compliance_regions: tuple[str, ...] = ()


class PlacementDecision(Frozen):
    """Where an object belongs: the primary first, then its replicas.

    Attributes:
        placement_rule_id: ``flat`` or ``tree``.
        separation: the widest domain that no two of the nodes share: ``zone``, and less where the fleet has fewer zones
            than replicas: ``rack``, ``host``, or ``node`` when even a host holds two.
        missing_replicas: how many could not be placed, since there are fewer eligible nodes.
    """

    target_nodes: tuple[str, ...]
    primary_node: str
    replica_nodes: tuple[str, ...] = ()
    placement_rule_id: str = "flat"
    deterministic: bool = True
    separation: Literal["zone", "rack", "host", "node"] = "zone"
    missing_replicas: NonNegativeInt = 0


class PlacementConstraint(Frozen):
    """A filter on nodes; a constraint that is not required only ranks them."""

    constraint_type: ConstraintType
    key: str = ""
    value: str
    required: bool = True


class DataGravityScore(Frozen):
    """How strongly an object is held where it is; all parts are measured, the composite is in [0, 1]."""

    object_key: KeyText
    current_node: str
    access_frequency: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    last_access_utc: AwareDatetime | None = None
    colocated_dependencies: NonNegativeInt = 0
    egress_cost_per_gb: Money = Decimal(0)
    latency_ms: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    compliance_weight: Unit = 0.0
    composite_score: Unit


class RebalanceMove(Frozen):
    """One object, from one node to another, and why."""

    object_key: KeyText
    source_node: Identifier
    target_node: Identifier
    size_bytes: NonNegativeInt
    priority: int = 0
    gravity: Unit = 0.0
    cost: Money = Decimal(0)
    reason: str = Field(default="", max_length=500)


class RebalancePlan(Frozen):
    """The moves that restore balance, with what they cost, what they achieve and what was left alone.

    Attributes:
        epoch: the fleet's epoch the plan was made in; `start` re-verifies the moves of an older plan.
        limits_reached: names of the options that bound the plan (``"max_moves_per_cycle"``).
        not_moved: reason → number of objects left where they are; with the moves it adds up to the inventory.
        cannot: why the target is out of reach although no budget binds: constraint, objects, an example; empty when it is met.
        not_carried: ``"source > target"`` → what an object may lose on that way besides its bytes (`core.fidelity.Attribute`).
        undo_of: the job whose moves this plan takes back; such a plan may raise the spread and moves within the cooldown.
    """

    plan_id: Identifier
    fleet: Identifier = "default"
    epoch: NonNegativeInt = 0
    created_utc: AwareDatetime | None = None
    moves: tuple[RebalanceMove, ...] = ()
    estimated_duration_seconds: float = Field(default=0.0, ge=0.0)
    estimated_egress_bytes: NonNegativeInt = 0
    estimated_cost: Money = Decimal(0)
    imbalance_before: float = Field(default=0.0, ge=0.0)
    imbalance_after: float = Field(default=0.0, ge=0.0)
    limits_reached: tuple[str, ...] = ()
    not_moved: Mapping[str, int] = Field(default_factory=dict)
    cannot: tuple[str, ...] = ()
    not_carried: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    undo_of: str = Field(default="", max_length=128)

    def to_arrow(self) -> pa.Table:
        """Return the moves as a table, one row a move.

        Returns:
            columns object_key, source_node, target_node (string), size_bytes (int64), priority (int64),
            gravity (float64), cost (decimal128(38, 18)), reason (string).
        """
        import pyarrow as pa  # noqa: PLC0415  loaded only where tables are asked for (import time)

        schema = pa.schema(
            [
                ("object_key", pa.string()),
                ("source_node", pa.string()),
                ("target_node", pa.string()),
                ("size_bytes", pa.int64()),
                ("priority", pa.int64()),
                ("gravity", pa.float64()),
                ("cost", pa.decimal128(38, 18)),
                ("reason", pa.string()),
            ],
        )
        columns = {name: [getattr(move, name) for move in self.moves] for name in schema.names}
        return pa.table(columns, schema=schema)


class RebalanceJob(Frozen):
    """One execution of a plan, as Redis knows it at this instant.

    Attributes:
        throughput: bytes a second: of the last minute while it runs, 0 while it does not, over the whole run when it has
            ended; pauses do not count.
        eta: seconds to the end at that rate; ``None`` while unknown.
        paused_reasons: who holds it (``operator``, ``quiet_hours``, ``node:<id>``, ``catalogue``, ``global``).
        held_groups: ``node:<id>`` → number of open groups that wait since this node is held; others go on.
        failures: cause → number of failed or skipped moves.
        cancelled_by: who asked for the cancel, or ``deadline: …`` when the sweep did.
    """

    job_id: Identifier
    plan_id: str
    fleet: str = "default"
    status: RebalanceStatus
    created_utc: AwareDatetime
    started_utc: AwareDatetime | None = None
    completed_utc: AwareDatetime | None = None
    total_moves: NonNegativeInt = 0
    completed_moves: NonNegativeInt = 0
    failed_moves: NonNegativeInt = 0
    skipped_moves: NonNegativeInt = 0
    total_bytes: NonNegativeInt = 0
    bytes_moved: NonNegativeInt = 0
    throughput: float = Field(default=0.0, ge=0.0)
    eta: float | None = None
    imbalance_before: float | None = None
    imbalance_after: float | None = None
    error: str | None = None
    requested_by: str = ""
    cancel_requested: bool = False
    cancelled_by: str = ""
    paused_reasons: tuple[str, ...] = ()
    held_groups: Mapping[str, int] = Field(default_factory=dict)
    failures: Mapping[str, int] = Field(default_factory=dict)
    groups_total: NonNegativeInt = 0
    groups_done: NonNegativeInt = 0

    @field_validator("paused_reasons", mode="before")
    @classmethod
    def _sorted(cls, value: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(value))


class FailureGroup(Frozen):
    """Moves of a job that failed, or were skipped, for one cause; with one of them as an example.

    Attributes:
        cause: the stable word.
        moves: how many.
        hint: what to do about it.
        object_key: of the example; empty where nothing was noted (moves skipped before they began).
        detail: what was said of the example.
    """

    cause: str
    moves: NonNegativeInt
    hint: str
    object_key: str = ""
    source_node: str = ""
    target_node: str = ""
    detail: str = ""


class CheckResult(Frozen):
    """What a check decided, and why.

    Attributes:
        verdict: ``skipped`` (nothing done), ``planned`` (observe mode stops here), ``started``, or ``surveying``: tasks look at
            the nodes, and the check decides when they have (`rebalance events` and the record of checks tell what).
        reason: a stable word, a colon, and a sentence (``"under_threshold: imbalance 0.04 < 0.10"``).
    """

    verdict: str
    reason: str
    plan_id: str | None = None


class ControlResult(Frozen):
    """What a control verb (start, pause, resume, cancel) did.

    Attributes:
        status: the job's state after the verb; ``None`` when there is no such job.
        reason: empty when the verb did what it says, else why not.
    """

    job_id: str
    status: RebalanceStatus | None
    reason: str = ""
