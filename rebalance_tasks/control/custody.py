"""Who answers for what lies on a node: jobs say it in Redis, manifests on the nodes themselves.

Asked by cleanup, reindex and undo before anything is taken away (invariant 1): a version of an object may go only where a chain of
manifests leads to a whole object.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import JobNotFound, NodeError, NodeMissing
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.ways import held_copy
from rebalance_tasks.store.versions import NewerVersion
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.manifests import ManifestEntry

log = get_logger(__name__)


def job_of(move_id: str) -> str:
    """The job of a move."""
    return move_id.rpartition(".")[0]


@dataclass(slots=True)
class EndedJobs:
    """Asks once per run about each job: a node may hold thousands of files of one job."""

    context: FleetContext
    _over: dict[str, bool | None] = field(default_factory=dict)
    _states: dict[str, bytes] = field(default_factory=dict)

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

    def flipped(self, move_id: str) -> bool:
        """Whether readers were sent to the target of a move of an ended job; False also when its job is forgotten."""
        job_id, _, index = move_id.rpartition(".")
        if job_id not in self._states:
            self._states[job_id] = self.context.connection.get(self.context.keys.job(job_id).states) or b""
        at = int(index) if index.isdecimal() else 0
        return self._states[job_id][at : at + 1] in {
            MoveState.FLIPPED.value.encode(),
            MoveState.COMPLETED.value.encode(),
        }


def reachable(context: FleetContext) -> list[Driver]:
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


def look(context: FleetContext, node_id: str, key: str) -> Fingerprint | None:
    """Return what is at a key of a node. Raises: NodeMissing (an unmounted node has lost nothing), ObjectUnreadable."""
    driver = context.driver(node_id)
    driver.check_identity()
    return driver.stat(key)


def held_elsewhere(context: FleetContext, key: str, node_id: str, *, adopted: Collection[str]) -> bool:
    """Whether any node but one holds a key.

    Args:
        context: the fleet.
        key: of an object.
        node_id: the node that is left out.
        adopted: nodes that carry their node-id; others hold no copy of ours, so they need not prove themselves.

    Raises:
        NodeError: one of them cannot be asked, nor its manifests, so that nobody knows.
    """
    for other in context.nodes():
        if other.node_id == node_id:
            continue
        if other.state is NodeState.MAINTENANCE:
            raise NodeMissing(other.node_id, "is in maintenance, and may hold the object")
        if look(context, other.node_id, key) if other.node_id in adopted else context.driver(other.node_id).stat(key):
            return True
    return False


# -- manifests --------------------------------------------------------------------------------------------------------
def histories_of(context: FleetContext, wanted: Collection[str]) -> dict[str, list[ManifestEntry]]:
    """All that manifests list of these moves, oldest first: a move that was tried again is listed for each try."""
    return _listed(context, wanted, lambda entry: entry.move_id)


def lines_of(context: FleetContext, wanted: Collection[str]) -> dict[str, list[ManifestEntry]]:
    """All that manifests list of these keys, oldest first."""
    return _listed(context, wanted, lambda entry: entry.key)


def entries_of(context: FleetContext, wanted: Collection[str]) -> dict[str, ManifestEntry]:
    """The newest manifest entry of each of these moves, read in one pass over the nodes that can be reached."""
    return {move_id: entries[-1] for move_id, entries in histories_of(context, wanted).items()}


def _listed(
    context: FleetContext, wanted: Collection[str], name: Callable[[ManifestEntry], str]
) -> dict[str, list[ManifestEntry]]:
    if not wanted:
        return {}
    found: defaultdict[str, list[ManifestEntry]] = defaultdict(list)
    for driver in reachable(context):
        for _, entry in manifests.entries(driver):
            if name(entry) in wanted:
                found[name(entry)].append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: entry.at)
    return dict(found)


@dataclass(slots=True)
class Chains:
    """Follows objects from node to node by what manifests list of their keys."""

    context: FleetContext
    lines: Mapping[str, Iterable[ManifestEntry]]

    def end(self, key: str, node: str, version: Fingerprint | None) -> str | None:
        """Find where an object is by now that was on a node once.

        Args:
            key: its key.
            node: on which it was.
            version: as which; ``None``: whatever is at that node's key is the object.

        Returns:
            The node on which it stands (in this version, perhaps written to since), or to which later moves took it;
            ``None`` when the chain breaks.

        Raises:
            NodeError: a node of the chain cannot be asked.
        """
        # Later moves may bring an object back to a node, as another version.
        todo: list[tuple[str, Fingerprint | None]] = [(node, version)]
        seen: set[tuple[str, Fingerprint | None]] = set()
        while todo:
            node, version = todo.pop()
            if (node, version) in seen:
                continue
            seen.add((node, version))
            found = look(self.context, node, key)
            if found is not None and (version is None or found.same_file(version)):
                return node
            todo += [
                (entry.target, entry.published_fingerprint())
                for entry in self.lines.get(key, ())
                if entry.source == node and (version is None or entry.copied_fingerprint().same_file(version))
            ]
        return None

    def spares(self, holder: Driver, move_id: MoveId, held: Fingerprint, entry: ManifestEntry) -> bool:
        """Whether what a node's trash holds of a move is whole elsewhere, by one of the move's manifest entries.

        Args:
            holder: the node.
            move_id: which move.
            held: version in its trash.
            entry: what a manifest lists of the move.

        Raises:
            NodeError: a node of the chain cannot be asked.
        """
        if freed(holder, held, entry):
            if self.end(entry.key, entry.target, entry.published_fingerprint()) is not None:
                return True
            # Its delete was refused after it had been copied into the trash, and the move was taken back.
            by_copy = getattr(holder, "frees_by_copy", False)
            return by_copy and self.end(entry.key, holder.node_id, held) is not None
        if entry.target != holder.node_id or held_copy(holder, move_id, entry.published_fingerprint()) is None:
            return False
        # A copy that was taken back: its source was the object.
        return self.end(entry.key, entry.source, None) is not None


def freed(holder: Driver, held: Fingerprint, entry: ManifestEntry) -> bool:
    """Whether what a node's trash holds is the source of a move, in the version that was copied."""
    return entry.source == holder.node_id and entry.copied_fingerprint() == held
