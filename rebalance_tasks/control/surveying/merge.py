"""The findings of survey tasks become one survey, in memory that the number of candidates bounds, not that of objects."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash

from rebalance_tasks.control.capacities import capacities_of
from rebalance_tasks.control.survey import (
    LEAST_NODES,
    Counted,
    Survey,
    described_as,
    failed_report,
    report_of,
    with_last_moved,
)
from rebalance_tasks.control.surveying.parts import joined, node_of
from rebalance_tasks.control.surveying.question import KeysUnmet
from rebalance_tasks.core.errors import NodeError
from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.keeping.keeper import without_ambiguous
from rebalance_tasks.core.keeping.sought import Sought, unpacked
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.placement.hashing import hash_keys
from rebalance_tasks.drivers.base import NodeHealth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.survey import NodeReport
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.store.surveys import Finding


def merged(context: FleetContext, *, whole: bool = False) -> Survey:
    """Return what the tasks found: every node that could be surveyed, its candidates, and exact sums of the rest.

    The candidates are read when they are asked for: a balanced fleet, or one whose plan still stands, does without. Then it raises `KeysUnmet` once
    where places keep the hashes of their other keys apart.

    Args:
        context: the fleet.
        whole: every object was asked for as a row, so that a key on two nodes shows by itself.

    Raises:
        NodeError: fewer than two nodes could be surveyed.
        ConfigurationError: a capacity must be stated.
    """
    parts = context.surveys.findings()
    findings = {finding.node_id: finding for finding in joined(parts)}
    good = {name: finding for name, finding in findings.items() if not finding.error}
    left_out = {name: finding.error for name, finding in findings.items() if finding.error}
    if left_out and len(good) < LEAST_NODES:
        raise _error(next(finding for finding in findings.values() if finding.error))
    nodes = [node for node in context.nodes() if node.node_id in good or node.state is NodeState.MAINTENANCE]
    capacities = capacities_of(nodes, {name: _health(finding) for name, finding in good.items()})
    options = context.settings.options
    described = tuple(_described(node, good.get(node.node_id), options, capacities) for node in nodes)
    return Survey(
        described,
        partial(_inventory, context, [part for part in parts if node_of(part.node_id) in good], whole=whole),
        tuple(_report(node, good.get(node.node_id)) for node in described),
        sum(finding.objects for finding in good.values()),
        left_out,
        _basis(described, good),
    )


def merged_reports(context: FleetContext) -> list[NodeReport]:
    """Return what the tasks found of every node in numbers, also of those with which something is wrong."""
    found = {finding.node_id: finding for finding in joined(context.surveys.findings())}
    reports = []
    for node in context.nodes():
        one = found.get(node.node_id)
        if one is not None and one.error:
            reports.append(failed_report(node, one.cause, one.error))
            continue
        capacity = one.total_bytes if one is not None and node.capacity_bytes is None else node.capacity_bytes
        reports.append(_report(node.model_copy(update={"capacity_bytes": capacity}), one))
    return [replace(report, from_here=False) for report in reports]


def _basis(nodes: Sequence[NodeDescriptor], good: Mapping[str, Finding]) -> str:
    """Of the nodes and of all that lies on them; a finding's digest says with which settings it was made."""
    if not all(finding.lasting for finding in good.values()):
        return ""
    parts = [node.model_dump_json() for node in nodes]
    parts += [f"{name} {finding.digest}" for name, finding in sorted(good.items())]
    return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())


def _error(finding: Finding) -> NodeError:
    error = NodeError(finding.node_id, finding.error)
    error.cause = finding.cause
    return error


def _described(
    node: NodeDescriptor, found: Finding | None, options: RebalancerOptions, capacities: dict[str, int]
) -> NodeDescriptor:
    capacity, seen = capacities.get(node.node_id), None if found is None else _counted(found)
    return described_as(node, seen, options, capacity=capacity, used=0 if seen is None else seen.used_bytes)


def _counted(found: Finding) -> Counted:
    return Counted(_health(found), found.latency_ms, found.objects, found.used_bytes, found.left_out)


def _health(found: Finding) -> NodeHealth:
    # Two hosts may number their devices alike.
    device = zlib.crc32(found.device.encode()) + 1 if found.device else 0
    return NodeHealth(
        found.total_bytes, found.free_bytes, device, found.adopted, direct=found.direct, shows_access=found.shows_access
    )


def _report(node: NodeDescriptor, found: Finding | None) -> NodeReport:
    return report_of(node, None if found is None else _counted(found))


def _inventory(context: FleetContext, good: Sequence[Finding], *, whole: bool) -> Inventory:
    """The candidates of all nodes, and how many other objects there are."""
    inventory = _candidates(context, good)
    if not whole:
        inventory = without_ambiguous(inventory, _doubled(context, inventory, good))
    inventory = with_last_moved(inventory, context.locations.last_moved())
    unlisted = sum((Unlisted(f.unlisted, f.unlisted_movable_bytes) for f in good), inventory.unlisted)
    return replace(inventory, unlisted=unlisted)


def _candidates(context: FleetContext, good: Sequence[Finding]) -> Inventory:
    """The candidates of all nodes."""
    tables = [
        pa.ipc.open_stream(packed).read_all() for packed in context.surveys.rows([f.node_id for f in good]) if packed
    ]
    if not tables:
        return Inventory.from_listings({})
    return Inventory.from_arrow(pa.concat_tables(tables, promote_options="permissive"))


def _doubled(
    context: FleetContext, inventory: Inventory, good: Sequence[Finding]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Bool (n,): the key lies also on a node where it is no candidate (two candidates show by themselves)."""
    hashes = hash_keys(inventory.keys)
    sought = Sought(hashes)
    met = [unpacked(answer) for answer in _answers(context, sought, good).values()]
    for packed in context.surveys.others([found.node_id for found in good if not found.others_apart]):
        others = unpacked(packed or b"")
        met.append(others[sought.among(others)])
    return np.isin(hashes, np.concatenate([np.empty(0, np.uint64), *met]))


def _answers(context: FleetContext, sought: Sought, good: Sequence[Finding]) -> dict[str, bytes]:
    """What the places say that keep the hashes of their other keys apart. Raises: KeysUnmet: they were not asked yet."""
    apart = [found.node_id for found in good if found.others_apart]
    answers = context.surveys.met(apart)
    if missing := [place for place in apart if place not in answers]:
        if context.surveys.was_asked():
            raise NodeError(node_of(missing[0]), "it did not say which keys lie there; the next check asks again")
        raise KeysUnmet(sought, missing)
    return answers
