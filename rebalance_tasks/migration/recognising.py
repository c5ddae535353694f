"""What an earlier attempt left of a batch's moves, before they go on: how far each has come, by its journal and by what the nodes hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.lanes import each
from rebalance_tasks.migration.copying import StagedCopy
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.ways import as_published, held_copy, keeps_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.migration.endings import Endings
    from rebalance_tasks.migration.item import BatchContext, Item


def recognise(context: BatchContext, items: Sequence[Item], endings: Endings, *, at_once: int) -> None:
    """Bring the items that were attempted before up to date, some at once. Raises: StaleLease, NodeError."""
    known = [item for item in items if not item.fresh]

    def one(item: Item) -> None:
        try:
            _bring_up(context, item)
        except RebalanceError as exc:
            if item.state is MoveState.FLIPPED:
                raise  # readers are there already: it has no other ending
            endings.trouble(item, exc)

    each(known, one, at_once=at_once)
    # Those that are past their copying are not begun again; their deaths must count all the same.
    past = [item for item in known if item.here and not item.unpublished and item.entry.deaths]
    context.store.write_journal({item.move.index: item.entry for item in past})
    if past:
        reached(Step.RECOGNISE)


def _bring_up(context: BatchContext, item: Item) -> None:
    """Let one item be as far as its journal and the nodes say."""
    entry = item.entry
    source, staged = entry.fingerprint(), entry.staged_fingerprint()
    if source is not None:
        item.copy = StagedCopy(source, list(entry.parts), entry.verified)
        item.resize()
    if item.state is MoveState.FLIPPED:
        item.published = staged
        if staged is not None and not keeps_version(context.target, staged):
            item.published = as_published(context.target, item.move.key, staged) or staged
    elif staged is not None:
        _find_copy(context, item, staged)


def _find_copy(context: BatchContext, item: Item, staged: Fingerprint) -> None:
    item.published = as_published(context.target, item.move.key, staged)
    if item.published is not None:
        return
    if item.copy is not None and context.target.staged(item.move.move_id) == staged:
        # It was whole when that attempt had read it back. It may have lain here for a night since: whoever publishes it has read it.
        item.copy.verified = 0
        return
    item.copy = None
    # A worker that died while it took the copy back left it in the target's trash.
    move_id = item.move.move_id
    context.target.purge(move_id, held_copy(context.target, move_id, staged) or staged)
    reached(Step.FORGET_COPY)
