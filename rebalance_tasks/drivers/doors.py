"""What the fleet file system asks of a node beside `Driver`: read without the right to free, replace in one step, look into a folder.

The engine never overwrites, and a reader never frees; so these three are no part of the driver's protocol, and a kind of node
that cannot replace in one step is read and not written to. Invariants kept: no key leaves its node's root, no link is
followed, and a reader sees an object whole or not at all.
"""

from __future__ import annotations

import errno
import os
import stat as st_modes
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

from rebalance_tasks.core.errors import NodeNotWritable, ObjectUnreadable, SourceVanished, TargetExists
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.entries import READ_FLAGS, look
from rebalance_tasks.drivers.local.errors import node_error, source_error, target_error, validate_local_key
from rebalance_tasks.drivers.local.files import LocalSource, fingerprint_of
from rebalance_tasks.drivers.local.linux import DIR_READ_FLAGS, fsync
from rebalance_tasks.drivers.object_stores.bucket import BucketError
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.object_stores.errors import node_error as store_node_error
from rebalance_tasks.drivers.object_stores.errors import target_error as store_target_error
from rebalance_tasks.drivers.object_stores.files import WINDOW_BYTES, ObjectSource
from rebalance_tasks.drivers.object_stores.files import fingerprint_of as fingerprint_of_stored
from rebalance_tasks.drivers.trees.calls import TMP, Kind

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver, Fingerprint, SourceHandle
    from rebalance_tasks.drivers.sftp.driver import SftpDriver

#: Sorts after every name in a folder.
_LAST: Final = "\U0010ffff"
_ANOTHER: Final = "an object is here whose name this node cannot tell from this key"


class Door(Protocol):
    """The way of readers and writers into one node. All methods raise `core.errors` only."""

    def open_reader(self, key: str, *, start: int = 0, length: int | None = None) -> SourceHandle:
        """Open for reading; the object need not be free to go.

        Args:
            key: object key.
            start: where reading will begin; the handle itself still stands at 0.
            length: how much will be read at first, as far as that is known.

        Raises:
            InvalidKey, SourceVanished, ObjectUnreadable, NodeError.
        """
        ...

    def stat(self, key: str) -> Fingerprint | None:
        """Version of the object at a key. Raises: InvalidKey, ObjectUnreadable, NodeError."""
        ...

    def replace(self, move_id: MoveId, key: str) -> None:
        """Give the staged copy its key in one step, in place of what is there; durable when it returns.

        Raises:
            InvalidKey, TargetExists (what is there is no object), NodeError.
        """
        ...

    def browse(self, folder: str) -> Iterator[tuple[str, Fingerprint | None]]:
        """Yield (name, version) of what is right below a folder ('': the root); folders have no version, and may come twice."""
        ...


class PlainDoor:
    """A kind of node that is read as any driver can be."""

    def __init__(self, driver: Driver) -> None:
        """Lead to a node."""
        self._driver = driver
        self.stat = driver.stat

    def open_reader(self, key: str, *, start: int = 0, length: int | None = None) -> SourceHandle:  # noqa: ARG002  a hint
        """Open as the engine does."""
        return self._driver.open_source(key)

    def replace(self, move_id: MoveId, key: str) -> None:
        """Refuse: between freeing and publishing a reader would find nothing. Raises: NodeNotWritable."""
        why = f"this kind of node cannot replace an object in one step, so {key!a} is not written there; keep it for moves"
        self._driver.discard(move_id)
        raise NodeNotWritable(self._driver.node_id, why)

    def browse(self, folder: str) -> Iterator[tuple[str, Fingerprint | None]]:
        """List the whole node, for want of a shorter way."""
        prefix = f"{folder}/" if folder else ""
        for key in self._driver.list_objects(require_identity=False).keys:
            head, slash, _ = key.removeprefix(prefix).partition("/")
            if key.startswith(prefix) and slash:
                yield head, None
            elif key.startswith(prefix) and (found := self._driver.stat(key)) is not None:
                yield head, found


class LocalDoor:
    """A local folder."""

    def __init__(self, driver: LocalDriver) -> None:
        """Lead to a node."""
        self._driver, self._tree = driver, driver.tree

    def stat(self, key: str) -> Fingerprint | None:
        """Look at a key; a disk that is not mounted misses everything, and is told from one that does not hold it."""
        found = self._driver.stat(key)
        if found is None:
            self._tree.check(required=False)
        return found

    def open_reader(self, key: str, *, start: int = 0, length: int | None = None) -> SourceHandle:  # noqa: ARG002  a hint
        """Open by the whole path in one system call."""
        validate_local_key(key)
        tree = self._tree
        try:
            fd = tree.calls.open_beneath(tree.root_fd(), key, READ_FLAGS)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                tree.check(required=False)  # as in `stat`
            raise source_error(key, exc, "open") from exc
        status = os.fstat(fd)
        if not st_modes.S_ISREG(status.st_mode):
            os.close(fd)
            raise ObjectUnreadable(key, "it is not a regular file")
        if tree.spelling.folds and tree.find(key) is None:
            os.close(fd)
            raise SourceVanished(key, _ANOTHER)
        return LocalSource(fd, key, status)

    def replace(self, move_id: MoveId, key: str) -> None:
        """Rename over what is there, and sync the folder."""
        validate_local_key(key)
        tree = self._tree
        parent, name = tree.open_target_parent(key)
        try:
            there = look(name, parent)
            if there is not None and not st_modes.S_ISREG(there.st_mode):
                raise TargetExists(key, "what is at this key is no regular file")
            if there is not None and not tree.spelling.of(key):
                raise TargetExists(key, _ANOTHER)
            os.rename(move_id, name, src_dir_fd=tree.work_fd("tmp"), dst_dir_fd=parent)
            folder = os.open(".", DIR_READ_FLAGS, dir_fd=parent)
            try:
                fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise target_error(tree.node_id, tree.root, key, exc, "replace") from exc
        finally:
            tree.release(parent)

    def browse(self, folder: str) -> Iterator[tuple[str, Fingerprint | None]]:
        """Scan one folder, links not followed."""
        tree = self._tree
        try:
            fd = tree.open_folder(folder or ".", DIR_READ_FLAGS)
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                tree.check(required=False)
                return
            raise node_error(tree.node_id, tree.root, exc, f"look into {folder!a}") from exc
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name, None
                    elif entry.is_file(follow_symlinks=False) and (found := look(entry.name, fd)) is not None:
                        yield entry.name, fingerprint_of(found)
        finally:
            os.close(fd)


class StoreDoor:
    """A bucket, or a part of one."""

    def __init__(self, driver: ObjectStoreDriver) -> None:
        """Lead to a node."""
        self._driver = driver
        self.stat = driver.stat

    def open_reader(self, key: str, *, start: int = 0, length: int | None = None) -> SourceHandle:
        """Ask for the stretch that is wanted, and for no more."""
        first = WINDOW_BYTES if length is None else min(max(1, length), WINDOW_BYTES)
        driver = self._driver
        name = driver.name_of(key)
        return ObjectSource(driver.bucket, driver.node_id, name, key, start=start, first_bytes=first)

    def replace(self, move_id: MoveId, key: str) -> None:
        """Copy over it on the server's side: a store shows the old object or the new one."""
        driver = self._driver
        staged, aside = driver.staging.look(move_id), driver.staging.name(move_id)
        if staged is None or not staged.etag:
            raise NodeNotWritable(driver.node_id, f"what was staged for {key!a} is gone; write it again")
        try:
            driver.bucket.copy(
                aside,
                driver.name_of(key),
                etag=staged.etag,
                size_bytes=staged.size_bytes,
                new=False,
                attributes=driver.staging.attributes(aside, staged.etag),
            )
        except BucketError as exc:
            raise store_target_error(driver.node_id, key, exc, "replace") from exc
        driver.staging.forget(move_id, whole="-" not in staged.etag)

    def browse(self, folder: str) -> Iterator[tuple[str, Fingerprint | None]]:
        """List names below the folder, jumping over what lies deeper wherever a page ends there."""
        prefix = f"{self._driver.prefix}{folder}/" if folder else self._driver.prefix
        after: str | None = ""
        try:
            while after is not None:
                after = yield from self._browse(prefix, after)
        except BucketError as exc:
            raise store_node_error(self._driver.node_id, exc, f"look into {folder!a}") from exc

    def _browse(self, prefix: str, after: str) -> Generator[tuple[str, Fingerprint | None], None, str | None]:
        last = ""
        for page in self._driver.bucket.pages(prefix, after=after):
            deeper = False
            for found in page:
                head, slash, _ = found.name.removeprefix(prefix).partition("/")
                deeper = bool(slash)
                if not deeper:
                    yield head, fingerprint_of_stored(found)
                elif head != last:
                    last = head
                    yield head, None
            if deeper:
                return f"{prefix}{last}/{_LAST}"
        return None


class SftpDoor:
    """A folder behind SFTP."""

    def __init__(self, driver: SftpDriver) -> None:
        """Lead to a node."""
        self._driver = driver
        self.stat = driver.stat

    def open_reader(self, key: str, *, start: int = 0, length: int | None = None) -> SourceHandle:  # noqa: ARG002  a hint
        """Open as the engine does, which frees nothing here either."""
        if self._driver.spelling.folds and self._driver.stat(key) is None:
            raise SourceVanished(key, _ANOTHER)
        return self._driver.open_source(key)

    def replace(self, move_id: MoveId, key: str) -> None:
        """Rename over what is there (``posix-rename``)."""
        from rebalance_tasks.drivers.sftp import errors as sftp_errors  # noqa: PLC0415  an extra

        driver = self._driver
        there = driver.stat(key)
        driver.require_own_name(key)
        with sftp_errors.translated(lambda exc: sftp_errors.target_error(driver.node_id, key, exc, "replace")):
            if there is None:
                driver.tree.forget_folders()
            driver.tree.make_folder(key)
            driver.tree.replace(f"{TMP}/{move_id}", key)

    def browse(self, folder: str) -> Iterator[tuple[str, Fingerprint | None]]:
        """Scan one folder."""
        from rebalance_tasks.drivers.sftp import errors as sftp_errors  # noqa: PLC0415  an extra

        driver = self._driver
        with sftp_errors.translated(lambda exc: sftp_errors.node_error(driver.node_id, exc, f"look into {folder!a}")):
            found = driver.tree.entries(folder)
        for name, one in found:
            if one.kind is Kind.FOLDER:
                yield name, None
            elif one.is_file:
                yield name, one.fingerprint


@cache
def _sftp_driver() -> type[SftpDriver] | None:
    try:
        from rebalance_tasks.drivers.sftp.driver import SftpDriver  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        return None
    return SftpDriver


def door_of(driver: Driver) -> Door:
    """Return the way into a driver's node."""
    if isinstance(driver, LocalDriver):
        return LocalDoor(driver)
    if isinstance(driver, ObjectStoreDriver):
        return StoreDoor(driver)
    sftp = _sftp_driver()
    return SftpDoor(driver) if sftp is not None and isinstance(driver, sftp) else PlainDoor(driver)
