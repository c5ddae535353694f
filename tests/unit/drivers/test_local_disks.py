"""What only a disk of its own shows: it fills up, and what it stores is not what was written. Needs root, and loop devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.errors import ChecksumMismatch, NodeFull
from rebalance_tasks.core.options import MIB
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration.control import SliceControl
from rebalance_tasks.migration.copying import Copier
from tests.unit.drivers.conformance import M1, M2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.migration.copying import StagedCopy

DISK_BYTES = 48 * MIB


@dataclass
class Disk:
    """A source, and a target on a small ext4 whose medium is a file."""

    source: LocalDriver
    target: LocalDriver
    medium: Path

    def __post_init__(self) -> None:
        self.copier = Copier(SliceControl(lambda: "ok", bucket=None))
        for node in (self.source, self.target):
            node.adopt()

    def put(self, key: str, size_bytes: int) -> bytes:
        data = os.urandom(size_bytes)
        with open(f"{self.source.root}/{key}", "wb") as file:  # noqa: PTH123  a driver's root is text
            file.write(data)
        return data

    def stage(self, key: str, size_bytes: int, move_id: MoveId = M1) -> StagedCopy:
        return self.copier.stage(
            self.source, self.target, key, move_id, size_bytes=size_bytes, resume=None, progress=lambda _: None
        )

    def spoil(self, written: bytes) -> None:
        """Flip a bit of the block with these bytes, below the file system."""
        place = self.medium.read_bytes().index(written)
        with self.medium.open("r+b") as file:
            file.seek(place)
            file.write(bytes([written[0] ^ 1]))
            os.fsync(file.fileno())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    medium, mounted, source = tmp_path / "medium", tmp_path / "mounted", tmp_path / "source"
    with medium.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(medium)], check=True)
    mounted.mkdir()
    source.mkdir()
    if subprocess.run(["mount", "-o", "loop", str(medium), str(mounted)], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file")
    made = Disk(LocalDriver("a", str(source)), LocalDriver("b", str(mounted)), medium)
    try:
        yield made
    finally:
        made.target.close()
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_disk_that_stores_something_else_is_found_out_by_reading_a_large_copy_back(disk: Disk) -> None:
    data = disk.put("large", 3 * MIB + 4000)
    copy = disk.stage("large", len(data))
    disk.target.sync()
    disk.copier.verify(disk.target, "large", M1, copy)
    for place in (0, 2 * MIB, 3 * MIB):
        disk.spoil(data[place : place + 4096])
        copy.verified = 0
        with pytest.raises(ChecksumMismatch, match="read back differs"):
            disk.copier.verify(disk.target, "large", M1, copy)
        disk.spoil(bytes([data[place] ^ 1]) + data[place + 1 : place + 4096])
        disk.copier.verify(disk.target, "large", M1, copy)


def test_a_disk_with_too_little_room_says_so_at_once_and_takes_the_next_object(disk: Disk) -> None:
    disk.put("large", DISK_BYTES)
    with pytest.raises(NodeFull, match="make room for a copy: No space left"):
        disk.stage("large", DISK_BYTES)
    assert disk.copier.copied_bytes == 0
    disk.target.discard(M1)
    free = disk.target.free_bytes()
    data = disk.put("next", free // 2)
    disk.copier.verify(disk.target, "next", M2, disk.stage("next", len(data), M2))
    disk.target.publish(M2, "next")
    with open(f"{disk.target.root}/next", "rb") as file:  # noqa: PTH123
        assert file.read() == data
