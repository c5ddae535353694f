"""Manifests: what a batch published on a target, written there before readers are sent there.

They make two things possible without Redis: to recognise a source that is gone because we moved it, and to rebuild
locations after Redis is lost.
"""

from __future__ import annotations

from itertools import repeat
from json.encoder import encode_basestring_ascii as text
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import AwareDatetime, NonNegativeInt, ValidationError

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.models import Frozen, Identifier, KeyText
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from rebalance_tasks.core.ids import MoveId, NodeId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.item import Item
    from rebalance_tasks.store.batches import Versions
    from rebalance_tasks.store.records import MoveRecord

#: Size, mtime in ns, inode, device, entity tag: a `Fingerprint` or its like.
Version: TypeAlias = tuple[Any, ...]

log = get_logger(__name__)


class ManifestEntry(Frozen):
    """One published object."""

    v: int = 1
    move_id: Identifier
    key: KeyText
    source: Identifier
    target: Identifier
    size: NonNegativeInt
    checksum: str
    published: dict[str, Any]
    source_fingerprint: dict[str, Any]
    at: AwareDatetime

    def published_fingerprint(self) -> Fingerprint:
        """What was published."""
        return Fingerprint.from_json(self.published)

    def copied_fingerprint(self) -> Fingerprint:
        """The version of the source that was copied."""
        return Fingerprint.from_json(self.source_fingerprint)


def lines(items: Iterable[Item], source: NodeId, target: NodeId, at: datetime) -> Iterator[str]:
    """Yield the line of each published item: what `ManifestEntry` reads.

    Written by hand: building and dumping a model costs more than publishing a small object.
    """
    line = _line(source, target, at)
    for item in items:
        if item.copy is None or item.published is None:
            msg = f"move {item.move.move_id} was published without a copy"
            raise AssertionError(msg)
        yield line(item.move, item.copy.checksum, item.published, item.copy.source)


def plain_lines(
    moves: Sequence[MoveRecord],
    digests: Sequence[str],
    published: Versions,
    sources: Versions,
    *,
    nodes: tuple[NodeId, NodeId],
    at: datetime,
) -> Iterator[str]:
    """Yield the same lines from columns.

    Args:
        moves: of whole copies of one part.
        digests: of what was copied, in hex.
        published: the copies.
        sources: what was copied.
        nodes: source and target.
        at: when they were published.
    """
    line = _line(*nodes, at)
    copies, versions = (zip(*columns, repeat("", len(moves)), strict=True) for columns in (published, sources))
    for move, digest, copy, version in zip(moves, digests, copies, versions, strict=True):
        yield line(move, f"xxh3:{move.size_bytes}-{digest}", copy, version)


def _line(source: NodeId, target: NodeId, at: datetime) -> Callable[[MoveRecord, str, Version, Version], str]:
    """Return what writes the line of a move: its checksum, what was published, and what was copied."""
    nodes = f'"source":{text(source)},"target":{text(target)}'
    end = f'"at":"{at.isoformat()}"}}'

    def write(move: MoveRecord, checksum: str, published: Version, copied: Version) -> str:
        size, mtime_ns, inode, device, etag = published
        size_then, mtime_ns_then, inode_then, device_then, etag_then = copied
        return (
            f'{{"v":1,"move_id":{text(move.move_id)},"key":{text(move.key)},{nodes},"size":{move.size_bytes},'
            f'"checksum":{text(checksum)},"published":{{"size_bytes":{size},"mtime_ns":{mtime_ns},"inode":{inode},'
            f'"device":{device},"etag":{text(etag)}}},"source_fingerprint":{{"size_bytes":{size_then},'
            f'"mtime_ns":{mtime_ns_then},"inode":{inode_then},"device":{device_then},"etag":{text(etag_then)}}},{end}'
        )

    return write


def entries(target: Driver, having: str = "") -> Iterator[tuple[str, ManifestEntry]]:
    """Yield (manifest name, entry) of all that is on a node; what is not an entry is left out, with a warning.

    Args:
        target: the node.
        having: only lines with this text are read: looking for it costs a hundredth of it.
    """
    for name, lines in target.read_manifests():
        for line in lines:
            if having not in line:
                continue
            try:
                yield name, ManifestEntry.model_validate_json(line)
            except ValidationError:
                log.warning("manifest.unreadable_line", node=target.node_id, manifest=name)


def history(target: Driver, move_id: str) -> list[ManifestEntry]:
    """All entries of one move, oldest first: it has one for each time that it published."""
    name = f'"move_id":{text(move_id)}'
    found = [entry for _, entry in entries(target, name) if entry.move_id == move_id]
    return sorted(found, key=lambda entry: entry.at)


def freed_before(
    holder: Driver, target: Driver, key: str, move_id: MoveId, expected: Fingerprint
) -> Callable[[Fingerprint], bool]:
    """Tell `Driver.free` what a move freed in an earlier life, before Redis forgot it and it began again.

    Args:
        holder: where it is freed: the move's source, or its target where the copy is taken back.
        target: of the move, whose manifests say it.
        key: of the object.
        move_id: which move.
        expected: the version that is to be freed now.
    """

    def was_freed(held: Fingerprint) -> bool:
        listed = [
            entry.copied_fingerprint() if entry.source == holder.node_id else entry.published_fingerprint()
            for entry in history(target, move_id)
        ]
        # What stands at the key came there after the other had gone. Where nothing does, a runner that was frozen since may
        # ask, and find what its successor freed: that is the newer one.
        if held in listed and holder.unchanged(key, expected):
            return True
        return held in (listed[: listed.index(expected)] if expected in listed else listed)

    return was_freed
