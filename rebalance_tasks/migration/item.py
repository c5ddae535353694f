"""What a batch works on and with: one item a move, and the context that the composition root wires."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.states import MoveState
from rebalance_tasks.drivers.base import RESERVED
from rebalance_tasks.store.batches import JournalRow
from rebalance_tasks.store.moves import Attempt
from rebalance_tasks.store.records import JournalEntry

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.committing import Host
    from rebalance_tasks.migration.control import Steering
    from rebalance_tasks.migration.copying import Copier, StagedCopy
    from rebalance_tasks.store.moves import Budgets, MoveStore, Settlement
    from rebalance_tasks.store.records import MoveRecord


#: Why a batch does not begin a move, by the store's answer.
REFUSALS: Final = {
    "target_full": "the target's capacity is used up or reserved",
    "budget_egress": "the job's egress budget is spent (max_egress_bytes_per_cycle)",
    "budget_cost": "the job's money budget is spent (max_cost_per_cycle)",
    "budget_cost_day": "today's money budget is spent (max_cost_per_day)",
}
#: The journal of a move that was never attempted; entries never change, so all items share it.
NEVER: Final = JournalEntry()


@dataclass(slots=True)
class Item:
    """One move in a batch."""

    move: MoveRecord
    state: MoveState
    entry: JournalEntry = field(default_factory=lambda: NEVER)
    #: never attempted before this batch: nothing was staged or freed under its id
    fresh: bool = field(init=False)
    copy: StagedCopy | None = None
    staged: Fingerprint | None = None
    published: Fingerprint | None = None
    #: an earlier attempt gave it its key, and nobody has read it there since
    unread: bool = False
    settlement: Settlement | None = None
    #: it goes straight to its key, in one write
    direct: bool = False
    #: thrown back: to be tried again in a later batch
    again: bool = False
    #: counted as a row (`migration.plain`), without a settlement of its own
    counted: bool = False

    def __post_init__(self) -> None:
        """Remember whether there was an attempt."""
        self.fresh = self.entry is NEVER

    @property
    def here(self) -> bool:
        """Whether the item is still on its way in this batch."""
        return self.settlement is None and not self.again

    @property
    def copied(self) -> Fingerprint | None:
        """The verified copy, aside or at its key, if there is one."""
        return self.published or self.staged or self.entry.staged_fingerprint()

    @property
    def unpublished(self) -> bool:
        """Whether nothing of it can be seen on the target."""
        return self.published is None and self.settlement is None and not self.again and self.state is MoveState.PENDING

    @property
    def whole_copy(self) -> StagedCopy:
        """The copy, of an item that has one. Raises: AssertionError."""
        if self.copy is None:
            msg = f"move {self.move.move_id} has no copy"
            raise AssertionError(msg)
        return self.copy

    @property
    def read_back(self) -> tuple[MoveId, int, str] | None:
        """What a burst needs to read the copy back; ``None`` where it is no single part that was copied just now."""
        copy = self.copy
        if copy is None or not self.fresh or copy.verified or len(copy.parts) != 1:
            return None
        part = copy.parts[0]
        return self.move.move_id, part.length, part.digest

    def resize(self) -> None:
        """Count what was copied, where the source is not the size it was planned at."""
        if self.copy is not None and self.copy.source.size_bytes != self.move.size_bytes:
            self.move = replace(self.move, size_bytes=self.copy.source.size_bytes)


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What a batch works with."""

    source: Driver
    target: Driver
    store: MoveStore
    copier: Copier
    control: Steering
    budgets: Budgets
    cost_nano: Callable[[int], int]
    now: Callable[[], datetime]
    validate: bool
    forwarding_ttl_ms: int
    keep_locations: bool
    purge_delay_ms: int
    manifest_prefix: str
    #: the host's catalogue, where Redis does not say where objects are
    host: Host | None = None
    #: told (source, target, why) when fewer objects are in flight between them than usual
    tell_in_flight: Callable[[str, str, str], None] = lambda *_: None


def unbooked_bytes(item: Item) -> int:
    """Bytes still to be copied that no attempt has booked: what a pause left uncopied is paid for, a retry is not."""
    if item.staged is not None:
        return 0
    copied = item.copy.staged_bytes if item.copy else 0
    # A dead worker (its attempt is still open) may have copied all that it booked.
    booked = 0 if item.entry.open else item.entry.booked
    return max(0, item.move.size_bytes - max(copied, booked))


def journal_entry(item: Item, *, running: bool, booked: int | None = None) -> JournalEntry:
    """What the journal is to say of an item.

    Args:
        item: which.
        running: an attempt goes on.
        booked: bytes that this attempt books, where it is a new one.
    """
    copy = item.copy
    return JournalEntry(
        open=running,
        deaths=item.entry.deaths,
        tries=item.entry.tries,
        booked=item.entry.booked if booked is None else booked,
        source=copy.source if copy else None,
        parts=tuple(copy.parts) if copy else (),
        verified=copy.verified if copy else 0,
        staged=item.staged,
    )


def attempt(item: Item, cost_nano: Callable[[int], int]) -> Attempt:
    """Begin an item: give it the journal of a running attempt, and say what that takes of the budgets.

    Args:
        item: which.
        cost_nano: of so many bytes of egress, in 10⁻⁹ of the currency.
    """
    size_bytes = item.move.size_bytes
    if item.fresh:
        # The common case, without looking for what an earlier attempt has left.
        item.entry = JournalEntry(open=True, booked=size_bytes)
        return Attempt(item.move, item.entry, size_bytes, cost_nano(size_bytes))
    egress = unbooked_bytes(item)
    item.entry = journal_entry(item, running=True, booked=size_bytes)
    return Attempt(item.move, item.entry, egress, cost_nano(egress))


def journal_row(item: Item) -> JournalRow | None:
    """What the journal of its batch is to say of a staged copy; ``None`` when the item needs an entry of its own.

    A row is for a first attempt that went straight through: one part, as long as the source.
    """
    copy, staged = item.copy, item.staged
    if copy is None or staged is None or not item.fresh or len(copy.parts) != 1:
        return None
    part = copy.parts[0]
    if part.length != copy.source.size_bytes:
        return None
    return JournalRow(item.move.index, part.digest, copy.verified, copy.source, staged)


def staged_path(target: Driver, move_id: str) -> Path | None:
    """Where a fault may spoil a staged copy (local nodes only)."""
    root = getattr(target, "root", None)
    return None if root is None else Path(root) / RESERVED / "tmp" / move_id
