"""Reads and writes that go around the page cache, for copies that must be on the disk anyway.

A large copy gains nothing from the page cache: it is synced at once, and read back once, to see what the disk holds. Filling the
cache with it costs more than the disk itself (docs/adr/0031), pushes out the pages that readers need, and lets a read-back
compare memory with memory. So such a copy is written and read back with ``O_DIRECT``, in whole blocks at aligned offsets from
aligned memory; what is not aligned goes through the cache, which the kernel keeps coherent.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from contextlib import suppress
from typing import Final

import numpy as np

from rebalance_tasks.drivers.local.linux import BLOCK_BYTES

#: Smaller copies are as fast through the cache, where many of them are written out together.
DIRECT_FROM_BYTES: Final = 1 << 20
#: The smallest huge page of x86-64 and of most ARM systems; elsewhere it is only alignment.
HUGE_BYTES: Final = 2 << 20
#: madvise(2), Linux 4.14; Python has no name for it.
_MADV_WIPEONFORK: Final = 18


def aligned_buffer(size_bytes: int) -> memoryview:
    """Return zeroed memory that direct reads and writes may use.

    A large one is a huge page where the system has one to give: in pages of 4 KiB a MiB is more pieces than many disks take in one
    request. A child that forks finds it zeroed and its own: the kernel could otherwise read into the page of the wrong process,
    against which open(2) warns.
    """
    align = HUGE_BYTES if size_bytes >= DIRECT_FROM_BYTES else BLOCK_BYTES
    memory = mmap.mmap(-1, size_bytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        # Advice: a kernel that does not know one goes without (and has no direct I/O that `Syscalls.direct` believes in).
        for advice in (_MADV_WIPEONFORK, mmap.MADV_HUGEPAGE):
            with suppress(OSError):
                memory.madvise(advice)
    begin = -_address(memoryview(memory)) % align
    return memoryview(memory)[begin : begin + size_bytes]


def _address(data: memoryview) -> int:
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


class Around:
    """An open file whose whole, aligned blocks go around the page cache; everything else goes through it. Raises: OSError."""

    __slots__ = ("_able", "_block", "_fd", "_on")

    def __init__(self, fd: int) -> None:
        """Use ``fd``, of which `Syscalls.direct` said that it can."""
        self._fd = fd
        self._able = True
        self._on = False
        self._block: memoryview | None = None

    def write(self, data: memoryview, offset: int) -> int:
        """Write as `os.pwrite` does, perhaps only the whole blocks of ``data``."""
        whole = self._blocks(data, offset)
        if whole:
            try:
                return os.pwrite(self._fd, data[:whole], offset)
            except OSError as exc:
                self._give_up(exc)
        return os.pwrite(self._fd, data, offset)

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read as `os.preadv` does, perhaps only the whole blocks of ``buffer``; the last bytes of a file come as a block, too."""
        whole = self._blocks(buffer, offset)
        try:
            if whole:
                return os.preadv(self._fd, [buffer[:whole]], offset)
            if offset % BLOCK_BYTES == 0 and len(buffer) < BLOCK_BYTES and self._switch(on=True):
                return self._read_block(buffer, offset)
        except OSError as exc:
            self._give_up(exc)
        return os.preadv(self._fd, [buffer], offset)

    def _read_block(self, buffer: memoryview, offset: int) -> int:
        if self._block is None:
            self._block = aligned_buffer(BLOCK_BYTES)
        count = min(os.preadv(self._fd, [self._block], offset), len(buffer))
        buffer[:count] = self._block[:count]
        return count

    def _blocks(self, data: memoryview, offset: int) -> int:
        """Bytes at the head of ``data`` that can go around the cache, which the file is then switched to."""
        whole = 0 if (offset | _address(data)) % BLOCK_BYTES else len(data) - len(data) % BLOCK_BYTES
        return whole if self._switch(on=whole > 0) else 0

    def _switch(self, *, on: bool) -> bool:
        """Have the next call go around the cache or not; tell whether it will."""
        wanted = on and self._able
        if wanted != self._on:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
            self._on = wanted
        return self._on

    def _give_up(self, exc: OSError) -> None:
        """Stay with the cache from now on, if that is what the file system wants. Raises: OSError."""
        if not self._on or exc.errno != errno.EINVAL:
            raise exc
        self._able = False
        self._switch(on=False)
