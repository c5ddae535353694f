"""Look at every node: is it there, how big is it, which objects does it hold. Missing is never empty."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.errors import ConfigurationError, NodeError, NodeMissing
from rebalance_tasks.core.inventory import UNKNOWN_TIME, Inventory
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.registry import validate_roots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.base import Listing, NodeHealth


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
    """All nodes and what they hold."""

    nodes: tuple[NodeDescriptor, ...]
    inventory: Inventory
    reports: tuple[NodeReport, ...]


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


def adopt(context: FleetContext, *, again: bool = False) -> list[str]:
    """Write the node-id of nodes that carry none; return the nodes adopted now.

    Args:
        context: the fleet.
        again: also those that carried one before (an operator's decision: the disk was replaced).
    """
    validate_roots(context.settings.nodes)
    known = context.fleet.adopted()
    fresh: list[str] = []
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            continue
        if not probe(context, node, adopted=set() if again else known).adopted:
            context.driver(node.node_id).adopt()
            fresh.append(node.node_id)
            context.fleet.note_adopted(node.node_id, now_ms=context.connection.now_ms())
    return fresh


def survey(context: FleetContext) -> Survey:
    """List every node that is not in maintenance.

    Raises:
        NodeError: a node is missing or not writable: no plan is made from half an inventory.
        ConfigurationError: roots coincide, or a capacity must be stated.
    """
    validate_roots(context.settings.nodes)
    adopted = context.fleet.adopted()
    nodes: list[NodeDescriptor] = []
    listings: dict[str, Listing] = {}
    healths: dict[str, NodeHealth] = {}
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            nodes.append(node)
            continue
        healths[node.node_id] = probe(context, node, adopted=adopted)
        listings[node.node_id] = context.driver(node.node_id).list_objects(
            require_identity=healths[node.node_id].adopted
        )
        nodes.append(node)
    capacities = _capacities(nodes, healths)
    inventory = Inventory.from_listings({name: (x.keys, x.size_bytes, x.mtime_ns) for name, x in listings.items()})
    used = inventory.used_bytes()
    described = tuple(
        node.model_copy(
            update={"capacity_bytes": capacities.get(node.node_id), "used_bytes": used.get(node.node_id, 0)}
        )
        for node in nodes
    )
    reports = tuple(_report(node, healths.get(node.node_id), listings.get(node.node_id)) for node in described)
    return Survey(described, _with_last_moved(inventory, context.locations.last_moved()), reports)


def reports(context: FleetContext) -> list[NodeReport]:
    """Report on every node, also on those with which something is wrong."""
    adopted = context.fleet.adopted()
    result: list[NodeReport] = []
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            result.append(NodeReport(node, "maintenance", "not looked at"))
            continue
        try:
            health = probe(context, node, adopted=adopted)
            listing = context.driver(node.node_id).list_objects(require_identity=health.adopted)
        except NodeError as exc:
            status = "missing" if isinstance(exc, NodeMissing) else "not_writable"
            result.append(NodeReport(node, status, str(exc)))
            continue
        capacity = health.total_bytes if node.capacity_bytes is None else node.capacity_bytes
        result.append(_report(node.model_copy(update={"capacity_bytes": capacity}), health, listing))
    return result


def _report(node: NodeDescriptor, health: NodeHealth | None, listing: Listing | None) -> NodeReport:
    if health is None or listing is None:
        return NodeReport(node, "maintenance", "not looked at", capacity_bytes=node.capacity_bytes)
    return NodeReport(
        node,
        "ok" if health.adopted else "unadopted",
        "" if health.adopted else "no node-id yet: written when the first job starts, or by `rebalance nodes --adopt`",
        used_bytes=int(listing.size_bytes.sum()),
        capacity_bytes=node.capacity_bytes,
        objects=len(listing.keys),
        left_out=dict(listing.left_out),
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
