"""A burst does for plain objects what the driver does, and leaves every other one to it with nothing left behind."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import xxhash

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import FreeOutcome
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.drivers.local import burst as local_burst
from rebalance_tasks.drivers.local.burst import MOST_BYTES, LocalBurst
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.linux import PORTABLE, native
from rebalance_tasks.drivers.registry import burst

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.core.fingerprint import Fingerprint

pytestmark = pytest.mark.skipif(native().syncfs is None, reason="no syncfs here, so there are no bursts")

BODY = b"seventeen bytes.\n"


class Pair:
    """Two roots with a burst between them, and folders that are held."""

    def __init__(self, folder: Path, source: LocalDriver, target: LocalDriver, stack: ExitStack) -> None:
        self._folder = folder
        self.source, self.target = source, target
        self.burst = stack.enter_context(LocalBurst(source.tree, target.tree, objects=10))
        self.spent: list[int] = []
        self._stack = stack

    def path(self, key: str, *, target: bool = False) -> Path:

        return self._folder / (self.target if target else self.source).node_id / key

    def write(self, key: str, body: bytes = BODY) -> Path:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        os.utime(path, ns=(1_600_000_000_000_000_001, 1_500_000_000_123_456_789))
        return path

    def hold(self, *keys: str) -> None:
        """Hold the folders of keys on both sides, as the driver does once it has used them."""
        for driver, make in ((self.source, False), (self.target, True)):
            hold = self._stack.enter_context(driver.hold())
            for key in keys:
                for _ in range(2):
                    fd, _ = driver.tree.open_parent(key, create=make)
                    driver.tree.release(fd)
                hold.writable.update(hold.descriptors)

    def stage(self, key: str, move_id: str = "m1", size: int | None = None) -> tuple[Fingerprint, str] | None:
        wanted = (key, MoveId(move_id), len(BODY) if size is None else size)
        return next(self.burst.stage([wanted], self.spent.append))

    def read_back(self, move_id: str = "m1", body: bytes = BODY) -> Fingerprint | None:
        digest = xxhash.xxh3_128_hexdigest(body)
        return next(self.burst.read_back([(MoveId(move_id), len(body), digest)]))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    drivers = [LocalDriver(name, str(tmp_path / name)) for name in ("a", "b")]
    for driver in drivers:
        (tmp_path / driver.node_id).mkdir()
        driver.adopt()
        driver.tree.work_fd("tmp")
    with ExitStack() as stack:
        yield Pair(tmp_path, drivers[0], drivers[1], stack)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count


def test_a_plain_object_goes_all_the_way_as_the_driver_would_take_it(pair: Pair) -> None:
    path = pair.write("d/one")
    path.chmod(0o640)
    pair.hold("d/one")
    copied = pair.stage("d/one")
    assert copied is not None
    version, digest = copied
    assert version == pair.source.stat("d/one")
    assert digest == xxhash.xxh3_128_hexdigest(BODY)
    assert pair.spent == [len(BODY)]
    staged = pair.read_back()
    assert staged is not None
    assert staged == pair.target.staged(MoveId("m1"))
    assert next(pair.burst.publish([("d/one", MoveId("m1"), version, staged)]))
    published = pair.path("d/one", target=True)
    assert published.read_bytes() == BODY
    assert stat.S_IMODE(published.stat().st_mode) == 0o640
    assert published.stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert pair.target.staged(MoveId("m1")) is None
    assert next(pair.burst.free([("d/one", MoveId("m1"), version)]))
    assert not path.exists()
    assert pair.source.trashed(MoveId("m1")) == version


def make_odd(kind: str, path: Path) -> int:
    """Turn a plain object into another kind of thing; return the size it was planned with."""
    if kind == "grown":
        path.write_bytes(BODY + b"more")
    elif kind == "hard link":
        path.with_name("second").hardlink_to(path)
    else:
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "symbolic link":
        path.symlink_to(path.parent)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
        return 0
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 16)
        return 1 << 16
    return len(BODY)


ODD = ("grown", "empty", "gone", "folder", "symbolic link", "hard link", "fifo", "sparse")


@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_plain_is_declined_and_leaves_nothing(pair: Pair, kind: str) -> None:
    size = make_odd(kind, pair.write("d/one"))
    pair.hold("d/one")
    assert pair.stage("d/one", size=size) is None
    assert list(pair.target.list_staged()) == []


@pytest.mark.parametrize("key", ["../one", "d/../one", ".rebalance/node-id", "/etc/passwd", "d//one"])
def test_a_key_that_is_none_is_declined(pair: Pair, key: str) -> None:
    pair.write("d/one")
    pair.hold("d/one")
    assert pair.stage(key) is None
    assert list(pair.target.list_staged()) == []


def test_a_folder_that_nobody_holds_or_that_is_not_writable_is_declined(pair: Pair) -> None:
    pair.write("d/one")
    assert pair.stage("d/one") is None
    pair.hold("d/one")
    hold = pair.source.tree.held
    assert hold is not None
    hold.writable.clear()
    assert pair.stage("d/one") is None
    assert pair.spent == []


def test_extended_attributes_travel(pair: Pair) -> None:
    path = pair.write("d/one")
    try:
        os.setxattr(path, "user.colour", b"blue")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    pair.hold("d/one")
    assert pair.stage("d/one") is not None
    staged = pair.path(".rebalance/tmp/m1", target=True)
    assert os.getxattr(staged, "user.colour") == b"blue"


def test_a_name_that_is_taken_in_the_working_folder_is_declined_and_stays(pair: Pair) -> None:
    pair.write("d/one")
    taken = pair.path(".rebalance/tmp/m1", target=True)
    taken.write_bytes(b"half a copy")
    pair.hold("d/one")
    assert pair.stage("d/one") is None
    assert taken.read_bytes() == b"half a copy"


def test_a_write_that_falls_short_leaves_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.write("d/one")
    pair.hold("d/one")
    monkeypatch.setattr(local_burst, "write_at", lambda fd, data, at: os.pwrite(fd, data[:5], at))
    before = descriptors()
    assert pair.stage("d/one") is None
    assert list(pair.target.list_staged()) == []
    assert descriptors() == before


def test_a_copy_that_reads_back_differently_is_declined_and_left_for_the_driver(pair: Pair) -> None:
    pair.write("d/one")
    pair.hold("d/one")
    assert pair.stage("d/one") is not None
    pair.path(".rebalance/tmp/m1", target=True).write_bytes(BODY[::-1])
    assert pair.read_back() is None
    assert pair.target.staged(MoveId("m1")) is not None


@pytest.mark.parametrize("room", [0, 10])
def test_copies_are_read_back_whether_they_stayed_open_or_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(pair.burst, "_room", room)
    pair.write("d/one")
    pair.hold("d/one")
    before = descriptors()
    assert pair.stage("d/one") is not None
    assert descriptors() == before + bool(room)
    assert pair.read_back() is not None
    assert descriptors() == before
    monkeypatch.undo()


def test_leaving_a_burst_closes_what_was_not_read_back_and_gives_its_room_to_others(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = local_burst._Descriptors()
    few._left = 7
    monkeypatch.setattr(local_burst, "DESCRIPTORS", few)
    pair.write("d/one")
    pair.hold("d/one")
    before = descriptors()
    with LocalBurst(pair.source.tree, pair.target.tree, objects=5) as first:
        assert few._left == 2
        with LocalBurst(pair.source.tree, pair.target.tree, objects=5):
            assert few._left == 0
        assert next(first.stage([("d/one", MoveId("m2"), len(BODY))], pair.spent.append)) is not None
        assert descriptors() == before + 1
    assert descriptors() == before
    assert few._left == 7


def staged(pair: Pair) -> tuple[Fingerprint, Fingerprint]:
    pair.write("d/one")
    pair.hold("d/one")
    copied, found = pair.stage("d/one"), pair.read_back()
    assert copied is not None
    assert found is not None
    return copied[0], found


def test_a_taken_key_a_changed_source_and_another_copy_are_not_published(pair: Pair) -> None:
    version, copy = staged(pair)
    path, key = pair.path("d/one"), pair.path("d/one", target=True)

    def publish() -> bool:
        return next(pair.burst.publish([("d/one", MoveId("m1"), version, copy)]))

    key.write_bytes(b"a stranger's")
    assert not publish()
    assert key.read_bytes() == b"a stranger's"
    key.unlink()
    path.write_bytes(b"newer")
    assert not publish()
    pair.write("d/one")
    path.unlink()
    assert not publish()
    assert not key.exists()
    assert pair.target.staged(MoveId("m1")) == copy


def test_another_copy_under_the_moves_name_is_not_published(pair: Pair) -> None:
    version, copy = staged(pair)
    other = pair.path(".rebalance/tmp/m1", target=True)
    other.unlink()
    other.write_bytes(BODY)
    assert not next(pair.burst.publish([("d/one", MoveId("m1"), version, copy)]))
    assert not pair.path("d/one", target=True).exists()


def test_a_source_that_changed_is_not_freed_and_one_that_changes_under_our_hands_is_settled_by_the_driver(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, _ = staged(pair)
    path = pair.path("d/one")
    path.write_bytes(b"newer")
    free = [("d/one", MoveId("m1"), version)]
    assert not next(pair.burst.free(free))
    assert path.read_bytes() == b"newer"
    looks = iter([True])
    # Written to between our look and our rename.
    monkeypatch.setattr(local_burst, "is_version", lambda *_: next(looks, False))
    assert not next(pair.burst.free(free))
    assert not path.exists()
    monkeypatch.undo()
    assert pair.source.free("d/one", MoveId("m1"), version) is FreeOutcome.CHANGED
    assert path.read_bytes() == b"newer"


def test_what_spend_raises_ends_the_burst_before_anything_is_made(pair: Pair) -> None:
    class StopError(Exception):
        pass

    def stop(_: int) -> None:
        raise StopError

    pair.write("d/one")
    pair.hold("d/one")
    copies = pair.burst.stage([("d/one", MoveId("m1"), len(BODY))], stop)
    with pytest.raises(StopError):
        next(copies)
    assert list(pair.target.list_staged()) == []


def test_only_local_pairs_on_a_system_with_syncfs_have_bursts(pair: Pair, tmp_path: Path) -> None:
    portable = LocalDriver("b", str(tmp_path / "b"), calls=PORTABLE)
    with burst(pair.source, pair.target, objects=2) as made:
        assert isinstance(made, LocalBurst)
    for source, target, objects in ((pair.source, portable, 2), (pair.source, pair.target, 1)):
        with burst(source, target, objects=objects) as made:
            assert isinstance(made, NoBurst)


def test_an_object_of_the_largest_size_is_taken_and_a_larger_one_declined(pair: Pair) -> None:
    pair.write("d/one", bytes(range(256)) * (MOST_BYTES // 256))
    pair.write("d/two", bytes(range(256)) * (MOST_BYTES // 256) + b"!")
    pair.hold("d/one")
    assert pair.stage("d/one", size=MOST_BYTES) is not None
    assert pair.stage("d/two", "m2", size=MOST_BYTES + 1) is None


def test_a_copy_larger_than_a_burst_takes_is_not_read_by_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    body = bytes(MOST_BYTES + 1)
    (pair.path("", target=True) / ".rebalance" / "tmp" / "m1").write_bytes(body)
    asked: list[int] = []

    def preadv(fd: int, *_: object) -> int:
        asked.append(fd)
        return 0

    monkeypatch.setattr(os, "preadv", preadv)
    assert pair.read_back(body=body) is None
    assert asked == []
