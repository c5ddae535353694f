"""A slice: one runner carries stretches of a group's moves on for about 20 seconds, each under a lease of its own.

A busy pair has several slices at once; each takes the next stretch that nobody holds, so that they never meet. A slice
ends in one of the outcomes below and never raises for what is wrong with an object, a node or Redis: a Celery header that
raises would end its chord (docs/architecture.md).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import (
    CatalogueUnreachable,
    NodeError,
    NodeFull,
    RebalanceError,
    RetryableError,
    SourceChanged,
    StaleLease,
)
from rebalance_tasks.core.options import MIB
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.control import SLICE_S, Interrupt, SliceInterrupted
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.heartbeat import Heart
from rebalance_tasks.migration.item import NEVER, BatchContext, Item
from rebalance_tasks.migration.undo import undo
from rebalance_tasks.store.moves import FREE_PENDING, Settlement
from rebalance_tasks.store.records import JournalEntry
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.committing import Host
    from rebalance_tasks.store.attempts import AttemptStore
    from rebalance_tasks.store.jobs import JobStore
    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.moves import MoveStore
    from rebalance_tasks.store.records import GroupRecord

log = get_logger(__name__)

#: Group commit: two syncs, one manifest, one flip for so many objects …
BATCH_OBJECTS: Final = 1024
#: … or so many bytes, whichever comes first (a larger object is a batch of its own).
BATCH_BYTES: Final = 64 * MIB
#: Objects on which a worker has died go on in smaller batches, so that innocent ones are not blamed a second time …
SUSPECT_OBJECTS: Final = 32
#: A worker that died on one object may have been unlucky; three are the object's fault.
MAX_DEATHS: Final = 3
#: Moves settled per round trip where there is nothing to copy.
SETTLE_CHUNK: Final = 1000
#: One thread renews the leases of all slices of a process.
HEART: Final = Heart()


class SliceOutcome(StrEnum):
    """What became of a slice, and so what the task does next."""

    #: every move of the group is counted: go on to the monitor
    TERMINAL = "terminal"
    #: work is left: publish the header again
    AGAIN = "again"
    #: every move is counted, and the monitor was told already
    HANDED = "handed"
    #: paused, or held with a node: whoever lifts that publishes the header
    PARKED = "parked"
    #: nothing to do here: another runner holds the lease, the gate is closed, or the job is over
    DROPPED = "dropped"


class WorkerDied(RebalanceError):
    """Workers died on an object again and again."""

    cause = "worker_died"


@dataclass(frozen=True, slots=True)
class SliceWorld:
    """What a slice is given by the composition root.

    Attributes:
        jobs: where leases come from.
        limit: of the gate, for when it was lowered while the job runs.
        move_store: writes under a lease.
        drivers: source and target of a group.
        context: what a batch works with, for a lease and so many seconds.
        spread: publishes an extra slice of a group.
        attempts: writes under a lease what a slice that stops early leaves.
        admit: lets further groups through the gate.
        missing: holds a node that is out of reach; False when it is waited for no more.
        host: the host's catalogue, for a lease; ``None`` where Redis says where objects are.
        catalogue_away: pauses the job until the host's catalogue answers again.
    """

    jobs: JobStore
    limit: int
    move_store: Callable[[Lease], MoveStore]
    drivers: Callable[[GroupRecord], tuple[Driver, Driver]]
    context: Callable[[Lease, MoveStore, tuple[Driver, Driver], float], BatchContext]
    spread: Callable[[GroupRecord], None]
    attempts: Callable[[Lease], AttemptStore]
    admit: Callable[[], object]
    missing: Callable[[str], bool]
    host: Callable[[Lease], Host | None]
    catalogue_away: Callable[[], object]


class Slice:
    """Runs one slice of one group."""

    def __init__(self, world: SliceWorld, *, job_id: str, group_id: str, owner: str, extra: bool = False) -> None:
        """Bind to a group; ``owner`` names this very attempt, ``extra`` is one of a busy pair besides the lead."""
        self._world = world
        self._job_id = job_id
        self._group_id = group_id
        self._owner = owner
        self._extra = extra
        self._until = time.monotonic() + SLICE_S

    def run(self) -> SliceOutcome:
        """Take stretches, carry their moves on, until none is left to take or the time is up."""
        while True:
            lease = self._acquire()
            match lease.code:
                case "terminal":
                    # Whoever counted its last move tells the monitor; only the lead's own message may say it again.
                    return SliceOutcome.DROPPED if self._extra else SliceOutcome.TERMINAL
                case "paused" | "held":
                    return SliceOutcome.PARKED
                case "ok" | "cancel":
                    reached(Step.ACQUIRE)
                case _:
                    return SliceOutcome.DROPPED
            try:
                with HEART.keeping(lambda lease=lease: self._beat(lease)):  # type: ignore[misc]
                    outcome = self._work(lease)
            except StaleLease:
                return SliceOutcome.DROPPED
            reached(Step.RELEASE)
            if outcome is not None:
                return outcome

    def give_up(self, error: RebalanceError) -> SliceOutcome:
        """Count what is left of the group as failed, for a reason that no further try will mend."""
        while True:
            lease = self._acquire()
            if lease.code == "terminal":
                return SliceOutcome.TERMINAL
            if lease.group is None:
                return SliceOutcome.DROPPED
            drivers = self._world.drivers(lease.group)
            if self._give_up(lease, self._world.move_store(lease), drivers, _items(lease), error) == 0:
                return SliceOutcome.TERMINAL

    def _acquire(self) -> Lease:
        lease = self._world.jobs.acquire_lease(
            self._job_id, self._group_id, owner=self._owner, limit=self._world.limit, extra=self._extra
        )
        log.debug("slice.acquire", job_id=self._job_id, group_id=self._group_id, code=lease.code, epoch=lease.epoch)
        if lease.room:
            # Its message is off the broker's queue, so another one may be put there.
            self._world.admit()
        if lease.more and lease.group is not None:
            self._world.spread(lease.group)
        return lease

    def _beat(self, lease: Lease) -> str:
        return self._world.jobs.beat(self._job_id, self._group_id, lease.stretch, epoch=lease.epoch)[0]

    def _work(self, lease: Lease) -> SliceOutcome | None:
        """Carry one stretch on; ``None`` when it is done and there may be another to take."""
        if lease.group is None:
            return SliceOutcome.DROPPED
        store = self._world.move_store(lease)
        items = _items(lease)
        everything = list(items)
        drivers = None
        try:
            drivers = self._world.drivers(lease.group)
            for driver in drivers:
                driver.check_identity()
            context = self._world.context(lease, store, drivers, self._until - time.monotonic())
            left = self._carry(context, items, lease)
        except (NodeError, CatalogueUnreachable) as exc:
            log.warning("slice.out_of_reach", job_id=self._job_id, group_id=self._group_id, error=str(exc))
            everything = [item for item in everything if not item.counted]
            if self._waits(lease, everything, exc):
                return self._release(lease)
            left = self._give_up(lease, store, drivers, everything, exc)
        except SliceInterrupted as stop:
            log.debug("slice.interrupted", job_id=self._job_id, group_id=self._group_id, why=stop.why)
            return self._release(lease)
        if left == 0:
            return SliceOutcome.TERMINAL
        if items or time.monotonic() >= self._until:
            return self._release(lease)
        return None

    def _waits(self, lease: Lease, items: Iterable[Item], error: NodeError | CatalogueUnreachable) -> bool:
        """Leave the stretch for when what is out of reach is back, as if nobody had touched it; False: fail it."""
        passing = isinstance(error, RetryableError) and not isinstance(error, NodeFull)
        # Winding up waits for nothing.
        if not passing or lease.code == "cancel":
            return False
        if isinstance(error, CatalogueUnreachable):
            self._world.catalogue_away()
        elif not self._world.missing(error.node_id):
            return False
        unsettled = {item.move.index: item.entry.deaths for item in items if item.entry is not NEVER}
        self._world.attempts(lease).close(unsettled)
        reached(Step.HOLD)
        return True

    def _release(self, lease: Lease) -> SliceOutcome:
        match self._world.jobs.release_lease(
            self._job_id, self._group_id, lease.stretch, epoch=lease.epoch, extra=self._extra
        ):
            case "parked" | "held":
                return SliceOutcome.PARKED
            case "again":
                return SliceOutcome.AGAIN
            case "done":
                return SliceOutcome.TERMINAL
            case _:
                return SliceOutcome.DROPPED

    # -- choosing what to do --------------------------------------------------------------------------------------
    def _carry(self, context: BatchContext, items: deque[Item], lease: Lease) -> int:
        cancelled = lease.code == "cancel"
        left = len(items) or context.store.settle([], purge_delay_ms=0)
        number = 0
        while items:
            cancelled = cancelled or self._cancelled(context)
            if cancelled:
                left = self._wind_up(context, items)
                items.clear()
                break
            if context.control.overdue:
                break
            batch = _next_batch(items)
            if batch[0].entry.deaths >= MAX_DEATHS:
                left = self._fail_dead(context, lease, batch)
                continue
            try:
                left = Batch(context, batch, number=number).run()
            except SliceInterrupted as stop:
                if stop.why is not Interrupt.CANCELLED:
                    raise
                cancelled = True
            number += 1
            items.extend(item for item in batch if item.again)
            for item in batch:
                item.again = False
        return left

    @staticmethod
    def _cancelled(context: BatchContext) -> bool:
        """Look at the flags: True for a cancel, while a pause stops the slice here."""
        try:
            context.control.check()
        except SliceInterrupted as stop:
            if stop.why is Interrupt.CANCELLED:
                return True
            raise
        return False

    # -- endings --------------------------------------------------------------------------------------------------
    def _wind_up(self, context: BatchContext, items: deque[Item]) -> int:
        """After a cancel: finish what is published, undo what is not, count the rest skipped."""
        published = [item for item in items if item.state is MoveState.FLIPPED or item.entry.staged is not None]
        left = len(items)
        if published:
            try:
                left = Batch(context, published, number=-1, winding_up=True).run()
            except SliceInterrupted:
                left = len(items)
        # A copy that was handed back stands at its key, and readers may have been sent there: it is finished in a later stretch.
        rest = [item for item in items if item.here]
        for item in rest:
            if item.entry != JournalEntry():
                context.target.discard(item.move.move_id)
                reached(Step.WIND_UP)
        return self._settle(
            context.store,
            [Settlement(i.move, MoveState.SKIPPED, "cancelled", "an operator cancelled the job") for i in rest],
            left=left,
        )

    def _fail_dead(self, context: BatchContext, lease: Lease, items: Iterable[Item]) -> int:
        died = WorkerDied(f"{MAX_DEATHS} workers died while they moved it; look at their logs before you try again")
        return self._give_up(lease, context.store, (context.source, context.target), items, died)

    def _give_up(
        self,
        lease: Lease,
        store: MoveStore,
        drivers: tuple[Driver, Driver] | None,
        items: Iterable[Item],
        error: RebalanceError,
    ) -> int:
        """No further try will mend it: what is flipped is where readers look, the rest is undone and has failed.

        After a cancel it has not failed: nobody wanted it any more (invariant 7).
        """
        attempts = self._world.attempts(lease)
        state, cause = (MoveState.FAILED, error.cause) if lease.code != "cancel" else (MoveState.SKIPPED, "cancelled")
        endings: list[Settlement] = []
        for item in items:
            if item.state is MoveState.FLIPPED:
                endings.append(Settlement(item.move, MoveState.COMPLETED, FREE_PENDING, str(error)))
            elif item.settlement is not None:
                endings.append(item.settlement)
            else:
                try:
                    if _committed(self._world.host(lease), store, item):
                        endings.append(Settlement(item.move, MoveState.COMPLETED, FREE_PENDING, str(error)))
                        continue
                except (CatalogueUnreachable, SourceChanged) as exc:
                    _leave(attempts, item, exc)
                else:
                    _undo(attempts, drivers, item)
                endings.append(Settlement(item.move, state, cause, str(error)))
        return self._settle(store, endings, left=0)

    @staticmethod
    def _settle(store: MoveStore, endings: list[Settlement], *, left: int) -> int:
        for start in range(0, len(endings), SETTLE_CHUNK):
            left = store.settle(endings[start : start + SETTLE_CHUNK], purge_delay_ms=0)
            reached(Step.COUNT)
        return left


def _undo(attempts: AttemptStore, drivers: tuple[Driver, Driver] | None, item: Item) -> None:
    """Take back what a move left on its target; what cannot be reached now is the cleanup's (a copy aside goes with the job)."""
    if drivers is None or (item.copied is None and item.copy is None and item.entry == JournalEntry()):
        return
    try:
        done = undo(*drivers, item.move.key, item.move.move_id, item.copied)
    except RebalanceError as exc:
        _leave(attempts, item, exc)
        return
    if not done:
        _leave(attempts, item, None)


def _leave(attempts: AttemptStore, item: Item, error: RebalanceError | None) -> None:
    """Leave it to the cleanup to take back what is at its key, if anything is."""
    log.warning("move.not_undone", move_id=item.move.move_id, object_key=item.move.key, error=str(error or ""))
    if item.copied is not None:
        attempts.note_undo(item.move, item.copied)
        reached(Step.NOTE_UNDO)


def _committed(host: Host | None, store: MoveStore, item: Item) -> bool:
    """Whether the host has sent readers to the copy of a move that is given up now: then it is made, and Redis is told.

    Raises:
        CatalogueUnreachable, SourceChanged: that cannot be said now.
    """
    if host is None or item.copied is None or not host.committed(item.move.key):
        return False
    held = store.flip([item.move], forwarding_ttl_ms=0, keep_locations=False, hosted=True)
    reached(Step.FLIP_LATE)
    if held:
        raise SourceChanged(item.move.key, "a writer through the fleet holds it")
    return True


def _items(lease: Lease) -> deque[Item]:
    """Moves still to do, those an earlier attempt left in flight first; an attempt found open has died."""
    ready: list[Item] = []
    fresh: list[Item] = []
    for move, state in lease.moves:
        entry = lease.journal.get(move.index)
        if entry is None:
            (fresh if state is MoveState.PENDING else ready).append(Item(move, state, NEVER))
            continue
        if entry.open:
            entry = entry.model_copy(update={"deaths": entry.deaths + 1})
        ready.append(Item(move, state, entry))
    return deque(ready + fresh)


def _next_batch(items: deque[Item]) -> list[Item]:
    """Take the next batch; an object on which two workers died goes alone, so that only the guilty one is given up."""
    batch = [items.popleft()]
    deaths = batch[0].entry.deaths
    most = (BATCH_OBJECTS, SUSPECT_OBJECTS, 1)[min(deaths, 2)]
    size = batch[0].move.size_bytes
    while items and len(batch) < most and items[0].entry.deaths == deaths:
        size += items[0].move.size_bytes
        if size > BATCH_BYTES:
            break
        batch.append(items.popleft())
    return batch
