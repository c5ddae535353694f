"""Copies aside and trash that no running move needs and that Redis has no record of.

The last look of cleanup: what nobody answers for any more goes, if it is whole elsewhere; what both ends of a move have taken away
comes back (docs/invariants.md, "What Redis forgot").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rebalance_tasks.control.cleaning.unmoved import unmoved
from rebalance_tasks.control.custody import Chains, freed, histories_of, job_of, lines_of, look
from rebalance_tasks.core.errors import NodeError, RebalanceError
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.store.claims import WRITE_PREFIX
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.control.cleaning.unmoved import Unmoved
    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.custody import EndedJobs
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.manifests import ManifestEntry

log = get_logger(__name__)


def discard_staged(jobs: EndedJobs, driver: Driver, *, before_ns: int, limit: int) -> int:
    """Remove staged copies that no running move needs; return how many.

    Args:
        jobs: says which jobs are over.
        driver: of the node.
        before_ns: copies of unknown jobs must be older than that.
        limit: most copies to look at.
    """
    discarded = 0
    for move_id, staged in islice(driver.list_staged(), limit):
        over = jobs.over(move_id)
        if over or (over is None and staged.mtime_ns < before_ns):
            driver.discard(move_id)
            reached(Step.ORPHAN_COPY)
            discarded += 1
    return discarded


@dataclass(frozen=True, slots=True)
class _Orphan:
    driver: Driver
    move_id: MoveId
    held: Fingerprint
    #: in the trash for so long that nobody who froze will come back to it
    old: bool


class OrphanTrash:
    """Trash without a record, on all nodes in reach.

    Attributes:
        purged: how many were.
        restored: how many were put back at their keys.
    """

    def __init__(self, context: FleetContext, jobs: EndedJobs, drivers: Sequence[Driver]) -> None:
        """Bind to the nodes in reach."""
        self._c, self._jobs, self._drivers = context, jobs, drivers
        self._histories: Mapping[str, list[ManifestEntry]] = {}
        self._chains = Chains(context, {})
        self._unmoved: dict[str, dict[MoveId, Unmoved]] = {}
        self.purged = self.restored = 0

    def tidy(self, *, before_ns: int, limit: int) -> None:
        """Put back what both ends of a move have taken away; purge what is older and whole elsewhere.

        Args:
            before_ns: what came into the trash later is not purged.
            limit: most to look at.
        """
        found = self._list(before_ns)
        names = Counter(orphan.move_id for orphan in found)
        todo = [orphan for orphan in found if orphan.old or names[orphan.move_id] > 1][:limit]
        self._histories = histories_of(self._c, {orphan.move_id for orphan in todo})
        left = [orphan for orphan in todo if not self._purged(orphan)]
        # Few are left: only for those are all manifests read a second time.
        keys = {entry.key for orphan in left for entry in self._histories.get(orphan.move_id, ())}
        keys |= {move.key for orphan in left if (move := self._move(orphan)) is not None}
        self._chains = Chains(self._c, lines_of(self._c, keys))
        for orphan in left:
            if not self._purged(orphan) and names[orphan.move_id] > 1:
                self._put_back(orphan)

    def _list(self, before_ns: int) -> list[_Orphan]:
        known = self._c.trash.known_ids()
        found: list[_Orphan] = []
        for driver in self._drivers:
            try:
                found += [
                    _Orphan(driver, move_id, held, trashed_at_ns < before_ns)
                    for move_id, held, trashed_at_ns in driver.list_trash()
                    if move_id not in known and self._jobs.over(move_id) is not False
                ]
            except NodeError as exc:
                log.debug("cleanup.node_left_out", node=driver.node_id, error=str(exc))
        return found

    def _purged(self, orphan: _Orphan) -> bool:
        try:
            if not orphan.old or not self._spare(orphan):
                return False
            orphan.driver.purge(orphan.move_id, orphan.held)
            reached(Step.ORPHAN_TRASH)
        except RebalanceError as exc:
            log.debug("trash.postponed", move_id=orphan.move_id, node=orphan.driver.node_id, error=str(exc))
            return False
        self.purged += 1
        return True

    def _spare(self, orphan: _Orphan) -> bool:
        """Whether what the trash holds is whole elsewhere."""
        if orphan.move_id.startswith(WRITE_PREFIX):
            # What somebody removed through the fleet, and died before it was purged, has no manifest.
            return True
        entries = self._histories.get(orphan.move_id, ())
        if any(self._chains.spares(orphan.driver, orphan.move_id, orphan.held, entry) for entry in entries):
            return True
        return not entries and self._unlisted(orphan)

    def _unlisted(self, orphan: _Orphan) -> bool:
        """Whether it is a copy without a manifest that was taken back, and what its job says to be its source stands, there or further on."""
        move = self._move(orphan)
        if move is None or move.target != orphan.driver.node_id:
            return False
        original = self._chains.end(move.key, move.source, None)
        there, held = None if original is None else look(self._c, original, move.key), orphan.held
        return there is not None and (there.mtime_ns >= held.mtime_ns > 0 or there.etag == held.etag != "")

    def _move(self, orphan: _Orphan) -> Unmoved | None:
        """What its job says of the move."""
        job_id = job_of(orphan.move_id)
        if job_id not in self._unmoved:
            self._unmoved[job_id] = {move.move_id: move for move in unmoved(self._c, job_id)}
        return self._unmoved[job_id].get(orphan.move_id)

    def _put_back(self, orphan: _Orphan) -> None:
        """Bring a freed source back whose copy was taken off the target, if nothing of the object stands anywhere."""
        try:
            for entry in self._histories.get(orphan.move_id, ()):
                if (
                    not freed(orphan.driver, orphan.held, entry)
                    or self._c.driver(entry.target).trashed(orphan.move_id) is None
                ):
                    continue
                if any(look(self._c, driver.node_id, entry.key) for driver in self._drivers):
                    return
                orphan.driver.restore(orphan.move_id, entry.key)
                reached(Step.RESTORE)
                self.restored += 1
                log.warning("trash.restored", move_id=orphan.move_id, node=orphan.driver.node_id, object_key=entry.key)
                return
        except RebalanceError as exc:
            log.debug("trash.postponed", move_id=orphan.move_id, node=orphan.driver.node_id, error=str(exc))
