"""The driver of a node that is a tree of folders and files at the other end of a line (`drivers.trees.calls`): what SFTP and fsspec share.

A copy is staged in ``.rebalance/tmp`` and given its key by a name that must not be taken; freeing is a rename into the trash,
compared again there, and restored on a mismatch. How far the tree itself refuses a name that is taken is what its kind can
promise: the drivers say it (`drivers.sftp.driver`, `drivers.fsspec.driver`).
"""

from __future__ import annotations

import threading
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    InvalidArgument,
    InvalidKey,
    NodeMissing,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, Listing, NodeHealth, never_freed
from rebalance_tasks.drivers.listing import Columns, reason_left_out
from rebalance_tasks.drivers.local.errors import is_name, validate_local_key, validate_name
from rebalance_tasks.drivers.local.listing import key_filter
from rebalance_tasks.drivers.node_parts import Limit
from rebalance_tasks.drivers.object_stores.hold import ObjectHold
from rebalance_tasks.drivers.spelling import OURS
from rebalance_tasks.drivers.tree_spelling import TreeSpelling
from rebalance_tasks.drivers.trees.calls import TMP, Found, Kind, Tree, Words, aside_name, trash_name, walked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from contextlib import AbstractContextManager

    from rebalance_tasks.drivers.base import SourceHandle, StagedWriter
    from rebalance_tasks.drivers.node_parts import Part

_FOLDERS: Final = ("tmp", "manifests", "trash", "kept")


class TreeDriver:
    """A node in a tree; see `drivers.base.Driver` for every promise. A subclass sets the tree, and the words for its errors."""

    _tree: Tree
    _words: Words

    def __init__(self, node_id: str, *, include: Iterable[str], exclude: Iterable[str]) -> None:
        """Serve what is below the root; nothing is asked before the first call."""
        self.node_id = NodeId(node_id)
        self._passes = key_filter(include, exclude)
        self._fresh: Counter[MoveId] = Counter()
        self._lock = threading.Lock()

    # -- what a kind of tree may ask besides ----------------------------------------------------------------------
    def _require_node(self) -> None:
        """Look whether it can be a node. Raises: NodeNotWritable."""

    def _require_write(self) -> None:
        """Look whether it may be written to at all. Raises: NodeNotWritable."""

    def _require_root(self) -> None:
        """Say better what is wrong where no node-id is. Raises: NodeMissing."""

    def _require_kept(self, key: str) -> None:
        """Look whether a name stays what it is. Raises: InvalidKey."""

    # -- names that it cannot tell apart --------------------------------------------------------------------------
    @cached_property
    def spelling(self) -> TreeSpelling:
        """How it spells names."""
        return TreeSpelling(self._tree, self._words, self.node_id)

    def require_own_name(self, key: str) -> None:
        """Make the folders of a key, and see that its name would be its own. Raises: InvalidKey, TargetExists, NodeError."""
        if not self.spelling.folds:
            return
        if not self.spelling.keeps(key):
            raise InvalidKey(key, f"{self._tree.label} does not keep such a name as it is")
        with self._on_target(key, "make its folder"):
            self._tree.make_folder(key)
            taken = self._tree.look(key) is not None
        if not self.spelling.of(key if taken else key.rpartition("/")[0]):
            raise TargetExists(
                key, f"it or a folder of it is spelled otherwise at {self._tree.label}, which cannot tell the two apart"
            )

    # -- errors ---------------------------------------------------------------------------------------------------
    def _on_node(self, doing: str) -> AbstractContextManager[None]:
        return self._words.translated(lambda exc: self._words.node_error(self.node_id, exc, doing))

    def _on_source(self, key: str, doing: str) -> AbstractContextManager[None]:
        return self._words.translated(lambda exc: self._words.source_error(self.node_id, key, exc, doing))

    def _on_target(self, key: str, doing: str) -> AbstractContextManager[None]:
        return self._words.translated(lambda exc: self._words.target_error(self.node_id, key, exc, doing))

    # -- the node itself ------------------------------------------------------------------------------------------
    def probe(self) -> NodeHealth:
        """Look at the root and its node-id. Raises: NodeMissing, NodeNotWritable."""
        adopted = self._verify(required=False)
        kept = len(self._ours_in("kept")) if adopted else 0
        total, free = self._space()
        return NodeHealth(total_bytes=total, free_bytes=free, device=0, adopted=adopted, kept_files=kept)

    def _space(self) -> tuple[int | None, int | None]:
        with self._on_node("ask for free space"):
            return self._tree.space()

    def check_identity(self) -> None:
        """Read the node-id. Raises: NodeMissing."""
        self._verify(required=True)

    def _verify(self, *, required: bool) -> bool:
        with self._on_node("read the node-id"):
            try:
                found = self._tree.read_whole(OURS).decode("utf-8", "replace").strip()
            except self._words.gone:
                found = ""
                self._require_root()
        if found and found != self.node_id:
            message = f"{self._tree.label} belongs to node {found!r}; put the url right in rebalance.toml"
            raise NodeMissing(self.node_id, message)
        if not found and required:
            message = (
                f"{self._tree.label} carries no {OURS}, so it is taken for unmounted: mount it, or adopt it with "
                "`rebalance nodes --adopt`"
            )
            raise NodeMissing(self.node_id, message)
        return bool(found)

    def adopt(self) -> None:
        """Write the node-id and the working folders. Raises: NodeMissing, NodeNotWritable."""
        adopted = self._verify(required=False)
        self._require_write()
        self._require_node()
        with self._on_node("adopt it"):
            for folder in _FOLDERS:
                self._tree.make_folder(f"{RESERVED}/{folder}/x")
            if not adopted:
                self._write_whole(OURS, f"{self.node_id}\n".encode())

    def free_bytes(self) -> int | None:
        """Bytes an ordinary user could still write, where that is told."""
        return self._space()[1]

    def list_objects(self, *, require_identity: bool = True) -> Listing:
        """List every object. Raises: NodeMissing rather than list half of it."""
        return self.list_part(None, require_identity=require_identity)

    def list_part(self, part: Part | None, *, require_identity: bool = True, most: int | None = None) -> Listing:
        """List a part; see `drivers.node_parts.Parted`."""
        self._verify(required=require_identity)
        columns, limit = Columns(), Limit(most)
        for key, found in walked(self._entries, part):
            if reason := self._not_listed(key) or ("" if found.kind is Kind.FILE else found.kind.value):
                columns.leave_out(reason)
            else:
                columns.add(key, found.fingerprint.size_bytes, found.fingerprint.mtime_ns, found.atime_ns)
                limit.count(key)
        return columns.listing()

    def _entries(self, folder: str, doing: str = "list objects") -> list[tuple[str, Found]]:
        with self._on_node(doing):
            return self._tree.entries(folder)

    def _not_listed(self, key: str) -> str:
        return reason_left_out(key, validate=validate_local_key, passes=self._passes)

    def hold(self, fresh: Collection[MoveId] = ()) -> ObjectHold:
        """Remember which moves are fresh."""
        return ObjectHold(self._fresh, self._lock, fresh)

    # -- reading --------------------------------------------------------------------------------------------------
    def _found(self, key: str, doing: str) -> Found | None:
        validate_local_key(key)
        with self._on_source(key, doing):
            self._tree.require_real_folder(key)
            return self._tree.regular(key)

    def stat(self, key: str) -> Fingerprint | None:
        """Fingerprint of the regular file at ``key``, else None; one of another name is none. Raises: InvalidKey, ObjectUnreadable."""
        if not self.spelling.of(validate_local_key(key)):
            return None
        found = self._found(key, "look at it")
        return None if found is None else found.fingerprint

    def unchanged(self, key: str, version: Fingerprint) -> bool:
        """Tell whether the object at ``key`` is still that version. Raises: InvalidKey, ObjectUnreadable."""
        found = self._found(key, "look at it")
        return found is not None and found.fingerprint == version

    def open_source(self, key: str) -> SourceHandle:
        """Open for reading. Raises: InvalidKey, SourceVanished, ObjectUnreadable."""
        found = self._found(key, "open")
        if found is None:
            raise SourceVanished(key, "no regular file is at this key any more")
        return self._tree.reader(self.node_id, key, key, found)

    # -- copy aside, verify, publish ------------------------------------------------------------------------------
    def stage(self, move_id: MoveId, *, offset: int = 0, sparse: bool = False) -> StagedWriter:  # noqa: ARG002  no holes here
        """Open the staged copy of a move, cut to ``offset`` bytes, for appending; see `Driver.stage`."""
        name = aside_name(move_id)
        self._require_write()
        if offset:
            held = self.staged(move_id)
            if held is None or held.size_bytes < offset:
                message = f"staged copy of move {move_id!r} holds {held.size_bytes if held else 0} bytes, fewer than offset {offset}; begin at 0"
                raise InvalidArgument(message)
        with self._on_node("stage a copy"):
            if offset:
                self._tree.cut(name, offset)
            return self._tree.writer(self.node_id, name, f"staged:{move_id}", offset)

    def staged(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a staged copy, None when there is none."""
        return self._ours(aside_name(move_id))

    def _ours(self, name: str) -> Fingerprint | None:
        with self._on_node(f"look at {name}"):
            found = self._tree.regular(name)
        return None if found is None else found.fingerprint

    def open_staged(self, move_id: MoveId) -> SourceHandle:
        """Open a staged copy for reading it back. Raises: SourceVanished."""
        name, label = aside_name(move_id), f"staged:{move_id}"
        with self._on_node("read back"):
            found = self._tree.regular(name)
        if found is None:
            raise SourceVanished(label, "nothing is staged under this move")
        return self._tree.reader(self.node_id, name, label, found)

    def sync(self) -> None:
        """Nothing to do: each copy and manifest is synced by itself, where the server can; elsewhere it is the server's affair."""

    def publish(self, move_id: MoveId, key: str, *, expected: Fingerprint | None = None) -> Fingerprint:
        """Give the staged copy its key, never overwriting as far as the tree can; see `Driver.publish`."""
        validate_local_key(key)
        self._require_write()
        staged = self.staged(move_id)
        if expected is not None and staged != expected:
            raise ChecksumMismatch(key, f"the copy staged under move {move_id!r} is not the one that was verified")
        if staged is None:
            message = f"nothing is staged under move {move_id!r}; it was published or discarded before"
            raise InvalidArgument(message)
        self.require_own_name(key)
        with self._on_target(key, "publish"):
            self._require_kept(key)
            self._tree.give_name(aside_name(move_id), key)
        return staged

    def discard(self, move_id: MoveId) -> None:
        """Remove a staged copy if there is one."""
        with self._on_node("discard a copy"):
            self._tree.remove(aside_name(move_id))

    def list_staged(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the staged copies lying about."""
        for name, found in self._ours_in("tmp"):
            yield MoveId(name), found.fingerprint

    def _ours_in(self, folder: str) -> list[tuple[str, Found]]:
        listed = self._entries(f"{RESERVED}/{folder}", f"list {folder}")
        return [(name, found) for name, found in listed if is_name(name) and found.is_file]

    # -- freeing --------------------------------------------------------------------------------------------------
    def free(
        self,
        key: str,
        move_id: MoveId,
        expected: Fingerprint,
        *,
        freed_before: Callable[[Fingerprint], bool] = never_freed,
    ) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; compare again there, restore on mismatch."""
        validate_local_key(key)
        trash = trash_name(move_id)
        self._require_write()
        with self._on_source(key, "free"):
            found = self.stat(key)
            # Of a fresh move there is nothing, unless a burst has put there what was no more what was copied.
            fresh = move_id in self._fresh and found == expected
            held = None if fresh else self.trashed(move_id)
            if held is not None and held != found:
                return self._settle(key, move_id, expected, freed_before)
            if held is not None:  # a rename or a restore that was cut off between its two steps
                self._tree.remove(trash)
            if found is None:
                return FreeOutcome.GONE
            if found != expected:
                return FreeOutcome.CHANGED
            try:
                self._tree.move_aside(key, trash)
            except self._words.gone:
                if self.trashed(move_id) is None:
                    return FreeOutcome.GONE
                # The answer to the rename was lost with the line, and it was asked once more.
            except self._words.taken:  # a stale worker frees under the same move, or an earlier life of the move did
                if self.trashed(move_id) == expected == self.stat(key):
                    self._tree.remove(trash)
                    return self.free(key, move_id, expected, freed_before=freed_before)
            return self._settle(key, move_id, expected, freed_before)

    def _settle(
        self, key: str, move_id: MoveId, expected: Fingerprint, freed_before: Callable[[Fingerprint], bool]
    ) -> FreeOutcome:
        """Keep what the trash holds if it is ``expected``, else put it back, or aside where its key is taken again."""
        held = self.trashed(move_id)
        if held == expected:
            return FreeOutcome.FREED
        if held is not None and freed_before(held) and self.purge(move_id, held):
            return self.free(key, move_id, expected)
        if held is not None and not self._put_back(move_id, key):
            self._tree.move_aside(trash_name(move_id), f"{RESERVED}/kept/{move_id}.{held.mtime_ns}")
        return FreeOutcome.CHANGED

    def _put_back(self, move_id: MoveId, key: str) -> bool:
        try:
            return self.restore(move_id, key)
        except TargetExists:
            return False

    def trashed(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        return self._ours(trash_name(move_id))

    def restore(self, move_id: MoveId, key: str) -> bool:
        """Bring a trashed object back without overwriting; see `Driver.restore`."""
        validate_local_key(key)
        held, there = self.trashed(move_id), self.stat(key)
        if held is None:
            if there is None:
                raise SourceVanished(key, f"neither the trash (move {move_id!r}) nor the key holds it")
            return False
        if there is not None:
            return False
        with self._on_target(key, "restore"):
            try:
                self._tree.give_name(trash_name(move_id), key)
            except self._words.taken:
                return False
        return True

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only if it is still that version; True when nothing is left of it."""
        held = self.trashed(move_id)
        if held is None:
            return True
        if expected is not None and held != expected:
            return False
        with self._on_node("purge"):
            self._tree.remove(trash_name(move_id))
        return True

    def list_trash(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch; when it was written, where no more is told)."""
        for name, found in self._ours_in("trash"):
            yield MoveId(name), found.fingerprint, found.changed_ns or found.fingerprint.mtime_ns

    # -- manifests ------------------------------------------------------------------------------------------------
    def write_manifest(self, name: str, lines: Iterable[str]) -> None:
        """Write a manifest so that no half of one is read; the same name again replaces it."""
        validate_name(name, "manifest name")
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        with self._on_node("write a manifest"):
            self._write_whole(f"{RESERVED}/manifests/{name}", data)

    def _write_whole(self, name: str, data: bytes) -> None:
        aside = f"{TMP}/writing-{name.rpartition('/')[2]}"
        self._tree.write(aside, data)
        self._tree.replace(aside, name)

    def read_manifests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of every manifest."""
        for name, found in self._ours_in("manifests"):
            with self._on_node(f"read manifest {name}"):
                path = f"{RESERVED}/manifests/{name}"
                data = self._tree.read_whole(path, size_bytes=found.fingerprint.size_bytes)
            yield name, data.decode("utf-8", "replace").split("\n")[:-1]

    def remove_manifest(self, name: str) -> None:
        """Remove a manifest if it is there."""
        validate_name(name, "manifest name")
        with self._on_node("remove a manifest"):
            self._tree.remove(f"{RESERVED}/manifests/{name}")

    def close(self) -> None:
        """Let go of connections; a later call makes new ones."""
        self._tree.close()
