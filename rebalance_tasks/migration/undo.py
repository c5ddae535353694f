"""Take back what a move that was not flipped left on its target: its copy aside, or the copy at its key.

Until the flip the source is the truth, so nothing is lost, as long as the source is there: that is looked at first. A
copy that a stranger wrote to meanwhile is left to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.ways import as_published, held_copy

if TYPE_CHECKING:
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver


def unpublish(target: Driver, key: str, move_id: MoveId, published: Fingerprint) -> bool:
    """Take a published copy off its key; False when somebody wrote to it there, and it stays."""
    freed_before = manifests.freed_before(target, target, key, move_id, published)
    if target.free(key, move_id, published, freed_before=freed_before) is FreeOutcome.CHANGED:
        return False
    reached(Step.UNPUBLISH)
    _remove(target, move_id, published)
    return True


def _remove(target: Driver, move_id: MoveId, published: Fingerprint) -> None:
    target.purge(move_id, published)
    reached(Step.REMOVE)


def undo(source: Driver, target: Driver, key: str, move_id: MoveId, copied: Fingerprint | None) -> bool:
    """Remove whatever an unflipped move left on its target.

    Args:
        source: where the object still is.
        target: where it was going.
        key: its key.
        move_id: which move.
        copied: its verified copy, which may have been published; ``None`` when none was finished.

    Returns:
        False when a copy stays at the key: a stranger wrote to it, or the source holds no object any more.

    Raises:
        NodeError: one of the nodes is missing or cannot be written to.
    """
    target.discard(move_id)
    reached(Step.UNDO)
    if copied is None:
        return True
    published, held = as_published(target, key, copied), held_copy(target, move_id, copied)
    if published is None and held is None:
        # A place that is not mounted shows nothing of it either.
        target.check_identity()
        return True
    source.check_identity()
    if source.stat(key) is None:
        return False
    if published is not None:
        return unpublish(target, key, move_id, published)
    # An earlier worker died between the two steps of taking it back.
    _remove(target, move_id, held or copied)
    return True
