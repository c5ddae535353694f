"""The direct way: an object goes straight to its key, copied by the target's server or, where it is small, read and put by a worker.

Such a copy is made in one step that overwrites nothing and takes one version of the source only, so that nothing lies aside and
nothing is read back: the copy's entity tag is the hash of its bytes, and is compared with the source's. Flags are looked at
before each copy, and its bytes are asked of the throttle right before it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, cast

from rebalance_tasks.migration.control import SliceInterrupted
from rebalance_tasks.migration.copying import StagedCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import ServerSide
    from rebalance_tasks.drivers.burst import Burst
    from rebalance_tasks.migration.control import Steering
    from rebalance_tasks.migration.crowd import Crowd
    from rebalance_tasks.migration.item import BatchContext, Item


def mark_direct(context: BatchContext, items: Sequence[Item]) -> None:
    """Choose the direct way for the items whose version on the source can go it. Raises: NodeMissing.

    What went wrong on it once takes the long way when it is tried again: an entity tag may be no hash after all. So does what the
    throttle would not let through in one slice: it goes in parts, which the next slice takes up.
    """
    for item in items:
        item.direct = False
    if not items or not hasattr(context.target, "direct_bytes"):
        return
    target = cast("ServerSide", context.target)
    if not target.direct_bytes(context.source):
        return
    throttled = context.control.slice_bytes
    limit = sys.maxsize if throttled is None else throttled
    found = cast("ServerSide", context.source).versions([item.move.key for item in items if not item.entry.tries])
    kinds = {"-" in version.etag for version in found.values()}
    most = {in_parts: min(target.direct_bytes(context.source, in_parts=in_parts), limit) for in_parts in kinds}
    for item in items:
        version = found.get(item.move.key)
        if version is not None and version.size_bytes == item.move.size_bytes <= most["-" in version.etag]:
            item.direct, item.copy = True, StagedCopy(version)


def spend_all(control: Steering, size_bytes: int) -> None:
    """Look at the flags, and ask for leave for bytes that are copied in one go. Raises: SliceInterrupted, StaleLease."""
    if not size_bytes:
        control.check()
    left = size_bytes
    while left:
        chunk = min(left, control.chunk_bytes)
        control.spend(chunk)
        left -= chunk


def copy_together(
    context: BatchContext, items: Sequence[Item], burst: Burst, crowd: Crowd, done: Callable[[], None]
) -> SliceInterrupted | None:
    """Copy items to their keys in one burst, as far as it goes; return what stopped it.

    Flags are looked at before each copy, and ``done`` is told after each. What the burst declines, and what it did not come to, is left as
    it was. Raises: StaleLease.
    """

    def spend(size_bytes: int) -> None:
        spend_all(context.control, size_bytes)
        context.control.request()

    copies = burst.copy([(item.move.key, item.whole_copy.source) for item in items], spend, at_once=crowd.at_once)
    try:
        # The copies first, which have something to note after the last one.
        for copied, item in zip(crowd.together(copies, context.control), items, strict=True):
            if copied:
                item.published = item.whole_copy.source
                done()
    except SliceInterrupted as stop:
        return stop
    return None


def same_object(context: BatchContext, item: Item, at_key: Fingerprint | None) -> Fingerprint | None:
    """Return what is at the key of the target, if it is the very object that was to come there. Raises: SliceInterrupted."""
    if item.copy is None or at_key is None:
        return None
    if item.direct:
        return at_key if at_key.same_file(item.copy.source) else None
    return context.copier.same(context.target, item.move.key, item.copy)
