"""The steps of many small files as machine code (extra ``fast``): the system calls of `drivers.local.burst`, without Python between.

numba compiles these functions and links them to the C library's own calls by name, so that the result can be kept on disk. They hold
no GIL and raise nothing. They take plain objects only, look at what they take as the Python burst does, and leave whatever is
not plain, or goes wrong, as they found it: whoever called them then goes the driver's own way with it.

All arrays are of the n objects of a batch; names are bytes that each end in a NUL. A *version* is a row of four int64:
size, mtime in ns, inode, device, the last two with the bits of the unsigned numbers that they are.

Source: statx(2), for the layout of its answer, which is the same on every architecture.
"""
# ruff: noqa: PLR0913, PLR0917  a kernel is given its arrays one by one

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import types

from rebalance_tasks.core.placement.compiled import Kernel, inlined
from rebalance_tasks.drivers.local.entries import (
    NAMELESS_FLAGS,
    PRIVATE_MODE,
    QUIET_CREATE_FLAGS,
    QUIET_FLAGS,
    READ_FLAGS,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Int32s = npt.NDArray[np.int32]
    Int64s = npt.NDArray[np.int64]
    Bytes = npt.NDArray[np.uint8]

_NEEDED: Final = (
    "openat",
    "statx",
    "pread",
    "pwrite",
    "fchmod",
    "futimens",
    "flistxattr",
    "renameat2",
    "linkat",
    "unlinkat",
    "close",
)
if sys.platform != "linux" or sys.byteorder != "little":
    msg = "the compiled burst reads statx's answer as little-endian words, and is for Linux"
    raise ImportError(msg)
if missing := [name for name in _NEEDED if not hasattr(ctypes.CDLL(None), name)]:
    msg = f"the C library has no {', '.join(missing)}"
    raise ImportError(msg)

_external: Final[Any] = types.ExternalFunction
_INT: Final[Any] = types.int32
_LONG: Final[Any] = types.int64
_UINT: Final[Any] = types.uint32
_POINTER: Final[Any] = types.intp

_openat: Final = _external("openat", _INT(_INT, _POINTER, _INT, _UINT))
_statx: Final = _external("statx", _INT(_INT, _POINTER, _INT, _UINT, _POINTER))
_pread: Final = _external("pread", _LONG(_INT, _POINTER, _LONG, _LONG))
_pwrite: Final = _external("pwrite", _LONG(_INT, _POINTER, _LONG, _LONG))
_fchmod: Final = _external("fchmod", _INT(_INT, _UINT))
_futimens: Final = _external("futimens", _INT(_INT, _POINTER))
_flistxattr: Final = _external("flistxattr", _LONG(_INT, _POINTER, _LONG))
_renameat2: Final = _external("renameat2", _INT(_INT, _POINTER, _INT, _POINTER, _UINT))
_linkat: Final = _external("linkat", _INT(_INT, _POINTER, _INT, _POINTER, _INT))
_unlinkat: Final = _external("unlinkat", _INT(_INT, _POINTER, _INT))
_close: Final = _external("close", _INT(_INT))

_READ: Final = np.int32(READ_FLAGS)
_QUIET: Final = np.int32(QUIET_FLAGS)
_CREATE: Final = np.int32(QUIET_CREATE_FLAGS)
_NAMELESS: Final = np.int32(NAMELESS_FLAGS)
_PRIVATE: Final = np.uint32(PRIVATE_MODE)
_NO_MODE: Final = np.uint32(0)
_NO_FOLLOW: Final = np.int32(0x100)
#: Follow nothing, and look at the descriptor itself where the name is empty.
_ITSELF: Final = np.int32(0x1100)
#: statx's STATX_BASIC_STATS.
_BASIC: Final = np.uint32(0x7FF)
_NO_REPLACE: Final = np.uint32(1)
#: linkat's AT_EMPTY_PATH: the descriptor itself (Linux 6.10, before it with CAP_DAC_READ_SEARCH alone).
_EMPTY_PATH: Final = np.int32(0x1000)
#: linkat's AT_SYMLINK_FOLLOW: the descriptor's name in /proc is a link to its file.
_FOLLOW: Final = np.int32(0x400)
_NOWHERE: Final = np.int32(-1)  # as folder of an absolute path
_REGULAR: Final = 0o100000
_KIND_BITS: Final = 0o170000
_MODE_BITS: Final = 0o7777
_SECOND_NS: Final = 1_000_000_000
_BLOCK_BYTES: Final = 512
_HALF: Final = 0xFFFFFFFF
_ZERO: Final = 48  # of ASCII
#: Words of statx's answer: links and uid, gid and mode, inode, size, blocks, times of access and change, device.
_LINKS, _OWNER, _INODE, _SIZE, _BLOCKS, _ACCESSED, _MODIFIED, _DEVICE = 2, 3, 4, 5, 6, 8, 14, 17
STAT_WORDS: Final = 32
#: Where `text` begins: an empty name, then that of the working folder in itself, then where a descriptor's name in /proc is written.
HERE_AT: Final = 1
_DESCRIPTORS: Final = b"/proc/self/fd/"
_DESCRIPTOR_AT: Final = 3
_DIGITS: Final = 10
#: What the names of a batch begin with.
HEAD: Final = "\0.\0" + _DESCRIPTORS.decode() + "\0" * (_DIGITS + 1)
_DIGITS_AT: Final = _DESCRIPTOR_AT + len(_DESCRIPTORS)
#: Words that the kernels work in: statx's answer, and two times.
ROOM: Final = STAT_WORDS + 4
#: How far an object is. Between READ and VERIFIED lies the comparison of its bytes, between PUBLISHED and FLIPPED the commit. MOVED: it is
#: in the trash as another version than was copied. LEFT: it is no row any more, somebody else sees to it.
WAITING, COPIED, READ, VERIFIED, PUBLISHED, FLIPPED, FREED, MOVED, LEFT = range(9)


@inlined
def _is_regular(status: Int64s) -> bool:
    return bool(((status[_OWNER] >> 32) & _KIND_BITS) == _REGULAR)


@inlined
def _device(status: Int64s) -> int:
    """As `os.makedev`."""
    major, minor = status[_DEVICE] & _HALF, (status[_DEVICE] >> 32) & _HALF
    return int(((major & 0xFFFFF000) << 32) | ((major & 0xFFF) << 8) | ((minor & 0xFFFFFF00) << 12) | (minor & 0xFF))


@inlined
def _mtime_ns(status: Int64s) -> int:
    return int(status[_MODIFIED] * _SECOND_NS + (status[_MODIFIED + 1] & _HALF))


@inlined
def _keep(status: Int64s, version: Int64s) -> None:
    version[0], version[1] = status[_SIZE], _mtime_ns(status)
    version[2], version[3] = status[_INODE], _device(status)


@inlined
def _is_version(status: Int64s, version: Int64s) -> bool:
    return bool(
        status[_INODE] == version[2]
        and _mtime_ns(status) == version[1]
        and status[_SIZE] == version[0]
        and _device(status) == version[3]
        and _is_regular(status)
    )


@inlined
def _looks(folder: int, name: int, status: Int64s) -> bool:
    return bool(_statx(np.int32(folder), name, _NO_FOLLOW, _BASIC, status.ctypes.data) == 0)


@inlined
def _fill(fd: int, source: int, size: int, data: int, status: Int64s, times: Int64s) -> bool:
    """Give a copy its bytes, mode and times; False if anything fell short, or there is more to be carried over."""
    if _pwrite(np.int32(fd), data, size, 0) != size or _flistxattr(source, 0, 0) > 0:
        return False
    if _fchmod(fd, np.uint32((status[_OWNER] >> 32) & _MODE_BITS)) != 0:
        return False
    times[0], times[1] = status[_ACCESSED], status[_ACCESSED + 1] & _HALF
    times[2], times[3] = status[_MODIFIED], status[_MODIFIED + 1] & _HALF
    return bool(_futimens(fd, times.ctypes.data) == 0)


@inlined
def _create(tmp: int, move: int, here: int, nameless: Bytes, row: int) -> int:
    """Make a copy's file, without a name where that is wanted and can be."""
    if nameless[row]:
        fd = _openat(np.int32(tmp), here, _NAMELESS, _PRIVATE)
        if fd >= 0:
            return int(fd)  # of the same type as below, for the compiler
        nameless[row] = 0
    return int(_openat(np.int32(tmp), move, _CREATE, _PRIVATE))


@inlined
def _link(fd: int, folder: int, name: int, names: Bytes) -> bool:
    """Give a file without a name its first one, unless something has it: by the descriptor, or where that is not allowed through /proc."""
    if _linkat(np.int32(fd), names.ctypes.data, np.int32(folder), name, _EMPTY_PATH) == 0:
        return True
    length, rest = 1, fd // 10
    while rest > 0:
        length, rest = length + 1, rest // 10
    rest = fd
    for digit in range(length):
        names[_DIGITS_AT + length - 1 - digit] = np.uint8(_ZERO + rest % 10)
        rest //= 10
    names[_DIGITS_AT + length] = np.uint8(0)
    return bool(_linkat(_NOWHERE, names.ctypes.data + _DESCRIPTOR_AT, np.int32(folder), name, _FOLLOW) == 0)


def _copy_some(
    first: int,
    last: int,
    steps: Bytes,
    folders: Int32s,
    tmp: int,
    names: Bytes,
    places: Int64s,
    sizes: Int64s,
    owner: Int64s,
    room: Int64s,
    data: Bytes,
    versions: Int64s,
    fds: Int32s,
    nameless: Bytes,
) -> None:
    status, times, at = room[:STAT_WORDS], room[STAT_WORDS:], 0
    for i in range(first, last):
        size, folder, data_at = sizes[i], folders[i, 0], data.ctypes.data + at
        at += size
        name, move, empty = (names.ctypes.data + places[i, 0], names.ctypes.data + places[i, 1], names.ctypes.data)
        # Looked at before it is opened: opening a device can act on it.
        if steps[i] != WAITING or folder < 0 or not _looks(folder, name, status) or not _is_regular(status):
            continue
        source = _openat(folder, name, _QUIET, _NO_MODE)
        if source < 0:
            # As `local_entries.open_quietly`.
            source = _openat(folder, name, _READ, _NO_MODE)
        if source < 0:
            continue
        if (
            _statx(source, empty, _ITSELF, _BASIC, status.ctypes.data) == 0
            and _is_regular(status)
            and status[_SIZE] == size
            and (status[_LINKS] & _HALF) == 1
            and status[_BLOCKS] * _BLOCK_BYTES >= size
            and ((status[_LINKS] >> 32) & _HALF) == owner[0]
            and (status[_OWNER] & _HALF) == owner[1]
            and _pread(source, data_at, size, 0) == size
        ):
            fd = _create(tmp, move, names.ctypes.data + HERE_AT, nameless, i)
            if fd >= 0:
                if _fill(fd, source, size, data_at, status, times):
                    _keep(status, versions[i])
                    fds[i], steps[i] = fd, COPIED
                else:
                    _close(np.int32(fd))
                    if not nameless[i]:
                        _unlinkat(np.int32(tmp), move, np.int32(0))
        _close(source)


def _read_some(
    first: int,
    last: int,
    steps: Bytes,
    tmp: int,
    names: Bytes,
    places: Int64s,
    sizes: Int64s,
    room: Int64s,
    data: Bytes,
    versions: Int64s,
    fds: Int32s,
    nameless: Bytes,
) -> None:
    status, at = room[:STAT_WORDS], 0
    for i in range(first, last):
        data_at, size = data.ctypes.data + at, sizes[i]
        at += size
        if steps[i] != COPIED:
            continue
        fd = fds[i]
        if fd < 0:
            fd = _openat(np.int32(tmp), names.ctypes.data + places[i, 1], _QUIET, _NO_MODE)
        if fd < 0:
            continue
        if (
            _pread(fd, data_at, size, 0) == size
            and _statx(fd, names.ctypes.data, _ITSELF, _BASIC, status.ctypes.data) == 0
            and status[_SIZE] == size
        ):
            _keep(status, versions[i])
            steps[i] = READ
        if not nameless[i]:
            _close(fd)
            fds[i] = -1


def _publish_some(
    first: int,
    last: int,
    steps: Bytes,
    folders: Int32s,
    tmp: int,
    names: Bytes,
    places: Int64s,
    sources: Int64s,
    copies: Int64s,
    room: Int64s,
    fds: Int32s,
    nameless: Bytes,
) -> None:
    status = room[:STAT_WORDS]
    for i in range(first, last):
        name, move = names.ctypes.data + places[i, 0], names.ctypes.data + places[i, 1]
        if (
            steps[i] != VERIFIED
            or folders[i, 0] < 0
            or folders[i, 1] < 0
            or not _looks(folders[i, 0], name, status)
            or not _is_version(status, sources[i])
        ):
            continue
        if nameless[i]:
            if (
                _statx(fds[i], names.ctypes.data, _ITSELF, _BASIC, status.ctypes.data) == 0
                and _is_version(status, copies[i])
                and _link(fds[i], folders[i, 1], name, names)
            ):
                _close(fds[i])
                fds[i], steps[i] = -1, PUBLISHED
        elif (
            _looks(tmp, move, status)
            and _is_version(status, copies[i])
            and _renameat2(np.int32(tmp), move, folders[i, 1], name, _NO_REPLACE) == 0
        ):
            steps[i] = PUBLISHED


def _free_some(
    first: int,
    last: int,
    steps: Bytes,
    folders: Int32s,
    trash: int,
    names: Bytes,
    places: Int64s,
    versions: Int64s,
    room: Int64s,
) -> None:
    status = room[:STAT_WORDS]
    for i in range(first, last):
        name, move, folder = names.ctypes.data + places[i, 0], names.ctypes.data + places[i, 1], folders[i, 0]
        if (
            steps[i] == FLIPPED
            and folder >= 0
            and _looks(folder, name, status)
            and _is_version(status, versions[i])
            and _renameat2(folder, name, np.int32(trash), move, _NO_REPLACE) == 0
        ):
            freed = _looks(trash, move, status) and _is_version(status, versions[i])
            steps[i] = FREED if freed else MOVED


#: Copy aside those that wait. Arguments, as of all of them: the rows to go through; how far each is, uint8 (n,), in and out; folders of
#: source and target int32 (n, 2), −1: not held; the working folder; names, which begin with `HEAD`; where name and move id of each
#: begin int64 (n, 2); then sizes int64 (n,); uid and gid that a plain object has int64 (2,); room for the kernel's own use int64
#: (`ROOM`,); out: bytes of the rows, one after the other, uint8; versions of the sources int64 (n, 4); descriptors of the copies int32 (n,). In and
#: out: whether a copy is to have, and has, no name, uint8 (n,).
copy_some: Final = Kernel(_copy_some)
#: Read back those that are copied, and close those that have a name; −1 as descriptor: it is opened. Out: bytes, versions of the copies.
read_some: Final = Kernel(_read_some)
#: Give those that are verified their keys, each if its source and its copy are still those versions.
publish_some: Final = Kernel(_publish_some)
#: Move the sources of those that are flipped into the trash, each if it is still that version, and look again there.
free_some: Final = Kernel(_free_some)
