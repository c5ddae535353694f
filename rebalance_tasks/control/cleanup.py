"""Cleanup: purge what was freed and whose grace is over, forget old forwardings, remove orphans.

Purging is the only step that cannot be taken back, so it waits for three things: the grace, a flip that is on Redis'
disk, and a trash that still is the version that was copied. Each run is bounded; the next one goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.host_claims import committed
from rebalance_tasks.core.errors import JobNotFound, NodeError, NodeMissing, RebalanceError
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.migration.undo import undo
from rebalance_tasks.store.claims import WRITE_PREFIX
from rebalance_tasks.store.records import TrashRecord, UndoRecord
from rebalance_tasks.store.versions import NewerVersion
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.drivers.base import Driver

log = get_logger(__name__)

#: Work per run is bounded: the next run goes on.
LIMIT: Final = 5_000
#: Trash and temp files that Redis knows nothing of are left alone at least so long.
ORPHAN_AGE: Final = timedelta(hours=24)
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
        released: keys written through the fleet while a job ran that no copy of any job can be taken for any more.
    """

    purged: int = 0
    forgotten: int = 0
    orphans: int = 0
    manifests: int = 0
    freed_late: int = 0
    undone_late: int = 0
    reservations: int = 0
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
    jobs = _Jobs(context)
    _reservations(context, jobs, report)
    for driver in _reachable(context):
        try:
            _staged_orphans(context, jobs, driver, report)
            _trash_orphans(context, jobs, driver, report)
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


@dataclass(slots=True)
class _Jobs:
    """Asks once per run whether a job has ended: a node may hold thousands of files of one job."""

    context: FleetContext
    _over: dict[str, bool | None] = field(default_factory=dict)

    def over(self, move_id: str) -> bool | None:
        """Whether the job of a move has ended; ``None`` when Redis does not know the job."""
        job_id = job_of(move_id)
        if job_id not in self._over:
            try:
                self._over[job_id] = self.context.jobs.load(job_id).status.terminal
            except JobNotFound:
                self._over[job_id] = None
            except NewerVersion:  # theirs to say
                self._over[job_id] = False
        return self._over[job_id]


def job_of(move_id: str) -> str:
    """The job of a move."""
    return move_id.rpartition(".")[0]


def _reachable(context: FleetContext) -> list[Driver]:
    """Drivers of the nodes that are there and are themselves."""
    found: list[Driver] = []
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            continue
        try:
            driver = context.driver(node.node_id)
            driver.check_identity()
        except NodeError as exc:
            log.debug("cleanup.node_left_out", node=node.node_id, error=str(exc))
        else:
            found.append(driver)
    return found


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
            outcome = source.free(key, MoveId(move_id), copied)
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


def _reservations(context: FleetContext, jobs: _Jobs, report: CleanupReport) -> None:
    """Give back room that was promised to groups of jobs that are over, or that Redis does not know."""
    for node in context.nodes():
        key = context.keys.reserved(node.node_id)
        dead = [name for name in islice(context.connection.hgetall(key), LIMIT) if _holder_over(jobs, name)]
        report.reservations += context.connection.hdel(key, *dead)


def _holder_over(jobs: _Jobs, reservation: str) -> bool:
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


# -- orphans ----------------------------------------------------------------------------------------------------------
def _staged_orphans(context: FleetContext, jobs: _Jobs, driver: Driver, report: CleanupReport) -> None:
    """Remove staged copies that no running move needs."""
    old_ns = _orphan_before_ns(context)
    for move_id, staged in islice(driver.list_staged(), LIMIT):
        over = jobs.over(move_id)
        if over or (over is None and staged.mtime_ns < old_ns):
            driver.discard(move_id)
            reached(Step.ORPHAN_COPY)
            report.orphans += 1


def _trash_orphans(context: FleetContext, jobs: _Jobs, driver: Driver, report: CleanupReport) -> None:
    """Remove trash that is not on record, if what it held stands at the place that a manifest names."""
    old_ns = _orphan_before_ns(context)
    known = context.trash.known_ids()
    unknown = {
        move_id: held
        for move_id, held, trashed_at_ns in driver.list_trash()
        if move_id not in known and trashed_at_ns < old_ns and jobs.over(move_id) is not False
    }
    unknown = dict(islice(unknown.items(), LIMIT))
    entries = entries_of(context, unknown)
    for move_id, held in unknown.items():
        entry = entries.get(move_id)
        # What somebody removed through the fleet, and died before it was purged, has no manifest.
        removed = move_id.startswith(WRITE_PREFIX)
        if removed or (entry is not None and entry.copied_fingerprint() == held and _stands(context, entry)):
            driver.purge(move_id, held)
            reached(Step.ORPHAN_TRASH)
            report.orphans += 1


def _orphan_before_ns(context: FleetContext) -> int:
    return (context.connection.now_ms() - int(ORPHAN_AGE.total_seconds() * 1000)) * 1_000_000


def _stands(context: FleetContext, entry: manifests.ManifestEntry) -> bool:
    """Whether what a manifest lists stands there whole."""
    found = context.driver(entry.target).stat(entry.key)
    return found is not None and found.same_file(entry.published_fingerprint())


def entries_of(context: FleetContext, wanted: Collection[str]) -> dict[str, manifests.ManifestEntry]:
    """Manifest entries of these moves, read in one pass over the nodes that can be reached."""
    found: dict[str, manifests.ManifestEntry] = {}
    if not wanted:
        return found
    for driver in _reachable(context):
        for _, entry in manifests.entries(driver):
            if entry.move_id in wanted:
                found[entry.move_id] = entry
    return found


# -- manifests --------------------------------------------------------------------------------------------------------
def _old_manifests(context: FleetContext, jobs: _Jobs, driver: Driver, report: CleanupReport) -> None:
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
