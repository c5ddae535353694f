"""Cleanup: purge what was freed and whose grace is over, forget old forwardings, remove orphans.

Purging is the only step that cannot be taken back, so it waits for three things: the grace, a flip that is on Redis'
disk, and a trash that still is the version that was copied. Each run is bounded; the next one goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.access.host_claims import committed
from rebalance_tasks.control.cleaning.orphans import OrphanTrash, discard_staged
from rebalance_tasks.control.cleaning.strays import Progress, Strays
from rebalance_tasks.control.custody import EndedJobs, entries_of, job_of, reachable
from rebalance_tasks.core.errors import NodeError, NodeMissing, RebalanceError
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.undo import undo
from rebalance_tasks.store.records import TrashRecord, UndoRecord
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.drivers.base import Driver

log = get_logger(__name__)

#: Work per run is bounded: the next run goes on.
LIMIT: Final = 5_000
#: Moves looked for per run that Redis may have forgotten: of a store each is a request.
LOOKS: Final = 2_000
#: Trash and temp files that Redis knows nothing of are left alone at least so long.
ORPHAN_AGE: Final = timedelta(hours=24)
#: A server that comes back may have lost the end of jobs that ended so long before.
LIFE_OVERLAP: Final = timedelta(hours=1)
#: Manifests are looked through once an hour: nothing depends on their going early.
MANIFESTS_EVERY_S: Final = 3600
#: appendfsync everysec is done within two seconds; a disk that takes longer is left to the next run.
DURABLE_WAIT_MS: Final = 3000
#: Look again later at trash on a missing node, or that somebody wrote to.
POSTPONE_MS: Final = 15 * 60 * 1000
#: A freed source stays in the trash at least so long, whatever the grace: longer than an append-only file can lag.
MIN_PURGE_DELAY: Final = timedelta(seconds=5)


@dataclass(slots=True)
class CleanupReport:
    """What a cleanup did.

    Attributes:
        purged: freed sources deleted for good.
        forgotten: moved keys whose forwarding and cooldown are over.
        orphans: temp files and trash that no move needs.
        manifests: manifests that nothing can need any more.
        freed_late: sources freed whose node was away when their move was committed.
        undone_late: copies taken off targets that were away when their move was given up.
        reservations: room on targets that was promised to jobs which are over.
        restored: freed sources put back at their keys, whose copies were taken off as well.
        strays: copies taken off that stood beside their originals, since Redis forgot their moves.
        adopted: copies of forgotten moves that are the object from now on.
        ambiguous: keys on two nodes after a forgotten move of which nothing says which is the object.
        released: keys written through the fleet while a job ran that no copy of any job can be taken for any more.
    """

    purged: int = 0
    forgotten: int = 0
    orphans: int = 0
    manifests: int = 0
    freed_late: int = 0
    undone_late: int = 0
    reservations: int = 0
    restored: int = 0
    strays: int = 0
    adopted: int = 0
    ambiguous: int = 0
    released: int = 0


def run_cleanup(context: FleetContext, *, only: Collection[str] | None = None) -> CleanupReport:
    """Clean up once, within `LIMIT`.

    Args:
        context: the fleet.
        only: the nodes that can be reached from here (`reach.within_reach`); default all. Others are left to their hosts.
    """
    near = _Near(context.driver, frozenset(node.node_id for node in context.settings.nodes) if only is None else only)
    context = replace(context, driver=near)
    report = CleanupReport()
    if _durable(context):
        _purge_due(context, near.nodes, report)
    options = context.settings.options
    keep = max(options.forwarding_ttl, options.object_cooldown)
    report.forgotten = context.locations.expire(keep_ms=int(keep.total_seconds() * 1000), limit=LIMIT)
    _free_late(context, near.nodes, report)
    _undo_late(context, report)
    jobs = EndedJobs(context)
    _reservations(context, jobs, report)
    drivers = reachable(context)
    # What this run moves into the trash is not old in this run.
    old_ms = context.connection.now_ms() - _orphan_age_ms()
    # First, since a source in the trash can still be brought back.
    _strays(context, jobs, drivers, report)
    _orphans(context, jobs, drivers, report, before_ns=old_ms * 1_000_000)
    for driver in drivers:
        try:
            _old_manifests(context, jobs, driver, report)
        except NodeError as exc:
            log.debug("cleanup.node_left_out", node=driver.node_id, error=str(exc))
    report.released = _written(context)
    context.fleet.record_chore("cleanup", asdict(report), now_ms=context.connection.now_ms())
    return report


@dataclass(frozen=True, slots=True)
class _Near:
    """Opens drivers of those nodes only that are reached from here.

    What happens to lie at another host's path on this machine is none of its node's.
    """

    open: Callable[[str], Driver]
    nodes: Collection[str]

    def __call__(self, node_id: str) -> Driver:
        if node_id not in self.nodes:
            raise NodeMissing(node_id, "is reached by other hosts only; the cleanup of their queue sees to it")
        return self.open(node_id)


def _durable(context: FleetContext) -> bool:
    """Make sure that every flip so far is on Redis' disk: a mark written now is there only after all that came before."""
    mark = {"cleanup_ms": context.connection.now_ms()}
    return context.connection.write_durably(context.keys.info, mark, timeout_ms=DURABLE_WAIT_MS) is not False


def _purge_due(context: FleetContext, nodes: Collection[str], report: CleanupReport) -> None:
    for due in context.trash.due(limit=LIMIT, nodes=nodes):
        left = [move_id for move_id, record in due.records.items() if not _purge(context, move_id, record)]
        context.trash.purged(due, left=left, delay_ms=POSTPONE_MS)
        reached(Step.PURGED)
        report.purged += len(due.records) - len(left)


def _purge(context: FleetContext, move_id: MoveId, record: TrashRecord) -> bool:
    """Delete one freed source for good; False when it must be looked at again later."""
    try:
        driver = context.driver(record.node)
        driver.check_identity()
        gone = driver.purge(move_id, Fingerprint.from_json(record.fingerprint))
        reached(Step.PURGE)
    except RebalanceError as exc:
        log.warning("trash.postponed", move_id=move_id, node=record.node, error=str(exc))
        return False
    if not gone:
        log.warning("trash.changed", move_id=move_id, node=record.node, object_key=record.key)
    return gone


def _free_late(context: FleetContext, nodes: Collection[str], report: CleanupReport) -> None:
    """Free sources whose node could not be reached when their move was committed."""
    context.locations.spread_frees(active=context.jobs.active())
    pending = list(context.locations.pending_frees().items())[:LIMIT]
    # Asked after: what is pending for a job that started in between is that job's own to free.
    active = context.jobs.active()
    pending = [(place, move_id) for place, move_id in pending if job_of(move_id) != active and place[0] in nodes]
    entries = entries_of(context, {move_id for _, move_id in pending})
    on_record = context.trash.known_ids() if pending else set()
    for (node, key), move_id in pending:
        entry = entries.get(move_id)
        if entry is None:
            log.warning("free.left", node=node, object_key=key, move_id=move_id, why="no manifest lists its copy")
            continue
        try:
            source = context.driver(node)
            source.check_identity()
            copied = entry.copied_fingerprint()
            target, name = context.driver(entry.target), MoveId(move_id)
            freed_before = manifests.freed_before(source, target, key, name, copied)
            outcome = source.free(key, name, copied, freed_before=freed_before)
            reached(Step.FREE_LATE)
        except RebalanceError as exc:
            log.debug("free.postponed", node=node, object_key=key, error=str(exc))
            continue
        if outcome is FreeOutcome.CHANGED:
            log.warning("free.left", node=node, object_key=key, move_id=move_id, why="it was written to")
            continue
        if outcome is FreeOutcome.FREED and move_id not in on_record:
            record = TrashRecord(node=node, key=key, size=copied.size_bytes, fingerprint=copied.to_json())
            context.trash.add(move_id, record, delay_ms=purge_delay_ms(context))
            reached(Step.TRASH_LATE)
        context.locations.freed(node, key)
        reached(Step.FREED_LATE)
        report.freed_late += 1


def purge_delay_ms(context: FleetContext) -> int:
    """How long what is freed now stays in the trash."""
    return int(max(context.settings.options.grace, MIN_PURGE_DELAY).total_seconds() * 1000)


def _undo_late(context: FleetContext, report: CleanupReport) -> None:
    """Take copies that were never flipped off targets that could not be reached when their job gave them up."""
    pending = context.connection.hgetall(context.keys.undos)
    active = context.jobs.active()
    for move_id, raw in list(pending.items())[:LIMIT]:
        if job_of(move_id) == active:
            continue
        if context.jobs.was_flipped(move_id):
            # A runner that had lost its lease noted it late: its successor has made the move after all.
            context.connection.hdel(context.keys.undos, move_id)
            continue
        try:
            record = UndoRecord.model_validate_json(raw)
            source, target = context.driver(record.source), context.driver(record.target)
            target.check_identity()
            if committed(context, record.key, source=record.source, target=record.target):
                context.locations.expect_free(record.source, record.key, move_id)
                reached(Step.EXPECTED_LATE)
                context.connection.hdel(context.keys.undos, move_id)
                continue
            done = undo(source, target, record.key, MoveId(move_id), Fingerprint.from_json(record.fingerprint))
            reached(Step.UNDO_LATE)
        except RebalanceError as exc:
            log.debug("undo.postponed", move_id=move_id, error=str(exc))
            continue
        if done:
            context.connection.hdel(context.keys.undos, move_id)
            reached(Step.UNDONE_LATE)
            report.undone_late += 1
        else:
            log.warning("undo.left", node=record.target, object_key=record.key, move_id=move_id)


def _reservations(context: FleetContext, jobs: EndedJobs, report: CleanupReport) -> None:
    """Give back room that was promised to groups of jobs that are over, or that Redis does not know."""
    for node in context.nodes():
        key = context.keys.reserved(node.node_id)
        dead = [name for name in islice(context.connection.hgetall(key), LIMIT) if _holder_over(jobs, name)]
        report.reservations += context.connection.hdel(key, *dead)


def _holder_over(jobs: EndedJobs, reservation: str) -> bool:
    """Whether the job of a reservation "<job>/…" is over."""
    return jobs.over(f"{reservation.partition('/')[0]}.") is not False


def _written(context: FleetContext) -> int:
    """Let go of keys that were written while a job ran, unless a copy of theirs is still to be freed or taken back."""
    if context.jobs.active() is not None:
        return 0
    doubled = {key for _, key in context.locations.pending_frees()}
    undos = context.connection.hgetall(context.keys.undos).values()
    doubled |= {UndoRecord.model_validate_json(raw).key for raw in undos}
    return context.locations.release(
        key for key in context.connection.hgetall(context.keys.written) if key not in doubled
    )


# -- what nobody answers for ------------------------------------------------------------------------------------------
def _orphans(
    context: FleetContext, jobs: EndedJobs, drivers: Sequence[Driver], report: CleanupReport, *, before_ns: int
) -> None:
    for driver in drivers:
        try:
            report.orphans += discard_staged(jobs, driver, before_ns=before_ns, limit=LIMIT)
        except NodeError as exc:
            log.debug("cleanup.node_left_out", node=driver.node_id, error=str(exc))
    trash = OrphanTrash(context, jobs, drivers)
    trash.tidy(before_ns=before_ns, limit=LIMIT)
    report.orphans += trash.purged
    report.restored += trash.restored


def _strays(context: FleetContext, jobs: EndedJobs, drivers: Sequence[Driver], report: CleanupReport) -> None:
    """Search for what Redis forgot: once in each of its lives, when that is a day old and no older job runs any more."""
    run_id, now_ms = context.connection.run_id(), context.connection.now_ms()
    if not run_id:
        return
    since_ms = context.fleet.note_life(run_id, now_ms=now_ms)
    active = context.jobs.active()
    if now_ms - since_ms < _orphan_age_ms() or (active and _began_ms(context, active) < since_ms + _orphan_age_ms()):
        return
    strays = Strays(context, jobs, ended_since=datetime.fromtimestamp(since_ms / 1000, tz=UTC) - LIFE_OVERLAP)
    for driver in drivers:
        try:
            progress = Progress.read(context.fleet.searched(driver.node_id), life=run_id)
            if not progress.done and strays.looks < LOOKS:
                progress = strays.search(driver, progress, looks=LOOKS - strays.looks)
                context.fleet.note_searched(driver.node_id, progress.text())
        except NodeError as exc:
            log.debug("cleanup.node_left_out", node=driver.node_id, error=str(exc))
    report.strays, report.adopted = strays.report.taken_off, strays.report.adopted
    report.ambiguous = strays.report.ambiguous


def _began_ms(context: FleetContext, job_id: str) -> int:
    """When a job began; that of one that Redis knows only in part never did."""
    return int(context.connection.hget(context.keys.job(job_id).base, "created_ms") or 0)


def _orphan_age_ms() -> int:
    return int(ORPHAN_AGE.total_seconds() * 1000)


# -- manifests --------------------------------------------------------------------------------------------------------
def _old_manifests(context: FleetContext, jobs: EndedJobs, driver: Driver, report: CleanupReport) -> None:
    """Remove manifests that nothing can need any more.

    A manifest is needed by a job that is taken up again (until that job is over), by a pending free or trash of one of its
    moves, and by a reindex for forwardings and cooldowns. The longest of these times, and a day, is kept.
    """
    if not context.fleet.due(f"manifests:{driver.node_id}", every_s=MANIFESTS_EVERY_S):
        return
    options = context.settings.options
    longest = max(options.job_retention, options.forwarding_ttl, options.object_cooldown, options.grace)
    before = context.now() - longest - ORPHAN_AGE
    needed = context.trash.known_ids() | set(context.locations.pending_frees().values())
    needed |= context.connection.hgetall(context.keys.undos).keys()
    needed |= {move_id for move_id, _, _ in driver.list_trash()}
    keep: dict[str, bool] = {}
    for name, entry in manifests.entries(driver):
        young = entry.at > before or entry.move_id in needed or jobs.over(entry.move_id) is False
        keep[name] = keep.get(name, False) or young
    for name in islice((name for name, kept in keep.items() if not kept), LIMIT):
        driver.remove_manifest(name)
        reached(Step.OLD_MANIFEST)
        report.manifests += 1
