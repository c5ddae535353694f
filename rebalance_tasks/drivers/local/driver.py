"""The driver for a folder or disk of this machine (or a mounted network file system).

It stands at the bottom of the way of one object. What it promises is the protocol's (`drivers.base`); how each kind of file
is treated is in docs/reference/local-driver.md. Invariants it keeps: no torn object at a key (a copy is staged in
``.rebalance/tmp`` on the same file system and published by one rename), publishing never overwrites
(RENAME_NOREPLACE), freeing is reversible (the trash), and no key leaves its root (`LocalTree.open_parent`).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import ChecksumMismatch, InvalidArgument, NodeMissing, TargetExists
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, Listing, NodeHealth, never_freed
from rebalance_tasks.drivers.local.entries import (
    STAGE_FLAGS,
    allow_writing,
    create_staged,
    open_quietly,
    read_text,
    regular,
    require_object,
    source_from,
    write_text,
)
from rebalance_tasks.drivers.local.errors import (
    node_error,
    source_error,
    target_error,
    validate_local_key,
    validate_name,
)
from rebalance_tasks.drivers.local.files import LocalSource, LocalWriter, fingerprint_of, is_version
from rebalance_tasks.drivers.local.folders import probe_writable, require_writable_parent
from rebalance_tasks.drivers.local.hold import LocalHold, Renamed
from rebalance_tasks.drivers.local.linux import Syscalls, fsync, native
from rebalance_tasks.drivers.local.listing import LocalLister, key_filter
from rebalance_tasks.drivers.local.look import look_at
from rebalance_tasks.drivers.local.trash import LocalTrash
from rebalance_tasks.drivers.local.tree import LocalTree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rebalance_tasks.drivers.node_parts import Part
    from rebalance_tasks.drivers.remembered import Remembered
    from rebalance_tasks.drivers.spelling import Spelling

#: Folders may vanish between a look and an act; a third time is not bad luck.
_ATTEMPTS: Final = 3
#: Flag of a mount on which reading leaves no trace; other systems than Linux do not tell.
_NOATIME: Final[int | None] = getattr(os, "ST_NOATIME", None)


class LocalDriver:
    """A node on a local file system; see `drivers.base.Driver` for every promise."""

    def __init__(
        self,
        node_id: str,
        root: str,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        calls: Syscalls | None = None,
        direct: bool = True,
    ) -> None:
        """Serve the folder at the absolute path ``root``; nothing is opened before the first call.

        Args:
            node_id: who this node is.
            root: absolute path; symbolic links in it are resolved once, now.
            include: glob patterns; when given, only keys that match one are objects.
            exclude: glob patterns; keys that match one are left alone.
            calls: system calls to stand on, by default the best this kernel has.
            direct: large copies go around the page cache, where the file system can do that.
        """
        self.node_id = NodeId(node_id)
        self._tree = LocalTree(node_id, root, calls or native(), direct=direct)
        self._trash = LocalTrash(self._tree)
        self._passes = key_filter(include, exclude)

    @property
    def root(self) -> str:
        """The root's absolute path, symbolic links resolved."""
        return self._tree.root

    @property
    def tree(self) -> LocalTree:
        """What its calls stand on, for `drivers.local.burst`."""
        return self._tree

    @property
    def spelling(self) -> Spelling:
        """How it spells names."""
        return self._tree.spelling

    # -- the node itself ------------------------------------------------------------------------------------------
    def probe(self) -> NodeHealth:
        """Look at the root without changing it. Raises: NodeMissing, NodeNotWritable."""
        fd = self._tree.open_root()
        try:
            adopted = self._tree.verify(fd, required=False)
            probe_writable(self.node_id, self.root)
            space = os.fstatvfs(fd)
            return NodeHealth(
                total_bytes=space.f_blocks * space.f_frsize,
                free_bytes=space.f_bavail * space.f_frsize,
                device=os.fstat(fd).st_dev,
                adopted=adopted,
                kept_files=sum(1 for _ in self.list_kept()) if adopted else 0,
                direct=self._tree.direct if adopted else None,
                shows_access=None if _NOATIME is None else not space.f_flag & _NOATIME,
            )
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "look at the root") from exc
        finally:
            os.close(fd)

    def check_identity(self) -> None:
        """Open the root anew by its path and compare its node id. Raises: NodeMissing."""
        try:
            self._tree.check()
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "check the root") from exc

    def adopt(self) -> None:
        """Write the node id and the working folders. Raises: NodeMissing, NodeNotWritable."""
        self._tree.adopt()

    def free_bytes(self) -> int:
        """Bytes an ordinary user could still write. Raises: NodeMissing."""
        try:
            space = os.fstatvfs(self._tree.root_fd())
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "ask for free space") from exc
        return space.f_bavail * space.f_frsize

    def list_objects(self, *, require_identity: bool = True) -> Listing:
        """List every object, in no particular order.

        Args:
            require_identity: False also lists a root that was never adopted (observe mode).

        Raises:
            NodeMissing: not this node, not adopted though required, or an I/O error on the way.
        """
        self._tree.check(required=require_identity)
        return LocalLister(self._tree, self._passes).run()

    def list_part(self, part: Part | None, *, require_identity: bool = True, most: int | None = None) -> Listing:
        """List a part, with the objects' access times; see `drivers.node_parts.Parted`."""
        self._tree.check(required=require_identity)
        return LocalLister(self._tree, self._passes, part=part, most=most, access_times=True).run()

    def list_changed(
        self,
        before: Remembered | None,
        *,
        require_identity: bool = True,
        part: Part | None = None,
        most: int | None = None,
    ) -> Remembered:
        """List, and read only the folders that have changed since; see `drivers.remembered.Remembers`."""
        self._tree.check(required=require_identity)
        return LocalLister(self._tree, self._passes, before, part=part, most=most).remember()

    # -- reading --------------------------------------------------------------------------------------------------
    def stat(self, key: str) -> Fingerprint | None:
        """Fingerprint of the regular file at ``key``, else None. Raises: InvalidKey, ObjectUnreadable."""
        return self._tree.find(validate_local_key(key))

    def look_at(self, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `drivers.looks.LooksAtMany`."""
        return look_at(self._tree, keys)

    def unchanged(self, key: str, version: Fingerprint) -> bool:
        """Tell whether the object at ``key`` is still that version. Raises: InvalidKey, ObjectUnreadable."""
        status = self._tree.stat(validate_local_key(key))
        return status is not None and is_version(status, version)

    def hold(self, fresh: Collection[MoveId] = ()) -> LocalHold:
        """Keep folders open for this thread's next calls, and see at the end whether one was renamed meanwhile."""
        return self._tree.hold(fresh)

    def open_source(self, key: str) -> LocalSource:
        """Open for reading. Raises: InvalidKey, SourceVanished, ObjectUnreadable."""
        validate_local_key(key)
        try:
            parent, name = self._tree.open_parent(key)
        except OSError as exc:
            raise source_error(key, exc, "open its folder") from exc
        try:
            hold = self._tree.held
            if hold is None or parent not in hold.writable:
                require_writable_parent(key, parent)
                if hold is not None and parent in hold.descriptors:
                    hold.writable.add(parent)
            # Looked at first: opening a device can act on it.
            require_object(key, os.stat(name, dir_fd=parent, follow_symlinks=False))
            fd = open_quietly(name, parent)
        except OSError as exc:
            if exc.errno == errno.ENOENT and self._tree.lost(key):
                return self.open_source(key)
            raise source_error(key, exc, "open") from exc
        finally:
            self._tree.release(parent)
        return source_from(fd, key)

    # -- copy aside, verify, publish ------------------------------------------------------------------------------
    def stage(self, move_id: MoveId, *, offset: int = 0, sparse: bool = False) -> LocalWriter:
        """Open the staged copy, cut to ``offset`` bytes, for appending.

        Args:
            move_id: whose copy.
            offset: bytes of an earlier attempt to keep.
            sparse: leave holes where whole blocks are zero (`ObjectMetadata.sparse` of the source).

        Raises:
            InvalidArgument: fewer than ``offset`` bytes are there; begin at 0.
            NodeFull, NodeNotWritable, NodeMissing.
        """
        validate_name(move_id, "move id")
        folder = self._tree.work_fd("tmp")
        try:
            fd = self._stage_again(move_id, folder, offset) if offset else create_staged(move_id, folder)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "stage a copy") from exc
        return LocalWriter(fd, self._tree, f"staged:{move_id}", offset=offset, sparse=sparse)

    def _stage_again(self, move_id: MoveId, folder: int, offset: int) -> int:
        held = regular(move_id, folder)
        if held is None or held.size_bytes < offset:
            message = f"staged copy of move {move_id!r} holds {held.size_bytes if held else 0} bytes, fewer than offset {offset}; begin at 0"
            raise InvalidArgument(message)
        try:
            fd = os.open(move_id, STAGE_FLAGS, dir_fd=folder)
        except PermissionError:  # finished before, with a read-only mode
            allow_writing(move_id, folder)
            fd = os.open(move_id, STAGE_FLAGS, dir_fd=folder)
        if os.fstat(fd).st_nlink > 1:
            os.close(fd)
            message = f"staged copy of move {move_id!r} is already published under a key; discard it and begin at 0"
            raise InvalidArgument(message)
        try:
            os.ftruncate(fd, offset)
        except OSError:
            os.close(fd)
            raise
        return fd

    def staged(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a staged copy, None when there is none."""
        return self._tree.in_work("tmp", validate_name(move_id, "move id"))

    def open_staged(self, move_id: MoveId) -> LocalSource:
        """Open a staged copy for reading it back, a large one from the disk itself. Raises: SourceVanished, ObjectUnreadable."""
        validate_name(move_id, "move id")
        label = f"staged:{move_id}"
        folder = self._tree.work_fd("tmp")
        try:
            fd = open_quietly(move_id, folder)
        except OSError as exc:
            raise source_error(label, exc, "read back") from exc
        return source_from(fd, label, direct=self._tree.direct)

    def sync(self) -> None:
        """Make everything staged, published or renamed so far durable. Raises: NodeFull, NodeNotWritable, NodeMissing."""
        self._tree.sync()

    def publish(self, move_id: MoveId, key: str, *, expected: Fingerprint | None = None) -> Fingerprint:
        """Give the staged copy its key in one step, never overwriting.

        Args:
            move_id: whose copy.
            key: where to.
            expected: the copy that was verified; a stale worker may have put another under the same name.

        Raises:
            ChecksumMismatch: what is staged is not ``expected``.
            TargetExists, InvalidKey, NodeFull, NodeNotWritable, NodeMissing.
            InvalidArgument: nothing is staged under this move.
        """
        validate_local_key(key)
        validate_name(move_id, "move id")
        for _ in range(_ATTEMPTS):
            there = self._tree.look("tmp", move_id)
            if expected is None:
                staged = None if there is None else fingerprint_of(there)
            elif there is None or not is_version(there, expected):
                raise ChecksumMismatch(key, f"the copy staged under move {move_id!r} is not the one that was verified")
            else:
                staged = expected
            if staged is None:
                message = f"nothing is staged under move {move_id!r}; it was published or discarded before"
                raise InvalidArgument(message)
            parent, name = self._tree.open_target_parent(key)
            try:
                return self._publish_into(parent, name, move_id, staged, key)
            except FileNotFoundError:  # the folder was removed in between; make it again
                self._tree.lost(key)
                continue
            except OSError as exc:
                raise target_error(self._tree.node_id, self._tree.root, key, exc, "publish") from exc
            finally:
                self._tree.release(parent)
        raise NodeMissing(
            self.node_id,
            f"the folder of {key!a} below {self.root} vanishes as often as it is made; try again later",
        )

    def _publish_into(self, parent: int, name: str, move_id: MoveId, staged: Fingerprint, key: str) -> Fingerprint:
        folder = self._tree.work_fd("tmp")
        try:
            self._tree.calls.rename_noreplace(move_id, name, folder, parent)
        except FileExistsError as exc:
            there = regular(name, parent)
            if there is None or not there.same_file(staged):
                raise TargetExists(
                    key, f"something else is at this key (or at a name {self.root} cannot tell from it)"
                ) from exc
            # link-then-unlink was cut off between its two steps: it is ours already.
            os.unlink(move_id, dir_fd=folder)
        hold = self._tree.held
        if hold is not None:
            hold.note(Renamed(parent, name, folder, move_id, staged, freed=False))
        self._tree.touched_key(key)
        return staged

    def discard(self, move_id: MoveId) -> None:
        """Remove a staged copy if there is one."""
        validate_name(move_id, "move id")
        self._tree.remove("tmp", move_id)

    # -- freeing --------------------------------------------------------------------------------------------------
    def free(
        self,
        key: str,
        move_id: MoveId,
        expected: Fingerprint,
        *,
        freed_before: Callable[[Fingerprint], bool] = never_freed,
    ) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; see `LocalTrash.free`. Raises: ObjectUnreadable."""
        return self._trash.free(key, move_id, expected, freed_before)

    def trashed(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        return self._trash.held(move_id)

    def restore(self, move_id: MoveId, key: str) -> bool:
        """Bring a trashed object back without overwriting; see `LocalTrash.restore`."""
        return self._trash.restore(move_id, key)

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only that version; True when nothing is left of it."""
        return self._trash.purge(move_id, expected)

    def list_trash(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch)."""
        return self._trash.entries()

    def list_kept(self) -> Iterator[tuple[str, str, Fingerprint]]:
        """Yield (file name in ``.rebalance/kept``, the key it was at, fingerprint) of files put aside by `free`."""
        return self._trash.kept()

    def list_staged(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the staged copies lying about."""
        for name, status in self._tree.entries("tmp"):
            yield MoveId(name), fingerprint_of(status)

    # -- manifests ------------------------------------------------------------------------------------------------
    def write_manifest(self, name: str, lines: Iterable[str]) -> None:
        """Write a manifest whole or not at all, durably; the same name again replaces it. Raises: NodeFull, NodeNotWritable."""
        validate_name(name, "manifest name")
        folder = self._tree.work_fd("manifests")
        try:
            write_text(name, folder, "".join(f"{line}\n" for line in lines), aside=self._tree.work_fd("tmp"))
            fsync(folder)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "write a manifest") from exc

    def read_manifests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of every manifest."""
        folder = self._tree.work_fd("manifests")
        for name, _ in self._tree.entries("manifests"):
            try:
                text = read_text(name, folder)
            except OSError as exc:
                raise node_error(self.node_id, self.root, exc, f"read manifest {name}") from exc
            yield name, text.split("\n")[:-1]

    def remove_manifest(self, name: str) -> None:
        """Remove a manifest if it is there."""
        validate_name(name, "manifest name")
        self._tree.remove("manifests", name)

    def close(self) -> None:
        """Let go of descriptors; a later call opens them again."""
        self._tree.close()
