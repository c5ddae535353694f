"""A worker that is told to end hands its slices back at once, and another one goes on where they stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from rebalance_tasks import Rebalancer, RebalanceStatus
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.drivers.local import burst as local_burst
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.shutdown import SHUTTING_DOWN
from rebalance_tasks.migration.slice import MAX_DEATHS, SliceOutcome
from tests.support.arena import context_of, wait_for
from tests.support.checker import check, record
from tests.support.engine import Engine, copied_bytes, count_copied, moves_between
from tests.support.fleets import NodeSpec
from tests.support.hooks import SIZES, after
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory, Worker

pytestmark = pytest.mark.integration

#: Ten seconds at this rate.
LARGE, RATE = 3_000_000, 300_000
#: What the second worker may do: quick, and slow enough to be watched.
SECOND = {"REBALANCE_THROTTLE_BYTES_PER_SEC": "2MB"}
#: The promise is about two seconds on a machine with nothing else to do; the rest of a slice would take eight.
AT_ONCE_S = 5.0
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("pools", "env"),
    [(("prefork", "threads"), {"REMAP_SIGTERM": "SIGQUIT"}), (("threads", "prefork"), {})],
    ids=["prefork, softly", "threads, warmly"],
)
def test_a_worker_that_is_to_end_hands_back_at_once_and_another_one_goes_on_from_there(
    fleet_config: FleetFactory,
    processes: ProcessFactory,
    redis_client: redis.Redis,
    pools: tuple[str, str],
    env: dict[str, str],
) -> None:
    nodes = {"n1": NodeSpec({"large": LARGE}, 10 * LARGE), "n2": NodeSpec({}, 10 * LARGE)}
    fleet = fleet_config(nodes, options={"throttle_bytes_per_sec": RATE})
    written = record(fleet.roots)
    first = processes.worker(extra=("--pool", pools[0]), env=env)
    rebalancer = start({"large": LARGE})
    staged = fleet.roots["n2"] / ".rebalance" / "tmp" / "j1.0"
    wait_until(lambda: staged.exists() and size_of(staged) > RATE // 2, 20, "half a second's worth is copied")
    ended_with, took_s = end(first, signal.SIGTERM)
    assert (ended_with, took_s < AT_ONCE_S) == (0, True), f"{ended_with} after {took_s:.1f} s"
    copied, inode = size_of(staged), staged.stat().st_ino
    assert RATE // 2 < copied < LARGE
    assert redis_client.llen("rebalance.data") >= 1, "nobody has to wait for the sweep"
    second = processes.worker(env=SECOND, concurrency=1, extra=("--pool", pools[1]))
    job = watch_growing(rebalancer, staged, copied)
    check(fleet.roots, written, job)
    assert (fleet.roots["n2"] / "large").stat().st_ino == inode
    assert job.bytes_moved == spent_egress(context_of(rebalancer)) == LARGE
    # It has nothing to do any more.
    ended_with, took_s = end(second, signal.SIGQUIT)
    assert (ended_with, took_s < AT_ONCE_S) == (0, True), f"{ended_with} after {took_s:.1f} s"


def test_a_task_that_hears_of_no_shutdown_is_cancelled_when_the_time_is_over_and_comes_again(
    fleet_config: FleetFactory, processes: ProcessFactory, redis_client: redis.Redis, tmp_path: Path
) -> None:
    fleet = fleet_config({"n1": {}, "n2": {}})
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    worker = processes.worker(app="tests.support.stubborn", env={"PYTHONPATH": python_path}, concurrency=1)
    with Celery(broker=fleet.redis_url, set_as_current=False) as app:
        app.send_task("tests.stubborn", args=[str(tmp_path / "ran")], queue="rebalance.control", ignore_result=True)
    wait_until((tmp_path / "ran").exists, 20, "the task runs")
    _, took_s = end(worker, signal.SIGQUIT)
    assert 1 <= took_s < 20
    assert redis_client.llen("rebalance.control") == 1


# -- the flag, in one process -------------------------------------------------------------------------------------
@pytest.fixture
def flag() -> Iterator[None]:
    yield
    SHUTTING_DOWN.clear()


def test_a_slice_that_is_shut_down_again_and_again_is_no_death_of_its_objects_and_copies_nothing_twice(
    engine: Engine, fleet: Fleet, flag: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    monkeypatch.setattr(Copier, "_part", Copier._part)
    monkeypatch.setattr(local_burst, "write_at", local_burst.write_at)
    count_copied(tmp_path / "copied")
    engine.start(moves_between("n1", "n2", SIZES))
    for _ in range(MAX_DEATHS):
        with pytest.MonkeyPatch.context() as patch:
            after(patch, Copier, "_part", lambda *_: SHUTTING_DOWN.set())
            assert engine.slice() is SliceOutcome.AGAIN
        SHUTTING_DOWN.clear()
    job = engine.finish()
    check(fleet.roots, written, job)
    assert job.failures == {}
    assert copied_bytes(tmp_path / "copied") == spent_egress(engine.context) == sum(SIZES.values())


def test_what_is_verified_when_the_flag_rises_is_published_by_the_next_slice_as_it_is(
    engine: Engine, fleet: Fleet, flag: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    after(monkeypatch, Batch, "_verify", lambda *_: SHUTTING_DOWN.set())
    assert engine.slice() is SliceOutcome.AGAIN
    assert len(fleet.leftovers()) == len(SIZES)
    SHUTTING_DOWN.clear()
    staged = {Path(path).stat().st_ino for path in fleet.leftovers()}
    check(fleet.roots, written, engine.finish())
    assert staged == {(fleet.roots["n2"] / key).stat().st_ino for key in SIZES}


def test_what_is_published_when_the_flag_rises_is_finished_before_the_slice_hands_back(
    engine: Engine, fleet: Fleet, flag: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    after(monkeypatch, Batch, "_publish", lambda *_: SHUTTING_DOWN.set())
    engine.slice()
    assert fleet.leftovers() == []
    assert engine.job().completed_moves == len(SIZES)
    SHUTTING_DOWN.clear()
    check(fleet.roots, written, engine.finish())


def test_a_slice_that_begins_in_a_worker_that_ends_touches_nothing(engine: Engine, fleet: Fleet, flag: None) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    SHUTTING_DOWN.set()
    assert engine.slice() is SliceOutcome.AGAIN
    assert fleet.leftovers() == []


# -- helpers ------------------------------------------------------------------------------------------------------
def start(sizes: dict[str, int]) -> Rebalancer:
    rebalancer = Rebalancer()
    rebalancer.start(RebalancePlan(plan_id="p1", fleet="test", moves=tuple(moves_between("n1", "n2", sizes))), "j1")
    return rebalancer


def end(worker: Worker, number: signal.Signals) -> tuple[int, float]:
    """Signal the worker's main process; return its exit code and how long it took to end."""
    begun = time.monotonic()
    worker.process.send_signal(number)
    code = worker.process.wait(30)
    return code, time.monotonic() - begun


def size_of(path: Path) -> int:
    return path.stat().st_size


def watch_growing(rebalancer: Rebalancer, staged: Path, least: int) -> RebalanceJob:
    """Wait for the end; a staged copy that was begun anew would be seen to be smaller than it was."""
    seen: set[int] = set()
    while staged.exists():
        try:
            seen.add(size_of(staged))
        except FileNotFoundError:
            break
        assert min(seen) >= least, "a finished part was copied again"
        time.sleep(0.002)
    assert len(seen) > 1, "nobody saw it grow"
    return completed(rebalancer)


def completed(rebalancer: Rebalancer) -> RebalanceJob:
    job = wait_for(rebalancer, "j1")
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, job.total_moves, {})
    return job


def spent_egress(context: FleetContext) -> int:
    return int(context.connection.hget(context.keys.job("j1").base, "egress_bytes") or 0)


def test_our_own_app_hears_of_a_shutdown_once_as_a_stock_app_does() -> None:
    """In a process of its own, as a worker's is."""
    program = (
        "import rebalance_tasks.celery, rebalance_tasks.tasks; from celery.signals import worker_shutting_down as told\n"
        "print(*(name for _, heard in told.receivers if (name := heard().__module__).startswith('rebalance_tasks')))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert shown.stdout.split() == ["rebalance_tasks.tasks"]
