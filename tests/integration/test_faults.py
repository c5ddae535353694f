"""What goes wrong with one object, one node or one budget becomes that object's outcome; the job goes on and adds up.

The engine runs in this process (tests.support.engine), so that a fault strikes exactly between two steps; the checker
that judges the result knows nothing of our code.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.errors import NodeFull, NodeMissing, ObjectUnreadable
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local import LocalDriver
from rebalance_tasks.drivers.local_files import LocalSource, LocalWriter
from rebalance_tasks.migration import batch as batches
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration import copying, faults, undo
from rebalance_tasks.migration import slice as slices
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.slice import SliceOutcome
from tests.support.checker import check, record, violations
from tests.support.engine import Engine, killed_carry, move, moves_between
from tests.support.fleets import NodeSpec, made_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZES = {"a/one": 3000, "a/two": 5000, "b/three": 7000, "four": 0, "five": 1}
DAY_MS = 86_400_000


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """Two nodes, five objects on the first."""
    return fleet_config({"n1": SIZES, "n2": {"resident": 10}}, options={"throttle_bytes_per_sec": "none"})


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    return Engine()


def after(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[..., Any], *, times: int = 1) -> None:
    """Act (with the arguments of the call) right after a method has returned, so many times."""
    original = getattr(owner, name)
    left = [times]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            act(*args, **kwargs)
        return result

    monkeypatch.setattr(owner, name, wrapped)


def before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable[..., Any], *, times: int = 1) -> None:
    """Act right before a method is called, so many times."""
    original = getattr(owner, name)
    left = [times]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act(*args, **kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


# -- the plain way ----------------------------------------------------------------------------------------------------
def test_every_object_moves_whole_and_once_when_nothing_goes_wrong(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, 5)
    assert job.bytes_moved == sum(SIZES.values())
    check(fleet.roots, written, job)
    engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job, trash=True)


# -- one object -------------------------------------------------------------------------------------------------------
def test_a_vanished_object_is_skipped_and_the_others_move(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots).without("a/two")
    engine.start(moves_between("n1", "n2", SIZES))
    (fleet.roots["n1"] / "a/two").unlink()
    job = engine.finish()
    assert (job.completed_moves, job.skipped_moves, job.failures) == (4, 1, {"source_vanished": 1})
    assert "source_vanished" in engine.outcome(1)
    check(fleet.roots, written, job)


def test_an_object_that_vanishes_after_it_was_copied_is_skipped_and_does_not_rise_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots).without("a/two")
    before(monkeypatch, Batch, "_publish", lambda _: (fleet.roots["n1"] / "a/two").unlink())
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"source_vanished": 1})
    check(fleet.roots, written, job)


def test_an_object_that_cannot_be_read_fails_and_the_others_move(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalSource.readinto

    def readinto(self: LocalSource, buffer: memoryview) -> int:
        if self._key == "a/two":
            raise ObjectUnreadable("a/two", "read: Input/output error; look at the disk")
        return original(self, buffer)

    monkeypatch.setattr(LocalSource, "readinto", readinto)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failed_moves, job.failures) == (4, 1, {"unreadable": 1})
    check(fleet.roots, written, job)


def test_an_object_that_cannot_be_freed_fails_and_stays_where_it_was(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalDriver.free

    def free(self: LocalDriver, key: str, move_id: Any, expected: Any) -> Any:
        if key == "a/two" and self.node_id == "n1":
            raise ObjectUnreadable(key, "free: Operation not permitted; let the worker's user write to its folder")
        return original(self, key, move_id, expected)

    monkeypatch.setattr(LocalDriver, "free", free)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"unreadable": 1})
    assert engine.context.locations.lookup("a/two") == (None, None)
    check(fleet.roots, written, job)
    assert not list((fleet.roots["n2"] / ".rebalance/trash").iterdir())


def test_a_different_object_at_the_key_is_never_overwritten(fleet: Fleet, engine: Engine) -> None:
    stranger = fleet.roots["n2"] / "a/two"
    stranger.parent.mkdir()
    stranger.write_bytes(b"not yours")
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_exists": 1})
    assert stranger.read_bytes() == b"not yours"
    assert fleet.objects("n1") == {"a/two": made_up("a/two", 5000)}
    assert fleet.leftovers() == []


def test_a_copy_corrupted_on_its_way_is_noticed_and_made_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(monkeypatch, times=1)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written, job)


def test_a_copy_that_is_corrupted_every_time_fails_after_three_tries(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    strikes = corrupt(monkeypatch, times=1000)
    written = record(fleet.roots)
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.status, job.failures) == (RebalanceStatus.FAILED, {"checksum_mismatch": 1})
    assert "3 tries" in engine.outcome(0)
    assert len(strikes) == 3
    check(fleet.roots, written, job)


def corrupt(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[str]:
    """Flip a byte of staged copies that have one, as ``REBALANCE_FAULTS=stage=corrupt`` does in a worker."""
    strikes: list[str] = []

    def strike(step: faults.Step, staged: Callable[[], Path | None] | None = None) -> None:
        path = staged() if step is faults.Step.STAGE and staged is not None else None
        if path is not None and path.stat().st_size and len(strikes) < times:
            strikes.append(path.name)
            faults.corrupt(path)

    monkeypatch.setattr(batches, "reached", strike)
    return strikes


# -- strangers write to the source ------------------------------------------------------------------------------------
def append(path: Path) -> bytes:
    with path.open("ab") as file:
        file.write(b"more")
    return path.read_bytes()


def replace(path: Path) -> bytes:
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"another one altogether")
    fresh.rename(path)
    return path.read_bytes()


def rewrite_in_place(path: Path) -> bytes:
    content = bytes(reversed(path.read_bytes()))
    path.write_bytes(content)
    return content


#: where in the way of one object a stranger acts: owner, method, and whether after (or before) it
MOMENTS = {
    "between stage and publish": (Batch, "_verify", after),
    "between publish and flip": (LocalDriver, "write_manifest", before),
    "between flip and free": (Batch, "_free", before),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("write", [append, replace, rewrite_in_place])
def test_what_a_stranger_writes_to_the_source_is_never_lost(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str, write: Callable[[Path], bytes]
) -> None:
    owner, method, hook = MOMENTS[moment]
    written = record(fleet.roots)
    fresh: list[bytes] = []
    hook(monkeypatch, owner, method, lambda *_: fresh.append(write(fleet.roots["n1"] / "a/one")))
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written.changed("a/one", fresh[0]), job)
    assert fleet.objects("n2")["a/one"] == fresh[0]
    assert engine.context.locations.lookup("a/one")[0] == "n2"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_source_that_changes_every_time_is_skipped_after_three_tries(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, method, hook = MOMENTS[moment]
    written = record(fleet.roots)
    fresh: list[bytes] = []
    hook(monkeypatch, owner, method, lambda *_: fresh.append(append(fleet.roots["n1"] / "a/one")), times=1000)
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.status, job.skipped_moves, job.failures) == (RebalanceStatus.FAILED, 1, {"source_changed": 1})
    assert len(fresh) == 3
    assert engine.context.locations.lookup("a/one") == (None, None)
    check(fleet.roots, written.changed("a/one", fresh[-1]), job)
    assert not list((fleet.roots["n2"] / ".rebalance/trash").iterdir())


def test_the_bytes_of_a_source_that_grew_are_counted_as_they_are(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: list[bytes] = []
    before(monkeypatch, Batch, "_publish", lambda _: fresh.append(append(fleet.roots["n1"] / "a/one")))
    engine.context.fleet.set_usage({"n1": sum(SIZES.values()), "n2": 10})
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert job.bytes_moved == sum(SIZES.values()) + 4
    assert engine.context.fleet.usage()["n2"] == fleet.used_bytes("n2")
    assert engine.context.fleet.awaiting()["n1"] == sum(SIZES.values()) + 4


def test_a_source_deleted_after_the_flip_counts_as_moved(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    before(monkeypatch, Batch, "_free", lambda *_: (fleet.roots["n1"] / "a/one").unlink())
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)


def test_two_strangers_who_write_to_both_copies_are_both_kept(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(*_: Any) -> None:
        append(fleet.roots["n1"] / "a/one")
        (fleet.roots["n2"] / "a/one").write_bytes(b"from a reader who became a writer")

    before(monkeypatch, Batch, "_free", both)
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert job.failures == {"conflict": 1}
    assert fleet.objects("n1")["a/one"] == made_up("a/one", 3000) + b"more"
    assert fleet.objects("n2")["a/one"] == b"from a reader who became a writer"


# -- a full target ----------------------------------------------------------------------------------------------------
def test_a_target_whose_capacity_is_used_up_takes_what_fits_and_fails_the_rest(fleet_config: FleetFactory) -> None:
    fleet = fleet_config(
        {"n1": SIZES, "n2": NodeSpec(capacity_bytes=9000)},
        options={"throttle_bytes_per_sec": "none", "max_utilisation": 1.0},
    )
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_full": 1})
    check(fleet.roots, written, job)
    assert set(fleet.objects("n1")) == {"b/three"}


def test_room_that_one_group_has_filled_is_not_reserved_once_more(fleet_config: FleetFactory) -> None:
    fleet = fleet_config(
        {"n1": {"a": 4000, "later": 0}, "n2": {"b": 4000}, "n3": NodeSpec(capacity_bytes=8000)},
        options={"throttle_bytes_per_sec": "none", "max_utilisation": 1.0},
    )
    written = record(fleet.roots)
    engine = Engine()
    engine.start([move("a", "n1", "n3", 4000), move("later", "n1", "n3", 0), move("b", "n2", "n3", 4000)])
    # The first group has flipped "a" and still has an object to do while the second one asks for its room.
    with slices_of_one_object():
        assert engine.slice("g0000") is SliceOutcome.AGAIN
    assert engine.slice("g0001") is SliceOutcome.TERMINAL
    assert engine.job().failures == {}
    check(fleet.roots, written, engine.finish())


@contextmanager
def slices_of_one_object() -> Iterator[None]:
    """Let each batch hold one object and each slice one batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "BATCH_OBJECTS", 1)
        patch.setattr(controls.SliceControl, "overdue", property(lambda self: self._tokens_spent()))
        seen: list[int] = []
        patch.setattr(controls.SliceControl, "_tokens_spent", lambda _: bool(seen), raising=False)
        after(patch, Batch, "run", lambda *_: seen.append(1))
        yield


@pytest.mark.parametrize("where", ["write", "sync", "finish"])
def test_a_file_system_that_fills_up_under_a_copy_fails_the_object_and_leaves_nothing(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    written = record(fleet.roots)
    original = getattr(LocalWriter, where)

    def full(self: LocalWriter, *args: Any) -> Any:
        if self._position + sum(len(arg) for arg in args if isinstance(arg, memoryview)) >= 7000:
            raise NodeFull("n2", f"{where}: No space left on device")
        return original(self, *args)

    monkeypatch.setattr(LocalWriter, where, full)
    monkeypatch.setattr(copying, "PART_BYTES", 2048)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_full": 1})
    check(fleet.roots, written, job)


@pytest.mark.parametrize("call", ["sync", "write_manifest"])
def test_a_target_that_fills_up_after_publishing_takes_its_unflipped_copies_back(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    published = [False]
    after(monkeypatch, Batch, "_publish", lambda _: published.__setitem__(0, True))

    def full(*_: Any) -> None:
        if published[0]:
            raise NodeFull("n2", f"{call}: No space left on device")

    before(monkeypatch, LocalDriver, call, full, times=1000)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.status, job.failures) == (RebalanceStatus.FAILED, {"target_full": 5})
    check(fleet.roots, written, job)
    assert not list((fleet.roots["n2"] / ".rebalance/trash").iterdir())


def test_a_real_file_size_limit_is_a_full_target(fleet: Fleet, tmp_path: Path) -> None:
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    assert not killed_carry(tmp_path, faults_text="", file_size_limit=6000)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_full": 1})
    check(fleet.roots, written, job)


# -- a node goes away -------------------------------------------------------------------------------------------------
def test_a_node_unmounted_between_two_slices_fails_what_is_left_and_its_mount_point_stays_empty(
    fleet: Fleet, engine: Engine
) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    with slices_of_one_object():
        assert engine.slice() is SliceOutcome.AGAIN
    unmount(fleet.roots["n2"])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {"node_missing": 4})
    assert "not mounted" in engine.outcome(1)
    assert list(fleet.roots["n2"].iterdir()) == []
    assert len(fleet.objects("n1")) == 4


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_target_unmounted_in_the_middle_of_a_batch_loses_nothing_and_its_mount_point_stays_empty(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, method, hook = MOMENTS[moment]
    written = record(fleet.roots)
    hook(monkeypatch, owner, method, lambda *_: unmount(fleet.roots["n2"]))
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert list(fleet.roots["n2"].iterdir()) == []
    mount_again(fleet.roots["n2"])
    engine.cleanup()
    check(fleet.roots, written, job)


def test_a_source_unmounted_after_the_flip_is_freed_when_it_is_back(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)

    def gone(*_: Any) -> None:
        raise NodeMissing("n1", "free: Stale file handle")

    with monkeypatch.context() as patch:
        before(patch, LocalDriver, "free", gone, times=1000)
        engine.start(moves_between("n1", "n2", SIZES))
        job = engine.finish()
    assert (job.completed_moves, job.failed_moves) == (5, 0)
    assert len(fleet.objects("n1")) == 5
    assert engine.cleanup().freed_late == 5
    check(fleet.roots, written, job)
    assert engine.cleanup(later_ms=DAY_MS).purged == 5
    check(fleet.roots, written, job, trash=True)
    assert engine.context.fleet.awaiting()["n1"] == 0


def unmount(root: Path) -> None:
    """What an unmounted disk leaves: an empty mount point."""
    root.rename(root.with_name(f"{root.name}-unmounted"))
    root.mkdir()


def mount_again(root: Path) -> None:
    root.rmdir()
    root.with_name(f"{root.name}-unmounted").rename(root)


# -- deaths -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", ["begin", "stage", "verify", "journal", "sync_published", "manifest", "free"])
def test_an_object_on_which_three_workers_died_is_given_up_and_the_job_goes_on(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The death is an exception that nothing catches: the journal stays as a SIGKILL would leave it."""
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    deaths = 0
    with monkeypatch.context() as patch:
        deadly(patch, step, "a/two")
        while engine.messages.queue:
            try:
                engine.work()
            except WorkerDiedError:
                deaths += 1
                engine.hurry()
                run_sweep(engine.context)
    job = engine.finish()
    assert deaths == 3
    flipped = step == "free"
    assert job.failures == ({} if flipped else {"worker_died": 1})
    assert job.completed_moves == (5 if flipped else 4)
    engine.cleanup(later_ms=DAY_MS)
    engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job, trash=True)


class WorkerDiedError(BaseException):
    """Stands in for SIGKILL."""


def deadly(patch: pytest.MonkeyPatch, step: str, key: str) -> None:
    """Die at a step whenever it is reached with an object in the batch that has not been given up."""
    in_hand: list[batches.Item] = []
    before(patch, Batch, "run", lambda batch: in_hand.__setitem__(slice(None), batch._items), times=1000)

    def strike(reached: faults.Step, *_: Any) -> None:
        if reached == step and any(item.move.key == key and item.settlement is None for item in in_hand):
            raise WorkerDiedError

    patch.setattr(batches, "reached", strike)


@pytest.mark.parametrize("step", [faults.Step.RETRACT, faults.Step.UNPUBLISH])
def test_a_death_while_a_flip_is_taken_back_leaves_the_source_the_truth(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: faults.Step
) -> None:
    written = record(fleet.roots)
    fresh: list[bytes] = []
    before(monkeypatch, Batch, "_free", lambda *_: fresh.append(append(fleet.roots["n1"] / "a/one")))
    engine.start(moves_between("n1", "n2", SIZES))

    def strike(reached: faults.Step, *_: Any) -> None:
        if reached is step:
            raise WorkerDiedError

    with monkeypatch.context() as patch, pytest.raises(WorkerDiedError):
        patch.setattr(batches, "reached", strike)
        patch.setattr(undo, "reached", strike)
        engine.work()
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written.changed("a/one", fresh[0]), job, trash=True)


# -- stale workers ----------------------------------------------------------------------------------------------------
def test_a_copy_that_a_stalled_worker_replaced_is_not_published(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It woke up between our verify and our publish and began its copy anew, under the same name."""
    written = record(fleet.roots)

    def stalled(_: Batch) -> None:
        engine.context.driver("n2").stage(MoveId("j1.0")).close()

    before(monkeypatch, Batch, "_publish", stalled)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written, job)


def test_a_stalled_worker_that_lets_go_of_its_copy_does_not_cut_what_its_successor_wrote(fleet: Fleet) -> None:
    driver = LocalDriver("n2", str(fleet.roots["n2"]))
    driver.adopt()
    stalled = driver.stage(MoveId("j1.0"), sparse=True)
    stalled.write(memoryview(b"x" * 4096))
    stalled.write(memoryview(bytes(4096)))  # a hole at the end, so that letting go settles the length
    successor = driver.stage(MoveId("j1.0"), offset=4096, sparse=True)
    successor.write(memoryview(b"y" * 8192))
    stalled.close()
    successor.close()
    staged = driver.staged(MoveId("j1.0"))
    driver.close()
    assert staged is not None
    assert staged.size_bytes == 12_288


def test_a_staged_copy_that_is_shorter_than_its_journal_is_made_anew(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that lost power lost its page cache; Redis, elsewhere, did not."""
    monkeypatch.setattr(copying, "PART_BYTES", 1024)
    written = record(fleet.roots)
    engine.start([move("b/three", "n1", "n2", 7000)])

    def strike(reached: faults.Step, *_: Any) -> None:
        if reached is faults.Step.PART and (tmp / "j1.0").stat().st_size >= 4096:
            raise WorkerDiedError

    tmp = fleet.roots["n2"] / ".rebalance/tmp"
    with monkeypatch.context() as patch, pytest.raises(WorkerDiedError):
        patch.setattr(batches, "reached", strike)
        engine.work()
    os.truncate(tmp / "j1.0", 1500)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)


@pytest.mark.parametrize("step", ["manifest", "flip", "free", "settle"])
def test_what_redis_forgot_of_its_last_seconds_is_found_again_in_the_manifest(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The server comes back as it was before the batch: no journal, no flip, no count; the nodes did not go back."""
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    redis = engine.context.connection.client
    before_batch = {key: redis.dump(key) for key in redis.keys("rebalance:*")}

    def strike(reached: faults.Step, *_: Any) -> None:
        if reached == step:
            raise WorkerDiedError

    with monkeypatch.context() as patch, pytest.raises(WorkerDiedError):
        patch.setattr(batches, "reached", strike)
        engine.work()
    redis.delete(*redis.keys("rebalance:*"))
    for key, value in before_batch.items():
        redis.restore(key, 0, value)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written, job)


# -- budgets ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "value", "cause"),
    [
        ("max_egress_bytes_per_cycle", 8001, "budget_egress"),
        ("max_cost_per_cycle", "0.00008001", "budget_cost"),
        ("max_cost_per_day", "0.00008001", "budget_cost_day"),
    ],
)
def test_a_budget_that_a_plan_overruns_binds_while_it_is_carried_out(
    fleet_config: FleetFactory, option: str, value: object, cause: str
) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={"throttle_bytes_per_sec": "none", option: value})
    written = record(fleet.roots)
    engine = Engine()
    # 0.01 for 10⁶ bytes
    engine.start([move(key, "n1", "n2", size, cost=Decimal(size) / 10**8) for key, size in SIZES.items()])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {cause: 1})
    assert set(fleet.objects("n1")) == {"b/three"}
    check(fleet.roots, written, job)


def test_copies_made_again_are_booked_again(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_config({"n1": {"a": 3000}, "n2": {}}, options={"max_egress_bytes_per_cycle": 5999})
    corrupt(monkeypatch, times=1)
    written = record(fleet.roots)
    engine = Engine()
    engine.start([move("a", "n1", "n2", 3000)])
    job = engine.finish()
    assert job.failures == {"budget_egress": 1}
    check(fleet.roots, written, job)


# -- cleanup ----------------------------------------------------------------------------------------------------------
def test_trash_is_purged_after_the_grace_and_not_before(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={"grace": "10m", "throttle_bytes_per_sec": "none"})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    engine.finish()
    assert engine.cleanup(later_ms=590_000).purged == 0
    assert len(list((fleet.roots["n1"] / ".rebalance/trash").iterdir())) == 5
    assert engine.context.fleet.awaiting() == {"n1": sum(SIZES.values())}
    assert engine.cleanup(later_ms=10_000).purged == 5
    assert engine.context.fleet.awaiting() == {"n1": 0}
    assert violations(fleet.roots, record(fleet.roots), trash=True) == []


def test_trash_that_somebody_still_writes_to_is_never_purged(fleet: Fleet, engine: Engine) -> None:
    with (fleet.roots["n1"] / "a/one").open("ab") as stranger:
        engine.start([move("a/one", "n1", "n2", 3000)])
        engine.finish()
        stranger.write(b"the end of a line that was begun before the move")
    for _ in range(3):
        assert engine.cleanup(later_ms=DAY_MS).purged == 0
    trash = fleet.roots["n1"] / ".rebalance/trash/j1.0"
    assert trash.read_bytes().endswith(b"before the move")


def test_forwardings_are_forgotten_after_their_time(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": SIZES, "n2": {}}, options={"forwarding_ttl": "1h", "object_cooldown": "2h"})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    engine.finish()
    keys, redis = engine.context.keys, engine.context.connection.client
    assert redis.hlen(keys.forwarding) == 5
    later(engine, minutes=119)
    assert engine.cleanup().forgotten == 0
    later(engine, minutes=2)
    assert engine.cleanup().forgotten == 5
    assert redis.hlen(keys.forwarding) == redis.zcard(keys.moved) == 0


def later(engine: Engine, *, minutes: int) -> None:
    """Let the moves have been made so much longer ago."""
    keys, redis = engine.context.keys, engine.context.connection.client
    for key in redis.zrange(keys.moved, 0, -1):
        redis.zincrby(keys.moved, -minutes * 60_000, key)


def test_staged_copies_of_ended_jobs_go_and_those_of_running_jobs_stay(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    tmp = fleet.roots["n2"] / ".rebalance/tmp"
    (tmp / "j1.99").write_bytes(b"a stalled worker's")
    (tmp / "unknown-job.1").write_bytes(b"who knows")
    assert engine.cleanup().orphans == 0
    engine.finish()
    assert engine.cleanup().orphans == 1
    assert [path.name for path in tmp.iterdir()] == ["unknown-job.1"]
    os.utime(tmp / "unknown-job.1", (0, 0))
    assert engine.cleanup().orphans == 1
    assert fleet.leftovers() == []


# -- odd objects ------------------------------------------------------------------------------------------------------
ODD_KEYS = {
    "newline": "line one\nline two",
    "trailing dot": "folder./file.",
    "unicode": "\u0416\u0443\u043a/\u732b/\U0001f680.bin",
    "combining": "e\u0301",
    "spaces": " leading and trailing ",
    "backslash and quote": "a\\b'c\"d",
    "glob": "[x]*?",
    "bar": "n2|7",
    "1,024 bytes": "/".join(["d" * 204] * 4 + ["k" * 204]),
}


@pytest.mark.parametrize("name", ODD_KEYS)
def test_a_key_of_any_kind_goes_through_a_job_unchanged(fleet_config: FleetFactory, name: str) -> None:
    key = ODD_KEYS[name]
    fleet = fleet_config({"n1": {key: 3000}, "n2": {}})
    written = record(fleet.roots)
    engine = Engine()
    engine.start([move(key, "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)
    assert engine.context.locations.lookup(key)[0] == "n2"
    assert engine.cleanup(later_ms=DAY_MS).purged == 1


def test_mode_times_and_attributes_travel_with_a_read_only_file(fleet: Fleet, engine: Engine) -> None:
    path = fleet.roots["n1"] / "a/one"
    attributes = set_attributes(path, {"user.colour": b"green"})
    path.chmod(0o440)
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    engine.start([move("a/one", "n1", "n2", 3000)])
    assert engine.finish().completed_moves == 1
    arrived = fleet.roots["n2"] / "a/one"
    status = arrived.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o440, 1_500_000_000_987_654_321)
    assert {name: os.getxattr(arrived, name) for name in attributes} == attributes


def set_attributes(path: Path, attributes: dict[str, bytes]) -> dict[str, bytes]:
    """Set extended attributes; none where the system or its file system keeps none."""
    try:
        for name, value in attributes.items():
            os.setxattr(path, name, value)
    except (AttributeError, OSError):
        return {}
    return attributes


def test_a_sparse_file_keeps_its_holes(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"n1": {}, "n2": NodeSpec(capacity_bytes=10**8)}, options={"throttle_bytes_per_sec": "none"})
    engine = Engine()
    path = fleet.roots["n1"] / "sparse"
    with path.open("wb") as file:
        file.write(b"head" * 1024)
        file.seek(8 << 20)
        file.write(b"tail")
        file.truncate(9 << 20)
    written = record(fleet.roots)
    blocks = path.stat().st_blocks
    engine.start([move("sparse", "n1", "n2", 9 << 20)])
    job = engine.finish()
    check(fleet.roots, written, job)
    assert (fleet.roots["n2"] / "sparse").stat().st_blocks <= blocks + 16


def test_an_object_with_two_names_is_left_alone(fleet: Fleet, engine: Engine) -> None:
    os.link(fleet.roots["n1"] / "a/one", fleet.roots["n1"] / "a/second-name")
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"unreadable": 1})
    assert "hard links" in engine.outcome(0)
    assert os.path.samefile(fleet.roots["n1"] / "a/one", fleet.roots["n1"] / "a/second-name")
    check(fleet.roots, written, job)


def test_a_symbolic_link_in_the_place_of_an_object_is_left_alone(fleet: Fleet, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"outside")
    (fleet.roots["n1"] / "a/one").unlink()
    (fleet.roots["n1"] / "a/one").symlink_to(tmp_path / "secret")
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert job.failures == {"unreadable": 1}
    assert "a/one" not in fleet.objects("n2")
    assert (tmp_path / "secret").read_bytes() == b"outside"
