"""The local driver's trash: an object is freed by one rename and can be put back until it is purged.

It is the last step of the way of one object, and the one that could lose something: strangers may write to the object until
the very rename. So the object is compared before and after it, and whatever is not what was copied goes back to its key; where
that is taken again, into ``.rebalance/kept``, which nothing here ever empties (invariant 1).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import NodeMissing, SourceVanished, TargetExists
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, never_freed
from rebalance_tasks.drivers.local.entries import read_text, write_text
from rebalance_tasks.drivers.local.errors import source_error, target_error, validate_local_key, validate_name
from rebalance_tasks.drivers.local.files import fingerprint_of, is_version
from rebalance_tasks.drivers.local.hold import Renamed
from rebalance_tasks.drivers.local.linux import fsync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebalance_tasks.drivers.local.tree import LocalTree

#: Folders may vanish between a look and an act; a third time is not bad luck.
_ATTEMPTS: Final = 3
#: Beside each kept file, one with this ending holds its key.
_NOTE: Final = ".key"


class LocalTrash:
    """The trash of one root."""

    def __init__(self, tree: LocalTree) -> None:
        """Work below ``tree``."""
        self._tree = tree

    def free(
        self,
        key: str,
        move_id: MoveId,
        expected: Fingerprint,
        freed_before: Callable[[Fingerprint], bool] = never_freed,
    ) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; compare again there, put it back on mismatch.

        CHANGED with a stranger's new file at the key as well (so that the changed one could not be put back) leaves
        the changed one in ``.rebalance/kept`` (`kept`): never purged, for an operator to look at.

        Raises:
            ObjectUnreadable: it cannot be renamed (permissions, immutable, mounted over).
        """
        validate_local_key(key)
        validate_name(move_id, "move id")
        trash = self._tree.work_fd("trash")
        hold = self._tree.held
        first = hold is not None and move_id in hold.fresh
        held = None if first else self._in_trash(move_id)
        if held is None or self._is_second_link(key, move_id, held):
            outcome = self._rename_to_trash(key, move_id, trash, expected)
            if outcome is not None and not first:
                return outcome
            now = self._tree.look("trash", move_id)
            if now is not None and is_version(now, expected):
                return FreeOutcome.FREED
            held = None if now is None else fingerprint_of(now)
            if outcome is not None and held is None:
                return outcome
        if held is None:
            return FreeOutcome.GONE
        if held != expected and freed_before(held) and self.purge(move_id, held):
            return self.free(key, move_id, expected)
        return self._settle(key, move_id, held, expected)

    def _rename_to_trash(self, key: str, move_id: MoveId, trash: int, expected: Fingerprint) -> FreeOutcome | None:
        """Rename the object into the trash; an outcome says why not."""
        try:
            parent, name = self._tree.open_parent(key)
            try:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if not is_version(found, expected):
                    return FreeOutcome.CHANGED
                self._tree.calls.rename_aside(name, move_id, parent, trash)
                hold = self._tree.held
                if hold is not None:
                    hold.note(Renamed(parent, name, trash, move_id, expected, freed=True))
                self._tree.touched_key(key)
            finally:
                self._tree.release(parent)
        except FileExistsError:
            pass  # a stale worker frees under the same move: settle what it put there
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise source_error(key, exc, "free") from exc
            return self._rename_to_trash(key, move_id, trash, expected) if self._tree.lost(key) else FreeOutcome.GONE
        return None

    def _in_trash(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of whatever the trash holds for a move, a regular file or not."""
        status = self._tree.look("trash", move_id)
        return None if status is None else fingerprint_of(status)

    def _is_second_link(self, key: str, move_id: MoveId, held: Fingerprint) -> bool:
        """Finish a restore that link-then-unlink left with both names: drop ours and tell so."""
        there = self._tree.find(key)
        if there is None or not there.same_file(held):
            return False
        self._tree.remove("trash", move_id)
        return True

    def _settle(self, key: str, move_id: MoveId, held: Fingerprint, expected: Fingerprint) -> FreeOutcome:
        """Keep what the trash holds if it is ``expected``, else put it back (or aside)."""
        if held == expected:
            return FreeOutcome.FREED
        try:
            restored = self.restore(move_id, key)
        except TargetExists:  # one of its folders has become a file or a link
            restored = False
        if not restored:
            self._keep(key, move_id, held)
        return FreeOutcome.CHANGED

    def _keep(self, key: str, move_id: MoveId, held: Fingerprint) -> None:
        """Take a changed file whose key is taken again out of the purge's reach, with a note of its key."""
        kept, trash = self._tree.work_fd("kept"), self._tree.work_fd("trash")
        name = f"{move_id}.{held.inode}"
        try:
            write_text(f"{name}{_NOTE}", kept, key, aside=self._tree.work_fd("tmp"))
            os.rename(move_id, name, src_dir_fd=trash, dst_dir_fd=kept)
            fsync(kept)
        except OSError as exc:
            raise source_error(key, exc, f"put aside into {self._tree.root}/.rebalance/kept") from exc

    def kept(self) -> Iterator[tuple[str, str, Fingerprint]]:
        """Yield (file name in ``.rebalance/kept``, the key it was at, fingerprint) of files put aside by `free`."""
        folder = self._tree.work_fd("kept")
        for name, status in self._tree.entries("kept"):
            if not name.endswith(_NOTE):
                key = ""
                with suppress(OSError):  # somebody tidied the note away; the file still counts
                    key = read_text(f"{name}{_NOTE}", folder)
                yield name, key, fingerprint_of(status)

    def held(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        return self._tree.in_work("trash", validate_name(move_id, "move id"))

    def restore(self, move_id: MoveId, key: str) -> bool:
        """Bring a trashed object back without overwriting.

        Returns:
            False when something is at the key (also what an earlier call brought back: compare `stat`).

        Raises:
            SourceVanished: neither the trash nor the key holds anything.
            InvalidKey, TargetExists, ObjectUnreadable, NodeFull, NodeNotWritable.
        """
        validate_local_key(key)
        validate_name(move_id, "move id")
        trash = self._tree.work_fd("trash")
        for _ in range(_ATTEMPTS):
            held = self._in_trash(move_id)
            if held is None:
                if self._tree.find(key) is None:
                    raise SourceVanished(key, f"neither the trash (move {move_id!r}) nor the key holds it")
                return False
            parent, name = self._tree.open_target_parent(key)
            try:
                self._tree.calls.rename_noreplace(move_id, name, trash, parent)
            except FileExistsError:
                return self._is_second_link(key, move_id, held)
            except FileNotFoundError:
                self._tree.lost(key)
                continue
            except OSError as exc:
                raise target_error(self._tree.node_id, self._tree.root, key, exc, "restore") from exc
            else:
                self._tree.touched_key(key)
                return True
            finally:
                self._tree.release(parent)
        raise NodeMissing(
            self._tree.node_id,
            f"the folder of {key!a} below {self._tree.root} vanishes as often as it is made; try again later",
        )

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only that version; True when nothing is left of it."""
        held = self._tree.in_work("trash", validate_name(move_id, "move id"))
        if held is not None:
            if expected is not None and held != expected:
                return False
            self._tree.remove("trash", move_id)
        return True

    def entries(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch: the rename set its ctime)."""
        for name, status in self._tree.entries("trash"):
            yield MoveId(name), fingerprint_of(status), status.st_ctime_ns
