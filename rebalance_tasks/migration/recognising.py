"""What an earlier attempt left of a batch's moves, before they go on: how far each has come, by its journal and by what the nodes hold.

A copy that has its key already was whole when it got it. It may have stood there for a night since, on a disk that loses bits, while
its source is still whole: so it is read again before readers are sent to it (docs/invariants.md, step 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.lanes import each
from rebalance_tasks.migration.copying import Copier, StagedCopy
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.ways import UntilDone, arrives_checked, as_published, held_copy, keeps_version

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
    given_by_us = item.published is not None
    item.published = as_published(context.target, item.move.key, staged)
    if item.published is not None:
        item.staged = staged
        item.unread = (
            item.copy is not None and context.validate and not (given_by_us or arrives_checked(context.target))
        )
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


def read_again(
    context: BatchContext, items: Sequence[Item], endings: Endings, *, at_once: int, winding_up: bool
) -> None:
    """Read what an earlier attempt gave its key, before readers are sent there; what is spoilt is made again.

    Args:
        context: of the batch.
        items: of the batch.
        endings: of those that are spoilt.
        at_once: how many are read at once.
        winding_up: the job was cancelled: what is published is finished all the same, and nothing may stop that.

    Raises:
        SliceInterrupted: paused, shutdown or the slice's time is up; what was not read to its end is still ``unread``.
        StaleLease, NodeError.
    """
    unread = [item for item in items if item.unread]
    copier = Copier(UntilDone(context.control, winding_up=winding_up)) if unread else context.copier

    each(unread, lambda item: endings.read_again(item, copier), at_once=at_once)
    if unread:
        reached(Step.READ_AGAIN)
