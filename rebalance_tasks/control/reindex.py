"""Rebuild what Redis knew from the nodes and their manifests, after Redis was lost.

The nodes hold every object, and each target lists in ``.rebalance/manifests/`` what was published on it (invariants 1 and
12: the manifest is on the target's disk before a reader is sent there). From that follow the locations, the bytes on each
node, the forwardings that are not over, the sources that are still to be freed, and the trash that may be purged. Jobs and
plans are gone; a check makes new ones.

Nothing here deletes an object. Copies aside of jobs that Redis does not know are discarded, since nobody can go on with
them; a key on two nodes that no manifest explains is told and left alone. Doing it twice changes nothing more.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.control.cleanup import MIN_PURGE_DELAY, purge_delay_ms
from rebalance_tasks.control.custody import Chains, histories_of, job_of, lines_of
from rebalance_tasks.control.reindex_report import Published, ReadNode, ReindexReport
from rebalance_tasks.control.survey import probe
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS
from rebalance_tasks.core.catalogue import Flip
from rebalance_tasks.core.crush import CrushPlacementAlgorithm
from rebalance_tasks.core.errors import (
    EmptyClusterError,
    JobActive,
    JobNotFound,
    NodeError,
    RebalanceError,
    RetryableError,
)
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.migration import manifests
from rebalance_tasks.migration.faults import Step, reached
from rebalance_tasks.store.locations import MovedObject
from rebalance_tasks.store.records import TrashRecord
from rebalance_tasks.store.versions import NewerVersion
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta

    from rebalance_tasks.control.catalogue import Catalogue
    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.migration.manifests import ManifestEntry

log = get_logger(__name__)

#: Objects whose home is computed at once.
PLACED_AT_ONCE: Final = 100_000
_STEPS_PER_NODE: Final = 2
_STEPS_OF_ALL: Final = 3


def reindex(
    context: FleetContext,
    *,
    force: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> ReindexReport:
    """Rebuild the index of a fleet; idempotent.

    Args:
        context: the fleet.
        force: also while a job is active (its moves are left to it) or a check runs.
        progress: called with (steps done, steps in all, what comes next).

    Raises:
        JobActive: a job moves objects about.
        RetryableError: a check is running.
        ConfigurationError: roots coincide.
    """
    active = context.jobs.active()
    if active is not None and not context.jobs.exists(active):
        active = None
    if active is not None and not force:
        raise JobActive(active)
    token = context.fleet.acquire_check(ttl_ms=CHECK_LOCK_MS)
    if token is None and not force:
        msg = "a check of this fleet is running, or was killed less than 10 minutes ago; try again then, or use --force"
        raise RetryableError(msg)
    try:
        report = _Reindex(context, active, progress or (lambda *_: None)).run()
    finally:
        if token is not None:
            context.fleet.release_check(token)
    log.info(
        "reindex.done",
        objects=report.objects,
        locations=report.locations,
        forwardings=report.forwardings,
        frees=report.frees,
        trash=report.trash,
        staged=report.staged,
        ambiguous=report.ambiguous,
        missing=sorted(report.missing),
    )
    return report


class _Reindex:
    """One reindex under way."""

    def __init__(self, context: FleetContext, active: str | None, progress: Callable[[int, int, str], None]) -> None:
        self._c = context
        self._active = active
        self._progress = progress
        self._report = ReindexReport()
        self._nodes: dict[str, ReadNode] = {}
        self._trash: dict[str, list[tuple[MoveId, Fingerprint, int]]] = {}
        #: nodes that manifests name: they were adopted once
        self._named: set[str] = set()
        #: key → the newest manifest entry whose object stands at its target
        self._published: dict[str, Published] = {}
        #: keys that the active job has published: theirs to finish
        self._busy: set[str] = set()
        #: key on several nodes → the node whose copy is the object, ``None`` when nothing says which
        self._doubled: dict[str, str | None] = {}
        #: node → bytes on it that are still to be freed
        self._leaving: dict[str, int] = {}
        self._steps = [0, _STEPS_PER_NODE * len(context.settings.nodes) + _STEPS_OF_ALL]

    def run(self) -> ReindexReport:
        """Read all nodes, then write."""
        validate_roots(self._c.settings.nodes)
        self._read_manifests()
        self._read_nodes()
        inventory = Inventory.from_listings(
            {name: (node.listing.keys, node.listing.size_bytes, None) for name, node in self._nodes.items()}
        )
        self._report.objects, self._report.bytes = len(inventory), int(inventory.size_bytes.sum())
        self._step("pending frees and ambiguous keys")
        self._find_doubled(inventory)
        self._step("locations and forwardings")
        self._write_locations(inventory)
        self._write_moves()
        self._step("usage, trash and temporary files")
        used = inventory.used_bytes()
        known = {node: size for node, size in self._c.fleet.usage().items() if node not in self._nodes}
        fresh = {node: used.get(node, 0) - self._leaving.get(node, 0) for node in self._nodes}
        self._c.fleet.set_usage({**known, **fresh})
        reached(Step.INDEX_USAGE)
        self._record_trash()
        self._discard_staged()
        self._progress(self._steps[1], self._steps[1], "done")
        return self._report

    def _step(self, what: str) -> None:
        self._steps[0] += 1
        self._progress(self._steps[0] - 1, self._steps[1], what)

    # -- reading --------------------------------------------------------------------------------------------------
    def _read_manifests(self) -> None:
        """Read trash and manifests of every node that carries its node-id; note which nodes they name."""
        configured = {node.node_id for node in self._c.settings.nodes}
        for driver in self._adopted_drivers():
            self._step(f"reading the manifests of {driver.node_id}")
            try:
                self._trash[driver.node_id] = list(driver.list_trash())
                self._read_manifests_of(driver)
            except NodeError as exc:
                self._report.missing[driver.node_id] = str(exc)
        now_ms = self._c.connection.now_ms()
        for node_id in self._named & configured:
            # So that one of them that lacks its node-id is missing, not new: its disk is not mounted.
            self._c.fleet.note_adopted(node_id, now_ms=now_ms)
            reached(Step.INDEX_ADOPTED)

    def _adopted_drivers(self) -> list[Driver]:
        found: list[Driver] = []
        for node in self._c.nodes():
            if node.state is NodeState.MAINTENANCE:
                continue
            driver = self._c.driver(node.node_id)
            with suppress(NodeError):
                driver.check_identity()
                found.append(driver)
        return found

    def _read_manifests_of(self, driver: Driver) -> None:
        for _, entry in manifests.entries(driver):
            self._named |= {entry.source, entry.target}
            if entry.target != driver.node_id:
                continue
            self._report.manifest_entries += 1
            if job_of(entry.move_id) == self._active:
                self._busy.add(entry.key)
                continue
            self._note_published(driver, entry)

    def _note_published(self, driver: Driver, entry: ManifestEntry) -> None:
        at_ms = int(entry.at.timestamp() * 1000)
        before = self._published.get(entry.key)
        if before is not None and before.at_ms >= at_ms:
            return
        found = driver.stat(entry.key)
        published = entry.published_fingerprint()
        if found is not None and found.same_file(published):
            self._published[entry.key] = Published(
                at_ms, entry.move_id, entry.source, entry.target, entry.copied_fingerprint(), found == published
            )

    def _read_nodes(self) -> None:
        adopted = self._c.fleet.adopted()
        for node in self._c.nodes():
            self._step(f"listing {node.node_id}")
            if node.state is NodeState.MAINTENANCE:
                self._report.missing[node.node_id] = "it is in maintenance and not looked at"
                continue
            try:
                health = probe(self._c, node, adopted=adopted)
                driver = self._c.driver(node.node_id)
                listing = driver.list_objects(require_identity=health.adopted)
            except NodeError as exc:
                self._report.missing[node.node_id] = str(exc)
                continue
            self._nodes[node.node_id] = ReadNode(driver, listing, adopted=health.adopted)
            self._report.nodes.append(node.node_id)

    # -- keys on several nodes ------------------------------------------------------------------------------------
    def _find_doubled(self, inventory: Inventory) -> None:
        """Find the keys on several nodes, and for each which copy is the object, if anything says so."""
        holders: dict[str, dict[str, int]] = {}
        rows = np.flatnonzero(inventory.ambiguous)
        names = inventory.keys.take(pa.array(rows)).to_pylist()
        for key, row in zip(names, rows.tolist(), strict=True):
            holders.setdefault(key, {})[inventory.node_ids[inventory.node_index[row]]] = int(inventory.size_bytes[row])
        pending = self._c.locations.pending_frees()
        for key, sizes in holders.items():
            left = [node for node in sizes if (node, key) not in pending]
            chosen = left[0] if len(left) == 1 else self._explained(key, set(sizes))
            self._doubled[key] = chosen
            if chosen is None:
                self._ambiguous(key, sizes)
                continue
            for node, size in sizes.items():
                if node != chosen:
                    self._leaving[node] = self._leaving.get(node, 0) + size

    def _explained(self, key: str, nodes: set[str]) -> str | None:
        """The target, if its manifest says that it was copied from the other one and neither has changed since.

        It is left to the cleanup to free the source, reversibly.
        """
        word = self._published.get(key)
        if word is None or not word.unchanged or nodes != {word.source, word.target}:
            return None
        if self._nodes[word.source].driver.stat(key) != word.copied:
            return None
        if self._c.catalogue is not None and not self._committed(self._c.catalogue, key, word):
            return None
        self._report.frees += self._c.locations.expect_free(word.source, key, word.move_id)
        reached(Step.INDEX_FREE)
        return word.target

    def _committed(self, catalogue: Catalogue, key: str, word: Published) -> bool:
        """Have the host's catalogue commit what is the same on both nodes, if it has not; only it says where readers go."""
        flip = Flip(key, word.source, word.target, self._c.connection.now_ms())
        place = catalogue.flip([flip])[0]
        reached(Step.INDEX_COMMITTED)
        return place == word.target

    def _ambiguous(self, key: str, nodes: Iterable[str]) -> None:
        if key in self._busy:
            return
        log.warning("reindex.ambiguous", object_key=key, nodes=sorted(nodes))
        self._report.add_ambiguous(key)

    # -- locations ------------------------------------------------------------------------------------------------
    def _write_locations(self, inventory: Inventory) -> None:
        locator = self._c.settings.locator
        if locator == "union":
            return
        if self._c.catalogue is not None:
            self._compare(self._c.catalogue, inventory)
            return
        for start in range(0, len(inventory), PLACED_AT_ONCE):
            keys = inventory.keys.slice(start, PLACED_AT_ONCE)
            nodes = [inventory.node_ids[place] for place in inventory.node_index[start : start + PLACED_AT_ONCE]]
            homes = self._homes(keys) if locator == "crush" else [""] * len(nodes)
            places: dict[str, str] = {}
            at_home: list[str] = []
            for key, node, home in zip(keys.to_pylist(), nodes, homes, strict=True):
                if self._doubled.get(key, node) != node:
                    continue
                if node == home:
                    at_home.append(key)
                else:
                    places[key] = node
            self._report.locations += self._c.locations.place(places)
            reached(Step.INDEX_PLACED)
            self._c.locations.unplace(at_home)
            reached(Step.INDEX_UNPLACED)

    def _compare(self, catalogue: Catalogue, inventory: Inventory) -> None:
        """Put the host's catalogue right where it sends readers to a node that was read and holds nothing of that name.

        What it does not have it may leave out on purpose, so that is told and not added.
        """
        fence = self._c.connection.now_ms()
        told = dict(catalogue.entries())
        wrong: list[Flip] = []
        for key, row in zip(inventory.keys.to_pylist(), inventory.node_index.tolist(), strict=True):
            node, known = inventory.node_ids[row], told.get(key)
            if known is None:
                self._report.catalogue_lacks += 1
            elif known != node and known in self._nodes and key not in self._doubled:
                wrong.append(Flip(key, known, node, fence))
        for start in range(0, len(wrong), PLACED_AT_ONCE):
            flips = wrong[start : start + PLACED_AT_ONCE]
            found = catalogue.flip(flips)
            reached(Step.INDEX_CORRECTED)
            self._report.locations += sum(place == flip.target for place, flip in zip(found, flips, strict=True))

    def _homes(self, keys: pa.LargeStringArray) -> list[str]:
        nodes = self._c.nodes()
        try:
            crush = CrushPlacementAlgorithm(rule=self._c.settings.placement_rule)
            rows = crush.compute_placements(keys, 1, nodes)[:, 0].tolist()
        except EmptyClusterError:
            rows = [-1] * len(keys)
        return [nodes[row].node_id if row >= 0 else "" for row in rows]

    def _write_moves(self) -> None:
        """Forwardings and cooldowns of what was moved lately."""
        options = self._c.settings.options
        now_ms = self._c.connection.now_ms()
        keep_ms = _ms(max(options.forwarding_ttl, options.object_cooldown))
        moved = (
            MovedObject(key, word.target, word.at_ms)
            for key, word in self._published.items()
            if word.at_ms + keep_ms > now_ms and self._doubled.get(key, word.target) == word.target
        )
        ttl_ms = _ms(options.forwarding_ttl) if options.enable_read_forwarding else 0
        self._report.forwardings = self._c.locations.remember_moves(moved, forwarding_ttl_ms=ttl_ms, now_ms=now_ms)
        reached(Step.INDEX_MOVED)

    # -- trash and copies aside -------------------------------------------------------------------------------------
    def _record_trash(self) -> None:
        known = self._c.trash.known_ids()
        unknown = {
            move_id: (node_id, held, trashed_at_ns)
            for node_id, trash in self._trash.items()
            for move_id, held, trashed_at_ns in trash
            if move_id not in known and job_of(move_id) != self._active
        }
        now_ms = self._c.connection.now_ms()
        histories = histories_of(self._c, unknown)
        chains = Chains(self._c, lines_of(self._c, {entry.key for told in histories.values() for entry in told}))
        for move_id, (node_id, held, trashed_at_ns) in unknown.items():
            entry = self._explained_by(chains, histories, self._c.driver(node_id), (move_id, held))
            if entry is None:
                log.warning("reindex.trash_unexplained", node=node_id, move_id=move_id)
                self._report.add_unexplained(f"{node_id}:{move_id}")
                continue
            record = TrashRecord(node=node_id, key=entry.key, size=held.size_bytes, fingerprint=held.to_json())
            left_ms = trashed_at_ns // 10**6 + purge_delay_ms(self._c) - now_ms
            self._c.trash.add(move_id, record, delay_ms=max(_ms(MIN_PURGE_DELAY), left_ms))
            reached(Step.INDEX_TRASH)
            self._report.trash += 1

    def _explained_by(
        self,
        chains: Chains,
        histories: Mapping[str, list[ManifestEntry]],
        driver: Driver,
        trash: tuple[MoveId, Fingerprint],
    ) -> ManifestEntry | None:
        """The manifest entry by which what a trash holds is whole elsewhere."""
        try:
            return next((entry for entry in histories.get(trash[0], ()) if chains.spares(driver, *trash, entry)), None)
        except RebalanceError:  # who cannot be asked explains nothing
            return None

    def _discard_staged(self) -> None:
        """Copies aside of jobs that Redis does not know, or that are over, are nobody's."""
        for node in self._nodes.values():
            staged = list(node.driver.list_staged()) if node.adopted else []
            for move_id, _ in staged:
                if job_of(move_id) != self._active and self._over(job_of(move_id)):
                    node.driver.discard(move_id)
                    reached(Step.INDEX_STAGED)
                    self._report.staged += 1

    def _over(self, job_id: str) -> bool:
        try:
            return self._c.jobs.load(job_id).status.terminal
        except JobNotFound:
            return True
        except NewerVersion:  # theirs to say
            return False


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
