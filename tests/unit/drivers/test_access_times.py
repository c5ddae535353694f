"""Listings tell when objects were read last, and what the engine itself reads is no use of an object."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rebalance_tasks.core.placement.kernels import compiled_kernels
from rebalance_tasks.drivers.doors import door_of
from rebalance_tasks.drivers.local import compiled
from rebalance_tasks.drivers.local import driver as local
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.linux import native
from tests.support.access import LONG_AGO_NS, last_read, never_read_since, require_access_times
from tests.unit.drivers.test_local_burst import Pair

if TYPE_CHECKING:
    from pathlib import Path


class Space(NamedTuple):
    f_flag: int
    f_blocks: int = 1
    f_bavail: int = 1
    f_frsize: int = 1


@pytest.fixture
def driver(tmp_path: Path) -> LocalDriver:
    (tmp_path / "a").mkdir()
    require_access_times(tmp_path)
    made = LocalDriver("a", str(tmp_path / "a"))
    made.adopt()
    return made


def read(path: Path) -> None:
    never_read_since(path, LONG_AGO_NS)
    path.read_bytes()


def test_a_listing_tells_when_each_object_was_read_last(driver: LocalDriver, tmp_path: Path) -> None:
    for number, name in enumerate(("x", "y")):
        (tmp_path / "a" / name).write_bytes(b"body")
        never_read_since(tmp_path / "a" / name, LONG_AGO_NS + number)
    read(tmp_path / "a" / "y")
    found = driver.list_part(None)
    assert found.atime_ns is not None
    told = dict(zip(found.keys, found.atime_ns.tolist(), strict=True))
    assert told["x"] == LONG_AGO_NS
    assert told["y"] == last_read(tmp_path / "a" / "y") > LONG_AGO_NS


def test_what_the_engine_reads_leaves_no_trace_and_what_readers_read_does(driver: LocalDriver, tmp_path: Path) -> None:
    path = tmp_path / "a" / "x"
    path.write_bytes(b"body")
    never_read_since(path, LONG_AGO_NS)
    with driver.open_source("x") as source:
        assert source.readinto(memoryview(bytearray(9))) == 4
    assert last_read(path) == LONG_AGO_NS
    with door_of(driver).open_reader("x") as reader:
        assert reader.readinto(memoryview(bytearray(9))) == 4
    assert last_read(path) > LONG_AGO_NS


def test_a_file_of_another_user_is_read_all_the_same(
    driver: LocalDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "x").write_bytes(b"body")
    opened = os.open

    def as_a_stranger(path: str, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError
        return opened(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", as_a_stranger)
    with driver.open_source("x") as source:
        assert source.readinto(memoryview(bytearray(9))) == 4


@pytest.mark.skipif(native().syncfs is None, reason="no syncfs here, so there are no bursts")
def test_a_burst_reads_without_a_trace(driver: LocalDriver, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    target = LocalDriver("b", str(tmp_path / "b"))
    target.adopt()
    target.tree.work_fd("tmp")
    with ExitStack() as stack:
        pair = Pair(tmp_path, driver, target, stack)
        path = pair.write("d/one")
        never_read_since(path, LONG_AGO_NS)
        pair.hold("d/one")
        assert pair.stage("d/one") is not None
        assert pair.read_back() is not None
        assert last_read(path) == LONG_AGO_NS
        assert last_read(tmp_path / "b/.rebalance/tmp/m1") == LONG_AGO_NS


@pytest.mark.skipif(compiled_kernels("auto", worth_loading=True) is None, reason="no numba here, so there are no rows")
def test_rows_are_read_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.drivers import test_plain_rows  # there are none to import without numba

    require_access_times(tmp_path)
    monkeypatch.setattr(compiled, "WORTH_LOADING_OBJECTS", 0)
    pair = test_plain_rows.Pair(tmp_path)
    paths = [pair.write("d/one"), pair.write("d/two")]
    for path in paths:
        never_read_since(path, LONG_AGO_NS)
    with pair.rows("d/one", "d/two") as rows:
        pair.verified(rows)
        assert rows.at("verified") == [0, 1]
        assert {last_read(path) for path in paths} == {LONG_AGO_NS}
        # Until then a copy may have no name.
        pair.publish(rows)
        copies = [pair.path(key, target=True) for key in ("d/one", "d/two")]
        assert {last_read(path) for path in copies} == {LONG_AGO_NS}
    pair.source.close()
    pair.target.close()


@pytest.mark.parametrize(("flags", "told"), [(0, True), (os.ST_NOATIME | os.ST_NODEV, False)])
def test_a_mount_on_which_reading_leaves_no_trace_is_told(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch, flags: int, told: bool
) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _: Space(flags))
    assert driver.probe().shows_access is told
    monkeypatch.setattr(local, "_NOATIME", None)
    assert driver.probe().shows_access is None
