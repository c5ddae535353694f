"""Leave for copies that a node's own server makes besides those straight to a key: from aside to a key, and into the trash.

A store counts its requests, so such copies go in lots, each after leave for all of it (`SliceControl.request`): as many as a tenth of a
second's rate. What there is no leave for in time goes on in a later slice as if its worker had died there; a copy that is at its key
and that readers have already is counted all the same once an operator has cancelled, and its source is cleanup's to free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration.control import Interrupt
from rebalance_tasks.migration.endings import end
from rebalance_tasks.store.moves import FREE_PENDING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.migration.control import SliceInterrupted
    from rebalance_tasks.migration.endings import Endings
    from rebalance_tasks.migration.item import BatchContext, Item

T = TypeVar("T")


def lots_to_publish(context: BatchContext, items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield items that have a copy aside, in lots that may get their keys now. Raises: SliceInterrupted, StaleLease."""
    return _lots(context, items, of_source=False, takes_copies=getattr(context.target, "publishes_by_copy", False))


def lots_to_free(context: BatchContext, items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield items in lots whose sources may be freed now. Raises: SliceInterrupted, StaleLease, NodeMissing."""
    return _lots(context, items, of_source=True, takes_copies=getattr(context.source, "copies_to_free", False))


def _lots(context: BatchContext, items: Sequence[T], *, of_source: bool, takes_copies: bool) -> Iterator[Sequence[T]]:
    left = items
    while left:
        most = context.control.requests_at_once(of_source=of_source) if takes_copies else None
        lot = left[:most]
        if most is not None:
            context.control.request(len(lot), of_source=of_source)
        yield lot
        left = left[len(lot) :]


def free_later(items: Sequence[Item], endings: Endings, stop: SliceInterrupted) -> None:
    """Put off freeing the sources of items that are flipped."""
    left = [item for item in items if item.here and item.state is MoveState.FLIPPED]
    if stop.why is not Interrupt.CANCELLED:
        endings.later(left)
        return
    for item in left:
        end(
            item,
            MoveState.COMPLETED,
            FREE_PENDING,
            "an operator cancelled while its source waited for leave to be freed",
        )
