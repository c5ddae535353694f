"""Cleanup: purge what was freed and whose grace is over, forget old forwardings, remove orphans.

Purging is the only step that cannot be taken back, so it waits for three things: the grace, a flip that is on Redis'
disk, and a trash that still is the version that was copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import JobNotFound, NodeError, RebalanceError
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.undo import undo
from rebalance_tasks.store.jobs import JOB_RETENTION
from rebalance_tasks.store.records import TrashRecord, UndoRecord
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
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


@dataclass(slots=True)
class CleanupReport:
    """What a cleanup did."""

    purged: int = 0
    forgotten: int = 0
    orphans: int = 0
    manifests: int = 0
    freed_late: int = 0
    undone_late: int = 0


def run_cleanup(context: FleetContext) -> CleanupReport:
    """Clean up once, within `LIMIT`."""
    report = CleanupReport()
    if _durable(context):
        _purge_due(context, report)
    options = context.settings.options
    keep = max(options.forwarding_ttl, options.object_cooldown)
    report.forgotten = context.locations.expire(keep_ms=int(keep.total_seconds() * 1000), limit=LIMIT)
    _free_late(context, report)
    _undo_late(context, report)
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            continue
        try:
            driver = context.driver(node.node_id)
            driver.check_identity()
            _orphans(context, driver, report)
            _old_manifests(context, driver, report)
        except NodeError as exc:
            log.debug("cleanup.node_left_out", node=node.node_id, error=str(exc))
    if report != CleanupReport():
        log.info("cleanup.done", purged=report.purged, forgotten=report.forgotten, orphans=report.orphans)
    return report


def _durable(context: FleetContext) -> bool:
    """Make sure that every flip so far is on Redis' disk: a mark written now is there only after all that came before."""
    mark = {"cleanup_ms": context.connection.now_ms()}
    return context.connection.write_durably(context.keys.info, mark, timeout_ms=DURABLE_WAIT_MS) is not False


def _purge_due(context: FleetContext, report: CleanupReport) -> None:
    for move_id, record in context.trash.due(limit=LIMIT):
        try:
            driver = context.driver(record.node)
            driver.check_identity()
            expected = Fingerprint.from_json(record.fingerprint)
            gone = driver.purge(MoveId(move_id), expected)
        except RebalanceError as exc:
            log.warning("trash.postponed", move_id=move_id, node=record.node, error=str(exc))
            context.trash.postpone(move_id, delay_ms=POSTPONE_MS)
            continue
        if gone:
            context.trash.purged(move_id, record)
            report.purged += 1
        else:
            log.warning("trash.changed", move_id=move_id, node=record.node, object_key=record.key)
            context.trash.postpone(move_id, delay_ms=POSTPONE_MS)


def _free_late(context: FleetContext, report: CleanupReport) -> None:
    """Free sources whose node could not be reached when their move was committed."""
    pending = list(context.locations.pending_frees().items())[:LIMIT]
    # Asked after: what is pending for a job that started in between is that job's own to free.
    active = context.jobs.active()
    for (node, key), move_id in pending:
        job_id, _, _ = move_id.rpartition(".")
        if job_id == active:
            continue
        try:
            source = context.driver(node)
            source.check_identity()
            entry = _manifest_of(context, move_id)
            copied = None if entry is None else entry.copied_fingerprint()
            outcome = None if copied is None else source.free(key, MoveId(move_id), copied)
            if copied is None or outcome is FreeOutcome.CHANGED:
                log.warning("free.left", node=node, object_key=key, move_id=move_id)
                continue
            if outcome is FreeOutcome.FREED:
                record = TrashRecord(node=node, key=key, size=copied.size_bytes, fingerprint=copied.to_json())
                context.trash.add(move_id, record, delay_ms=POSTPONE_MS)
        except RebalanceError as exc:
            log.debug("free.postponed", node=node, object_key=key, error=str(exc))
            continue
        context.connection.hdel(context.keys.frees, f"{node}\0{key}")
        report.freed_late += 1


def _undo_late(context: FleetContext, report: CleanupReport) -> None:
    """Take copies that were never flipped off targets that could not be reached when their job gave them up."""
    pending = context.connection.hgetall(context.keys.undos)
    active = context.jobs.active()
    for move_id, raw in list(pending.items())[:LIMIT]:
        if move_id.rpartition(".")[0] == active:
            continue
        record = UndoRecord.model_validate_json(raw)
        try:
            source, target = context.driver(record.source), context.driver(record.target)
            target.check_identity()
            done = undo(source, target, record.key, MoveId(move_id), Fingerprint.from_json(record.fingerprint))
        except RebalanceError as exc:
            log.debug("undo.postponed", node=record.target, object_key=record.key, error=str(exc))
            continue
        if done:
            context.connection.hdel(context.keys.undos, move_id)
            report.undone_late += 1
        else:
            log.warning("undo.left", node=record.target, object_key=record.key, move_id=move_id)


def _manifest_of(context: FleetContext, move_id: str) -> manifests.ManifestEntry | None:
    for node in context.nodes():
        if node.state is NodeState.MAINTENANCE:
            continue
        entry = manifests.find(context.driver(node.node_id), move_id)
        if entry is not None:
            return entry
    return None


def _orphans(context: FleetContext, driver: Driver, report: CleanupReport) -> None:
    """Remove staged copies and trash that no running move needs."""
    now_ns = context.connection.now_ms() * 1_000_000
    old_ns = now_ns - int(ORPHAN_AGE.total_seconds()) * 10**9
    for move_id, staged in driver.list_staged():
        if _job_over(context, move_id) or (_job_over(context, move_id) is None and staged.mtime_ns < old_ns):
            driver.discard(move_id)
            report.orphans += 1
    for move_id, held, trashed_at_ns in driver.list_trash():
        known = context.trash.known(move_id) or _job_over(context, move_id) is False
        if not known and trashed_at_ns < old_ns and _stands_elsewhere(context, move_id, held):
            driver.purge(move_id, held)
            report.orphans += 1


def _old_manifests(context: FleetContext, driver: Driver, report: CleanupReport) -> None:
    """Remove manifests that neither a resumed job nor a reindex can need any more."""
    if not context.fleet.due(f"manifests:{driver.node_id}", every_s=MANIFESTS_EVERY_S):
        return
    keep_s = (JOB_RETENTION + ORPHAN_AGE).total_seconds()
    newest: dict[str, float] = {}
    for name, entry in manifests.entries(driver):
        newest[name] = max(newest.get(name, 0.0), entry.at.timestamp())
    for name, at_s in newest.items():
        if at_s < context.now().timestamp() - keep_s:
            driver.remove_manifest(name)
            report.manifests += 1


def _job_over(context: FleetContext, move_id: str) -> bool | None:
    """Whether the job of a move has ended; ``None`` when Redis does not know the job."""
    try:
        return context.jobs.load(move_id.rpartition(".")[0]).status.terminal
    except JobNotFound:
        return None


def _stands_elsewhere(context: FleetContext, move_id: str, held: Fingerprint) -> bool:
    """Whether a manifest says where the trashed object went, and it stands there whole."""
    entry = _manifest_of(context, move_id)
    if entry is None or entry.copied_fingerprint() != held:
        return False
    found = context.driver(entry.target).stat(entry.key)
    return found is not None and found.same_file(entry.published_fingerprint())
