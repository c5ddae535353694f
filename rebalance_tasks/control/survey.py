"""Look at every node: is it there, how big is it, which objects does it hold. Missing is never empty.

Nodes are listed side by side, and each listing becomes columns at once, so that the Python objects of only a few nodes live
at a time. A node that cannot be surveyed is left out whole: nothing is planned from half a listing.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.control.access_log import read_access_log
from rebalance_tasks.control.carrying import require_carried
from rebalance_tasks.control.inventories import FROM_NODES, inventory_from
from rebalance_tasks.core.errors import ConfigurationError, NodeError, NodeMissing
from rebalance_tasks.core.inventory import UNKNOWN_TIME, Inventory
from rebalance_tasks.core.inventory_columns import text
from rebalance_tasks.core.measures import with_access_counts, with_access_from_times, with_neighbours
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.rules import with_rules
from rebalance_tasks.drivers.registry import validate_roots

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.base import NodeHealth

#: Nodes listed at a time: listings wait for disks and networks, and each holds its keys as Python objects while it runs.
SIDE_BY_SIDE: Final = 4
#: Fewer can neither give nor take.
LEAST_NODES: Final = 2


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node as an operator sees it.

    Attributes:
        status: ``ok``, ``unadopted`` (no node-id yet), ``missing``, ``not_writable`` or ``maintenance``.
        detail: what is wrong and what to do.
        left_out: reason → number of things on the node that are not objects.
    """

    node: NodeDescriptor
    status: str
    detail: str = ""
    used_bytes: int = 0
    capacity_bytes: int | None = None
    objects: int | None = None
    left_out: Mapping[str, int] | None = None

    @property
    def utilisation(self) -> float | None:
        """Used ÷ capacity."""
        return self.used_bytes / self.capacity_bytes if self.capacity_bytes else None


@dataclass(frozen=True, slots=True)
class Survey:
    """All nodes and what they hold.

    Attributes:
        left_out: node_id → why it could not be surveyed; it is not among ``nodes`` and neither gives nor takes.
    """

    nodes: tuple[NodeDescriptor, ...]
    inventory: Inventory
    reports: tuple[NodeReport, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One node's survey: its objects as columns."""

    health: NodeHealth
    keys: pa.LargeStringArray
    size_bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64] | None
    left_out: Mapping[str, int]


def probe(context: FleetContext, node: NodeDescriptor, *, adopted: set[str]) -> NodeHealth:
    """Look at one node's root.

    A root that carried our node-id once and does not any more is missing: somebody unmounted it.

    Raises:
        NodeMissing, NodeNotWritable.
    """
    health = context.driver(node.node_id).probe()
    if not health.adopted and node.node_id in adopted:
        raise NodeMissing(
            node.node_id,
            f"{node.url} has lost its .rebalance/node-id, so it is taken for unmounted; mount it, or run "
            "`rebalance nodes --adopt` if the disk was replaced on purpose",
        )
    if health.adopted and node.node_id not in adopted:
        context.fleet.note_adopted(node.node_id, now_ms=context.connection.now_ms())
    return health


def adopt(context: FleetContext, *, again: bool = False, only: Collection[str] | None = None) -> list[str]:
    """Write the node-id of nodes that carry none; return the nodes adopted now.

    Args:
        context: the fleet.
        again: also those that carried one before (an operator's decision: the disk was replaced).
        only: just these nodes; default all that are not in maintenance.
    """
    validate_roots(context.settings.nodes)
    known = context.fleet.adopted()
    fresh: list[str] = []
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE or (only is not None and node.node_id not in only):
            continue
        if not probe(context, node, adopted=set() if again else known).adopted:
            context.driver(node.node_id).adopt()
            fresh.append(node.node_id)
            context.fleet.note_adopted(node.node_id, now_ms=context.connection.now_ms())
    return fresh


def survey(context: FleetContext, *, leave_out: bool = False) -> Survey:
    """List every node that is not in maintenance.

    Args:
        context: the fleet.
        leave_out: go on without nodes that cannot be surveyed, as long as two that can are left.

    Raises:
        NodeError: a node is missing or not writable.
        ConfigurationError: roots coincide, a capacity must be stated, or the inventory's source is wrong.
        InvalidInventory: a row is impossible.
    """
    validate_roots(context.settings.nodes)
    require_carried(context.settings)
    nodes = context.nodes()
    seen, errors = _look_at(context, [node for node in nodes if node.state is not NodeState.MAINTENANCE])
    if errors and (not leave_out or len(seen) < LEAST_NODES):
        raise next(iter(errors.values()))
    nodes = [node for node in nodes if node.node_id not in errors]
    capacities = _capacities(nodes, {name: one.health for name, one in seen.items()})
    inventory = _inventory(context, seen)
    used = inventory.used_bytes()
    described = tuple(
        node.model_copy(
            update={"capacity_bytes": capacities.get(node.node_id), "used_bytes": used.get(node.node_id, 0)}
        )
        for node in nodes
    )
    found = tuple(_report(node, seen.get(node.node_id)) for node in described)
    inventory = _with_last_moved(inventory, context.locations.last_moved())
    return Survey(described, inventory, found, {name: str(error) for name, error in errors.items()})


def _look_at(context: FleetContext, nodes: Sequence[NodeDescriptor]) -> tuple[dict[str, _Seen], dict[str, NodeError]]:
    """Probe and list nodes, a few at a time; return what was seen and what went wrong, by node, in order."""
    adopted = context.fleet.adopted()
    seen: dict[str, _Seen] = {}
    errors: dict[str, NodeError] = {}
    with ThreadPoolExecutor(max_workers=SIDE_BY_SIDE) as pool:
        looks = [(node.node_id, pool.submit(_look, context, node, adopted)) for node in nodes]
        for node_id, look in looks:
            try:
                seen[node_id] = look.result()
            except NodeError as exc:
                errors[node_id] = exc
    return seen, errors


def _look(context: FleetContext, node: NodeDescriptor, adopted: set[str]) -> _Seen:
    health = probe(context, node, adopted=adopted)
    if context.settings.inventory != FROM_NODES:
        return _Seen(health, text([]), np.empty(0, np.int64), None, {})
    listing = context.driver(node.node_id).list_objects(require_identity=health.adopted)
    return _Seen(health, text(listing.keys), listing.size_bytes, listing.mtime_ns, dict(listing.left_out))


def _inventory(context: FleetContext, seen: Mapping[str, _Seen]) -> Inventory:
    """What the nodes hold: as they were listed, or as the configured source says; with the fleet's rules."""
    if context.settings.inventory == FROM_NODES:
        found = Inventory.from_listings({name: (x.keys, x.size_bytes, x.mtime_ns) for name, x in seen.items()})
    else:
        found = inventory_from(context.settings.inventory, context.nodes())
    return _measured(context, with_rules(found, context.settings.rules))


def _measured(context: FleetContext, inventory: Inventory) -> Inventory:
    """Add the measures of use that are configured, where the inventory has none."""
    wanted = context.settings.gravity
    if wanted.access == "times":
        inventory = with_access_from_times(inventory, context.connection.now_ms() * 10**6)
    elif wanted.access != "none":
        counts, hours = read_access_log(Path(wanted.access))
        inventory = with_access_counts(inventory, counts, hours)
    return with_neighbours(inventory) if wanted.colocation == "folder" else inventory


def reports(context: FleetContext) -> list[NodeReport]:
    """Report on every node, also on those with which something is wrong."""
    nodes = context.nodes()
    seen, errors = _look_at(context, [node for node in nodes if node.state is not NodeState.MAINTENANCE])
    result: list[NodeReport] = []
    for node in nodes:
        if error := errors.get(node.node_id):
            status = "missing" if isinstance(error, NodeMissing) else "not_writable"
            result.append(NodeReport(node, status, str(error)))
        elif (found := seen.get(node.node_id)) is None:
            result.append(NodeReport(node, "maintenance", "not looked at"))
        else:
            capacity = found.health.total_bytes if node.capacity_bytes is None else node.capacity_bytes
            result.append(_report(node.model_copy(update={"capacity_bytes": capacity}), found))
    return result


def _report(node: NodeDescriptor, seen: _Seen | None) -> NodeReport:
    if seen is None:
        return NodeReport(node, "maintenance", "not looked at", capacity_bytes=node.capacity_bytes)
    return NodeReport(
        node,
        "ok" if seen.health.adopted else "unadopted",
        ""
        if seen.health.adopted
        else "no node-id yet: written when the first job starts, or by `rebalance nodes --adopt`",
        used_bytes=int(seen.size_bytes.sum()),
        capacity_bytes=node.capacity_bytes,
        objects=len(seen.keys),
        left_out=dict(seen.left_out),
    )


def _capacities(nodes: Sequence[NodeDescriptor], healths: Mapping[str, NodeHealth]) -> dict[str, int]:
    """Stated capacities, else what the file system says; two nodes on one device must state theirs."""
    by_device: defaultdict[int, list[NodeDescriptor]] = defaultdict(list)
    for node in nodes:
        if node.node_id in healths and healths[node.node_id].device:
            by_device[healths[node.node_id].device].append(node)
    for sharing in by_device.values():
        unstated = [node.node_id for node in sharing if node.capacity_bytes is None]
        if len(sharing) > 1 and unstated:
            others = ", ".join(node.node_id for node in sharing)
            msg = (
                f"nodes {others} are on one device, so its size says nothing about each: "
                f"state capacity_bytes for {', '.join(unstated)} in rebalance.toml"
            )
            raise ConfigurationError(msg)
    result: dict[str, int] = {}
    for node in nodes:
        health = healths.get(node.node_id)
        capacity = node.capacity_bytes
        if capacity is None and health is not None:
            capacity = health.total_bytes
        if capacity is None and health is not None:
            msg = f"node {node.node_id} has no natural capacity: state capacity_bytes in rebalance.toml"
            raise ConfigurationError(msg)
        result[node.node_id] = capacity or 0
    return result


def _with_last_moved(inventory: Inventory, last_moved_ms: Mapping[str, int]) -> Inventory:
    if not last_moved_ms or len(inventory) == 0:
        return inventory
    known = pa.array(list(last_moved_ms), type=pa.large_string())
    times = np.fromiter(last_moved_ms.values(), dtype=np.int64) * 1_000_000
    rows = pc.fill_null(pc.index_in(inventory.keys, value_set=known), -1).to_numpy(zero_copy_only=False)
    return replace(inventory, last_moved_ns=np.where(rows >= 0, times[rows], UNKNOWN_TIME))
