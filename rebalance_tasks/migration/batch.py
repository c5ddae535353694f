"""A batch of objects on their way: the steps of docs/invariants.md, in that order, each a fault point.

Every phase skips the items that are past it, so that taking up a dead worker's batch is the same code as running a
fresh one. An item leaves the batch by a settlement (counted once in Redis) or by being handed back for another try.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeVar, cast

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    NodeError,
    ObjectUnreadable,
    RebalanceError,
    SourceChanged,
)
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.drivers.lanes import each, rest_of
from rebalance_tasks.drivers.registry import at_once
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.committing import commit
from rebalance_tasks.migration.control import Interrupt, SliceInterrupted
from rebalance_tasks.migration.copying import StagedCopy
from rebalance_tasks.migration.crowd import Crowd
from rebalance_tasks.migration.direct import copy_together, mark_direct, spend_all
from rebalance_tasks.migration.endings import Endings, end
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.item import REFUSALS, attempt, journal_entry, journal_row, staged_path
from rebalance_tasks.migration.leave import free_later, lots_to_free, lots_to_publish
from rebalance_tasks.migration.measured import unmeasured
from rebalance_tasks.migration.measured_burst import burst_between
from rebalance_tasks.migration.plain import Plain
from rebalance_tasks.migration.recognising import read_again, recognise
from rebalance_tasks.migration.ways import arrives_checked, for_lanes
from rebalance_tasks.store.moves import FREE_PENDING
from rebalance_tasks.store.records import Freed, JournalEntry, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import ServerSide
    from rebalance_tasks.migration.item import BatchContext, Item
    from rebalance_tasks.store.batches import JournalRow

T = TypeVar("T")


class Batch:
    """Runs the steps over a list of items."""

    def __init__(self, context: BatchContext, items: Sequence[Item], *, number: int, winding_up: bool = False) -> None:
        """Bind the items; ``number`` names the batch within its slice; ``winding_up`` finishes what a cancelled job published."""
        self._items = list(items)
        sizes = [item.move.size_bytes for item in items]
        mean = sum(sizes) / max(1, len(sizes))
        most = at_once(unmeasured(context.source), unmeasured(context.target), sizes)
        self._c = for_lanes(context) if most > 1 else context
        self._crowd = Crowd(context.source, context.target, mean_bytes=mean, most=most)
        self._lanes = self._crowd.at_once
        self._number, self._winding_up = number, winding_up
        self._endings = Endings(self._c)
        self._stop: SliceInterrupted | None = None

    def run(self) -> int:
        """Carry the items as far as they go; return how many moves the group has left.

        Raises:
            SliceInterrupted: after everything that was published is finished; the rest is journalled.
            StaleLease: another runner has taken over.
            NodeError: a node is missing or cannot be written to.
        """
        recognise(self._c, self._items, self._endings, at_once=self._lanes)
        with Plain(self._c, self._items) as self._plain:
            rows = {item.move.index for item in self._plain.items}
            self._items = [item for item in self._items if item.move.index not in rows]
            self._begin()
            return self._carry()

    def _carry(self) -> int:
        sizes = [item.move.size_bytes for item in self._items if item.fresh and item.unpublished]
        chosen = burst_between(self._c.source, self._c.target, objects=len(sizes), largest=max(sizes, default=0))
        with chosen as self._burst:
            if self._burst.alone:
                self._lanes = 1
            return self._run()

    def _run(self) -> int:
        try:
            read_again(self._c, self._items, self._endings, at_once=self._lanes, winding_up=self._winding_up)
            self._stage()
            self._verify()
            self._c.control.check()
        except SliceInterrupted as stop:
            self._interrupted(stop)
        self._journal_staged()
        try:
            self._publish()
        except NodeError:
            # What is published already is the only copy we can be sure of when it is the source that went away.
            self._commit()
            raise
        self._commit()
        left = self._settle()
        self._crowd.learn(self._c.tell_in_flight)
        if self._stop is not None:
            raise self._stop
        return left

    # -- copy aside -----------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        fresh = [*self._plain.items, *[item for item in self._items if item.unpublished]]
        if not fresh:
            return
        codes = self._c.store.begin(
            [attempt(item, self._c.cost_nano) for item in fresh],
            budgets=self._c.budgets,
            day=self._c.now().strftime("%Y-%m-%d"),
            fresh=all(item.fresh for item in fresh),
        )
        reached(Step.BEGIN)
        if not self._c.store.one_journal:
            self._items += self._plain.leave()
        for item, code in zip(fresh, codes, strict=True):
            if code != "ok":
                self._endings.discard(item)
                state = MoveState.FAILED if code == "target_full" else MoveState.SKIPPED
                end(item, state, code, REFUSALS[code])

    def _stage(self) -> None:
        most = self._c.control.chunk_bytes
        with self._c.source.hold():
            self._items += self._plain.stage(self._staged)
            todo = [item for item in self._items if item.unpublished and item.staged is None]
            mark_direct(self._c, todo)
            copies = self._burst.stage(
                (
                    (item.move.key, item.move.move_id, item.move.size_bytes)
                    if item.fresh and item.move.size_bytes <= most
                    else None
                    for item in todo
                ),
                self._c.control.spend,
            )
            # What goes straight to its key has nothing to wait for yet.
            waits = any(not item.direct for item in todo)
            self._each(zip(todo, copies, strict=False), self._copy_aside, at_once=self._lanes if waits else 1)
        if self._plain or any(item.unpublished for item in self._items):
            self._c.target.sync()
            reached(Step.SYNC_STAGED)

    def _staged(self, move_id: MoveId) -> None:
        reached(Step.STAGE, lambda: self._plain.aside(move_id) or staged_path(self._c.target, move_id))

    def _each(self, items: Iterable[tuple[Item, T]], act: Callable[[Item, T], None], *, at_once: int) -> None:
        """Carry each item, with what a burst made of it, through a step; what is wrong with one object is its trouble alone."""

        def one(pair: tuple[Item, T]) -> None:
            try:
                act(*pair)
            except RebalanceError as exc:
                self._endings.trouble(pair[0], exc)

        each(rest_of(items, one), one, at_once=at_once)

    def _copy_aside(self, item: Item, copied: tuple[Fingerprint, str] | None) -> None:
        if copied is None:
            self._c.control.check()
            if item.direct:
                item.staged = item.whole_copy.source
            else:
                self._crowd.timed(lambda: self._copy_alone(item), self._c.control)
        else:
            source, digest = copied
            item.copy = StagedCopy(source, [Part(source.size_bytes, digest)])
            self._c.copier.copied_bytes += source.size_bytes
        self._staged(item.move.move_id)

    def _copy_alone(self, item: Item) -> None:
        move = item.move
        item.copy = self._c.copier.stage(
            self._c.source,
            self._c.target,
            move.key,
            move.move_id,
            size_bytes=move.size_bytes,
            resume=item.copy,
            progress=lambda copy: self._journal_parts(item, copy),
            fresh=item.fresh,
        )

    def _verify(self) -> None:
        self._items += self._plain.verify()
        todo = [item for item in self._items if item.copy and item.staged is None and item.unpublished]
        read = self._burst.read_back(item.read_back if self._c.validate else None for item in todo)
        self._each(zip(todo, read, strict=False), self._verify_item, at_once=self._lanes)
        reached(Step.VERIFY)

    def _verify_item(self, item: Item, read: Fingerprint | None) -> None:
        self._c.control.check()
        item.staged = read or self._verified(item)
        item.resize()

    def _verified(self, item: Item) -> Fingerprint:
        """Fingerprint of the very file that was read back, or whose bytes were checked when they arrived."""
        copy = item.whole_copy
        if self._c.validate and not arrives_checked(self._c.target):
            return self._c.copier.verify(self._c.target, item.move.key, item.move.move_id, copy)
        staged = self._c.target.staged(item.move.move_id)
        if staged is None or staged.size_bytes != copy.staged_bytes:
            raise ChecksumMismatch(item.move.key, "the staged copy has another length than what was read")
        return staged

    def _interrupted(self, stop: SliceInterrupted, *, publishing: bool = False) -> None:
        """Stop here: undo what a cancel leaves unpublished, keep what anything else leaves.

        What is staged when the slice's time is up is published all the same, unless it is ``publishing`` that stops here.
        """
        self._stop = stop
        self._items += self._plain.leave()
        for item in self._items:
            if not (item.unpublished or item.unread):
                continue
            if stop.why is Interrupt.CANCELLED:
                self._endings.discard(item)
                end(item, MoveState.SKIPPED, "cancelled", "an operator cancelled the job")
            elif (
                publishing
                or stop.why in {Interrupt.PAUSED, Interrupt.SHUTDOWN}
                or item.staged is None
                or item.direct
                or item.unread
            ):
                item.again = True
                item.fresh = False
                item.entry = journal_entry(item, running=False)
        parked = {item.move.index: item.entry for item in self._items if item.again}
        self._c.store.write_journal(parked)
        if parked:
            reached(Step.PARK)

    def _journal_parts(self, item: Item, copy: StagedCopy) -> None:
        item.copy = copy
        if copy.parts:
            self._c.store.write_journal({item.move.index: journal_entry(item, running=True)})
            reached(Step.PART)

    def _journal_staged(self) -> None:
        rows: list[JournalRow] = []
        entries: dict[int, JournalEntry] = {}
        together = self._c.store.one_journal
        for item in self._items:
            if item.staged is None or not item.unpublished:
                continue
            row = journal_row(item) if together else None
            if row is None:
                entries[item.move.index] = journal_entry(item, running=True)
            else:
                rows.append(row)
        self._c.store.write_journal(entries, rows, self._plain.journal())
        if entries or rows or self._plain:
            reached(Step.JOURNAL)

    # -- publish and commit ---------------------------------------------------------------------------------------
    def _publish(self) -> None:
        ready = [item for item in self._items if item.staged is not None and item.unpublished]
        if not ready and not self._plain:
            return
        strays: set[MoveId] = set()
        try:
            with self._c.source.hold(), self._c.target.hold() as hold:
                strays = hold.strays
                left = self._plain.publish(self._published)
                self._items += left
                ready += left
                together = [item for item in ready if item.direct and item.fresh]
                if together:
                    self._stop = copy_together(self._c, together, self._burst, self._crowd, self._copied)
                self._give_keys([item for item in ready if item.unpublished])
        finally:
            back = self._plain.leave(strays) if strays else []
            self._items += back
            for item in [*ready, *back] if strays else ():
                if item.move.move_id in strays:
                    item.published = None
                    self._endings.again(
                        item, SourceChanged(item.move.key, "a folder of its key was renamed on the target")
                    )
        if self._stop is not None and any(item.unpublished for item in ready):
            self._interrupted(self._stop, publishing=True)

    def _give_keys(self, items: Sequence[Item]) -> None:
        """Publish items: each on the direct way as it comes, the others in lots for which there is leave."""
        direct = [item for item in items if item.direct]
        try:
            for lot in chain([direct], lots_to_publish(self._c, [item for item in items if not item.direct])):
                done = self._burst.publish(
                    (item.move.key, item.move.move_id, item.copy.source, item.staged)
                    if item.fresh and item.copy and item.staged
                    else None
                    for item in lot
                )
                self._each(zip(lot, done, strict=False), self._give_key, at_once=self._lanes)
        except SliceInterrupted as stop:
            self._stop = stop

    def _copy_directly(self, item: Item) -> None:
        """Copy straight to the key, after a look at the flags; what is under way is finished."""
        if self._stop is not None:
            return
        try:
            spend_all(self._c.control, item.move.size_bytes)
            self._c.control.request()
        except SliceInterrupted as stop:
            self._stop = stop
            return
        copy_from = cast("ServerSide", self._c.target).copy_from
        version = item.whole_copy.source
        move = item.move
        item.published = self._crowd.timed(
            lambda: copy_from(self._c.source, move.key, version, move.move_id), self._c.control
        )
        self._copied()

    @staticmethod
    def _copied() -> None:
        reached(Step.COPY)

    def _give_key(self, item: Item, done: bool) -> None:  # noqa: FBT001  what a burst answers
        move, copy = item.move, item.copy
        if item.direct:
            self._copy_directly(item)
            return
        if done:
            item.published = item.staged
        elif copy is None or not self._c.source.unchanged(move.key, copy.source):
            raise SourceChanged(move.key, "the source changed after it was copied")
        else:
            item.published = self._c.target.publish(move.move_id, move.key, expected=item.staged)
        self._published()

    @staticmethod
    def _published() -> None:
        reached(Step.PUBLISH)

    def _commit(self) -> None:
        """Sync, manifest, flip: from pending to flipped. Then free: from flipped to completed."""
        if self._c.host is not None:
            self._items += self._plain.leave()
        fresh = [item for item in self._items if item.here and item.published and item.state is MoveState.PENDING]
        rows = self._plain.published()
        if fresh or rows:
            self._c.target.sync()
            reached(Step.SYNC_PUBLISHED)
            lines = manifests.lines(fresh, self._c.source.node_id, self._c.target.node_id, self._c.now())
            name = f"{self._c.manifest_prefix}-{self._number}.jsonl"
            self._c.target.write_manifest(name, chain(self._plain.manifest(), lines))
            reached(Step.MANIFEST)
            commit(self._c, [*rows, *fresh], self._endings, self._leave)
            self._plain.flipped()
        self._free_all([item for item in self._items if item.here and item.state is MoveState.FLIPPED])

    def _leave(self, items: Sequence[Item]) -> None:
        """Let those of these that are rows be items again."""
        self._items += self._plain.leave({item.move.move_id for item in items})

    def _free_all(self, items: Sequence[Item]) -> None:
        if not items and not self._plain:
            return
        with self._c.source.hold({item.move.move_id for item in items if item.fresh}) as hold:
            left = self._plain.free(self._freed)
            self._items += left
            items = [*items, *left]
            try:
                for lot in lots_to_free(self._c, items):
                    done = self._burst.free(
                        (item.move.key, item.move.move_id, item.copy.source) if item.fresh and item.copy else None
                        for item in lot
                    )
                    each(rest_of(zip(lot, done, strict=False), self._free), self._free, at_once=self._lanes)
            except SliceInterrupted as stop:
                self._stop = stop
                free_later(items, self._endings, stop)
        back = self._plain.leave(hold.strays) if hold.strays else []
        self._items += back
        for item in [*items, *back] if hold.strays else ():
            if item.move.move_id in hold.strays:
                # Its folder was renamed while it was freed: it was put back there, and nothing is at its key.
                end(item, MoveState.COMPLETED)

    def _free(self, pair: tuple[Item, bool]) -> None:
        """Free one source, unless a burst has done it."""
        item, freed = pair
        key, move_id = item.move.key, item.move.move_id
        expected = item.copy.source if item.copy else None
        if expected is None:
            told = manifests.history(self._c.target, move_id)
            expected = told[-1].copied_fingerprint() if told else None
        if expected is None:
            end(item, MoveState.COMPLETED, FREE_PENDING, "nothing says which version of the source was copied")
            return
        try:
            outcome = FreeOutcome.FREED
            if not freed:
                before = manifests.freed_before(self._c.source, self._c.target, key, move_id, expected)
                outcome = self._c.source.free(key, move_id, expected, freed_before=before)
        except ObjectUnreadable as exc:
            self._endings.take_back(item)
            if item.here:
                end(item, MoveState.FAILED, exc.cause, str(exc))
            return
        self._freed()
        match outcome:
            case FreeOutcome.FREED:
                record = Freed(self._c.source.node_id, key, item.move.size_bytes, expected)
                end(item, MoveState.COMPLETED, trash=record)
            case FreeOutcome.GONE:
                # A place that is not mounted has lost nothing.
                self._c.source.check_identity()
                end(item, MoveState.COMPLETED)
            case FreeOutcome.CHANGED:
                self._endings.take_back(item)
                if item.here:
                    self._endings.again(item, SourceChanged(key, "the source changed after it was published"))

    @staticmethod
    def _freed() -> None:
        reached(Step.FREE)

    # -- endings --------------------------------------------------------------------------------------------------
    def _settle(self) -> int:
        settled = [item.settlement for item in self._items if item.settlement is not None]
        freed = self._plain.freed()
        left = self._c.store.settle(settled, purge_delay_ms=self._c.purge_delay_ms, together=freed)
        reached(Step.SETTLE)
        self._plain.counted()
        return left
