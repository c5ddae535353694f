"""Single names in an open folder: look, open, create, write whole. Nothing here knows of keys' paths; all raise `OSError`."""

from __future__ import annotations

import os
import stat as st_modes
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import ObjectUnreadable
from rebalance_tasks.drivers.local.direct import DIRECT_FROM_BYTES, Around
from rebalance_tasks.drivers.local.errors import is_name, source_error
from rebalance_tasks.drivers.local.files import LocalSource, fingerprint_of
from rebalance_tasks.drivers.local.linux import DIR_READ_FLAGS, fsync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.drivers.base import Fingerprint

#: NONBLOCK: opening a FIFO that took the object's place must not wait for its other end.
READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: Our own reads are no use of an object, and reading back must not undo the access time that a copy was given.
_NO_TRACE: Final[int] = getattr(os, "O_NOATIME", 0)
QUIET_FLAGS: Final = READ_FLAGS | _NO_TRACE
STAGE_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
CREATE_FLAGS: Final = STAGE_FLAGS | os.O_CREAT | os.O_EXCL
#: Of a copy that is read back through the descriptor it was written with.
QUIET_CREATE_FLAGS: Final = CREATE_FLAGS | _NO_TRACE
#: A copy without a name (Linux): it is given one when it is published, or is gone with the process that made it. 0: there is no such thing.
NAMELESS_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE | _NO_TRACE if hasattr(os, "O_TMPFILE") else 0
#: Nobody reads a copy or a manifest under it but us; a copy gets its own mode when it is whole.
PRIVATE_MODE: Final = 0o600


def open_quietly(name: str, folder: int | None) -> int:
    """Open for reading without a trace in the access time; a file of another user's shows it, since only its owner may ask for that."""
    try:
        return os.open(name, QUIET_FLAGS, dir_fd=folder)
    except PermissionError:
        return os.open(name, READ_FLAGS, dir_fd=folder)


def look(name: str, folder: int) -> os.stat_result | None:
    """Return what is at a name, links not followed, None when nothing is."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def regular(name: str, folder: int) -> Fingerprint | None:
    """Return the fingerprint of the regular file at a name, else None."""
    status = look(name, folder)
    return fingerprint_of(status) if status is not None and st_modes.S_ISREG(status.st_mode) else None


def require_object(key: str, status: os.stat_result) -> None:
    """Raise ObjectUnreadable unless this is a regular file with one name."""
    if st_modes.S_ISLNK(status.st_mode):
        raise ObjectUnreadable(key, "it is a symbolic link; links are never followed and never moved")
    if not st_modes.S_ISREG(status.st_mode):
        raise ObjectUnreadable(key, "it is not a regular file")
    if status.st_nlink > 1:
        why = f"it has {status.st_nlink} names (hard links); moving one would split them and free nothing, so it is left alone"
        raise ObjectUnreadable(key, why)


def source_from(fd: int, key: str, *, direct: bool = False) -> LocalSource:
    """Wrap an open descriptor, which is closed on failure; with ``direct`` a large file is read past the page cache.

    Raises:
        ObjectUnreadable: it is no object, or cannot be read.
    """
    try:
        status = os.fstat(fd)
        require_object(key, status)
        past = direct and status.st_size >= DIRECT_FROM_BYTES
        return LocalSource(fd, key, status, Around(fd) if past else None)
    except OSError as exc:
        os.close(fd)
        raise source_error(key, exc, "open") from exc
    except BaseException:
        os.close(fd)
        raise


def create_staged(name: str, folder: int) -> int:
    """Create a fresh, empty file; an old one is unlinked, never truncated: a publish cut off half-way may share its inode."""
    while True:
        try:
            return os.open(name, CREATE_FLAGS, PRIVATE_MODE, dir_fd=folder)
        except FileExistsError:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


def allow_writing(name: str, folder: int) -> None:
    """Take a finished copy's read-only mode off."""
    fd = os.open(name, READ_FLAGS, dir_fd=folder)
    try:
        os.fchmod(fd, PRIVATE_MODE)
    finally:
        os.close(fd)


def write_text(name: str, folder: int, text: str, *, aside: int) -> None:
    """Write a small file so that it is there whole or not at all; the caller syncs the folder.

    It is written in the folder of staged copies (``aside``): what a kill leaves there, cleanup removes.
    """
    temporary = f"writing-{os.urandom(8).hex()}"
    try:
        fd = os.open(temporary, CREATE_FLAGS, PRIVATE_MODE, dir_fd=aside)
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode("utf-8", "surrogatepass"))
            file.flush()
            fsync(fd)
        os.rename(temporary, name, src_dir_fd=aside, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=aside)
        raise


def read_text(name: str, folder: int) -> str:
    """Read what `write_text` wrote."""
    with os.fdopen(os.open(name, READ_FLAGS, dir_fd=folder), "rb") as file:
        return file.read().decode("utf-8", "replace")


def entries(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name, stat) of the regular files of a working folder that can be ours; those that vanish meanwhile are left out."""
    fd = os.open(".", DIR_READ_FLAGS, dir_fd=folder)  # a second scan of one descriptor would share its position
    try:
        with os.scandir(fd) as found:
            names = [entry.name for entry in found if is_name(entry.name)]
    finally:
        os.close(fd)
    for name in names:
        status = look(name, folder)
        if status is not None and st_modes.S_ISREG(status.st_mode):
            yield name, status
