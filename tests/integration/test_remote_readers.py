"""A program on a host that has not the disks of another reads and writes them at their remote URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fsspec
import pytest

from rebalance_tasks import Rebalancer
from rebalance_tasks.core.errors import SourceChanged
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.opened import Drivers
from rebalance_tasks.drivers.sftp.driver import SftpDriver
from rebalance_tasks.settings import load_settings
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.sftp import Sftp

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(fleet_config: FleetFactory, sftp: Sftp, tmp_path: Path) -> Fleet:
    """Node b is a disk of host h2, whose SFTP server shows it to us under another path; node a is ours."""
    far = {
        "queue": "h2",
        "remote_url": f"sftp://127.0.0.1:{sftp.port}{tmp_path / 'h2' / 'b'}",
        "storage_options": sftp.options(),
    }
    made = fleet_config({"a": {"here": b"1"}, "b": NodeSpec({"o/there": b"far away"}, settings=far)})
    Rebalancer().adopt()
    (tmp_path / "h2").mkdir()
    made.roots["b"].rename(tmp_path / "h2" / "b")
    return made


def test_reads_writes_and_listings_go_to_the_remote_url(fleet: Fleet, tmp_path: Path) -> None:
    fs = fsspec.filesystem("fleet", skip_instance_cache=True)
    assert fs.cat_file("test/o/there") == b"far away"
    with fs.open("test/o/there", "rb") as file:
        assert file.read() == b"far away"
    assert sorted(fs.find("test")) == ["test/here", "test/o/there"]
    fs.pipe_file("test/o/there", b"written from here")
    assert (tmp_path / "h2" / "b" / "o" / "there").read_bytes() == b"written from here"
    fs.rm_file("test/o/there")
    assert not fs.exists("test/o/there")
    assert Rebalancer().locate("here") == "a"
    assert not fleet.roots["b"].exists(), "a disk of another host was made here"


def test_what_another_node_has_at_the_path_here_is_not_taken_for_it(fleet: Fleet, tmp_path: Path) -> None:
    fleet.roots["b"].symlink_to(fleet.roots["a"])
    assert Rebalancer().locate("o/there") == "b"
    drivers = Drivers(load_settings())
    assert isinstance(drivers.reached("b"), SftpDriver)
    assert isinstance(drivers.reached("a"), LocalDriver)


def test_bytes_of_what_replaced_an_object_are_not_taken_for_its_own(fleet: Fleet, tmp_path: Path) -> None:
    """Found by the crowd: SFTP opens by path again for each window, and an object replaced in between was read as a mixture."""
    path, aside = tmp_path / "h2" / "b" / "o" / "there", tmp_path / "h2" / "aside"
    with Drivers(load_settings()).reached("b").open_source("o/there") as source:
        aside.write_bytes(b"something much longer")
        aside.rename(path)
        with pytest.raises(SourceChanged, match="replaced"):
            source.readinto(memoryview(bytearray(100)))


def test_a_host_that_has_the_disk_goes_there_itself(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "h2" / "b").rename(fleet.roots["b"])
    assert isinstance(Drivers(load_settings()).reached("b"), LocalDriver)


def test_a_node_that_is_at_neither_place_is_looked_for_again(fleet: Fleet, tmp_path: Path) -> None:
    away = tmp_path / "away"
    (tmp_path / "h2" / "b").rename(away)
    drivers = Drivers(load_settings())
    assert isinstance(drivers.reached("b"), LocalDriver)
    away.rename(tmp_path / "h2" / "b")
    assert isinstance(drivers.reached("b"), SftpDriver)
