"""The driver for whatever fsspec serves (FTP, SMB, HDFS, …): the SFTP driver's design with the weakest calls that all have in common.

A copy is staged in ``.rebalance/tmp`` and renamed to its key; freeing is a rename into the trash. No call of fsspec's refuses a
name that is taken in the same step in which it takes it, and so what is promised elsewhere about strangers holds here only as far
as a look right before each rename carries (docs/invariants.md, "Where a store has no such step"). That is why such a node takes
part only where the operator has given their word for it (`storage_options.sole_writer`). Where a rename changes the version
of a file, or no version is shown, no word helps and the node is refused.
"""

from __future__ import annotations

import threading
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    InvalidArgument,
    InvalidKey,
    NodeMissing,
    NodeNotWritable,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.core.keys import RESERVED, is_reserved
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, Listing, NodeHealth
from rebalance_tasks.drivers.fsspec_errors import GONE, TAKEN, node_error, source_error, target_error, translated
from rebalance_tasks.drivers.fsspec_files import FsspecSource, FsspecWriter
from rebalance_tasks.drivers.fsspec_info import Kind
from rebalance_tasks.drivers.fsspec_options import SOLE_WRITER
from rebalance_tasks.drivers.fsspec_probe import TMP, Abilities, OddNames, probe
from rebalance_tasks.drivers.fsspec_tree import FsspecTree
from rebalance_tasks.drivers.local_errors import is_name, validate_local_key, validate_name
from rebalance_tasks.drivers.local_listing import key_filter
from rebalance_tasks.drivers.object_hold import ObjectHold

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rebalance_tasks.core.errors import RebalanceError
    from rebalance_tasks.drivers.fsspec_options import FsspecPlace

_FOLDERS: Final = ("tmp", "manifests", "trash", "kept")
_NODE_ID: Final = f"{RESERVED}/node-id"


class FsspecDriver:
    """A node behind fsspec; see `drivers.base.Driver` for every promise.

    Attributes:
        keeps_mtime: no: fsspec has no call that sets a time.
    """

    keeps_mtime = False

    def __init__(
        self, node_id: str, place: FsspecPlace, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> None:
        """Serve the folder that the place's URL names; nothing is asked before the first call."""
        self.node_id = NodeId(node_id)
        self._place = place
        self._tree = FsspecTree(place)
        self._names = OddNames(self._tree)
        self._passes = key_filter(include, exclude)
        self._fresh: Counter[MoveId] = Counter()
        self._lock = threading.Lock()

    @cached_property
    def _abilities(self) -> Abilities:
        with translated(self._node_error("try out the file system")):
            return probe(self._tree)

    def _node_error(self, doing: str) -> Callable[[Exception], RebalanceError]:
        return lambda exc: node_error(self.node_id, exc, doing)

    def _require_word(self) -> None:
        """Look whether this node may be written to at all. Raises: NodeNotWritable."""
        if not self._place.sole_writer:
            message = (
                f"storage_options.{SOLE_WRITER} is not set for {self._place!r}: this kind of store cannot refuse a name that is taken in "
                "one step, so an object that somebody else writes at that instant would be lost; where nobody else creates, changes "
                f"or removes objects there while a job runs, set storage_options = {{ {SOLE_WRITER} = true }}"
            )
            raise NodeNotWritable(self.node_id, message)

    # -- the node itself ------------------------------------------------------------------------------------------
    def probe(self) -> NodeHealth:
        """Look at the root and its node-id. Raises: NodeMissing."""
        adopted = self._verify(required=False)
        kept = len(self._entries("kept")) if adopted else 0
        return NodeHealth(total_bytes=None, free_bytes=None, device=0, adopted=adopted, kept_files=kept)

    def check_identity(self) -> None:
        """Read the node-id. Raises: NodeMissing."""
        self._verify(required=True)

    def _verify(self, *, required: bool) -> bool:
        with translated(self._node_error("read the node-id")):
            there = self._tree.regular(_NODE_ID)
            found = self._tree.read(_NODE_ID, 0, 1024).decode("utf-8", "replace").strip() if there else ""
        if found and found != self.node_id:
            message = f"{self._place!r} belongs to node {found!r}; put the url right in rebalance.toml"
            raise NodeMissing(self.node_id, message)
        if not found and required:
            message = (
                f"{self._place!r} carries no {_NODE_ID}, so it is taken for unmounted: mount it, or adopt it with "
                "`rebalance nodes --adopt`"
            )
            raise NodeMissing(self.node_id, message)
        return bool(found)

    def adopt(self) -> None:
        """Write the node-id and the working folders, after a look at what the store can do. Raises: NodeMissing, NodeNotWritable."""
        adopted = self._verify(required=False)
        self._require_word()
        able = self._abilities
        if not (able.tells_versions and able.keeps_versions):
            what = "changes the version of a file when it renames it" if able.tells_versions else "tells no versions"
            message = f"{self._place!r} {what}, so a copy could not be recognised after a crash; it cannot be a node"
            raise NodeNotWritable(self.node_id, message)
        with translated(self._node_error("adopt it")):
            for folder in _FOLDERS:
                self._tree.make_folder(f"{RESERVED}/{folder}/x")
            if not adopted:
                self._write_whole(_NODE_ID, f"{self.node_id}\n".encode())

    def free_bytes(self) -> int | None:
        """Unknown: fsspec has no call for it."""
        return None

    def list_objects(self, *, require_identity: bool = True) -> Listing:
        """List every object. Raises: NodeMissing rather than list half of it."""
        self._verify(required=require_identity)
        keys: list[str] = []
        versions: list[Fingerprint] = []
        left_out: Counter[str] = Counter()
        with translated(self._node_error("list objects")):
            for key, found in self._tree.walk():
                reason = self._not_listed(key) or ("" if found.kind is Kind.FILE else found.kind.value)
                if reason:
                    left_out[reason] += 1
                else:
                    keys.append(key)
                    versions.append(found.fingerprint)
        del left_out[RESERVED]
        sizes = np.array([version.size_bytes for version in versions], dtype=np.int64)
        return Listing(
            keys, sizes, np.array([version.mtime_ns for version in versions], dtype=np.int64), dict(left_out)
        )

    def _not_listed(self, key: str) -> str:
        first = key.partition("/")[0]
        if is_reserved(first):
            return RESERVED if first == RESERVED else "invalid_key"
        try:
            validate_local_key(key)
        except InvalidKey:
            return "invalid_key"
        return "excluded" if self._passes is not None and not self._passes(key) else ""

    def hold(self, fresh: Collection[MoveId] = ()) -> ObjectHold:
        """Remember which moves are fresh."""
        return ObjectHold(self._fresh, self._lock, fresh)

    # -- reading --------------------------------------------------------------------------------------------------
    def stat(self, key: str) -> Fingerprint | None:
        """Fingerprint of the file at ``key``, else None. Raises: InvalidKey, ObjectUnreadable."""
        validate_local_key(key)
        with translated(lambda exc: source_error(self.node_id, key, exc, "look at it")):
            self._tree.require_real_folder(key)
            found = self._tree.regular(key)
        return None if found is None else found.fingerprint

    def unchanged(self, key: str, version: Fingerprint) -> bool:
        """Tell whether the object at ``key`` is still that version. Raises: InvalidKey, ObjectUnreadable."""
        return self.stat(key) == version

    def open_source(self, key: str) -> FsspecSource:
        """Open for reading. Raises: InvalidKey, SourceVanished, ObjectUnreadable."""
        found = self.stat(key)
        if found is None:
            raise SourceVanished(key, "no regular file is at this key any more")
        return FsspecSource(self._tree, self.node_id, key, key, found)

    # -- copy aside, verify, publish ------------------------------------------------------------------------------
    def stage(self, move_id: MoveId, *, offset: int = 0, sparse: bool = False) -> FsspecWriter:  # noqa: ARG002  no holes here
        """Open the staged copy of a move, cut to ``offset`` bytes, for appending; see `Driver.stage`."""
        name = _aside(move_id)
        self._require_word()
        if offset:
            held = self.staged(move_id)
            if held is None or held.size_bytes < offset:
                message = f"staged copy of move {move_id!r} holds {held.size_bytes if held else 0} bytes, fewer than offset {offset}; begin at 0"
                raise InvalidArgument(message)
            with translated(self._node_error("stage a copy")):
                self._tree.cut(name, offset)
        appends = self._abilities.appends
        return FsspecWriter(self._tree, self.node_id, name, f"staged:{move_id}", offset=offset, appends=appends)

    def staged(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a staged copy, None when there is none."""
        return self._ours(_aside(move_id))

    def _ours(self, name: str) -> Fingerprint | None:
        with translated(self._node_error(f"look at {name}")):
            found = self._tree.regular(name)
        return None if found is None else found.fingerprint

    def open_staged(self, move_id: MoveId) -> FsspecSource:
        """Open a staged copy for reading it back. Raises: SourceVanished."""
        found, label = self.staged(move_id), f"staged:{move_id}"
        if found is None:
            raise SourceVanished(label, "nothing is staged under this move")
        return FsspecSource(self._tree, self.node_id, _aside(move_id), label, found)

    def sync(self) -> None:
        """Nothing that could be done: when bytes are on a disk is the server's affair."""

    def publish(self, move_id: MoveId, key: str, *, expected: Fingerprint | None = None) -> Fingerprint:
        """Give the staged copy its key, if nothing is there; see `Driver.publish`, and the head of this module."""
        validate_local_key(key)
        self._require_word()
        staged = self.staged(move_id)
        if expected is not None and staged != expected:
            raise ChecksumMismatch(key, f"the copy staged under move {move_id!r} is not the one that was verified")
        if staged is None:
            message = f"nothing is staged under move {move_id!r}; it was published or discarded before"
            raise InvalidArgument(message)
        with translated(lambda exc: target_error(self.node_id, key, exc, "publish")):
            if not self._names.keeps(key):
                raise InvalidKey(key, f"{self._place!r} does not keep such a name as it is")
            self._give_name(_aside(move_id), key)
        return staged

    def _give_name(self, name: str, key: str) -> None:
        """Rename to a key at which nothing is. Raises: TargetExists."""
        self._tree.forget_folders()
        self._tree.make_folder(key)
        if self._tree.look(key) is not None:
            raise TargetExists(key, "something else is at this key")
        self._tree.rename(name, key)

    def discard(self, move_id: MoveId) -> None:
        """Remove a staged copy if there is one."""
        with translated(self._node_error("discard a copy")):
            self._tree.remove(_aside(move_id))

    def list_staged(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the staged copies lying about."""
        yield from self._entries("tmp")

    def _entries(self, folder: str) -> list[tuple[MoveId, Fingerprint]]:
        with translated(self._node_error(f"list {folder}")):
            found = self._tree.entries(f"{RESERVED}/{folder}")
        return [(MoveId(name), one.fingerprint) for name, one in found if is_name(name) and one.kind is Kind.FILE]

    # -- freeing --------------------------------------------------------------------------------------------------
    def free(self, key: str, move_id: MoveId, expected: Fingerprint) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; compare again there, restore on mismatch."""
        validate_local_key(key)
        trash = _trash(move_id)
        self._require_word()
        with translated(lambda exc: source_error(self.node_id, key, exc, "free")):
            found = self.stat(key)
            if move_id not in self._fresh and self.trashed(move_id) is not None:
                return self._settle(key, move_id, expected)
            if found is None:
                return FreeOutcome.GONE
            if found != expected:
                return FreeOutcome.CHANGED
            try:
                self._tree.rename(key, trash)
            except GONE:
                return FreeOutcome.GONE
            except TAKEN:  # a stale worker frees under the same move
                pass
            return self._settle(key, move_id, expected)

    def _settle(self, key: str, move_id: MoveId, expected: Fingerprint) -> FreeOutcome:
        """Keep what the trash holds if it is ``expected``, else put it back, or aside where its key is taken again."""
        held = self.trashed(move_id)
        if held == expected:
            return FreeOutcome.FREED
        if held is not None and not self._put_back(move_id, key):
            self._tree.rename(_trash(move_id), f"{RESERVED}/kept/{move_id}.{held.mtime_ns}")
        return FreeOutcome.CHANGED

    def _put_back(self, move_id: MoveId, key: str) -> bool:
        try:
            return self.restore(move_id, key)
        except TargetExists:
            return False

    def trashed(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        return self._ours(_trash(move_id))

    def restore(self, move_id: MoveId, key: str) -> bool:
        """Bring a trashed object back if nothing is at its key; see `Driver.restore`."""
        validate_local_key(key)
        held, there = self.trashed(move_id), self.stat(key)
        if held is None:
            if there is None:
                raise SourceVanished(key, f"neither the trash (move {move_id!r}) nor the key holds it")
            return False
        if there is not None:
            return False
        with translated(lambda exc: target_error(self.node_id, key, exc, "restore")):
            self._give_name(_trash(move_id), key)
        return True

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only if it is still that version; True when nothing is left of it."""
        held = self.trashed(move_id)
        if held is None:
            return True
        if expected is not None and held != expected:
            return False
        with translated(self._node_error("purge")):
            self._tree.remove(_trash(move_id))
        return True

    def list_trash(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was written in ns since the epoch: no call tells when it was renamed)."""
        for move_id, found in self._entries("trash"):
            yield move_id, found, found.mtime_ns

    # -- manifests ------------------------------------------------------------------------------------------------
    def write_manifest(self, name: str, lines: Iterable[str]) -> None:
        """Write a manifest so that no half of one is read; the same name again replaces it."""
        validate_name(name, "manifest name")
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        with translated(self._node_error("write a manifest")):
            self._write_whole(f"{RESERVED}/manifests/{name}", data)

    def _write_whole(self, name: str, data: bytes) -> None:
        aside = f"{TMP}/writing-{name.rpartition('/')[2]}"
        self._tree.write(aside, data)
        try:
            self._tree.rename(aside, name)
        except TAKEN:
            # A rename that does not replace. In between a death leaves the new one aside, and the job writes it once more.
            self._tree.remove(name)
            self._tree.rename(aside, name)

    def read_manifests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of every manifest."""
        for name, found in self._entries("manifests"):
            with translated(self._node_error(f"read manifest {name}")):
                data = self._tree.read(f"{RESERVED}/manifests/{name}", 0, found.size_bytes)
            yield name, data.decode("utf-8", "replace").split("\n")[:-1]

    def remove_manifest(self, name: str) -> None:
        """Remove a manifest if it is there."""
        validate_name(name, "manifest name")
        with translated(self._node_error("remove a manifest")):
            self._tree.remove(f"{RESERVED}/manifests/{name}")

    def close(self) -> None:
        """Let go of this thread's connection."""
        self._tree.forget()


def _aside(move_id: MoveId) -> str:
    return f"{TMP}/{validate_name(move_id, 'move id')}"


def _trash(move_id: MoveId) -> str:
    return f"{RESERVED}/trash/{validate_name(move_id, 'move id')}"
