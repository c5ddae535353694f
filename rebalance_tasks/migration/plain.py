"""The plain moves of a batch, in columns: the same steps in the same order as `Batch` has them, without an object for each move.

An item stands still while its row goes through a step, and is brought up to date only if its row leaves: because it is not plain
after all, because something is wrong with it, or because the batch stops. From then on it is an item like any other, and `Batch`
goes on with it at that same step. So nothing is decided here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.registry import plain_rows
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.copying import StagedCopy
from rebalance_tasks.migration.endings import end
from rebalance_tasks.migration.faults import armed
from rebalance_tasks.store.batches import pack_plain_versions, pack_rows
from rebalance_tasks.store.moves import Together
from rebalance_tasks.store.records import Freed, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.local.plain_rows import PlainRows
    from rebalance_tasks.migration.item import BatchContext, Item

#: Two milliseconds for small objects; the flags are looked at in between.
AHEAD_ROWS: Final = 64
#: One object is no row.
LEAST_ROWS: Final = 2
#: Steps after which a row has a copy, a verified one, one at its key, one that readers are sent to.
_COPIED: Final = frozenset[str]({"copied", "read", "verified", "published", "flipped", "freed", "moved"})
_VERIFIED: Final = _COPIED - {"copied", "read"}
_PUBLISHED: Final = _VERIFIED - {"verified"}
_FLIPPED: Final = _PUBLISHED - {"published"}


class Plain:
    """Those items of a batch that are rows, and the rows; each step returns the items of the rows that it has left behind."""

    def __init__(self, context: BatchContext, items: Sequence[Item]) -> None:
        """Choose the rows from the items of a batch: none at all where the nodes, or what is installed, offer nothing for them."""
        self._c = context
        fresh = [item for item in items if item.fresh and item.unpublished] if context.validate else []
        self.items: list[Item] = []
        self._rows: PlainRows | None = None
        if len(fresh) < LEAST_ROWS:  # the throttle need not be asked yet
            return
        chosen, self._rows = plain_rows(
            context.source,
            context.target,
            [(item.move.key, item.move.move_id, item.move.size_bytes) for item in fresh],
            rows=1 if armed() else AHEAD_ROWS,
            size_bytes=context.control.chunk_bytes,
        )
        self.items = [fresh[place] for place in chosen]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let go of the rows; after an error whoever sees to what is wrong looks at the items."""
        if kind is not None:
            self.leave()
        if self._rows is not None:
            self._rows.close()

    def __bool__(self) -> bool:
        """Whether any item is still a row."""
        return self._rows is not None and bool((self._rows.steps != self._rows.left).any())

    # -- leaving --------------------------------------------------------------------------------------------------
    def leave(self, which: Collection[MoveId] | None = None) -> list[Item]:
        """Let rows be items again, of some moves or of all."""
        if self._rows is None:
            return []
        steps = self._rows.names()
        return self._leave(
            row
            for row, step in enumerate(steps)
            if step != "left" and (which is None or self._rows.move_ids[row] in which)
        )

    def _leave(self, rows: Iterable[int]) -> list[Item]:
        if self._rows is None:
            return []
        places = list(rows)
        self._rows.give_names(places)
        steps = self._rows.names() if places else []
        for row in places:
            self._tell(self._rows, row, steps[row])
        self._rows.leave(places)
        return [self.items[row] for row in places]

    def _tell(self, rows: PlainRows, row: int, step: str) -> None:
        """Bring an item up to date."""
        item = self.items[row]
        if step in _COPIED:
            item.copy = StagedCopy(rows.source(row), [Part(rows.sizes[row], rows.digests[row])])
        if step in _VERIFIED:
            item.staged = rows.copy(row)
        if step in _PUBLISHED:
            item.published = item.staged
        if step in _FLIPPED:
            item.state = MoveState.FLIPPED
        if step == "freed":
            freed = Freed(self._c.source.node_id, item.move.key, item.move.size_bytes, item.whole_copy.source)
            end(item, MoveState.COMPLETED, trash=freed)

    def aside(self, move_id: MoveId) -> Path | None:
        """Where the copy of a row lies while it has no name."""
        at = None if self._rows is None else self._rows.aside(move_id)
        return None if at is None else Path(at)

    # -- the steps ------------------------------------------------------------------------------------------------
    def stage(self, done: Callable[[MoveId], None]) -> list[Item]:
        """Copy aside. Raises: SliceInterrupted, StaleLease."""
        if self._rows is None:
            return []
        self._rows.stage(self._c.control.spend, done)
        copied = self._rows.at("copied")
        self._c.copier.copied_bytes += sum([self._rows.sizes[row] for row in copied])
        return self._leave(self._rows.at("waiting"))

    def verify(self) -> list[Item]:
        """Read back and compare. Raises: SliceInterrupted, StaleLease."""
        if self._rows is None:
            return []
        self._rows.read_back(self._c.control.check)
        return self._leave([*self._rows.at("copied"), *self._rows.at("read")])

    def journal(self) -> str:
        """Rows of the batch's journal."""
        if self._rows is None:
            return ""
        at, digests = self._rows.at("verified"), self._rows.digests
        indices = [self.items[row].move.index for row in at]
        return pack_rows(indices, [digests[row] for row in at], self._rows.sources(at), self._rows.copies(at))

    def publish(self, done: Callable[[], None]) -> list[Item]:
        """Give the copies their keys."""
        if self._rows is None:
            return []
        self._rows.publish(done)
        return self._leave(self._rows.at("verified"))

    def published(self) -> list[Item]:
        """Items of the rows that are at their keys, as they were before: only their moves are to be looked at."""
        return [] if self._rows is None else [self.items[row] for row in self._rows.at("published")]

    def manifest(self) -> Iterator[str]:
        """Yield the lines of the published."""
        if self._rows is None:
            return iter(())
        at, digests = self._rows.at("published"), self._rows.digests
        return manifests.plain_lines(
            [self.items[row].move for row in at],
            [digests[row] for row in at],
            self._rows.copies(at),
            self._rows.sources(at),
            nodes=(self._c.source.node_id, self._c.target.node_id),
            at=self._c.now(),
        )

    def flipped(self) -> None:
        """Say that readers are sent to what is published."""
        if self._rows is not None:
            self._rows.flipped()

    def free(self, done: Callable[[], None]) -> list[Item]:
        """Free the sources."""
        if self._rows is None:
            return []
        self._rows.free(done)
        return self._leave([*self._rows.at("flipped"), *self._rows.at("moved")])

    def freed(self) -> Together | None:
        """What is to be counted of them as one, if there are any."""
        if self._rows is None or not (at := self._rows.at("freed")):
            return None
        return Together(
            [self.items[row].move.index for row in at],
            sum([self._rows.sizes[row] for row in at]),
            pack_plain_versions(self._rows.sources(at)),
            lambda: [item.settlement for item in self.leave() if item.settlement is not None],
        )

    def counted(self) -> None:
        """Say that what was freed is counted."""
        for row in self._rows.at("freed") if self._rows is not None else ():
            self.items[row].counted = True
