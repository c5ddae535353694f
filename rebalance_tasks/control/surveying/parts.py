"""Parts of a node that is too large for one task: named, counted, and put together again.

A part is what `drivers.node_parts` says it is; here it is a name, ``n1@3of16``, that goes wherever a node's id goes in a survey: messages,
claims, findings. No node id holds an ``@``, a ``#`` or a ``~``. A node is whole when all of its parts are in, and one that failed leaves the node out:
nothing is planned from a part of a node.

``n1~3of16`` is a range of keys of a bucket that is flat (`drivers.key_ranges`); where it begins and ends is in Redis (`control.surveying.ranges`).
``n1@3of16?`` is a question about it: what is asked of a place that is in already (`control.surveying.question`).

``n1#3of16`` is a part as the release before this one cuts them. Its workers refuse the new names, so that the parts of one survey are all cut in one way.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import Field

from rebalance_tasks.drivers.node_parts import Part
from rebalance_tasks.store.surveys import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Objects that one task lists: some five seconds on local disks.
PART_OBJECTS: Final = 1_000_000
#: A node of which nobody knows how large it is is listed whole up to here; then it is cut into so many parts.
MOST_OBJECTS: Final = 2 * PART_OBJECTS
FIRST_PARTS: Final = 16
#: More parts than this would mean more messages than a fleet has processes.
MOST_PARTS: Final = 64

#: A node's id, or the name of one of its parts, or a question about either.
PlaceName: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=140, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*([@#~][0-9]{1,2}of[0-9]{1,2})?[?]?$")
]
_PART: Final = re.compile(r"[@#~]")
_QUESTION: Final = "?"


def node_of(name: str) -> str:
    """Return the id of the node that this is, or is a part of."""
    return _PART.split(place_of(name))[0]


def part_of(name: str) -> Part | None:
    """Return which part a name means, None for a whole node."""
    _, *part = _PART.split(place_of(name))
    if not part:
        return None
    number, _, count = part[0].partition("of")
    return Part(int(number), int(count), by_name="@" in name)


def question_about(name: str) -> str:
    """Return the name of a question about a node or part."""
    return f"{name}{_QUESTION}"


def is_question(name: str) -> bool:
    """Whether a name is that of a question."""
    return name.endswith(_QUESTION)


def place_of(name: str) -> str:
    """Return the node or part that a question is about; any other name as it is."""
    return name.removesuffix(_QUESTION)


def is_range(name: str) -> bool:
    """Whether a name means a range of keys."""
    return "~" in name


def names_of(node_id: str, count: int, *, ranges: bool = False) -> list[str]:
    """Return the names of all parts of a node, or of all ranges of its keys; its id for one."""
    mark = "~" if ranges else "@"
    return [node_id] if count == 1 else [f"{node_id}{mark}{number}of{count}" for number in range(count)]


def parts_for(objects: int) -> int:
    """Return into how many parts a node with so many objects is cut: a power of two, so that growth seldom changes it."""
    wanted = -(-objects // PART_OBJECTS)
    return min(1 << (wanted - 1).bit_length(), MOST_PARTS) if wanted > 1 else 1


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Put the findings of parts together, by node id.

    A node of which a part failed, or is missing, has that error.
    """
    of: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        of[node_of(finding.node_id)].append(finding)
    return [_whole(node_id, of[node_id]) for node_id in sorted(of)]


def _whole(node_id: str, parts: list[Finding]) -> Finding:
    first = parts[0]
    part = part_of(first.node_id)
    if part is None:
        return first
    for found in parts:
        if found.error:
            error = f"{node_id}, part {found.node_id[len(node_id) + 1 :]}: {found.error}"
            return Finding(node_id=node_id, error=error, cause=found.cause)
    if len(parts) != part.count:
        error = f"{node_id}: {len(parts)} of its {part.count} parts are in; the next check looks again"
        return Finding(node_id=node_id, error=error, cause="retryable")
    lasting = all(found.lasting for found in parts)
    latencies = [found.latency_ms for found in parts if found.latency_ms is not None]
    return first.model_copy(
        update={
            "node_id": node_id,
            "digest": " ".join(found.digest for found in parts) if lasting else "",
            "adopted": all(found.adopted for found in parts),
            "latency_ms": min(latencies, default=None),
            "used_bytes": sum(found.used_bytes for found in parts),
            "objects": sum(found.objects for found in parts),
            "left_out": _added(found.left_out for found in parts),
            "unlisted": _added(found.unlisted for found in parts),
            "unlisted_movable_bytes": sum(found.unlisted_movable_bytes for found in parts),
        }
    )


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
