"""The local driver among strangers, half-finished attempts and failing disks."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.errors import (
    NodeFull,
    NodeMissing,
    NodeNotWritable,
    ObjectUnreadable,
    RebalanceError,
    RetryableError,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, ObjectMetadata, ObjectTooLarge
from rebalance_tasks.drivers.local import entries as local_entries
from rebalance_tasks.drivers.local import files as local_files
from rebalance_tasks.drivers.local import linux
from rebalance_tasks.drivers.local import tree as local_tree
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.files import LocalWriter
from rebalance_tasks.drivers.local.linux import PORTABLE, Syscalls
from rebalance_tasks.drivers.local.tree import LocalTree
from tests.unit.drivers.conformance import M1, M2, expected_at, stage
from tests.unit.drivers.local_harness import CALLS, LocalHarness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The kernel's device that is always full.
FULL_DEVICE = Path("/dev/full")
#: A file system mounted below another, on every usual Linux.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  only listed


@pytest.fixture(params=sorted(CALLS))
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalHarness]:
    made = LocalHarness(tmp_path / "root", CALLS[request.param])
    yield made
    made.close()


def driver_with(
    harness: LocalHarness, *, before: Callable[[], object] = bool, after: Callable[[], object] = bool
) -> LocalDriver:
    """A driver during whose rename into the trash a stranger acts."""
    calls = harness.calls
    assert calls is not None

    def rename_aside(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> None:
        before()
        calls.rename_aside(source, target, source_dir_fd, target_dir_fd)
        after()

    harness.calls = replace(calls, rename_aside=rename_aside)
    return harness.another("node-1")


# -- strangers while an object is freed -------------------------------------------------------------------------------
def test_an_object_replaced_right_before_the_rename_is_put_back(harness: LocalHarness) -> None:
    harness.put("a/k", b"old")
    driver = driver_with(harness, before=lambda: harness.put("a/k", b"newer"))
    assert driver.free("a/k", M1, expected_at(driver, "a/k")) is FreeOutcome.CHANGED
    assert harness.get("a/k") == b"newer"
    assert driver.trashed(M1) is None


def test_an_object_appended_to_right_after_the_rename_is_put_back(harness: LocalHarness) -> None:
    harness.put("k", b"old")
    with (harness.root / "k").open("ab") as held_open:

        def append() -> None:
            held_open.write(b" and more")
            held_open.flush()

        driver = driver_with(harness, after=append)
        assert driver.free("k", M1, expected_at(driver, "k")) is FreeOutcome.CHANGED
    assert harness.get("k") == b"old and more"


def test_an_object_appended_to_in_the_trash_is_not_purged(harness: LocalHarness) -> None:
    harness.put("k", b"old")
    expected = expected_at(harness.driver, "k")
    with (harness.root / "k").open("ab") as held_open:
        assert harness.driver.free("k", M1, expected) is FreeOutcome.FREED
        held_open.write(b" and more")
    assert harness.driver.purge(M1, expected) is False
    assert harness.driver.free("k", M1, expected) is FreeOutcome.CHANGED
    assert harness.get("k") == b"old and more"


def test_a_changed_object_whose_key_is_taken_again_is_kept_and_findable(harness: LocalHarness) -> None:
    harness.put("a/k\n", b"old")
    driver = driver_with(
        harness, before=lambda: harness.put("a/k\n", b"second"), after=lambda: harness.put("a/k\n", b"the third")
    )
    expected = expected_at(driver, "a/k\n")
    for _ in range(2):
        assert driver.free("a/k\n", M1, expected) is FreeOutcome.CHANGED
        assert harness.get("a/k\n") == b"the third"
        [(name, key, held)] = driver.list_kept()
        assert (key, held.size_bytes) == ("a/k\n", len(b"second"))
        assert (harness.root / ".rebalance/kept" / name).read_bytes() == b"second"
        assert driver.trashed(M1) is None
        assert driver.probe().kept_files == 1


def test_a_changed_object_whose_folder_became_a_file_is_kept(harness: LocalHarness) -> None:
    harness.put("a/k", b"old")

    def swap() -> None:
        (harness.root / "a").rmdir()
        harness.put("a", b"a file now")

    driver = driver_with(harness, before=lambda: harness.put("a/k", b"second"), after=swap)
    assert driver.free("a/k", M1, expected_at(driver, "a/k")) is FreeOutcome.CHANGED
    assert [key for _, key, _ in driver.list_kept()] == ["a/k"]
    assert driver.trashed(M1) is None


def test_a_crash_between_rename_and_compare_is_made_good_by_the_next_attempt(harness: LocalHarness) -> None:
    harness.put("a/k", b"old")
    expected = expected_at(harness.driver, "a/k")
    harness.put("a/k", b"newer")
    (harness.root / "a/k").rename(harness.root / ".rebalance/trash" / M1)
    (harness.root / "a").rmdir()
    assert harness.driver.free("a/k", M1, expected) is FreeOutcome.CHANGED
    assert harness.get("a/k") == b"newer"


def test_a_folder_that_took_the_objects_place_is_put_back(tmp_path: Path) -> None:
    harness = LocalHarness(tmp_path / "root", CALLS["native"])
    harness.put("k", b"old")

    def swap() -> None:
        harness.remove("k")
        harness.put("k/below", b"x")

    driver = driver_with(harness, before=swap)
    assert driver.free("k", M1, expected_at(driver, "k")) is FreeOutcome.CHANGED
    assert harness.get("k/below") == b"x"
    harness.close()


def test_a_stale_worker_freeing_under_the_same_move_loses_nothing(harness: LocalHarness) -> None:
    harness.put("k", b"old")
    expected = expected_at(harness.driver, "k")

    def first_worker_and_a_stranger() -> None:
        assert harness.driver.free("k", M1, expected) is FreeOutcome.FREED
        harness.put("k", b"a stranger's")

    late = driver_with(harness, before=first_worker_and_a_stranger)
    late.free("k", M1, expected)
    assert harness.get("k") == b"a stranger's"


def test_an_object_that_vanishes_right_before_the_rename_is_gone(harness: LocalHarness) -> None:
    harness.put("k", b"old")
    driver = driver_with(harness, before=lambda: harness.remove("k"))
    assert driver.free("k", M1, expected_at(driver, "k")) is FreeOutcome.GONE


# -- attempts cut off between link and unlink -------------------------------------------------------------------------
def test_a_publish_cut_off_half_way_is_finished_by_the_next(harness: LocalHarness) -> None:
    staged = stage(harness.driver, M1, b"data")
    (harness.root / "k").hardlink_to(harness.root / ".rebalance/tmp" / M1)
    assert harness.driver.publish(M1, "k").same_file(staged)
    assert harness.driver.staged(M1) is None
    assert harness.get("k") == b"data"
    assert harness.driver.list_objects().keys == ["k"]


def test_staging_again_never_cuts_what_a_half_way_publish_made_visible(harness: LocalHarness) -> None:
    stage(harness.driver, M1, b"published bytes")
    (harness.root / "k").hardlink_to(harness.root / ".rebalance/tmp" / M1)
    with pytest.raises(RebalanceError, match="already published"):
        harness.driver.stage(M1, offset=4)
    stage(harness.driver, M1, b"x")
    assert harness.get("k") == b"published bytes"


def test_a_restore_cut_off_half_way_is_finished_by_the_next_call(harness: LocalHarness) -> None:
    for call in ("restore", "free"):
        harness.put("k", b"data")
        expected = expected_at(harness.driver, "k")
        harness.driver.free("k", M1, expected)
        (harness.root / "k").hardlink_to(harness.root / ".rebalance/trash" / M1)
        if call == "restore":
            assert harness.driver.restore(M1, "k") is True
            assert harness.driver.trashed(M1) is None
        else:
            assert harness.driver.free("k", M1, expected) is FreeOutcome.FREED
            assert harness.get("k") is None


# -- confinement under races ------------------------------------------------------------------------------------------
def test_no_call_ever_leaves_the_root_while_folders_are_swapped_for_links(
    harness: LocalHarness, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "k").write_bytes(b"secret")
    (harness.root / "real").mkdir()
    done = threading.Event()

    def swap() -> None:
        folder, spare = harness.root / "d", harness.root / "real"
        while not done.is_set():
            spare.rename(folder)
            folder.rename(spare)
            folder.symlink_to(outside)
            folder.unlink()

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        try:
            for number in range(150):
                move_id = MoveId(f"m{number}")
                stage(harness.driver, move_id, b"ours")
                with suppress(TargetExists, RetryableError, NodeNotWritable):
                    harness.driver.publish(move_id, f"d/x/k{number}")
                with suppress(SourceVanished, ObjectUnreadable), harness.driver.open_source("d/k"):
                    pytest.fail("read a stranger's file through a link")
                assert harness.driver.stat("d/k") is None
                assert "d/k" not in harness.driver.list_objects().keys
        finally:
            done.set()
        swapping.exception()  # it may lose against a folder that publish made; only confinement counts here
    assert [path.name for path in outside.rglob("*")] == ["k"]


def test_a_renamed_folder_is_never_written_to_under_its_old_name(harness: LocalHarness) -> None:
    stage(harness.driver, M1, b"one")
    harness.driver.publish(M1, "a/b/one")
    (harness.root / "a").rename(harness.root / "old")
    stage(harness.driver, M2, b"two")
    harness.driver.publish(M2, "a/b/two")
    assert sorted(harness.driver.list_objects().keys) == ["a/b/two", "old/b/one"]


def test_mounts_below_the_root_are_not_entered(harness: LocalHarness) -> None:
    if not SHARED_MEMORY.is_mount():
        pytest.skip("needs a mount that every user can see: /dev/shm below /dev")
    driver = LocalDriver("n", "/dev", calls=harness.calls)
    listing = driver.list_objects(require_identity=False)
    assert listing.left_out["other_file_system"] >= 1
    assert not [key for key in listing.keys if key.startswith("shm/")]
    assert driver.stat("shm/x") is None
    with pytest.raises(ObjectUnreadable, match="another file system"):
        driver.open_source("shm/x")
    driver.close()


# -- disks that come and go -------------------------------------------------------------------------------------------
def test_an_unmounted_disk_is_noticed_and_welcomed_back(harness: LocalHarness, tmp_path: Path) -> None:
    harness.put("k", b"x")
    harness.driver.check_identity()
    harness.root.rename(tmp_path / "unplugged")
    with pytest.raises(NodeMissing):
        harness.driver.check_identity()
    harness.root.mkdir()  # the empty mount point
    for call in (harness.driver.check_identity, harness.driver.list_objects):
        with pytest.raises(NodeMissing, match="mount"):
            call()
    harness.root.rmdir()
    (tmp_path / "unplugged").rename(harness.root)
    harness.driver.check_identity()
    assert harness.driver.list_objects().keys == ["k"]


def test_after_the_check_a_remounted_root_is_used_and_not_the_one_held_open(
    harness: LocalHarness, tmp_path: Path
) -> None:
    stage(harness.driver, M1, b"before")
    shutil.copytree(harness.root, tmp_path / "fresh")
    harness.root.rename(tmp_path / "stale")
    (tmp_path / "fresh").rename(harness.root)
    harness.driver.check_identity()
    stage(harness.driver, M2, b"after")
    harness.driver.publish(M2, "k")
    assert harness.get("k") == b"after"
    assert not (tmp_path / "stale/k").exists()


def test_two_workers_adopting_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: LocalDriver("n", str(tmp_path)).adopt(), range(16)))
    assert sorted([path.name for path in (tmp_path / ".rebalance").iterdir()]) == [
        "kept",
        "manifests",
        "node-id",
        "tmp",
        "trash",
    ]
    LocalDriver("n", str(tmp_path)).check_identity()


def test_one_driver_serves_several_threads(harness: LocalHarness) -> None:
    def one(number: int) -> bytes | None:
        move_id, key = MoveId(f"m{number}"), f"d{number % 3}/k{number}"
        stage(harness.driver, move_id, key.encode())
        published = harness.driver.publish(move_id, key)
        found = harness.get(key)
        assert harness.driver.free(key, move_id, published) is FreeOutcome.FREED
        harness.driver.check_identity()
        return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(60))) == [f"d{number % 3}/k{number}".encode() for number in range(60)]


def test_closing_lets_go_of_every_descriptor(harness: LocalHarness) -> None:
    def count() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    harness.driver.close()
    before = count()
    for number in range(3):
        harness.put("k", b"x")
        harness.driver.free("k", M1, expected_at(harness.driver, "k"))
        with suppress(TargetExists):
            stage(harness.driver, M2, b"y")
            harness.driver.publish(M2, f"new{number}/k")
        with pytest.raises(SourceVanished):
            harness.driver.open_source("nothing/here")
        (harness.root / ".rebalance/trash" / M1).unlink()
        harness.driver.list_objects()
    harness.driver.close()
    assert count() == before


# -- failing disks ----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="needs /dev/full, which Linux has")
def test_a_full_target_is_reported_as_full() -> None:
    tree = LocalTree("node-1", "/x", linux.native())
    writer = LocalWriter(os.open(FULL_DEVICE, os.O_RDWR), tree, "staged:m", offset=0, sparse=False)
    with pytest.raises(NodeFull, match=r"'node-1'.*No space left.*free space"):
        writer.write(memoryview(b"x"))
    writer.close()


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, NodeFull),
        (errno.EDQUOT, NodeFull),
        (errno.EFBIG, ObjectTooLarge),
        (errno.EROFS, NodeNotWritable),
        (errno.EACCES, NodeNotWritable),
        (errno.EIO, NodeNotWritable),
        (errno.ENODEV, NodeMissing),
        (errno.ESTALE, NodeMissing),
        (errno.EMFILE, RetryableError),
    ],
)
def test_each_error_of_the_target_says_what_it_is(
    harness: LocalHarness, monkeypatch: pytest.MonkeyPatch, number: int, error: type
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    writer = harness.driver.stage(M1)
    for name in ("pwrite", "ftruncate", "fdatasync"):
        monkeypatch.setattr(os, name, fail, raising=False)
    monkeypatch.setattr(local_files, "fdatasync", fail)
    monkeypatch.setattr(local_files, "apply_metadata", fail)
    calls: list[Callable[[], None]] = [
        lambda: writer.write(memoryview(b"x")),
        writer.sync,
        lambda: writer.finish(ObjectMetadata()),
    ]
    for call in calls:
        with pytest.raises(error):
            call()


class KilledError(BaseException):
    """Stands in for SIGKILL."""


#: what writes a small file
WRITES: dict[str, Callable[[LocalDriver], object]] = {
    "manifest": lambda driver: driver.write_manifest("torn", ["{}"]),
    "note": lambda driver: driver._trash._keep("k", M1, Fingerprint(1)),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_a_kill_leaves_of_a_small_file_is_never_read_and_is_cleaned_up_like_a_staged_copy(
    harness: LocalHarness, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KilledError

    harness.driver.write_manifest("whole", ["{}"])
    with monkeypatch.context() as patch:
        patch.setattr(local_entries, "fsync", killed)
        patch.setattr(os, "unlink", killed)
        with pytest.raises(KilledError):
            WRITES[what](harness.driver)
    assert [name for name, _ in harness.driver.read_manifests()] == ["whole"]
    folders = {name: list((harness.root / ".rebalance" / name).iterdir()) for name in ("manifests", "kept")}
    assert (len(folders["manifests"]), len(folders["kept"])) == (1, 0)
    [(left, _)] = harness.driver.list_staged()
    harness.driver.discard(left)
    assert not list((harness.root / ".rebalance/tmp").iterdir())


def test_an_io_error_of_the_source_is_unreadable(harness: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    harness.put("k", b"x")
    with harness.driver.open_source("k") as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(ObjectUnreadable, match=r"Input/output error.*'k'"):
            source.readinto(memoryview(bytearray(1)))


def test_an_io_error_in_the_middle_of_a_listing_is_never_a_shorter_listing(harness: LocalHarness) -> None:
    harness.put("a/k", b"x")
    calls = harness.calls
    assert calls is not None

    def open_beneath(root_fd: int, path: str, flags: int) -> int:
        if path == "a":
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return calls.open_beneath(root_fd, path, flags)

    harness.calls = replace(calls, open_beneath=open_beneath)
    with pytest.raises(NodeMissing, match=r"listing 'a'.*look at the disk"):
        harness.another("node-1").list_objects()


def test_a_failing_sync_is_never_silent(harness: LocalHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    calls = harness.calls
    assert calls is not None
    if calls.syncfs is not None:
        harness.calls = replace(calls, syncfs=fail)
    else:
        monkeypatch.setattr(local_tree, "fsync", fail)
    with pytest.raises(NodeNotWritable, match="I/O error"):
        harness.another("node-1").sync()


# -- stand-ins --------------------------------------------------------------------------------------------------------
def test_without_syncfs_the_file_and_each_changed_folder_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = LocalHarness(tmp_path / "root", PORTABLE)
    synced: set[int] = set()
    for module in (local_files, local_tree):
        monkeypatch.setattr(module, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    published = stage(harness.driver, M1, b"x")
    assert published.inode in synced
    harness.driver.publish(M1, "a/b/k")
    harness.driver.sync()
    for folder in (".", "a", "a/b", ".rebalance/tmp"):
        assert (harness.root / folder).stat().st_ino in synced, folder
    synced.clear()
    harness.driver.free("a/b/k", M1, expected_at(harness.driver, "a/b/k"))
    harness.driver.sync()
    for folder in ("a/b", ".rebalance/trash"):
        assert (harness.root / folder).stat().st_ino in synced, folder
    harness.close()


@pytest.mark.skipif(linux.native() is PORTABLE, reason="this system has only the portable calls")
class TestOnLinux:
    def test_a_file_system_without_noreplace_still_never_overwrites(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(linux, "_try_renameat2", lambda *_: False)
        harness = LocalHarness(tmp_path / "root")
        stage(harness.driver, M1, b"ours")
        harness.driver.publish(M1, "k")
        stage(harness.driver, M2, b"again")
        with pytest.raises(TargetExists):
            harness.driver.publish(M2, "k")
        assert harness.driver.free("k", M1, expected_at(harness.driver, "k")) is FreeOutcome.FREED
        assert harness.driver.restore(M1, "k")
        assert harness.get("k") == b"ours"
        harness.close()

    def test_a_kernel_without_openat2_walks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> int:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(linux, "_openat2", refused)
        linux.native.cache_clear()
        try:
            assert linux.native().open_beneath is linux.walk_beneath
        finally:
            monkeypatch.undo()
            linux.native.cache_clear()

    def test_a_kernel_without_syncfs_syncs_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Libc:
            def syncfs(self, _: int) -> int:
                ctypes.set_errno(errno.ENOSYS)
                return -1

        with pytest.raises(OSError, match="Bad file descriptor"):
            linux._syncfs(-1)
        called: list[str] = []
        monkeypatch.setattr(os, "sync", lambda: called.append("sync"))
        monkeypatch.setattr(linux, "_libc", Libc)
        linux._syncfs(0)
        assert called == ["sync"]

    @pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
    def test_opening_beneath_refuses_links_and_ways_out(self, tmp_path: Path, calls: Syscalls) -> None:
        (tmp_path / "root/a/b").mkdir(parents=True)
        (tmp_path / "root/a/link").symlink_to("b")
        root = os.open(tmp_path / "root", os.O_RDONLY)
        try:
            os.close(calls.open_beneath(root, "a/b", linux.DIR_PATH_FLAGS))
            with pytest.raises(OSError, match="link") as caught:
                calls.open_beneath(root, "a/link", linux.DIR_PATH_FLAGS)
            assert caught.value.errno in {errno.ELOOP, errno.ENOTDIR}
            with pytest.raises(FileNotFoundError):
                calls.open_beneath(root, "a/none/x", linux.DIR_PATH_FLAGS)
        finally:
            os.close(root)
