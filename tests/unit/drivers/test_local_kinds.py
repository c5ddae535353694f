"""What the local driver does with each kind of file; docs/reference/local-driver.md says the same in words."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.errors import InvalidKey, NodeMissing, NodeNotWritable, ObjectUnreadable, TargetExists
from rebalance_tasks.drivers.base import FreeOutcome, ObjectMetadata
from rebalance_tasks.drivers.local import driver as local
from rebalance_tasks.drivers.local.driver import LocalDriver
from tests.unit.drivers.conformance import M1, M2, expected_at, read_all, stage
from tests.unit.drivers.local_harness import CALLS, LocalHarness, ordinary_user, shared_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.core.ids import MoveId


#: As the engine does, in whole blocks, so that a copy can end in a hole.
CHUNK_BYTES = 1 << 17


@pytest.fixture(params=sorted(CALLS))
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalHarness]:
    made = LocalHarness(tmp_path / "root", CALLS[request.param])
    yield made
    made.close()


@pytest.fixture
def shared() -> Iterator[LocalHarness]:
    """A node that belongs to an ordinary user, whoever runs the tests."""
    with shared_folder() as folder:
        with ordinary_user():
            made = LocalHarness(folder / "root")
        yield made
        made.close()


def move(source: LocalDriver, target: LocalDriver, key: str, move_id: MoveId = M1) -> None:
    """Carry one object over as the engine does, in small."""
    data = read_all(source, key)
    with source.open_source(key) as opened:
        writer = target.stage(move_id, sparse=opened.metadata.sparse)
        for start in range(0, len(data), CHUNK_BYTES):
            writer.write(memoryview(data)[start : start + CHUNK_BYTES])
        writer.finish(opened.metadata)
        target.publish(move_id, key)
        assert source.free(key, move_id, opened.fingerprint) is FreeOutcome.FREED


# -- links and special files ------------------------------------------------------------------------------------------
def test_a_symlink_is_never_an_object(harness: LocalHarness, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    harness.put("inside", b"x")
    (harness.root / "out").symlink_to(tmp_path / "outside")
    (harness.root / "in").symlink_to("inside")
    (harness.root / "dangling").symlink_to("nowhere")
    listing = harness.driver.list_objects()
    assert (listing.keys, dict(listing.left_out)) == (["inside"], {"symlink": 3})
    for key in ("out", "in", "dangling"):
        assert harness.driver.stat(key) is None
        with pytest.raises(ObjectUnreadable, match="symbolic link"):
            harness.driver.open_source(key)
        stage(harness.driver, M1, b"ours")
        with pytest.raises(TargetExists):
            harness.driver.publish(M1, key)
        assert harness.driver.free(key, M2, expected_at(harness.driver, "inside")) is FreeOutcome.CHANGED
    assert (tmp_path / "outside").read_bytes() == b"secret"


def test_a_symlinked_folder_is_never_followed(harness: LocalHarness, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "k").write_bytes(b"secret")
    (harness.root / "real/deep").mkdir(parents=True)
    (harness.root / "real/deep/out").symlink_to(outside)
    (harness.root / "alias").symlink_to("real")
    harness.put("real/k", b"mine")
    listing = harness.driver.list_objects()
    assert (listing.keys, dict(listing.left_out)) == (["real/k"], {"symlink": 2})
    stage(harness.driver, M1, b"ours")
    for key in ("real/deep/out/k", "alias/k"):
        assert harness.driver.stat(key) is None
        with pytest.raises(ObjectUnreadable, match="never followed"):
            harness.driver.open_source(key)
        with pytest.raises(TargetExists, match="symbolic link"):
            harness.driver.publish(M1, key)
        with pytest.raises(TargetExists, match="symbolic link"):
            harness.driver.publish(M1, key.replace("/k", "/new/k"))
        assert harness.driver.free(key, M2, expected_at(harness.driver, "real/k")) is FreeOutcome.GONE
    assert sorted(path.name for path in outside.iterdir()) == ["k"]


def test_a_reserved_folder_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / ".rebalance").symlink_to(tmp_path / "elsewhere")
    driver = LocalDriver("n", str(root))
    for call in (driver.probe, driver.adopt, driver.check_identity):
        with pytest.raises(NodeMissing, match="symbolic link"):
            call()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == []


def test_the_root_itself_may_be_reached_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    driver = LocalDriver("n", str(tmp_path / "link"))
    driver.adopt()
    stage(driver, M1, b"x")
    driver.publish(M1, "k")
    assert (tmp_path / "real/k").read_bytes() == b"x"
    driver.close()


def test_a_hard_linked_file_is_left_alone_and_counted(harness: LocalHarness) -> None:
    harness.put("one", b"shared")
    (harness.root / "two").hardlink_to(harness.root / "one")
    listing = harness.driver.list_objects()
    assert (listing.keys, dict(listing.left_out)) == ([], {"hard_link": 2})
    with pytest.raises(ObjectUnreadable, match="hard link"):
        harness.driver.open_source("one")


def test_special_files_are_left_alone_and_opening_one_never_blocks(
    harness: LocalHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(harness.root / "fifo")
    monkeypatch.chdir(harness.root)  # a socket's path has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    listing = harness.driver.list_objects()
    assert (listing.keys, dict(listing.left_out)) == ([], {"special_file": 2})
    for key in ("fifo", "socket"):
        assert harness.driver.stat(key) is None
        with pytest.raises(ObjectUnreadable, match="not a regular file"):
            harness.driver.open_source(key)


def test_an_object_swapped_for_a_link_while_it_is_opened_is_not_followed(
    harness: LocalHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    harness.put("k", b"x")

    def swap(*_: object) -> None:
        (harness.root / "k").unlink()
        (harness.root / "k").symlink_to(tmp_path / "outside")

    monkeypatch.setattr(local, "require_object", swap)
    with pytest.raises(ObjectUnreadable, match="never followed"):
        harness.driver.open_source("k")


def test_a_folder_is_no_object_and_blocks_its_key(harness: LocalHarness) -> None:
    harness.put("folder/k", b"x")
    assert harness.driver.stat("folder") is None
    with pytest.raises(ObjectUnreadable):
        harness.driver.open_source("folder")
    stage(harness.driver, M1, b"ours")
    with pytest.raises(TargetExists):
        harness.driver.publish(M1, "folder")
    with pytest.raises(TargetExists, match="a file or a symbolic link"):
        harness.driver.publish(M1, "folder/k/below")


def test_names_that_are_no_keys_are_counted(harness: LocalHarness) -> None:
    for name in (b"bad\xff", b"\xc3\x28"):
        try:
            os.close(os.open(os.fsencode(harness.root) + b"/" + name, os.O_CREAT))
        except OSError:  # macOS (EILSEQ)
            pytest.skip("this file system holds UTF-8 names only")
    (harness.root / "/".join(["d" * 250] * 4)).mkdir(parents=True)
    (harness.root / "/".join(["d" * 250] * 4) / ("f" * 30)).touch()
    with suppress(FileExistsError):
        (harness.root / ".REBALANCE").mkdir()
    listing = harness.driver.list_objects()
    assert (listing.keys, dict(listing.left_out)) == ([], {"invalid_key": 4})


# -- content ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 1_000_001])
def test_files_of_every_size_move_whole(harness: LocalHarness, tmp_path: Path, size: int) -> None:
    target = LocalHarness(tmp_path / "target", harness.calls)
    data = os.urandom(size)
    harness.put("d/k", data)
    move(harness.driver, target.driver, "d/k")
    assert target.get("d/k") == data
    assert harness.get("d/k") is None
    assert (harness.root / "d").is_dir(), "folders left empty are left in place"
    target.close()


def test_a_sparse_file_keeps_its_holes_and_its_bytes(harness: LocalHarness, tmp_path: Path) -> None:
    target = LocalHarness(tmp_path / "target", harness.calls)
    path = harness.root / "sparse"
    with path.open("wb") as file:
        file.seek(300_000)
        file.write(b"island")
        file.seek(2_000_000)
        file.write(b"x")
        file.truncate(1 << 23)
    if path.stat().st_blocks * 512 >= 1 << 23:
        pytest.skip("this file system keeps no holes")
    data = path.read_bytes()
    move(harness.driver, target.driver, "sparse")
    moved = target.root / "sparse"
    assert moved.read_bytes() == data
    assert moved.stat().st_blocks * 512 < 1_000_000
    target.close()


@pytest.mark.parametrize("stop", ["close", "sync"])
def test_an_interrupted_sparse_copy_has_the_length_that_was_written(harness: LocalHarness, stop: str) -> None:
    writer = harness.driver.stage(M1, sparse=True)
    writer.write(memoryview(b"x" + bytes(99_999)))
    getattr(writer, stop)()
    staged = harness.driver.staged(M1)
    assert staged is not None
    assert staged.size_bytes == 100_000
    writer.close()


# -- metadata ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [0o644, 0o400, 0o444, 0o640, 0o777, 0o600])
def test_mode_times_and_attributes_travel(harness: LocalHarness, tmp_path: Path, mode: int) -> None:
    target = LocalHarness(tmp_path / "target", harness.calls)
    harness.put("k", b"data")
    path = harness.root / "k"
    with suppress(OSError, AttributeError):
        os.setxattr(path, "user.origin", b"\0binary")
    os.utime(path, ns=(1_111_111_111_111_111_111, 1_222_222_222_222_222_222))
    path.chmod(mode)
    before = path.stat()
    move(harness.driver, target.driver, "k")
    after = (target.root / "k").stat()
    assert stat.S_IMODE(after.st_mode) == mode
    assert after.st_mtime_ns == before.st_mtime_ns
    if hasattr(os, "getxattr") and hasattr(os, "setxattr"):
        with suppress(OSError):
            assert os.getxattr(target.root / "k", "user.origin") == b"\0binary"
    target.close()


def test_the_access_time_survives_reading_back(harness: LocalHarness) -> None:
    stage(harness.driver, M1, b"data", ObjectMetadata(atime_ns=10**18, mtime_ns=10**18 + 5))
    with harness.driver.open_staged(M1) as opened:
        assert opened.readinto(memoryview(bytearray(10))) == 4
    harness.driver.publish(M1, "k")
    assert (harness.root / "k").stat().st_atime_ns == 10**18


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_as_root_the_owner_travels_and_set_id_bits_with_it(harness: LocalHarness, tmp_path: Path) -> None:
    target = LocalHarness(tmp_path / "target", harness.calls)
    harness.put("k", b"data")
    os.chown(harness.root / "k", 1234, 2345)
    (harness.root / "k").chmod(0o4755)
    move(harness.driver, target.driver, "k")
    after = (target.root / "k").stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (1234, 2345, 0o4755)
    target.close()


def test_without_the_owner_set_id_bits_are_dropped(shared: LocalHarness) -> None:
    with ordinary_user():
        stage(shared.driver, M1, b"x", ObjectMetadata(mode=0o4755, uid=0, gid=0))
        shared.driver.publish(M1, "k")
    after = (shared.root / "k").stat()
    assert stat.S_IMODE(after.st_mode) == 0o755


def test_a_finished_read_only_copy_can_be_resumed_or_staged_again(shared: LocalHarness) -> None:
    with ordinary_user():
        stage(shared.driver, M1, b"12345", ObjectMetadata(mode=0o400))
        writer = shared.driver.stage(M1, offset=3)
        writer.write(memoryview(b"xyz"))
        writer.finish(ObjectMetadata(mode=0o400))
        assert (shared.root / ".rebalance/tmp" / M1).stat().st_size == 6
        assert stage(shared.driver, M1, b"z").size_bytes == 1


def test_new_folders_have_their_parents_mode(harness: LocalHarness) -> None:
    harness.root.chmod(0o2775)
    stage(harness.driver, M1, b"x")
    harness.driver.publish(M1, "a/b/k")
    for folder in ("a", "a/b"):
        assert stat.S_IMODE((harness.root / folder).stat().st_mode) == 0o2775


# -- permissions ------------------------------------------------------------------------------------------------------
def test_a_read_only_file_moves_and_stays_read_only(shared: LocalHarness) -> None:
    shared.put("k", b"x")
    (shared.root / "k").chmod(0o444)
    with ordinary_user():
        assert read_all(shared.driver, "k") == b"x"
        assert shared.driver.free("k", M1, expected_at(shared.driver, "k")) is FreeOutcome.FREED
        assert shared.driver.purge(M1, None)


def test_a_file_in_a_read_only_folder_is_refused_before_the_copy(shared: LocalHarness) -> None:
    with ordinary_user():
        shared.put("folder/k", b"x")
        expected = expected_at(shared.driver, "folder/k")
        (shared.root / "folder").chmod(0o555)
        with pytest.raises(ObjectUnreadable, match="not writable"):
            shared.driver.open_source("folder/k")
        with pytest.raises(ObjectUnreadable, match="free"):
            shared.driver.free("folder/k", M1, expected)
        assert shared.driver.list_objects().keys == ["folder/k"]
        stage(shared.driver, M2, b"new")
        with pytest.raises(NodeNotWritable):
            shared.driver.publish(M2, "folder/new")


def test_an_unreadable_file_is_listed_but_refused(shared: LocalHarness) -> None:
    with ordinary_user():
        shared.put("k", b"x")
        (shared.root / "k").chmod(0)
        assert shared.driver.list_objects().keys == ["k"]
        with pytest.raises(ObjectUnreadable, match="Permission denied"):
            shared.driver.open_source("k")


def test_a_closed_folder_is_counted_and_its_objects_are_unreadable(shared: LocalHarness) -> None:
    with ordinary_user():
        shared.put("closed/k", b"x")
        (shared.root / "closed").chmod(0)
        listing = shared.driver.list_objects()
        assert (listing.keys, dict(listing.left_out)) == ([], {"unreadable_folder": 1})
        with pytest.raises(ObjectUnreadable):
            shared.driver.stat("closed/k")


def test_a_root_that_is_not_writable_is_refused_with_the_way_out(shared: LocalHarness) -> None:
    with ordinary_user():
        shared.root.chmod(0o555)
        with pytest.raises(NodeNotWritable, match="chown or chmod"):
            shared.driver.probe()
        shared.root.chmod(0o755)
        (shared.root / ".rebalance").chmod(0o555)
        with pytest.raises(NodeNotWritable, match=r"\.rebalance is not writable"):
            shared.driver.probe()
        (shared.root / ".rebalance").chmod(0o755)
        fresh = shared.root.parent / "fresh"
        fresh.mkdir(mode=0o555)
        with pytest.raises(NodeNotWritable):
            LocalDriver("n", str(fresh)).adopt()


def test_a_missing_root_and_a_root_that_is_a_file_are_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nothing", "file", "file/below"):
        driver = LocalDriver("n", str(tmp_path / name))
        for call in (driver.probe, driver.check_identity, driver.adopt, driver.list_objects, driver.free_bytes):
            with pytest.raises(NodeMissing, match="mount the disk"):
                call()


def test_the_identity_file_holds_the_node_id_and_a_newline(harness: LocalHarness) -> None:
    assert (harness.root / ".rebalance/node-id").read_bytes() == b"node-1\n"
    assert sorted([path.name for path in (harness.root / ".rebalance").iterdir()]) == [
        "kept",
        "manifests",
        "node-id",
        "tmp",
        "trash",
    ]
    (harness.root / ".rebalance/node-id").write_bytes(b"")
    with pytest.raises(NodeMissing):
        harness.driver.check_identity()


def test_working_folders_that_were_removed_are_made_again(harness: LocalHarness) -> None:
    stage(harness.driver, M1, b"x")
    (harness.root / ".rebalance/tmp" / M1).unlink()
    (harness.root / ".rebalance/tmp").rmdir()
    harness.driver.check_identity()
    stage(harness.driver, M1, b"y")
    harness.driver.publish(M1, "k")
    assert harness.get("k") == b"y"


def test_space_is_what_the_file_system_says(harness: LocalHarness) -> None:
    health, space = harness.driver.probe(), os.statvfs(harness.root)
    assert health.total_bytes == space.f_blocks * space.f_frsize
    assert health.device == harness.root.stat().st_dev
    assert health.free_bytes is not None
    assert 0 <= harness.driver.free_bytes() <= health.total_bytes


def test_patterns_select_whole_keys_and_count_the_rest(tmp_path: Path) -> None:
    plain = LocalHarness(tmp_path / "root")
    for key in ("a.log", "a.dat", "sub/b.log", "sub/b.dat", "sub/new\n.dat"):
        plain.put(key, b"x")
    cases: list[tuple[dict[str, list[str]], set[str]]] = [
        ({"include": ["*.dat"]}, {"a.dat", "sub/b.dat", "sub/new\n.dat"}),
        ({"exclude": ["sub/*"]}, {"a.log", "a.dat"}),
        ({"include": ["sub/*", "a.*"], "exclude": ["*.log"]}, {"a.dat", "sub/b.dat", "sub/new\n.dat"}),
        ({"include": ["A.LOG"]}, set()),
    ]
    for patterns, wanted in cases:
        listing = LocalDriver(
            "node-1", str(plain.root), include=patterns.get("include", ()), exclude=patterns.get("exclude", ())
        ).list_objects()
        assert set(listing.keys) == wanted
        assert listing.left_out["excluded"] == 5 - len(wanted)
    plain.close()


def test_names_too_long_for_the_file_system_are_refused(harness: LocalHarness) -> None:
    with pytest.raises(InvalidKey, match="file name"):
        harness.driver.stat("x" * 256)
