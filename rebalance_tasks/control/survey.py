"""Look at every node: is it there, how big is it, which objects does it hold. Missing is never empty.

Nodes are listed side by side, and each listing becomes columns at once, so that the Python objects of only a few nodes live
at a time. A node that cannot be surveyed is left out whole: nothing is planned from half a listing.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.control.capacities import capacities_of, reserved_of
from rebalance_tasks.control.carrying import require_carried
from rebalance_tasks.control.inventories import FROM_NODES
from rebalance_tasks.control.measuring import measured
from rebalance_tasks.control.surveying.gathering import Gathering
from rebalance_tasks.control.surveying.memory import SurveyMemory
from rebalance_tasks.control.surveying.streams import found_in, kept_of
from rebalance_tasks.core.errors import ConfigurationError, NodeError, NodeMissing, NodeNotWritable
from rebalance_tasks.core.inventory import UNKNOWN_TIME, Inventory
from rebalance_tasks.core.inventory_columns import text
from rebalance_tasks.core.keeping.keeper import Keeper
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.drivers.remembered import Remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.drivers.base import Driver, NodeHealth
    from rebalance_tasks.drivers.key_ranges import KeyRange

#: Nodes listed at a time: listings wait for disks and networks, and each holds its keys as Python objects while it runs.
SIDE_BY_SIDE: Final = 4
#: The first read may have to open a connection.
_READS: Final = 3
#: What a node holds whose objects are listed elsewhere.
NOTHING: Final = Remembered((text([]), np.empty(0, np.int64), np.empty(0, np.int64)), {})
#: Rows of a whole fleet that are kept for its plan (some 60 bytes each), and of each node at least: twice the moves of a cycle
#: by default, of which half are the largest objects (core.candidates).
FLEET_ROWS: Final = 1_000_000
LEAST_ROWS: Final = 2_000
#: Fewer can neither give nor take.
LEAST_NODES: Final = 2


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node as an operator sees it.

    Attributes:
        status: ``ok``, ``unadopted`` (no node-id yet), ``missing``, ``not_writable`` or ``maintenance``.
        detail: what is wrong and what to do.
        left_out: reason → number of things on the node that are not objects.
        direct: as in `NodeHealth`; so is shows_access.
        from_here: looked at by this process, not by the workers that reach the node.
    """

    node: NodeDescriptor
    status: str
    detail: str = ""
    used_bytes: int = 0
    capacity_bytes: int | None = None
    objects: int | None = None
    left_out: Mapping[str, int] | None = None
    direct: bool | None = None
    shows_access: bool | None = None
    from_here: bool = True

    @property
    def utilisation(self) -> float | None:
        """Used ÷ capacity."""
        return self.used_bytes / self.capacity_bytes if self.capacity_bytes else None


@dataclass(frozen=True)
class Survey:
    """All nodes and what they hold.

    Attributes:
        nodes: with the bytes used and the capacity that were found.
        rows: the inventory, or what puts it together once somebody wants it.
        objects: how many there are, rows or not.
        left_out: node_id → why it could not be surveyed; it is not among ``nodes`` and neither gives nor takes.
        basis: equal for two surveys whose plans are equal; empty where that cannot be told.
    """

    nodes: tuple[NodeDescriptor, ...]
    rows: Inventory | Callable[[], Inventory]
    reports: tuple[NodeReport, ...]
    objects: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    basis: str = ""

    @cached_property
    def inventory(self) -> Inventory:
        """The objects. Raises: InvalidInventory."""
        return self.rows() if callable(self.rows) else self.rows

    @property
    def used_bytes(self) -> dict[str, int]:
        """node_id → bytes of all its objects."""
        return {node.node_id: node.used_bytes or 0 for node in self.nodes}


@dataclass(frozen=True, slots=True)
class Look:
    """One node as a survey found it: its objects as columns.

    Attributes:
        latency_ms: of a small read, the best of a few; None for a node that carries no node-id to read.
    """

    health: NodeHealth
    found: Remembered
    latency_ms: float | None

    def counted(self) -> Counted:
        """What is left of it once its rows are handed on."""
        found = self.found
        return Counted(self.health, self.latency_ms, len(found.keys), int(found.size_bytes.sum()), dict(found.left_out))


class Counted(NamedTuple):
    """One node as a survey found it, in numbers; see `Look` and `drivers.base.Listing`."""

    health: NodeHealth
    latency_ms: float | None
    objects: int
    used_bytes: int
    left_out: Mapping[str, int]


def probe(
    context: FleetContext, node: NodeDescriptor, *, adopted: set[str], driver: Callable[[str], Driver] | None = None
) -> NodeHealth:
    """Look at one node's root, with the fleet's driver or another one.

    A root that carried our node-id once and does not any more is missing: somebody unmounted it.

    Raises:
        NodeMissing, NodeNotWritable.
    """
    health = (driver or context.driver)(node.node_id).probe()
    if not health.adopted and node.node_id in adopted:
        raise NodeMissing(
            node.node_id,
            f"{node.url} has lost its .rebalance/node-id, so it is taken for unmounted; mount it, or run "
            "`rebalance nodes --adopt` if the disk was replaced on purpose",
        )
    if health.adopted and node.node_id not in adopted:
        context.fleet.note_adopted(node.node_id, now_ms=context.connection.now_ms())
    return health


def adopt(
    context: FleetContext,
    *,
    again: bool = False,
    only: Collection[str] | None = None,
    driver: Callable[[str], Driver] | None = None,
) -> list[str]:
    """Write the node-id of nodes that carry none; return the nodes adopted now.

    Args:
        context: the fleet.
        again: also those that carried one before (an operator's decision: the disk was replaced).
        only: just these nodes; default all that are not in maintenance.
        driver: of a node; default the fleet's.
    """
    validate_roots(context.settings.nodes)
    known = context.fleet.adopted()
    fresh: list[str] = []
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE or (only is not None and node.node_id not in only):
            continue
        if not probe(context, node, adopted=set() if again else known, driver=driver).adopted:
            (driver or context.driver)(node.node_id).adopt()
            fresh.append(node.node_id)
            context.fleet.note_adopted(node.node_id, now_ms=context.connection.now_ms())
    return fresh


def survey(context: FleetContext, *, leave_out: bool = False, whole: bool = False) -> Survey:
    """List every node that is not in maintenance.

    Args:
        context: the fleet.
        leave_out: go on without nodes that cannot be surveyed, as long as two that can are left.
        whole: every object must be a row; candidates do not tell what the caller wants to know.

    Raises:
        NodeError: a node is missing or not writable.
        ConfigurationError: roots coincide, a capacity must be stated, the inventory's source is wrong or too large to be ``whole``.
        InvalidInventory: a row is impossible.
    """
    validate_roots(context.settings.nodes)
    require_carried(context.settings)
    nodes = context.nodes()
    with Gathering(context.settings, whole=whole) as gathering:
        looked_at = [node for node in nodes if node.state is not NodeState.MAINTENANCE]
        seen, errors = _look_at(context, looked_at, gathering.take)
        if errors and (not leave_out or len(seen) < LEAST_NODES):
            raise next(iter(errors.values()))
        nodes = [node for node in nodes if node.node_id not in errors]
        capacities = capacities_of(nodes, {name: one.health for name, one in seen.items()})
        inventory, used = _inventory(context, gathering)
    if whole:
        require_whole(inventory)
    options = context.settings.options
    described = tuple(
        described_as(
            node, seen.get(node.node_id), options, capacity=capacities.get(node.node_id), used=used.get(node.node_id, 0)
        )
        for node in nodes
    )
    found = tuple(report_of(node, seen.get(node.node_id)) for node in described)
    inventory = with_last_moved(inventory, context.locations.last_moved())
    objects = len(inventory) + len(inventory.unlisted)
    return Survey(described, inventory, found, objects, {name: str(error) for name, error in errors.items()})


def described_as(
    node: NodeDescriptor, seen: Counted | None, options: RebalancerOptions, *, capacity: int | None, used: int
) -> NodeDescriptor:
    """Return a node with what was found of it; None of one in maintenance."""
    update: dict[str, object] = {"capacity_bytes": capacity, "used_bytes": used}
    if seen is not None:
        free = seen.health.free_bytes
        update["latency_ms"] = seen.latency_ms
        update["reserved_bytes"] = reserved_of(node, options, capacity=capacity, used=used, free=free)
    return node.model_copy(update=update)


def require_whole(inventory: Inventory) -> None:
    """Refuse an inventory in which not every object is a row. Raises: ConfigurationError."""
    if len(inventory.unlisted):
        msg = (
            f"the fleet holds {len(inventory) + len(inventory.unlisted):,} objects, too many to be looked at one by one, which drain's "
            "pre-check and undo want; hand in a shorter list ([fleet] inventory) for it, or drain with --force"
        )
        raise ConfigurationError(msg)


def _look_at(
    context: FleetContext, nodes: Sequence[NodeDescriptor], take: Callable[[str, Remembered], None]
) -> tuple[dict[str, Counted], dict[str, NodeError]]:
    """Probe and list nodes, a few at a time, and hand their rows on; return what was seen and what went wrong, by node, in order."""
    adopted, now = context.fleet.adopted(), context.now()
    seen: dict[str, Counted] = {}
    errors: dict[str, NodeError] = {}

    def taken(node: NodeDescriptor) -> Counted:
        found = look(context, node, adopted=adopted, now=now)
        take(node.node_id, found.found)
        return found.counted()

    with ThreadPoolExecutor(max_workers=SIDE_BY_SIDE) as pool:
        looks = [(node.node_id, pool.submit(taken, node)) for node in nodes]
        for node_id, looked in looks:
            try:
                seen[node_id] = looked.result()
            except NodeError as exc:
                errors[node_id] = exc
    return seen, errors


def look(
    context: FleetContext,
    node: NodeDescriptor,
    *,
    adopted: set[str],
    now: datetime,
    name: str = "",
    most: int | None = None,
    within: KeyRange | None = None,
) -> Look:
    """Look at one node, and list it, or a part of it, unless the inventory comes from elsewhere.

    Args:
        context: the fleet.
        node: where to look.
        adopted: nodes that carried their node-id once.
        now: aware.
        name: of a part (`control.surveying.parts`); default the whole node.
        most: about so many objects are read of a node that could be listed in parts.
        within: the range of keys that ``name`` means, if it means one.

    Raises:
        TooManyObjects: there are more.
        NodeMissing, NodeNotWritable.
    """
    health = probe(context, node, adopted=adopted)
    driver = context.driver(node.node_id)
    latency_ms = _latency_ms(driver) if health.adopted and node.latency_ms is None else node.latency_ms
    if context.settings.inventory != FROM_NODES:
        return Look(health, NOTHING, latency_ms)
    now_ns = int(now.timestamp() * 1000) * 10**6
    found = SurveyMemory.of(context.settings).list_objects(
        driver, node, now_ns=now_ns, require_identity=health.adopted, name=name, most=most, within=within
    )
    return Look(health, found, latency_ms)


def _latency_ms(driver: Driver) -> float:
    """Return how long the node takes to answer a small read, in whole milliseconds: noise must not change a plan."""
    best = math.inf
    for _ in range(_READS):
        begun = time.perf_counter()
        driver.check_identity()
        best = min(best, time.perf_counter() - begun)
    return float(round(best * 1000))


def _inventory(context: FleetContext, gathering: Gathering) -> tuple[Inventory, dict[str, int]]:
    """What the nodes hold, as they were listed, or as the configured source says; and how many bytes each."""
    settings, nodes, add = context.settings, context.nodes(), partial(measured, context)
    most, now = most_rows(len(nodes)), context.now()
    if settings.inventory != FROM_NODES:
        return found_in(settings, nodes, most=most, now=now, measured=add)
    found = gathering.rows()
    if isinstance(found, Inventory):
        return add(found), found.used_bytes()
    return kept_of(found, Keeper(nodes, most=most, options=settings.options, now=now), measured=add)


def most_rows(nodes: int) -> int:
    """Return how many rows are kept of each node of so many, where not all of them are."""
    return max(LEAST_ROWS, FLEET_ROWS // max(1, nodes))


def reports(context: FleetContext) -> list[NodeReport]:
    """Report on every node, also on those with which something is wrong."""
    nodes = context.nodes()
    looked_at = [node for node in nodes if node.state is not NodeState.MAINTENANCE]
    seen, errors = _look_at(context, looked_at, lambda *_: None)
    result: list[NodeReport] = []
    for node in nodes:
        if error := errors.get(node.node_id):
            result.append(failed_report(node, error.cause, str(error)))
        elif (found := seen.get(node.node_id)) is None:
            result.append(NodeReport(node, "maintenance", "not looked at"))
        else:
            capacity = found.health.total_bytes if node.capacity_bytes is None else node.capacity_bytes
            result.append(report_of(node.model_copy(update={"capacity_bytes": capacity}), found))
    return result


def failed_report(node: NodeDescriptor, cause: str, why: str) -> NodeReport:
    """Report on a node that could not be surveyed, for the cause (a stable word) and the reason of an error."""
    return NodeReport(node, "not_writable" if cause == NodeNotWritable.cause else "missing", why)


def report_of(node: NodeDescriptor, seen: Counted | None) -> NodeReport:
    """Report on a node that was surveyed, None: that is in maintenance."""
    if seen is None:
        return NodeReport(node, "maintenance", "not looked at", capacity_bytes=node.capacity_bytes)
    return NodeReport(
        node,
        "ok" if seen.health.adopted else "unadopted",
        ""
        if seen.health.adopted
        else "no node-id yet: written when the first job starts, or by `rebalance nodes --adopt`",
        used_bytes=seen.used_bytes,
        capacity_bytes=node.capacity_bytes,
        objects=seen.objects,
        left_out=seen.left_out,
        direct=seen.health.direct,
        shows_access=seen.health.shows_access,
    )


def with_last_moved(inventory: Inventory, last_moved_ms: Mapping[str, int]) -> Inventory:
    """Add when each object was moved last (key → ms since 1970)."""
    if not last_moved_ms or len(inventory) == 0:
        return inventory
    known = pa.array(list(last_moved_ms), type=pa.large_string())
    times = np.fromiter(last_moved_ms.values(), dtype=np.int64) * 1_000_000
    rows = pc.fill_null(pc.index_in(inventory.keys, value_set=known), -1).to_numpy(zero_copy_only=False)
    return replace(inventory, last_moved_ns=np.where(rows >= 0, times[rows], UNKNOWN_TIME))
