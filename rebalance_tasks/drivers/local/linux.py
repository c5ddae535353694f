"""System calls that Python lacks, each with a portable stand-in; no policy lives here.

`Syscalls` bundles the calls the local driver stands on, so that its conformance suite runs over both the Linux set and the
portable one. Linux gives, through ctypes:

* ``openat2`` with ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV`` (5.6): one call opens a whole path confined
  to a root, whatever is renamed or linked meanwhile. Stand-in: walk the components with ``O_NOFOLLOW``.
* ``renameat2`` with ``RENAME_NOREPLACE`` (3.15). Stand-in: link, then unlink the old name.
* ``syncfs``: one call for a whole batch. Stand-in: fsync each file and folder.
* ``statx`` (its word on direct I/O: 6.1) and ``fallocate`` that keeps the file's length. Stand-in: the page cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: What opens a folder only to act below it: O_PATH needs no read permission and costs least.
DIR_PATH_FLAGS: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What opens a folder to list or to sync it.
DIR_READ_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# openat2(2) came after the tables were unified: one number on every architecture that Python runs on but alpha.
_SYS_OPENAT2: Final = 437
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_RENAME_NOREPLACE: Final = 1
_STATX_DIOALIGN: Final = 0x2000
_AT_EMPTY_PATH: Final = 0x1000
_FALLOC_FL_KEEP_SIZE: Final = 1
#: What file systems and older kernels answer to a flag they do not know.
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

#: Direct I/O goes in units of this: what no disk in use exceeds, and a page of memory nowhere falls short of.
BLOCK_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Syscalls:
    """The calls that differ between systems. All raise `OSError`.

    Attributes:
        open_beneath: ``(root_fd, relative_path, flags) -> fd``; crosses no symbolic link (ELOOP or ENOTDIR) and no file system
            (EXDEV); ``"."`` is the root itself.
        rename_noreplace: ``(source, target, source_dir_fd, target_dir_fd)``; FileExistsError when the target is there.
        rename_aside: the same for a source name that strangers write to; may overwrite a name of ours where the file system
            knows no RENAME_NOREPLACE.
        syncfs: ``(fd)`` flushes fd's whole file system and reports write errors since fd was opened; None: fsync instead.
        direct: ``(fd)`` tells whether whole blocks (`BLOCK_BYTES`) of a file may be read and written around the page cache.
        preallocate: ``(fd, size_bytes)`` takes the room for a file of that size, whose length stays; ENOSPC when there is none.
    """

    open_beneath: Callable[[int, str, int], int]
    rename_noreplace: Callable[[str, str, int, int], None]
    rename_aside: Callable[[str, str, int, int], None]
    syncfs: Callable[[int], None] | None
    direct: Callable[[int], bool]
    preallocate: Callable[[int, int], None]


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Statx(ctypes.Structure):
    """``struct statx``: only what is asked for here has a name."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("_before", ctypes.c_uint8 * 148),
        ("memory_align", ctypes.c_uint32),
        ("offset_align", ctypes.c_uint32),
        ("_after", ctypes.c_uint8 * 96),
    )


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        # With the types at hand ctypes takes half the time for a call.
        libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return libc


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _failed(path: str) -> OSError:
    return _error(ctypes.get_errno(), path)


@cache
def _how(flags: int) -> _OpenHow:
    return _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV)


def _openat2(root_fd: int, path: str, flags: int) -> int:
    how = _how(flags)
    syscall = _libc().syscall
    while True:
        fd: int = syscall(_SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        # EAGAIN: a rename raced with the walk; the kernel asks to try again.
        if ctypes.get_errno() not in {errno.EAGAIN, errno.EINTR}:
            raise _failed(path)


def walk_beneath(root_fd: int, path: str, flags: int) -> int:
    """Open a folder component by component, following nothing; the stand-in for openat2."""
    device = os.fstat(root_fd).st_dev
    fd = os.open(".", flags if path == "." else DIR_PATH_FLAGS, dir_fd=root_fd)
    if path == ".":
        return fd
    components = path.split("/")
    try:
        for depth, component in enumerate(components, start=1):
            last = depth == len(components)
            child = os.open(component, flags if last else DIR_PATH_FLAGS, dir_fd=fd)
            fd, parent = child, fd
            os.close(parent)
            if os.fstat(fd).st_dev != device:
                raise _error(errno.EXDEV, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _try_renameat2(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> bool:
    """Rename without overwriting; False where the file system does not know how (NFS, some FUSE ones)."""
    arguments = (source_dir_fd, os.fsencode(source), target_dir_fd, os.fsencode(target), _RENAME_NOREPLACE)
    if _libc().renameat2(*arguments) == 0:
        return True
    if ctypes.get_errno() in _UNSUPPORTED:
        return False
    raise _failed(target)


def _rename_noreplace(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> None:
    if not _try_renameat2(source, target, source_dir_fd, target_dir_fd):
        link_then_unlink(source, target, source_dir_fd, target_dir_fd)


def _rename_aside(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> None:
    if not _try_renameat2(source, target, source_dir_fd, target_dir_fd):
        plain_rename(source, target, source_dir_fd, target_dir_fd)


def plain_rename(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> None:
    """Rename in one step, whatever is at the target."""
    os.rename(source, target, src_dir_fd=source_dir_fd, dst_dir_fd=target_dir_fd)


def link_then_unlink(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> None:
    """Rename without overwriting by a second link; the stand-in for RENAME_NOREPLACE.

    Only for a ``source`` name that nobody else writes to (our own temp and trash names): between the two steps the old
    name could otherwise be replaced, and the unlink would remove the stranger.
    """
    os.link(source, target, src_dir_fd=source_dir_fd, dst_dir_fd=target_dir_fd, follow_symlinks=False)
    os.unlink(source, dir_fd=source_dir_fd)


def _syncfs(fd: int) -> None:
    if _libc().syncfs(fd) == 0:
        return
    if ctypes.get_errno() not in _UNSUPPORTED:
        raise _failed(str(fd))
    os.sync()  # on Linux it waits; it only cannot tell of errors


def _direct(fd: int) -> bool:
    # Memory file systems take O_DIRECT and copy through the cache all the same; of statx's word they know nothing.
    status = _Statx()
    if _libc().statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, ctypes.byref(status)) != 0:
        return False
    aligns = (status.memory_align, status.offset_align)
    return bool(status.mask & _STATX_DIOALIGN) and all(align and BLOCK_BYTES % align == 0 for align in aligns)


def _preallocate(fd: int, size_bytes: int) -> None:
    while _libc().fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return
        if number != errno.EINTR:
            raise _failed(str(fd))


def fsync(fd: int) -> None:
    """Fsync that reaches the platter also on macOS, where plain fsync stops at the drive's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # network file systems refuse it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def fdatasync(fd: int) -> None:
    """Make a file's bytes and length durable."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        fsync(fd)


#: What works on every POSIX system.
PORTABLE: Final = Syscalls(
    open_beneath=walk_beneath,
    rename_noreplace=link_then_unlink,
    rename_aside=plain_rename,
    syncfs=None,
    direct=lambda _: False,
    preallocate=lambda _fd, _size_bytes: None,
)


@cache
def native() -> Syscalls:
    """Return the best set this kernel (and its seccomp filter) allows, probed once."""
    if sys.platform != "linux":
        return PORTABLE
    libc = _libc()
    root_fd = os.open("/", DIR_PATH_FLAGS)
    try:
        os.close(_openat2(root_fd, ".", DIR_PATH_FLAGS))
        beneath: Callable[[int, str, int], int] = _openat2
    except OSError:  # before 5.6, or a container that filters it (EPERM)
        beneath = walk_beneath
    finally:
        os.close(root_fd)
    exclusive = hasattr(libc, "renameat2")
    direct = hasattr(libc, "statx") and hasattr(libc, "fallocate") and hasattr(os, "O_DIRECT")
    return Syscalls(
        open_beneath=beneath,
        rename_noreplace=_rename_noreplace if exclusive else link_then_unlink,
        rename_aside=_rename_aside if exclusive else plain_rename,
        syncfs=_syncfs if hasattr(libc, "syncfs") else None,
        direct=_direct if direct else PORTABLE.direct,
        preallocate=_preallocate if direct else PORTABLE.preallocate,
    )
