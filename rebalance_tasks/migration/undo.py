"""Take back what a move that was not flipped left on its target: its copy aside, or the copy at its key.

The source is the truth until the flip, so this loses nothing; a copy that a stranger wrote to meanwhile is left to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.migration.faults import Step, reached

if TYPE_CHECKING:
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.store.records import MoveRecord


def unpublish(target: Driver, move: MoveRecord, published: Fingerprint) -> bool:
    """Take a published copy off its key; False when somebody wrote to it there, and it stays."""
    if target.free(move.key, move.move_id, published) is FreeOutcome.CHANGED:
        return False
    reached(Step.UNPUBLISH)
    target.purge(move.move_id, published)
    return True


def undo(target: Driver, move: MoveRecord, copied: Fingerprint | None) -> bool:
    """Remove whatever an unflipped move left on the target.

    Args:
        target: where it was going.
        move: which move.
        copied: its verified copy, which may have been published; ``None`` when none was finished.

    Returns:
        False when the copy is at its key and somebody wrote to it there.
    """
    target.discard(move.move_id)
    at_key = None if copied is None else target.stat(move.key)
    if copied is None or at_key is None or not at_key.same_file(copied):
        return True
    return unpublish(target, move, copied)
