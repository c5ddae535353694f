"""A bucket whose server lists in order is listed in ranges of keys: where they begin and end follows from what was found the last time.

findings ─▶ **places_of** ─▶ names of nodes, parts, ranges; where the ranges are cut, in Redis ─▶ **range_of** ─▶ listing ─▶ **sampled** ─▶ finding

Parts by folders follow from a key alone (`drivers.node_parts`); ranges must be agreed upon, so they are written down once for each survey, under its token.
A server that lists otherwise is listed by one task, as before (ADR 36).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.control.surveying import parts
from rebalance_tasks.control.surveying.parts import is_range, joined, names_of, node_of, part_of, parts_for
from rebalance_tasks.core.errors import NodeError
from rebalance_tasks.drivers.key_ranges import KeyRange, cut_points, ranged
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.store.surveys import Finding, SurveyStore

log = get_logger(__name__)

#: Keys that are handed in of a whole node, so that it may be cut, and of a range, so that the next cut is as even.
_SAMPLES: Final = 32
_SAMPLES_OF_RANGE: Final = 4


def places_of(surveys: SurveyStore, token: int, nodes: Sequence[NodeDescriptor]) -> list[str]:
    """Return the names of all that is to be looked at of some nodes; where ranges are cut is noted before."""
    found: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in surveys.findings():
        found[node_of(finding.node_id)].append(finding)
    unordered = surveys.unordered()
    names: list[str] = []
    for node in nodes:
        whole = unordered.get(node.node_id) == node.url
        names += [node.node_id] if whole else _names(surveys, token, node, found[node.node_id])
    return names


def _names(surveys: SurveyStore, token: int, node: NodeDescriptor, found: list[Finding]) -> list[str]:
    objects = sum(whole.objects for whole in joined(found))
    count = parts_for(objects)
    cuts = cuts_of(found, count)
    if count > 1 and cuts:
        surveys.note_cuts(token, node.node_id, cuts)
        return names_of(node.node_id, len(cuts) + 1, ranges=True)
    # Whether parts help is seen while a node is listed whole; only of a disk it is known that each of them reads less.
    in_parts = any(part_of(finding.node_id) is not None and not is_range(finding.node_id) for finding in found)
    by_folders = in_parts or node.url.startswith(("/", "file:"))
    return names_of(node.node_id, count if by_folders else 1)


def cuts_of(found: Iterable[Finding], count: int) -> list[str]:
    """Return keys, rising, that cut a node into at most ``count`` ranges of about as many objects, by the samples of its last listing."""
    keys: list[str] = []
    before: list[float] = []
    total = 0.0
    for finding in sorted(found, key=_number):
        step = finding.objects / (len(finding.cuts) + 1)
        keys += finding.cuts
        before += [total + step * (at + 1) for at in range(len(finding.cuts))]
        total += finding.objects
    if not keys:
        return []
    wanted = np.arange(1, count) * total / count
    nearest = np.abs(np.subtract.outer(wanted, before)).argmin(axis=1)
    return [keys[at] for at in np.unique(nearest).tolist()]


def _number(finding: Finding) -> int:
    part = part_of(finding.node_id)
    return 0 if part is None else part.number


def range_of(surveys: SurveyStore, token: int, name: str) -> KeyRange | None:
    """Return the range that a name means; None for any other name.

    Raises:
        NodeError: it was not noted where this survey's ranges are cut.
    """
    part = part_of(name)
    if part is None or not is_range(name):
        return None
    cuts = surveys.cuts(token, node_of(name))
    rising = all(before < after for before, after in zip(("", *cuts), cuts, strict=False))
    if len(cuts) != part.count - 1 or part.number >= part.count or not rising:
        raise NodeError(node_of(name), "nobody noted where its ranges of keys are cut; the next check looks again")
    return KeyRange(
        "" if part.number == 0 else cuts[part.number - 1], None if part.number == len(cuts) else cuts[part.number]
    )


def cut_now(surveys: SurveyStore, token: int, driver: Driver, node: NodeDescriptor, count: int) -> list[str]:
    """Cut a flat node of which nothing is known but that it is large; return the names of its ranges, none where it cannot be cut.

    Raises:
        NodeError: the node cannot be asked.
    """
    able, node_id = ranged(driver), node.node_id
    cuts = cut_points(able, count) if able is not None and surveys.unordered().get(node_id) != node.url else []
    if not cuts:
        log.info("survey.one_task", node=node_id, why="its server does not list in order of keys from any key on")
        return []
    surveys.note_cuts(token, node_id, cuts)
    return names_of(node_id, len(surveys.cuts(token, node_id)) + 1, ranges=True)


def sampled(
    surveys: SurveyStore, driver: Driver, node: NodeDescriptor, name: str, keys: pa.LargeStringArray
) -> tuple[str, ...]:
    """Return keys by which the next survey may cut a node: none where it is small, not listed in order, or not listed from any key on.

    Args:
        surveys: where it is noted which nodes keep no order.
        driver: of the node.
        node: it.
        name: of the node or range that was listed.
        keys: Arrow large_string (n,), as they were listed.

    Raises:
        NodeError: the node cannot be asked.
    """
    able, in_range = ranged(driver), is_range(name)
    if able is None or (part_of(name) is not None and not in_range):
        return ()
    samples, least = (_SAMPLES_OF_RANGE, _SAMPLES_OF_RANGE) if in_range else (_SAMPLES, parts.PART_OBJECTS)
    if len(keys) <= least:
        return ()
    kept = bool(pc.all(pc.less(keys[:-1], keys[1:])).as_py())
    if not in_range:
        surveys.note_order(node.node_id, node.url, kept=kept)
    if not kept:
        log.info("survey.one_task", node=node.node_id, why="its server does not list in order of keys")
        return ()
    at = np.arange(1, samples + 1) * len(keys) // (samples + 1)
    return tuple(cut_points(able, samples + 1, keys.take(pa.array(np.unique(at))).to_pylist()))
