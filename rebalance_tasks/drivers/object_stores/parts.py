"""The objects of one part of a bucket: its upper folders are listed level by level, and what lies below them by prefix, each in full.

A flat bucket is listed in ranges of keys instead, where its server can do that (`drivers.key_ranges`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.drivers.key_ranges import KeyRange, pages_in
from rebalance_tasks.drivers.node_parts import PART_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.drivers.node_parts import Part
    from rebalance_tasks.drivers.object_stores.bucket import Bucket, Stored


def pages_of(bucket: Bucket, root: str, part: Part | KeyRange | None) -> Iterator[Sequence[Stored]]:
    """Yield the objects of a part, some at a time, in no particular order.

    Args:
        bucket: whose server lists by prefix and delimiter.
        root: the node's own prefix, ending at a slash, or empty.
        part: of what lies below it; None: everything.

    Raises:
        BucketError: as `Bucket.pages`; `OutOfOrder` of a range.
    """
    match part:
        case None:
            yield from bucket.pages(root)
        case KeyRange():
            yield from pages_in(bucket, root, part)
        case _:
            yield from _by_folders(bucket, root, part)


def _by_folders(bucket: Bucket, root: str, part: Part) -> Iterator[Sequence[Stored]]:
    folders = [""]
    while folders:
        folder = folders.pop()
        if folder.count("/") >= PART_DEPTH:
            yield from bucket.pages(root + folder)
            continue
        held = part.holds(folder)
        for objects, below in bucket.level(root + folder):
            if held:
                yield [found for found in objects if part.covers(folder, found.name[len(root) :])]
            inner = (prefix[len(root) :] for prefix in below)
            folders += [prefix for prefix in inner if part.enters(prefix.removesuffix("/"))]
