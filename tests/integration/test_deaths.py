"""Workers that die on an object, workers that stall and wake up too late, and a Redis that forgot its last seconds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration import copying, faults
from rebalance_tasks.migration import slice as slices
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.heartbeat import Heart
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.store import leases
from tests.support.checker import check, record
from tests.support.engine import Engine, move, moves_between
from tests.support.hooks import (
    DAY_MS,
    SIZES,
    WorkerDiedError,
    after,
    append,
    before,
    deadly,
    die_at,
)
from tests.support.stores import dump
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


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


@pytest.mark.parametrize("step", [faults.Step.RETRACT, faults.Step.UNPUBLISH])
def test_a_death_while_a_flip_is_taken_back_leaves_the_source_the_truth(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: faults.Step
) -> None:
    written = record(fleet.roots)
    fresh: list[bytes] = []
    before(monkeypatch, Batch, "_free", lambda *_: fresh.append(append(fleet.roots["n1"] / "a/one")))
    engine.start(moves_between("n1", "n2", SIZES))
    work_until_death(engine, step)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written.changed("a/one", fresh[0]), job, trash=True)


def work_until_death(engine: Engine, *steps: str, when: Callable[[], bool] = lambda: True) -> None:
    """Work until a step is reached, and die there."""
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, *steps, when=when)
        with pytest.raises(WorkerDiedError):
            engine.work()


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


def test_a_runner_keeps_its_lease_through_a_sync_that_outlasts_it(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_MS", 300)
    monkeypatch.setattr(slices, "HEART", Heart(every_s=0.05))
    lease_key = engine.context.keys.job("j1").lease("g0000", 0)

    def lease_until() -> int:
        return int(engine.context.connection.hget(lease_key, "lease_until") or 0)

    def outlast(*_: Any) -> None:
        begun = lease_until()
        wait_until(lambda: lease_until() > begun + 300, 10, "the lease was renewed beyond its first end")
        assert engine.context.jobs.acquire_lease("j1", "g0000", owner="another").code == "busy"

    before(monkeypatch, LocalDriver, "sync", outlast)
    engine.start(moves_between("n1", "n2", SIZES))
    assert engine.slice() is SliceOutcome.TERMINAL
    assert engine.job().completed_moves == 5


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


@pytest.mark.parametrize("step", ["part", "stage", "sync_staged", "journal"])
def test_a_bit_that_flips_at_rest_in_the_copy_of_a_dead_worker_is_noticed_and_the_copy_made_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(copying, "PART_BYTES", 1024)
    written = record(fleet.roots)
    engine.start([move("b/three", "n1", "n2", 7000)])
    staged = fleet.roots["n2"] / ".rebalance/tmp/j1.0"
    work_until_death(engine, step, when=lambda: staged.stat().st_size >= 4096)
    faults.corrupt(staged)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)


def test_a_bit_that_flips_at_rest_while_a_job_is_paused_is_noticed_and_the_copy_made_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "BEAT_EVERY_S", 0.0)
    written = record(fleet.roots)
    after(monkeypatch, Batch, "_verify", lambda _: lifecycle.pause(engine.context, "j1"))
    engine.start([move("b/three", "n1", "n2", 7000)])
    engine.work()
    faults.corrupt(fleet.roots["n2"] / ".rebalance/tmp/j1.0")
    lifecycle.resume(engine.context, "j1")
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)


def test_a_staged_copy_that_is_shorter_than_its_journal_is_made_anew(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that lost power lost its page cache; Redis, elsewhere, did not."""
    monkeypatch.setattr(copying, "PART_BYTES", 1024)
    written = record(fleet.roots)
    engine.start([move("b/three", "n1", "n2", 7000)])
    staged = fleet.roots["n2"] / ".rebalance/tmp/j1.0"
    work_until_death(engine, "part", when=lambda: staged.stat().st_size >= 4096)
    os.truncate(staged, 1500)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)


@pytest.mark.parametrize("step", ["manifest", "flip", "free", "settle"])
def test_what_redis_forgot_of_its_last_seconds_is_found_again_in_the_manifest(
    fleet: Fleet, engine: Engine, step: str
) -> None:
    """The server comes back as it was before the batch: no journal, no flip, no count; the nodes did not go back."""
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    redis = engine.context.connection.client
    before_batch = dump(engine.context.connection)
    work_until_death(engine, step)
    redis.delete(*dump(engine.context.connection))
    for key, value in before_batch.items():
        redis.restore(key, 0, value)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written, job)


@pytest.mark.parametrize("step", ["publish", "sync_published"])
def test_a_copy_that_was_published_before_redis_forgot_it_is_taken_over(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """No manifest was written yet and the journal is gone: only its bytes say whose copy it is."""
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(WorkerDiedError):
            engine.slice()
    engine.context.connection.client.delete(engine.context.keys.job("j1").journal)
    engine.hurry()
    run_sweep(engine.context)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written, job)


def test_an_object_at_the_key_that_only_looks_the_same_is_left_alone(fleet: Fleet, engine: Engine) -> None:
    source, target = fleet.roots["n1"] / "four", fleet.roots["n2"] / "four"
    target.write_bytes(bytes(reversed(source.read_bytes())) or b"x")
    os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    before_it = target.read_bytes()
    assert before_it != source.read_bytes()
    engine.start(moves_between("n1", "n2", {"four": SIZES["four"]}))
    assert engine.finish().failures == {"target_exists": 1}
    assert (target.read_bytes(), source.exists()) == (before_it, True)
