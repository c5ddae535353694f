"""The driver for a folder behind an SFTP server: the local driver's design, with what the protocol has.

A copy is staged in ``.rebalance/tmp`` and published by a second name, which refuses one that is taken; freeing is a rename into the
trash. The protocol shows neither inode nor change time to rely on, so size and modification time are what a version is
known by, to the second at servers of protocol 3 (OpenSSH): what is written within that second and to the same size is not told apart
(docs/reference/drivers.md).
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

import asyncssh
import numpy as np

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    InvalidArgument,
    InvalidKey,
    NodeMissing,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.core.keys import RESERVED, is_reserved
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, Listing, NodeHealth
from rebalance_tasks.drivers.local_errors import is_name, validate_local_key, validate_name
from rebalance_tasks.drivers.local_listing import key_filter
from rebalance_tasks.drivers.object_hold import ObjectHold
from rebalance_tasks.drivers.sftp_burst import SftpBurst
from rebalance_tasks.drivers.sftp_errors import GONE, node_error, source_error, target_error, translated
from rebalance_tasks.drivers.sftp_files import SftpSource, SftpWriter, fingerprint_of, times_of
from rebalance_tasks.drivers.sftp_tree import TMP, SftpTree, aside_name, reason_left_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rebalance_tasks.core.errors import RebalanceError
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.drivers.sftp_link import SftpLink

#: Requests of so many objects are in flight at once on one connection.
PARALLEL: Final = 16
_FOLDERS: Final = ("tmp", "manifests", "trash", "kept")
_NS: Final = 10**9


class SftpDriver:
    """A node behind SFTP; see `drivers.base.Driver` for every promise.

    Attributes:
        parallel: objects that the engine may carry through one step at once.
    """

    parallel = PARALLEL

    def __init__(
        self, node_id: str, link: SftpLink, root: str, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> None:
        """Serve the folder at the absolute path ``root``; nothing is asked before the first call."""
        self.node_id = NodeId(node_id)
        self._link = link
        self._tree = SftpTree(link, root)
        self._passes = key_filter(include, exclude)
        self._fresh: Counter[MoveId] = Counter()
        self._lock = threading.Lock()

    @property
    def tree(self) -> SftpTree:
        """What its calls stand on, for `drivers.doors`."""
        return self._tree

    # -- the node itself ------------------------------------------------------------------------------------------
    def probe(self) -> NodeHealth:
        """Look at the root and its node-id. Raises: NodeMissing, NodeNotWritable."""
        adopted = self._verify(required=False)
        kept = len(self._tree.entries(f"{RESERVED}/kept")) if adopted else 0
        total, free = self._space()
        return NodeHealth(total_bytes=total, free_bytes=free, device=0, adopted=adopted, kept_files=kept)

    def _space(self) -> tuple[int | None, int | None]:
        async def ask(client: asyncssh.SFTPClient) -> tuple[int | None, int | None]:
            try:
                space = await client.statvfs(self._tree.root)
            except asyncssh.SFTPOpUnsupported:
                return None, None
            return space.blocks * space.frsize, space.bavail * space.frsize

        with translated(self._node_error("ask for free space")):
            return self._link.run(ask)

    def _node_error(self, doing: str) -> Callable[[Exception], RebalanceError]:
        def say(exc: Exception) -> RebalanceError:
            return node_error(self.node_id, exc, doing)

        return say

    def check_identity(self) -> None:
        """Read the node-id. Raises: NodeMissing."""
        self._verify(required=True)

    def _verify(self, *, required: bool) -> bool:
        with translated(self._node_error("read the node-id")):
            try:
                found = self._tree.read(f"{RESERVED}/node-id").decode("utf-8", "replace").strip()
            except GONE:
                found = ""
                if self._tree.look("") is None:
                    raise NodeMissing(self.node_id, f"there is no folder {self._tree.root!r} on the server") from None
        if found and found != self.node_id:
            message = f"{self._tree.root!r} belongs to node {found!r}; put the url right in rebalance.toml"
            raise NodeMissing(self.node_id, message)
        if not found and required:
            message = (
                f"{self._tree.root!r} carries no {RESERVED}/node-id, so it is taken for unmounted: mount it, or adopt it with "
                "`rebalance nodes --adopt`"
            )
            raise NodeMissing(self.node_id, message)
        return bool(found)

    def adopt(self) -> None:
        """Write the node-id and the working folders. Raises: NodeMissing, NodeNotWritable."""
        adopted = self._verify(required=False)
        with translated(self._node_error("adopt it")):
            for folder in _FOLDERS:
                self._tree.make_folder(f"{RESERVED}/{folder}/x")
            if not adopted:
                self._write_whole(f"{RESERVED}/node-id", f"{self.node_id}\n".encode())

    def free_bytes(self) -> int | None:
        """Bytes an ordinary user could still write, where the server tells."""
        return self._space()[1]

    def list_objects(self, *, require_identity: bool = True) -> Listing:
        """List every object. Raises: NodeMissing rather than list half of it."""
        self._verify(required=require_identity)
        keys: list[str] = []
        sizes: list[int] = []
        times: list[int] = []
        left_out: Counter[str] = Counter()
        with translated(self._node_error("list objects")):
            for key, attrs in self._tree.walk():
                if reason := self._not_listed(key) or reason_left_out(attrs):
                    left_out[reason] += 1
                    continue
                keys.append(key)
                sizes.append(attrs.size or 0)
                times.append(times_of(attrs)[0])
        del left_out[RESERVED]
        return Listing(keys, np.array(sizes, dtype=np.int64), np.array(times, dtype=np.int64), dict(left_out))

    def _not_listed(self, key: str) -> str:
        first = key.partition("/")[0]
        if is_reserved(first):
            return RESERVED if first == RESERVED else "invalid_key"
        try:
            validate_local_key(key)
        except InvalidKey:
            return "invalid_key"
        return "excluded" if self._passes is not None and not self._passes(key) else ""

    # -- bursts ---------------------------------------------------------------------------------------------------
    def hold(self, fresh: Collection[MoveId] = ()) -> ObjectHold:
        """Remember which moves are fresh."""
        return ObjectHold(self._fresh, self._lock, fresh)

    def burst_from(self, source: Driver) -> SftpBurst:
        """The burst of small objects from a node whose reads are quick."""
        return SftpBurst(source, self._tree)

    # -- reading --------------------------------------------------------------------------------------------------
    def stat(self, key: str) -> Fingerprint | None:
        """Fingerprint of the regular file at ``key``, else None. Raises: InvalidKey, ObjectUnreadable."""
        validate_local_key(key)
        with translated(lambda exc: source_error(self.node_id, key, exc, "look at it")):
            self._tree.require_real_folder(key)
            found = self._tree.regular(key)
        return None if found is None else fingerprint_of(found)

    def unchanged(self, key: str, version: Fingerprint) -> bool:
        """Tell whether the object at ``key`` is still that version. Raises: InvalidKey, ObjectUnreadable."""
        return self.stat(key) == version

    def open_source(self, key: str) -> SftpSource:
        """Open for reading. Raises: InvalidKey, SourceVanished, ObjectUnreadable."""
        validate_local_key(key)
        with translated(lambda exc: source_error(self.node_id, key, exc, "open")):
            self._tree.require_real_folder(key)
            found = self._tree.regular(key)
        if found is None:
            raise SourceVanished(key, "no regular file is at this key any more")
        return SftpSource(self._link, self.node_id, self._tree.path(key), key, found)

    # -- copy aside, verify, publish ------------------------------------------------------------------------------
    def stage(self, move_id: MoveId, *, offset: int = 0, sparse: bool = False) -> SftpWriter:  # noqa: ARG002  no holes here
        """Open the staged copy of a move, cut to ``offset`` bytes, for appending; see `Driver.stage`."""
        name = aside_name(move_id)
        if offset:
            held = self.staged(move_id)
            if held is None or held.size_bytes < offset:
                message = f"staged copy of move {move_id!r} holds {held.size_bytes if held else 0} bytes, fewer than offset {offset}; begin at 0"
                raise InvalidArgument(message)
            path = self._tree.path(name)
            with translated(self._node_error("stage a copy")):
                self._link.run(lambda client: client.truncate(path, offset))
        return SftpWriter(self._link, self.node_id, self._tree.path(name), f"staged:{move_id}", offset)

    def staged(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a staged copy, None when there is none."""
        return self._ours(aside_name(move_id))

    def _ours(self, name: str) -> Fingerprint | None:
        with translated(self._node_error(f"look at {name}")):
            found = self._tree.regular(name)
        return None if found is None else fingerprint_of(found)

    def open_staged(self, move_id: MoveId) -> SftpSource:
        """Open a staged copy for reading it back. Raises: SourceVanished."""
        name, label = aside_name(move_id), f"staged:{move_id}"
        with translated(self._node_error("read back")):
            found = self._tree.regular(name)
        if found is None:
            raise SourceVanished(label, "nothing is staged under this move")
        return SftpSource(self._link, self.node_id, self._tree.path(name), label, found)

    def sync(self) -> None:
        """Nothing to do: each copy and manifest is synced by itself, where the server can."""

    def publish(self, move_id: MoveId, key: str, *, expected: Fingerprint | None = None) -> Fingerprint:
        """Give the staged copy its key, never overwriting; see `Driver.publish`."""
        validate_local_key(key)
        staged = self.staged(move_id)
        if expected is not None and staged != expected:
            raise ChecksumMismatch(key, f"the copy staged under move {move_id!r} is not the one that was verified")
        if staged is None:
            message = f"nothing is staged under move {move_id!r}; it was published or discarded before"
            raise InvalidArgument(message)
        with translated(lambda exc: target_error(self.node_id, key, exc, "publish")):
            self._tree.make_folder(key)
            try:
                self._tree.give_name(aside_name(move_id), key)
            except GONE:  # its folder was removed meanwhile
                self._tree.forget_folders()
                self._tree.make_folder(key)
                self._tree.give_name(aside_name(move_id), key)
        return staged

    def discard(self, move_id: MoveId) -> None:
        """Remove a staged copy if there is one."""
        with translated(self._node_error("discard a copy")):
            self._tree.remove(aside_name(move_id))

    def list_staged(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the staged copies lying about."""
        for name, attrs in self._entries("tmp"):
            yield MoveId(name), fingerprint_of(attrs)

    def _entries(self, folder: str) -> list[tuple[str, asyncssh.SFTPAttrs]]:
        with translated(self._node_error(f"list {folder}")):
            found = self._tree.entries(f"{RESERVED}/{folder}")
        return [(name, attrs) for name, attrs in found if is_name(name)]

    # -- freeing --------------------------------------------------------------------------------------------------
    def free(self, key: str, move_id: MoveId, expected: Fingerprint) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; compare again there, restore on mismatch."""
        validate_local_key(key)
        trash = _trash(move_id)
        with translated(lambda exc: source_error(self.node_id, key, exc, "free")):
            found = self.stat(key)
            held = None if move_id in self._fresh else self.trashed(move_id)
            if held is not None and held != found:
                return self._settle(key, move_id, expected)
            if held is not None:  # a restore that was cut off between its two steps
                self._tree.remove(trash)
            if found is None:
                return FreeOutcome.GONE
            if found != expected:
                return FreeOutcome.CHANGED
            try:
                self._tree.move_aside(key, trash)
            except GONE:
                return FreeOutcome.GONE
            except asyncssh.SFTPFileAlreadyExists:  # a stale worker frees under the same move
                pass
            return self._settle(key, move_id, expected)

    def _settle(self, key: str, move_id: MoveId, expected: Fingerprint) -> FreeOutcome:
        """Keep what the trash holds if it is ``expected``, else put it back, or aside where its key is taken again."""
        held = self.trashed(move_id)
        if held == expected:
            return FreeOutcome.FREED
        if held is not None and not self._put_back(move_id, key):
            self._tree.move_aside(_trash(move_id), f"{RESERVED}/kept/{move_id}.{held.mtime_ns}")
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
        """Bring a trashed object back without overwriting; see `Driver.restore`."""
        validate_local_key(key)
        held, there = self.trashed(move_id), self.stat(key)
        if held is None:
            if there is None:
                raise SourceVanished(key, f"neither the trash (move {move_id!r}) nor the key holds it")
            return False
        if there is not None:
            return False
        with translated(lambda exc: target_error(self.node_id, key, exc, "restore")):
            self._tree.forget_folders()
            self._tree.make_folder(key)
            try:
                self._tree.give_name(_trash(move_id), key)
            except asyncssh.SFTPFileAlreadyExists:
                return False
        return True

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only that version; True when nothing is left of it."""
        held = self.trashed(move_id)
        if held is None:
            return True
        if expected is not None and held != expected:
            return False
        with translated(self._node_error("purge")):
            self._tree.remove(_trash(move_id))
        return True

    def list_trash(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch; before protocol 6, when it was written)."""
        for name, attrs in self._entries("trash"):
            found = fingerprint_of(attrs)
            trashed_ns = found.mtime_ns if attrs.ctime is None else attrs.ctime * _NS + (attrs.ctime_ns or 0)
            yield MoveId(name), found, trashed_ns

    # -- manifests ------------------------------------------------------------------------------------------------
    def write_manifest(self, name: str, lines: Iterable[str]) -> None:
        """Write a manifest whole or not at all; the same name again replaces it."""
        validate_name(name, "manifest name")
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        with translated(self._node_error("write a manifest")):
            self._write_whole(f"{RESERVED}/manifests/{name}", data)

    def _write_whole(self, name: str, data: bytes) -> None:
        aside = f"{TMP}/writing-{name.rpartition('/')[2]}"
        self._tree.write(aside, data)
        self._tree.replace(aside, name)

    def read_manifests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of every manifest."""
        for name, _ in self._entries("manifests"):
            with translated(self._node_error(f"read manifest {name}")):
                text = self._tree.read(f"{RESERVED}/manifests/{name}").decode("utf-8", "replace")
            yield name, text.split("\n")[:-1]

    def remove_manifest(self, name: str) -> None:
        """Remove a manifest if it is there."""
        validate_name(name, "manifest name")
        with translated(self._node_error("remove a manifest")):
            self._tree.remove(f"{RESERVED}/manifests/{name}")

    def close(self) -> None:
        """Close the connection; a later call makes a new one."""
        self._link.close()


def _trash(move_id: MoveId) -> str:
    return f"{RESERVED}/trash/{validate_name(move_id, 'move id')}"
