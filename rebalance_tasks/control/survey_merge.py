"""The findings of survey tasks become one survey, in memory that the number of candidates bounds, not that of objects."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rebalance_tasks.control.survey import LEAST_NODES, NodeReport, Survey, capacities_of, with_last_moved
from rebalance_tasks.core.errors import NodeError
from rebalance_tasks.core.hashing import hash_keys
from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.base import NodeHealth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.store.surveys import Finding


def merged(context: FleetContext) -> Survey:
    """Return what the tasks found: every node that could be surveyed, its candidates, and exact sums of the rest.

    Raises:
        NodeError: fewer than two nodes could be surveyed.
        ConfigurationError: a capacity must be stated.
    """
    findings = {finding.node_id: finding for finding in context.surveys.findings()}
    good = {name: finding for name, finding in findings.items() if not finding.error}
    left_out = {name: finding.error for name, finding in findings.items() if finding.error}
    if left_out and len(good) < LEAST_NODES:
        raise _error(next(finding for finding in findings.values() if finding.error))
    nodes = [node for node in context.nodes() if node.node_id in good or node.state is NodeState.MAINTENANCE]
    capacities = capacities_of(nodes, {name: _health(finding) for name, finding in good.items()})
    described = tuple(_described(node, good.get(node.node_id), capacities) for node in nodes)
    inventory = with_last_moved(_inventory(context, list(good)), context.locations.last_moved())
    reports = tuple(_report(node, good.get(node.node_id)) for node in described)
    unlisted = sum((Unlisted(f.unlisted, f.unlisted_movable_bytes) for f in good.values()), inventory.unlisted)
    return Survey(described, replace(inventory, unlisted=unlisted), reports, left_out)


def _error(finding: Finding) -> NodeError:
    error = NodeError(finding.node_id, finding.error)
    error.cause = finding.cause
    return error


def _described(node: NodeDescriptor, found: Finding | None, capacities: dict[str, int]) -> NodeDescriptor:
    update: dict[str, object] = {"capacity_bytes": capacities.get(node.node_id), "used_bytes": 0}
    if found is not None:
        update |= {"used_bytes": found.used_bytes, "latency_ms": found.latency_ms}
    return node.model_copy(update=update)


def _health(found: Finding) -> NodeHealth:
    # Two hosts may number their devices alike.
    device = zlib.crc32(found.device.encode()) + 1 if found.device else 0
    return NodeHealth(found.total_bytes, found.free_bytes, device, found.adopted)


def _report(node: NodeDescriptor, found: Finding | None) -> NodeReport:
    if found is None:
        return NodeReport(node, "maintenance", "not looked at", capacity_bytes=node.capacity_bytes)
    return NodeReport(
        node,
        "ok" if found.adopted else "unadopted",
        used_bytes=found.used_bytes,
        capacity_bytes=node.capacity_bytes,
        objects=found.objects,
        left_out=found.left_out,
    )


def _inventory(context: FleetContext, node_ids: Sequence[str]) -> Inventory:
    """The candidates of all nodes, without those whose key another node holds as well; these are counted."""
    tables = [pa.ipc.open_stream(packed).read_all() for packed in context.surveys.rows(node_ids) if packed]
    if not tables:
        return Inventory.from_listings({})
    inventory = Inventory.from_arrow(pa.concat_tables(tables, promote_options="permissive"))
    doubled = _doubled(context, inventory, node_ids)
    if not doubled.any():
        return inventory
    kept = inventory.take(np.flatnonzero(~doubled))
    return replace(kept, unlisted=Unlisted({"ambiguous": int(np.count_nonzero(doubled))}))


def _doubled(
    context: FleetContext, inventory: Inventory, node_ids: Sequence[str]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Bool (n,): the key lies also on a node where it is no candidate (two candidates show by themselves)."""
    hashes = hash_keys(inventory.keys)
    ordered = np.sort(hashes)
    met = [np.empty(0, np.uint64)]
    for packed in context.surveys.others(node_ids):
        others = np.frombuffer(packed or b"", np.uint64)
        at = np.minimum(np.searchsorted(ordered, others), len(ordered) - 1)
        met.append(others[ordered[at] == others])
    return np.isin(hashes, np.concatenate(met))
