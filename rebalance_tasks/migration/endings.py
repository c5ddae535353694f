"""What becomes of one object that leaves its batch, or that something is wrong with: counted, tried again, taken back.

An object that left the common way may have left a copy aside, a copy at its key, or its source in the trash. Each ending below
first makes sure that exactly one whole object stays where readers look (invariant 1), and then says so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import (
    CatalogueRefused,
    ChecksumMismatch,
    InvalidKey,
    MoveError,
    NodeFull,
    ObjectUnreadable,
    RebalanceError,
    SourceChanged,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.copying import StagedCopy
from rebalance_tasks.migration.direct import same_object
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.item import journal_entry
from rebalance_tasks.migration.undo import unpublish
from rebalance_tasks.migration.ways import arrives_checked
from rebalance_tasks.store.moves import Settlement
from rebalance_tasks.store.records import Freed, JournalEntry
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.migration.copying import Copier
    from rebalance_tasks.migration.item import BatchContext, Item

log = get_logger(__name__)

#: A source that keeps changing, or a copy that never verifies, is given up after so many tries.
MAX_TRIES: Final = 3


def end(item: Item, state: MoveState, cause: str = "", detail: str = "", trash: Freed | None = None) -> None:
    """Let an item leave its batch; it is counted when the batch settles."""
    item.settlement = Settlement(item.move, state, cause, detail, trash)


class Endings:
    """Endings of the objects of one batch."""

    def __init__(self, context: BatchContext) -> None:
        """Bind to what the batch works with."""
        self._c = context

    def again(self, item: Item, exc: MoveError) -> None:
        """Throw the copy away and hand the item back for another try; after `MAX_TRIES` it ends."""
        self.discard(item)
        item.copy = item.staged = None
        tries = item.entry.tries + 1
        if tries >= MAX_TRIES:
            state = MoveState.SKIPPED if isinstance(exc, SourceChanged) else MoveState.FAILED
            end(item, state, exc.cause, f"{exc}; given up after {tries} tries")
            return
        item.entry = JournalEntry(tries=tries, deaths=item.entry.deaths)
        item.fresh = False
        with suppress(MoveError):
            # The next try books what is there now.
            found = self._c.source.stat(item.move.key)
            item.move = replace(item.move, size_bytes=found.size_bytes) if found else item.move
        item.again = True
        self._c.store.write_journal({item.move.index: item.entry})
        reached(Step.AGAIN)

    def discard(self, item: Item) -> None:
        """Throw away what is aside."""
        self._c.target.discard(item.move.move_id)
        reached(Step.DISCARD)

    def _vanished(self, item: Item, exc: SourceVanished) -> None:
        """Gone because we moved it (a manifest says so), or gone."""
        entries = manifests.history(self._c.target, item.move.move_id)
        at_key = self._c.target.stat(item.move.key) if entries else None
        trashed = self._c.source.trashed(item.move.move_id) if entries else None
        for entry in reversed(entries):
            ours = at_key is not None and at_key.same_file(entry.published_fingerprint())
            # In our trash: it was freed, so it was published and flipped, and Redis has forgotten it since. Where the copy
            # is not at its key, somebody has taken it away from there, as anybody may.
            if ours or trashed == entry.copied_fingerprint():
                item.published = entry.published_fingerprint()
                item.copy = StagedCopy(entry.copied_fingerprint())
                item.resize()
                return
        # A place that is not mounted has lost nothing.
        self._c.source.check_identity()
        self.discard(item)
        end(item, MoveState.SKIPPED, exc.cause, str(exc))

    def _taken(self, item: Item, exc: TargetExists) -> None:
        """Something is at the key: our own copy, if Redis forgot its last seconds after we published it; else a stranger's.

        A manifest proves that it is ours. Where none lists it (the worker died before it, and Redis forgot the journal) the very
        same object, byte for byte, is as good: left alone it would stay on both nodes for ever.
        """
        at_key = self._c.target.stat(item.move.key)
        listed = [
            entry
            for entry in manifests.history(self._c.target, item.move.move_id)
            if at_key is not None and at_key.same_file(entry.published_fingerprint())
        ]
        same = same_object(self._c, item, at_key) if not listed else None
        self.discard(item)
        if same is not None:
            item.published = same
            return
        if listed and item.copy and listed[-1].copied_fingerprint() == item.copy.source:
            item.published = listed[-1].published_fingerprint()
            item.unread = self._c.validate and not arrives_checked(self._c.target)
            self.read_again(item, self._c.copier)
            return
        end(item, MoveState.FAILED, exc.cause, str(exc))

    def take_back(self, item: Item) -> None:
        """The source is the truth again; the stale copy on the target goes, unless somebody wrote to it."""
        kept = self._c.host is not None and self._c.host.take_back(item.move.key) == self._c.host.target
        self._c.store.retract([item.move], keep_locations=self._c.keep_locations)
        reached(Step.RETRACT)
        item.state = MoveState.PENDING
        if kept:
            end(
                item,
                MoveState.FAILED,
                "conflict",
                f"the source was written to, and the host's catalogue keeps readers at {self._c.target.node_id}",
            )
        else:
            self._take_off(item)

    def read_again(self, item: Item, copier: Copier) -> None:
        """Read an ``unread`` copy at its key, to which no reader was sent yet; what is spoilt is made again.

        Raises:
            SliceInterrupted: it is still unread, or a part of it is.
            StaleLease, NodeError.
        """
        copy, version = item.copy, item.published
        if copy is None or version is None or not item.unread:
            return
        if copy.verified == len(copy.parts):
            copy.verified = 0  # of the copy aside; fewer were read at this key already
        # A publish by two names may have been cut off between them.
        self.discard(item)
        try:
            copier.verify_published(self._c.target, item.move.key, copy, version)
        except (ChecksumMismatch, ObjectUnreadable, SourceVanished) as exc:
            self._spoilt(item, exc)
        item.unread = False

    def _spoilt(self, item: Item, exc: MoveError) -> None:
        """Make a copy again, from the source; where that is gone it may be the last one, and stays what the object is."""
        if self._c.source.stat(item.move.key) is None:
            # A place that is not mounted has lost nothing.
            self._c.source.check_identity()
            log.warning("move.last_copy_spoilt", move_id=item.move.move_id, object_key=item.move.key, error=str(exc))
            return
        self.take_back(item)
        if item.here:
            self.again(item, exc)

    def stay(self, item: Item) -> None:
        """A writer through the fleet holds the object to its place, and no reader was sent to the copy on the target: it goes."""
        self._take_off(item)
        if item.here:
            why = (
                "it was written through the fleet while this job ran, and stays where it is; the next plan takes it up"
            )
            end(item, MoveState.SKIPPED, SourceChanged.cause, why)

    def refused(self, item: Item, place: str | None) -> None:
        """The host's catalogue sends nobody to the copy on the target: it goes."""
        self._take_off(item)
        if item.here:
            told = "does not have it any more" if place is None else f"has it on {place}"
            error = CatalogueRefused(item.move.key, f"the host's catalogue {told}")
            state = MoveState.FAILED if place == self._c.source.node_id else MoveState.SKIPPED
            end(item, state, error.cause, str(error))

    def later(self, items: Sequence[Item]) -> None:
        """Hand items back as they are, published or flipped, to go on in a later batch."""
        for item in items:
            item.again = True
            item.fresh = False
            item.entry = journal_entry(item, running=False)
        self._c.store.write_journal({item.move.index: item.entry for item in items})
        if items:
            reached(Step.LATER)

    def _take_off(self, item: Item) -> None:
        published, item.published, item.staged = item.published, None, None
        if published and not unpublish(self._c.target, item.move.key, item.move.move_id, published):
            detail = f"both {self._c.source.node_id} and {self._c.target.node_id} were written to: compare them by hand"
            end(item, MoveState.FAILED, "conflict", detail)

    def trouble(self, item: Item, error: RebalanceError) -> None:
        """Turn what went wrong with one object into its outcome, and the batch goes on; raise what is not about one object."""
        match error:
            case SourceVanished():
                self._vanished(item, error)
            case SourceChanged() | ChecksumMismatch():
                self.again(item, error)
            case TargetExists():
                self._taken(item, error)
            case MoveError() | InvalidKey() | NodeFull():
                self.discard(item)
                end(item, MoveState.FAILED, error.cause, str(error))
            case _:
                raise error
