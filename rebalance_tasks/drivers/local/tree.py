"""A node's root on a local file system: its identity, its working folders, and the way from a key to a folder's descriptor.

Every path below the root is opened through `Syscalls.open_beneath`, so no symbolic link and no mount is ever crossed, also
when somebody swaps folders while we walk. No descriptor of a folder outlives one call, so a folder that was renamed
cannot be written to under its old name, but within a `hold`, which looks at its end whether one was. Only the root and the
working folders stay open, and `check_identity` opens the root anew by its path, so that a disk that was unmounted or
mounted over is noticed.
"""

from __future__ import annotations

import errno
import os
import stat as st_modes
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Literal

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.local.entries import READ_FLAGS, entries, look
from rebalance_tasks.drivers.local.errors import UNFIT_NAME, node_error, source_error, target_error, validate_local_key
from rebalance_tasks.drivers.local.files import fingerprint_of
from rebalance_tasks.drivers.local.folders import make_folder, make_folder_like_parent
from rebalance_tasks.drivers.local.hold import LocalHold
from rebalance_tasks.drivers.local.identity import NODE_ID, verify_identity, write_identity
from rebalance_tasks.drivers.local.linux import DIR_PATH_FLAGS, DIR_READ_FLAGS, Syscalls, fsync
from rebalance_tasks.drivers.local.spelling import LocalSpelling

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Fingerprint

WorkFolder = Literal["tmp", "manifests", "trash", "kept"]
WORK_FOLDERS: Final[tuple[WorkFolder, ...]] = ("tmp", "manifests", "trash", "kept")
#: Copies and freed objects are for our eyes: folders that hid them from others no longer do so there.
_WORK_MODE: Final = 0o700
#: The node id in it is public, so that `rebalance nodes` works for every user.
_RESERVED_MODE: Final = 0o755
#: No object at a key: nothing, a file or a link for a folder, a mount, a name that cannot be.
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP}) | UNFIT_NAME
#: A folder may be removed by a stranger between its making and its use; three times in a row is not bad luck.
_ATTEMPTS: Final = 3


class _Thread(threading.local):
    #: what each thread holds
    hold: LocalHold | None = None


class LocalTree:
    """Descriptors of one root; safe to use from several threads."""

    def __init__(self, node_id: str, root: str, calls: Syscalls, *, direct: bool = True) -> None:
        """Resolve symbolic links in ``root`` (an absolute path) once; nothing is opened yet. ``direct``: see the property."""
        self.node_id = node_id
        self.root = os.path.realpath(root)
        self.calls = calls
        self._may_go_around = direct
        #: what the file system says; None: it was not asked yet.
        self._goes_around: bool | None = None
        #: how it spells names.
        self.spelling = LocalSpelling(self)
        self._lock = threading.Lock()
        self._root_fd = -1
        self._work: dict[str, int] = {}
        #: replaced descriptors: another thread may be using them, so they close with the tree.
        self._retired: list[int] = []
        #: folders whose entries changed since the last sync; only kept where there is no syncfs.
        self._touched: set[str] = set()
        self._thread = _Thread()

    # -- identity -------------------------------------------------------------------------------------------------
    def open_root(self) -> int:
        """Open the root anew by its path. Raises: NodeMissing, NodeNotWritable."""
        try:
            return os.open(self.root, DIR_READ_FLAGS & ~os.O_NOFOLLOW)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "open the root") from exc

    def verify(self, root_fd: int, *, required: bool) -> bool:
        """Tell whether the root is adopted by this node. Raises: NodeMissing when it is another's, or ``required`` and not."""
        return verify_identity(root_fd, self.node_id, self.root, required=required)

    def check(self, *, required: bool = True) -> None:
        """Open the root by its path, verify it and keep that descriptor if it is another folder than before."""
        fd = self.open_root()
        try:
            self.verify(fd, required=required)
            with self._lock:
                if self._root_fd < 0 or not os.path.samestat(os.fstat(fd), os.fstat(self._root_fd)):
                    self._retire()
                    self._root_fd, fd = fd, -1
                elif not self._work_in_place():
                    self._retire(root=False)
        finally:
            if fd >= 0:
                os.close(fd)

    def _work_in_place(self) -> bool:
        try:
            for name, held in self._work.items():
                status = os.stat(f"{RESERVED}/{name}", dir_fd=self._root_fd, follow_symlinks=False)
                if not os.path.samestat(status, os.fstat(held)):
                    return False
        except OSError:
            return False
        return True

    def _retire(self, *, root: bool = True) -> None:
        self._retired.extend(self._work.values())
        self._work = {}
        if root and self._root_fd >= 0:
            self._retired.append(self._root_fd)
            self._root_fd = -1
            self._goes_around = None
            self.spelling.forget()

    # -- descriptors ----------------------------------------------------------------------------------------------
    def root_fd(self) -> int:
        """Return the root's descriptor, verified when it was opened. Raises: NodeMissing."""
        if self._root_fd < 0:
            self.check(required=False)
        return self._root_fd

    def work_fd(self, name: WorkFolder) -> int:
        """Return a working folder's descriptor. Raises: NodeMissing when the root is not adopted."""
        fd = self._work.get(name)
        return self._open_work(name) if fd is None else fd

    def _open_work(self, name: WorkFolder) -> int:
        self.check()
        try:
            fd = self.calls.open_beneath(self.root_fd(), f"{RESERVED}/{name}", DIR_READ_FLAGS)
        except FileNotFoundError:
            self._make_work_folders(self.root_fd())
            return self._open_work(name)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, f"open {RESERVED}/{name}") from exc
        with self._lock:
            kept = self._work.setdefault(name, fd)
            if kept != fd:
                os.close(fd)
        return kept

    def open_folder(self, path: str, flags: int = DIR_PATH_FLAGS) -> int:
        """Open a folder below the root (``"."``: the root). Raises: OSError, NodeMissing."""
        return self.calls.open_beneath(self.root_fd(), path, flags)

    @property
    def direct(self) -> bool:
        """Whether large copies go around the page cache here: the file system can do that, and nobody has ruled it out."""
        if self._goes_around is None and self._may_go_around:
            try:
                # Of folders statx does not say it.
                fd = self.open_folder(f"{RESERVED}/{NODE_ID}", READ_FLAGS)
            except OSError:
                return False
            try:
                self._goes_around = self.calls.direct(fd)
            finally:
                os.close(fd)
        return bool(self._goes_around)

    @property
    def held(self) -> LocalHold | None:
        """What this thread holds."""
        return self._thread.hold

    def hold(self, fresh: Collection[MoveId] = ()) -> LocalHold:
        """Let the folders that this thread opens stay open while the context lasts; holds of one root do not nest."""

        def ended() -> None:
            self._thread.hold = None

        hold = self._thread.hold = LocalHold(self.open_folder, self.calls.rename_noreplace, ended, fresh)
        return hold

    def open_parent(self, key: str, *, create: bool = False) -> tuple[int, str]:
        """Return (descriptor of the folder that holds ``key``, its last component); end with `release`. Raises: OSError."""
        folder, _, name = key.rpartition("/")
        folder = folder or "."
        hold = self._thread.hold
        if hold is not None:
            held = hold.folders.get(folder)
            if held is not None:
                return held, name
        fd = self._open_or_make(folder, create=create)
        if hold is not None:
            hold.offer(folder, fd)
        return fd, name

    def release(self, fd: int) -> None:
        """Close what `open_parent` gave, unless it is held."""
        hold = self._thread.hold
        if hold is None or fd not in hold.descriptors:
            os.close(fd)

    def hold_shared(self, folders: Iterable[str], *, create: bool = False) -> None:
        """Let this thread hold folders that several keys share; one that cannot be opened is left to who needs it.

        Args:
            folders: paths below the root, ``"."`` is the root; one that no key can have is not opened.
            create: make those that are missing.
        """
        hold = self._thread.hold
        for folder in folders:
            if hold is not None and folder not in hold.folders and hold.has_room:
                with suppress(OSError, InvalidKey):
                    validate_local_key("name" if folder == "." else f"{folder}/name")
                    hold.keep(folder, self._open_or_make(folder, create=create))

    def lost(self, key: str) -> bool:
        """Drop the held folder of a key under which nothing was found; True: look again, by the whole path."""
        hold = self._thread.hold
        return hold is not None and hold.folders.pop(key.rpartition("/")[0] or ".", None) is not None

    def _open_or_make(self, folder: str, *, create: bool) -> int:
        for _ in range(_ATTEMPTS):
            try:
                fd = self.open_folder(folder)
            except FileNotFoundError:
                if not create:
                    raise
                self._make_folders(folder)
            else:
                return self._spelled_so(folder, fd) if create and self.spelling.folds else fd
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)

    def _spelled_so(self, folder: str, fd: int) -> int:
        """Return the descriptor of a folder that is spelled just so. Raises: FileExistsError, when it is not and `fd` is closed."""
        with ExitStack() as opened:
            opened.callback(os.close, fd)
            if folder != "." and not self.spelling.of(folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), folder)
            opened.pop_all()
        return fd

    def open_target_parent(self, key: str) -> tuple[int, str]:
        """`open_parent` that makes missing folders, with errors in the words of a target.

        Raises:
            TargetExists: a folder of the key is there already: as a file, as a symbolic link, or spelled otherwise.
            InvalidKey: it lies on another file system, or this one cannot hold such names.
            NodeFull, NodeNotWritable, NodeMissing.
        """
        if not self.spelling.keeps(key):
            raise InvalidKey(key, f"the file system of {self.root} does not keep such a name as it is")
        try:
            return self.open_parent(key, create=True)
        except OSError as exc:
            raise target_error(self.node_id, self.root, key, exc, "make its folder") from exc

    # -- single names ---------------------------------------------------------------------------------------------
    def find(self, key: str) -> Fingerprint | None:
        """Fingerprint of the regular file at a valid key, else None; one of another name is none. Raises: ObjectUnreadable."""
        status = self.stat(key)
        if status is None or not st_modes.S_ISREG(status.st_mode):
            return None
        try:
            return fingerprint_of(status) if self.spelling.of(key) else None
        except OSError as exc:
            raise source_error(key, exc, "list its folder") from exc

    def stat(self, key: str) -> os.stat_result | None:
        """What is at a valid key, links not followed. Raises: ObjectUnreadable."""
        try:
            parent, name = self.open_parent(key)
            try:
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
            finally:
                self.release(parent)
        except OSError as exc:
            if exc.errno not in _NOT_THERE:
                raise source_error(key, exc, "look") from exc
        return self.stat(key) if self.lost(key) else None

    def look(self, folder: WorkFolder, name: str) -> os.stat_result | None:
        """Return what a working folder holds under a valid name."""
        try:
            return look(name, self.work_fd(folder))
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, f"look into {RESERVED}/{folder}") from exc

    def in_work(self, folder: WorkFolder, name: str) -> Fingerprint | None:
        """Fingerprint of the regular file that a working folder holds under a valid name."""
        status = self.look(folder, name)
        return fingerprint_of(status) if status is not None and st_modes.S_ISREG(status.st_mode) else None

    def entries(self, folder: WorkFolder) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the regular files of a working folder."""
        try:
            yield from entries(self.work_fd(folder))
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, f"list {RESERVED}/{folder}") from exc

    def remove(self, folder: WorkFolder, name: str) -> None:
        """Remove a valid name from a working folder if it is there."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.work_fd(folder))
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, f"remove from {RESERVED}/{folder}") from exc

    # -- making folders -------------------------------------------------------------------------------------------
    def _make_folders(self, path: str) -> None:
        fd = self.open_folder(".")
        made = "."
        try:
            for component in path.split("/"):
                try:
                    child = os.open(component, DIR_PATH_FLAGS, dir_fd=fd)
                except FileNotFoundError:
                    make_folder_like_parent(component, fd)
                    self.touched(made)
                    child = os.open(component, DIR_PATH_FLAGS, dir_fd=fd)
                fd, parent = child, fd
                os.close(parent)
                made = component if made == "." else f"{made}/{component}"
        finally:
            os.close(fd)

    def adopt(self) -> None:
        """Make the working folders and the node id, durably. Raises: NodeMissing, NodeNotWritable."""
        fd = self.open_root()
        try:
            if not self.verify(fd, required=False):
                self._make_work_folders(fd)
                write_identity(fd, self.node_id, self.root, self.calls)
            self._make_work_folders(fd)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "adopt the root") from exc
        finally:
            os.close(fd)
        self.check()

    def _make_work_folders(self, root_fd: int) -> None:
        try:
            make_folder(RESERVED, root_fd, _RESERVED_MODE)
            reserved_fd = os.open(RESERVED, DIR_READ_FLAGS, dir_fd=root_fd)
            try:
                for name in WORK_FOLDERS:
                    make_folder(name, reserved_fd, _WORK_MODE)
                fsync(reserved_fd)
            finally:
                os.close(reserved_fd)
            fsync(root_fd)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "make the working folders") from exc

    # -- durability -----------------------------------------------------------------------------------------------
    def touched(self, folder: str) -> None:
        """Remember a folder for the next sync, where there is no syncfs."""
        if self.calls.syncfs is None:
            self._touched.add(folder)

    def touched_key(self, key: str) -> None:
        """Remember the folder that holds a key."""
        self.touched(key.rpartition("/")[0] or ".")

    def sync(self) -> None:
        """Make every change so far durable. Raises: NodeFull, NodeNotWritable, NodeMissing."""
        try:
            if self.calls.syncfs is not None:
                self.calls.syncfs(self.work_fd("tmp"))
                return
            pending, self._touched = self._touched, set()
            for folder in [*pending, *(f"{RESERVED}/{name}" for name in WORK_FOLDERS)]:
                with suppress(FileNotFoundError):
                    fd = self.open_folder(folder, DIR_READ_FLAGS)
                    try:
                        fsync(fd)
                    finally:
                        os.close(fd)
        except OSError as exc:
            raise node_error(self.node_id, self.root, exc, "sync") from exc

    def close(self) -> None:
        """Close every descriptor; the next call opens them again."""
        with self._lock:
            self._retire()
            for fd in self._retired:
                os.close(fd)
            self._retired = []

    def __del__(self) -> None:
        """Close what a driver that nobody closed has left open."""
        with suppress(Exception):
            self.close()
