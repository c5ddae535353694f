"""Large copies go around the page cache where a disk allows it; what is there afterwards is the same either way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.errors import ChecksumMismatch, NodeFull
from rebalance_tasks.drivers.local import files as local_files
from rebalance_tasks.drivers.local.direct import HUGE_BYTES, Around, aligned_buffer
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.entries import source_from
from rebalance_tasks.drivers.local.linux import BLOCK_BYTES, PORTABLE, Syscalls, native
from rebalance_tasks.migration import copying
from rebalance_tasks.migration.control import SliceControl, SliceInterrupted
from rebalance_tasks.migration.copying import Copier
from tests.unit.drivers.conformance import M1

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebalance_tasks.migration.copying import StagedCopy

KEY = "a/large"
#: Large enough to go around the cache, with a tail that is no whole block.
DATA = bytes(range(256)) * (3 << 12) + b"tail"


def around_the_cache(folder: Path) -> bool:
    """Whether files in this folder can be read and written around the page cache."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return native().direct(file.fileno())


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if not around_the_cache(tmp_path):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("temporary files lie on no disk with direct I/O")
    return tmp_path


def nodes(folder: Path, calls: Syscalls | None = None, data: bytes = DATA) -> tuple[LocalDriver, LocalDriver]:
    """Two adopted nodes, the first of which holds the object."""
    made = []
    for name in ("a", "b"):
        (folder / name).mkdir()
        made.append(LocalDriver(name, str(folder / name), calls=calls))
        made[-1].adopt()
    (folder / "a" / KEY).parent.mkdir()
    (folder / "a" / KEY).write_bytes(data)
    return made[0], made[1]


def stage(
    pair: tuple[LocalDriver, LocalDriver],
    *,
    copier: Copier | None = None,
    size_bytes: int = len(DATA),
    resume: StagedCopy | None = None,
    progress: Callable[[StagedCopy], None] = lambda _: None,
) -> StagedCopy:
    copier = copier or Copier(SliceControl(lambda: "ok", bucket=None))
    return copier.stage(*pair, KEY, M1, size_bytes=size_bytes, resume=resume, progress=progress)


def verify(pair: tuple[LocalDriver, LocalDriver], copy: StagedCopy) -> None:
    Copier(SliceControl(lambda: "ok", bucket=None)).verify(pair[1], KEY, M1, copy)


def staged(folder: Path) -> Path:
    return folder / "b/.rebalance/tmp" / M1


def cached(path: Path, offset: int = 0) -> bool:
    """Whether the page cache holds the block at an offset."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.preadv(fd, [bytearray(BLOCK_BYTES)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


# -- what it is for ---------------------------------------------------------------------------------------------------
def test_a_large_copy_and_its_reading_back_leave_the_page_cache_to_readers(disk: Path) -> None:
    pair = nodes(disk)
    copy = stage(pair)
    pair[1].sync()
    verify(pair, copy)
    assert not cached(staged(disk)), "what was compared came from the disk"
    assert staged(disk).read_bytes() == DATA


def test_a_small_copy_goes_through_the_page_cache_where_many_are_written_out_together(disk: Path) -> None:
    pair = nodes(disk, data=b"x" * 100_000)
    verify(pair, stage(pair, size_bytes=100_000))
    assert cached(staged(disk))


def test_a_byte_that_flips_at_rest_is_found_wherever_it_is(disk: Path) -> None:
    pair = nodes(disk)
    copy = stage(pair)
    for place in (0, len(DATA) // 2, len(DATA) - 1):
        with staged(disk).open("r+b") as file:
            file.seek(place)
            file.write(bytes([DATA[place] ^ 1]))
            file.flush()
            with pytest.raises(ChecksumMismatch):
                verify(pair, copy)
            file.seek(place)
            file.write(DATA[place : place + 1])
        copy.verified = 0
    verify(pair, copy)


def test_no_room_for_a_large_copy_shows_before_its_first_byte_and_leaves_a_copy_that_can_be_discarded(
    disk: Path,
) -> None:
    def full(_fd: int, _size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pair = nodes(disk, replace(native(), preallocate=full))
    copier = Copier(SliceControl(lambda: "ok", bucket=None))
    with pytest.raises(NodeFull, match=r"'b'.*make room for a copy: No space left.*free space"):
        stage(pair, copier=copier)
    assert copier.copied_bytes == 0
    assert staged(disk).stat().st_size == 0
    pair[1].discard(M1)
    assert pair[1].staged(M1) is None


def test_room_is_taken_for_the_whole_copy_whose_length_is_what_was_written(disk: Path) -> None:
    pair = nodes(disk)
    writer = pair[1].stage(M1)
    with pair[0].open_source(KEY) as source:
        writer.expect(len(DATA), KEY, source)
    writer.write(aligned_buffer(BLOCK_BYTES))
    found = staged(disk).stat()
    assert found.st_size == BLOCK_BYTES
    assert found.st_blocks * 512 >= len(DATA)
    writer.close()


# -- what must stay as it was -----------------------------------------------------------------------------------------
def test_an_interrupted_copy_goes_on_where_it_stopped_and_is_whole(disk: Path) -> None:
    pair = nodes(disk)
    seen: list[StagedCopy] = []
    flags = iter(["ok", "paused"])
    hasty = Copier(SliceControl(lambda: next(flags, "ok"), bucket=None, look_at_once=True, clock=Ticking()))
    with pytest.raises(SliceInterrupted):
        stage(pair, copier=hasty, progress=seen.append)
    assert 0 < seen[-1].staged_bytes < len(DATA)
    assert staged(disk).stat().st_size == seen[-1].staged_bytes
    copy = stage(pair, resume=seen[-1])
    verify(pair, copy)
    assert staged(disk).read_bytes() == DATA
    pair[1].publish(M1, KEY)
    assert (disk / "b" / KEY).stat().st_mtime_ns == (disk / "a" / KEY).stat().st_mtime_ns


def test_a_sparse_copy_keeps_its_holes(disk: Path) -> None:
    pair = nodes(disk)
    path = disk / "a" / KEY
    with path.open("wb") as file:
        file.seek(1 << 23)
        file.write(b"end")
    verify(pair, stage(pair, size_bytes=path.stat().st_size))
    assert staged(disk).read_bytes() == path.read_bytes()
    assert staged(disk).stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("rate", [1_000_000, 3_333_333, 30_000])
def test_under_any_throttle_all_but_the_last_bytes_are_whole_blocks(tmp_path: Path, rate: int) -> None:
    pair = nodes(tmp_path)
    written: list[tuple[int, int]] = []
    original = local_files.LocalWriter.write

    def write(self: Any, data: memoryview) -> None:
        written.append((self._position, len(data)))
        original(self, data)

    control = SliceControl(lambda: "ok", bucket=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceControl, "chunk_bytes", property(lambda _: rate // 10))
        patch.setattr(local_files.LocalWriter, "write", write)
        stage(pair, copier=Copier(control))
    aligned = [offset % BLOCK_BYTES == 0 for offset, _ in written]
    assert all(aligned) or rate // 10 < BLOCK_BYTES
    assert max(size for _, size in written) <= rate // 10
    assert staged(tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("moment", ["write", "read"])
def test_a_file_system_that_refuses_direct_calls_after_all_gets_them_through_the_cache(
    disk: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    refused: list[int] = []

    def refusing(original: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, data: Any, offset: int) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                refused.append(offset)
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return original(fd, data, offset)

        return call

    name = "pwrite" if moment == "write" else "preadv"
    monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    pair = nodes(disk)
    copy = stage(pair)
    verify(pair, copy)
    assert refused == [0], "it was tried once"
    assert staged(disk).read_bytes() == DATA


def test_memory_and_the_portable_calls_know_nothing_to_go_around() -> None:
    memory = Path("/dev/shm")  # noqa: S108  the file has no name
    if not memory.is_dir():
        pytest.skip("there is no memory file system here")
    assert not around_the_cache(memory)
    with tempfile.TemporaryFile() as file:
        assert not PORTABLE.direct(file.fileno())
        PORTABLE.preallocate(file.fileno(), 1 << 20)
        assert os.fstat(file.fileno()).st_blocks == 0


def test_a_thread_keeps_its_buffer_and_shares_it_with_no_other() -> None:
    mine = copying._buffer()
    assert copying._buffer() is mine
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(copying._buffer).result() is not mine


@given(size_bytes=st.integers(1, 3 << 20))
def test_a_buffer_has_its_size_and_begins_where_a_block_does_and_a_large_one_where_a_huge_page_does(
    size_bytes: int,
) -> None:
    buffer = aligned_buffer(size_bytes)
    address: int = np.frombuffer(buffer, np.uint8).ctypes.data
    assert len(buffer) == size_bytes
    assert address % (HUGE_BYTES if size_bytes >= 1 << 20 else BLOCK_BYTES) == 0
    assert not any(buffer[:: max(1, size_bytes // 100)])


#: Both sides write what the other one must not see.
FORK = """
import os
from rebalance_tasks.drivers.local.direct import aligned_buffer
buffer = aligned_buffer(1 << 20)
buffer[:] = b"p" * len(buffer)
child = os.fork()
if child == 0:
    found = bytes(buffer)
    buffer[:] = b"c" * len(buffer)
    os._exit(found != bytes(len(found)))
failed = os.waitpid(child, 0)[1]
raise SystemExit(failed or bytes(buffer) != b"p" * len(buffer))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing goes around the page cache")
def test_a_child_that_forks_finds_the_buffer_empty_and_its_own() -> None:
    assert subprocess.run([sys.executable, "-c", FORK], check=False).returncode == 0


class Ticking:
    """A clock on which each look is a look at the flags."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.06
        return self.now


# -- any sequence of calls --------------------------------------------------------------------------------------------
SIZES = st.integers(1, 3 * BLOCK_BYTES) | st.sampled_from([BLOCK_BYTES, 2 * BLOCK_BYTES])


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    fd, name = tempfile.mkstemp(dir=folder)
    try:
        yield fd
    finally:
        with suppress(OSError):
            os.close(fd)
        Path(name).unlink()


@given(
    lengths=st.lists(SIZES, max_size=8),
    shift=st.sampled_from([0, 0, 8, 513]),
    reads=st.lists(SIZES, min_size=1, max_size=4),
    seek=st.integers(0, 9 * BLOCK_BYTES),
)
def test_any_writes_and_reads_around_the_cache_give_what_those_through_it_would(
    lengths: list[int], shift: int, reads: list[int], seek: int
) -> None:
    folder = Path(tempfile.gettempdir())
    if not around_the_cache(folder):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("temporary files lie on no disk with direct I/O")
    data = bytes((7 * place + place // 251) % 256 for place in range(sum(lengths)))
    memory, back = aligned_buffer(1 << 17), aligned_buffer(1 << 17)
    memory[shift : shift + len(data)] = data
    with opened(folder) as fd:
        around, offset = Around(fd), 0
        for length in lengths:
            end = offset + length
            while offset < end:
                offset += around.write(memory[shift + offset : shift + end], offset)
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == data
    with opened(folder) as fd:
        os.write(fd, data)
        source = source_from(os.dup(fd), KEY)
        source._around = Around(source._fd)
        source.seek(seek)
        found, turn = b"", 0
        while count := source.readinto(back[shift : shift + reads[turn % len(reads)]]):
            found += bytes(back[shift : shift + count])
            turn += 1
        source.close()
        assert found == data[seek:]
