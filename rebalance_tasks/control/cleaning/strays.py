"""Copies of moves that Redis forgot: found after the server lost its last seconds, taken off or adopted, under a claim of the key.

Cleanup's search; its order and the crash argument stand in docs/invariants.md ("What Redis forgot"). Nothing here deletes: a copy
goes into the trash, and only while another whole one is looked at before and after.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self, assert_never

from rebalance_tasks.control.access.host_claims import claims_of, committed
from rebalance_tasks.control.access.writing import claim_ttl_ms, needs_entry
from rebalance_tasks.control.cleaning.stray_verdicts import Looks, Seen, Stray, Verdict, compare
from rebalance_tasks.control.cleaning.unmoved import unmoved
from rebalance_tasks.control.custody import lines_of, look
from rebalance_tasks.control.locate import Locator
from rebalance_tasks.core.errors import InvalidKey, MoveError, NodeError, PermanentError, RebalanceError
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.routes import share_a_host
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.custody import EndedJobs
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.manifests import ManifestEntry
    from rebalance_tasks.store.claims import Claim

log = get_logger(__name__)


@dataclass(slots=True)
class StrayReport:
    """What a search did.

    Attributes:
        taken_off: copies moved into their node's trash.
        adopted: copies that are the object from now on.
        ambiguous: keys on several nodes of which nothing says which is the object.
    """

    taken_off: int = 0
    adopted: int = 0
    ambiguous: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the search of a node has come.

    Attributes:
        life: run id of the server in which it was begun.
        after: id of the last move that was looked for.
        left: something that was found is to be mended later.
        done: all is.
    """

    life: str
    after: str = ""
    left: bool = False
    done: bool = False

    @classmethod
    def read(cls, text: str, *, life: str) -> Self:
        """Read what `text` wrote; in another life of the server the search begins anew."""
        begun_in, _, rest = text.partition("|")
        state, _, after = rest.partition("|")
        return cls(life, after, left=state == "left", done=state == "done") if begun_in == life else cls(life)

    def text(self) -> str:
        """Return it as it is kept."""
        state = "done" if self.done else "left" if self.left else "searching"
        return f"{self.life}|{state}|{self.after}"


class Strays:
    """Searches targets for copies that Redis forgot."""

    def __init__(self, context: FleetContext, jobs: EndedJobs, *, ended_since: datetime) -> None:
        """Wire what a claim takes.

        Args:
            context: the fleet.
            jobs: says which jobs are over.
            ended_since: jobs that ended earlier lost nothing.
        """
        self._c, self._jobs, self._ended_since = context, jobs, ended_since
        self._claims = claims_of(context)
        self._locator = Locator(context)
        self._looks = Looks(context, context.fleet.adopted(), {})
        self.report = StrayReport()
        #: moves looked for so far, on all nodes
        self.looks = 0

    def search(self, target: Driver, progress: Progress, *, looks: int) -> Progress:
        """Search a part of one node, and mend what is found.

        Args:
            target: the node.
            progress: how far an earlier run came.
            looks: most moves to look for; those that are found are looked at more often.

        Returns:
            How far it came; what can only be mended later (the other node is away, somebody holds a claim) is looked for once more.

        Raises:
            NodeError: the node itself went away.
        """
        ahead = [stray for stray in self._listed(target) if stray.move_id > progress.after]
        here = ahead[:looks]
        self.looks += len(here)
        standing = [stray for stray in here if _holds(target, stray.key)]
        self._looks = replace(self._looks, lines=lines_of(self._c, {stray.key for stray in standing}))
        mended = [self._mend(stray, target) for stray in standing]
        left = progress.left or not all(mended)
        target.sync()
        reached(Step.SEARCHED)
        if len(here) < len(ahead):
            return replace(progress, after=here[-1].move_id if here else progress.after, left=left)
        return replace(progress, after="", left=False, done=not left)

    # -- looking for them -----------------------------------------------------------------------------------------
    def _listed(self, target: Driver) -> list[Stray]:
        """Moves to this node that are over and not flipped, by their ids: what its manifests and the jobs' own lists say."""
        # The job of an older manifest may be unknown because its time is over.
        kept_since = self._c.now() - self._c.settings.options.job_retention
        entries: defaultdict[tuple[str, str, str], list[ManifestEntry]] = defaultdict(list)
        for _, entry in manifests.entries(target):
            over = self._jobs.over(entry.move_id)
            lost = over is None and entry.at > kept_since
            if entry.target == target.node_id and (lost or (over and not self._jobs.flipped(entry.move_id))):
                entries[entry.move_id, entry.key, entry.source].append(entry)
        unlisted = self._unmoved.get(target.node_id, set()) - entries.keys()
        found = [Stray(*names, tuple(sorted(lines, key=lambda entry: entry.at))) for names, lines in entries.items()]
        return sorted([*found, *(Stray(*names) for names in unlisted)], key=lambda stray: stray.move_id)

    @cached_property
    def _unmoved(self) -> dict[str, set[tuple[str, str, str]]]:
        """Target -> (move id, key, source) of what failed or was skipped."""
        found: defaultdict[str, set[tuple[str, str, str]]] = defaultdict(set)
        for job_id in self._c.jobs.ids():
            if not self._jobs.over(f"{job_id}."):
                continue
            ended = self._c.jobs.load(job_id).completed_utc
            if ended is None or ended >= self._ended_since:
                for move in unmoved(self._c, job_id):
                    found[move.target].add((move.move_id, move.key, move.source))
        return found

    # -- mending --------------------------------------------------------------------------------------------------
    def _mend(self, stray: Stray, target: Driver) -> bool:
        """See to one copy; False when it is to be seen to later."""
        try:
            source = self._c.driver(stray.source)
            seen = self._looks.see(stray, source, target)
            if seen.verdict is Verdict.NOTHING:
                return True
            size_bytes = seen.copy.size_bytes if seen.copy else 0
            claim = self._claims.take(stray.key, f"stray:{uuid.uuid4().hex}", ttl_ms=claim_ttl_ms(size_bytes))
            if isinstance(claim, int):
                return False
            try:
                return self._mend_claimed(stray, source, target, claim)
            finally:
                self._claims.give_back(claim)
        except RebalanceError as exc:
            log.debug("stray.postponed", move_id=stray.move_id, object_key=stray.key, error=str(exc))
            away = {exc.node_id} if isinstance(exc, NodeError) else set()
            return isinstance(exc, PermanentError) or not self._reached_with(target.node_id, {stray.source, *away})

    def _reached_with(self, target: str, others: Collection[str]) -> bool:
        """Whether each of these nodes has a host in common with the target: else no host will ever look at both."""
        nodes = {node.node_id: node for node in self._c.settings.nodes}
        return all(other in nodes and share_a_host(nodes[other], nodes[target]) for other in others)

    def _mend_claimed(self, stray: Stray, source: Driver, target: Driver, claim: Claim) -> bool:
        if self._known_to_others(stray, target, claim):
            return True
        seen = self._looks.see(stray, source, target)
        if committed(self._c, stray.key, source=stray.source, target=target.node_id):
            # The host's catalogue sends readers to the copy: it is the object, whatever Redis knows.
            seen = replace(seen, verdict=Verdict.HAND_OVER)
        if seen.verdict is Verdict.COMPARE:
            seen = replace(seen, verdict=self._compared(stray, seen.original, target))
        match seen.verdict:
            case Verdict.NOTHING:
                return True
            case Verdict.HAND_OVER:
                return self._hand_over(stray, target, claim)
            case Verdict.ADOPT:
                self.report.adopted += 1
                return self._place(claim, target.node_id)
            case Verdict.AMBIGUOUS | Verdict.COMPARE:
                return self._leave(stray, target)
            case Verdict.TAKE_OFF | Verdict.BRING_BACK:
                undone = seen.verdict is Verdict.TAKE_OFF or self._bring_back(stray, source)
                return undone and self._take_off(stray, target, claim, seen)
            case _:
                assert_never(seen.verdict)

    def _compared(self, stray: Stray, original: str, target: Driver) -> Verdict:
        """Let the bytes of a copy that no manifest lists tell, beside those of the object."""
        verdict, versions = compare(self._c.driver(original), target, stray.key)
        if verdict is not Verdict.HAND_OVER:
            return verdict
        if original != stray.source:
            return Verdict.AMBIGUOUS  # it is no source of this move that would have to be freed
        self._list(stray, target, *versions)
        return verdict

    def _known_to_others(self, stray: Stray, target: Driver, claim: Claim) -> bool:
        """Whether Redis knows of the copy after all; nothing but the holder of the claim can change that by now."""
        if claim.where.written is not None or self._c.jobs.was_flipped(stray.move_id):
            return True
        pending = self._c.locations.pending_frees()
        doubled = (stray.source, stray.key) in pending or (target.node_id, stray.key) in pending
        return doubled or self._c.connection.hget(self._c.keys.undos, stray.move_id) is not None

    @staticmethod
    def _bring_back(stray: Stray, source: Driver) -> bool:
        """Give a freed source its key again; False when there is something by now."""
        restored = source.restore(MoveId(stray.move_id), stray.key)
        reached(Step.STRAY_UNDONE)
        return restored

    def _take_off(self, stray: Stray, target: Driver, claim: Claim, seen: Seen) -> bool:
        """Move a copy into the trash, look at the original once more, and put the copy back where that is gone."""
        move_id, original = MoveId(stray.move_id), seen.original
        if seen.copy is None or target.trashed(move_id) is not None:
            return False  # an earlier copy of the same move: the trash is tidied first
        outcome = target.free(stray.key, move_id, seen.copy)
        reached(Step.STRAY_OFF)
        if outcome is not FreeOutcome.FREED:
            return False
        if not self._stands(original, stray.key):
            target.restore(move_id, stray.key)
            reached(Step.STRAY_BACK)
            return False
        log.info("stray.taken_off", move_id=move_id, node=target.node_id, object_key=stray.key, object_on=original)
        self.report.taken_off += 1
        return self._place(claim, original)

    def _stands(self, node_id: str, key: str) -> bool:
        try:
            return look(self._c, node_id, key) is not None
        except RebalanceError:  # it went away this instant
            return False

    def _hand_over(self, stray: Stray, target: Driver, claim: Claim) -> bool:
        """Let the copy be the object, and the source be freed as that of any flipped move."""
        if not self._claims.mark(claim, target.node_id, ttl_ms=claim_ttl_ms(0)):
            return False
        self._c.locations.expect_free(stray.source, stray.key, stray.move_id)
        reached(Step.STRAY_FREE)
        log.warning("stray.handed_over", move_id=stray.move_id, object_key=stray.key, object_on=target.node_id)
        self.report.adopted += 1
        return self._place(claim, target.node_id)

    def _list(self, stray: Stray, target: Driver, copied: Fingerprint, published: Fingerprint) -> None:
        """Write the manifest that is missing: a source is freed only on the word of one."""
        entry = manifests.ManifestEntry(
            move_id=stray.move_id,
            key=stray.key,
            source=stray.source,
            target=target.node_id,
            size=published.size_bytes,
            checksum="",
            published=published.to_json(),
            source_fingerprint=copied.to_json(),
            at=self._c.now(),
        )
        target.write_manifest(f"{stray.move_id}.found.jsonl", [entry.model_dump_json()])
        reached(Step.STRAY_LISTED)

    def _place(self, claim: Claim, node_id: str) -> bool:
        """End the claim with the place of the object."""
        placed = needs_entry(self._c.settings, self._locator, claim, node_id)
        ended = self._claims.end(claim, node_id, there=True, placed=placed, grown_bytes=0)
        reached(Step.STRAY_PLACED)
        return ended

    def _leave(self, stray: Stray, target: Driver) -> bool:
        nodes = [stray.source, target.node_id]
        log.warning("stray.ambiguous", move_id=stray.move_id, object_key=stray.key, nodes=nodes)
        self.report.ambiguous += 1
        return True


def _holds(target: Driver, key: str) -> bool:
    """Whether there is an object that can be looked at. Raises: NodeError."""
    try:
        return target.stat(key) is not None
    except (MoveError, InvalidKey):
        return False
