"""Workers come and go in the middle of a job: autoscaled processes, a rolling upgrade with two releases side by side."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from rebalance_tasks.control.reach import far_queues
from rebalance_tasks.control.sweep import run_sweep
from tests.support.arena import JOB_TIMEOUT_S, context_of, rebalancer_of, wait_for
from tests.support.checker import check, record
from tests.support.engine import hurry, moves_between
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from rebalance_tasks import Rebalancer
    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory, Worker

from rebalance_tasks.core.models import RebalancePlan

pytestmark = pytest.mark.integration

TARGETS = ("n2", "n3", "n4")
SIZES = dict.fromkeys((f"o/{number:03}" for number in range(60)), 20_000)
QUEUES = ("-Q", "rebalance.control,rebalance.data,rebalance.data.h1")


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    own = {"queue": "h1"}
    nodes = {"n1": NodeSpec(SIZES, 10**7, own)} | {target: NodeSpec({}, 10**7, own) for target in TARGETS}
    return fleet_config(nodes, options={"throttle_bytes_per_sec": 100_000, "max_concurrent_migrations": 3})


def start(rebalancer: Rebalancer) -> None:
    """One group for each target."""
    keys = list(SIZES)
    moves = [
        move
        for number, target in enumerate(TARGETS)
        for move in moves_between("n1", target, {key: SIZES[key] for key in keys[number :: len(TARGETS)]})
    ]
    rebalancer.start(RebalancePlan(plan_id="p1", fleet="test", moves=tuple(moves)), "j1")


def finish(rebalancer: Rebalancer, context: FleetContext) -> RebalanceJob:
    def over() -> bool:
        hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"), quiet_ms=3_500)
        run_sweep(context)
        return rebalancer.status("j1").status.terminal

    wait_until(over, JOB_TIMEOUT_S, "the job is over", interval_s=0.3)
    return wait_for(rebalancer, "j1")


def processes_of(worker: Worker) -> int:
    with suppress(psutil.Error):
        return sum(1 for child in psutil.Process(worker.pid).children(recursive=True) if child.status() != "zombie")
    return 0


def test_processes_are_added_and_taken_away_and_workers_change_in_the_middle(
    fleet: Fleet, processes: ProcessFactory
) -> None:
    rebalancer = rebalancer_of(fleet)
    context, written = context_of(rebalancer), record(fleet.roots)
    # An idle process is taken away after a second, not after half a minute.
    eager = {"AUTOSCALE_KEEPALIVE": "1"}
    first = processes.worker(concurrency=1, extra=(*QUEUES, "--autoscale", "4,1"), env=eager)
    least = processes_of(first)
    assert least >= 1
    # However slow the machine is, the job outlasts all that comes and goes.
    rebalancer.set_throttle(SIZES["o/000"] // 2)
    start(rebalancer)
    wait_until(lambda: processes_of(first) >= least + 2, JOB_TIMEOUT_S, "the worker has grown")
    rebalancer.pause("j1")
    wait_until(lambda: processes_of(first) == least, JOB_TIMEOUT_S, "it has shrunk, since nothing may move")
    rebalancer.resume("j1")
    wait_until(lambda: processes_of(first) > least, JOB_TIMEOUT_S, "it grows with the job that goes on")
    second = processes.worker(concurrency=1, extra=(*QUEUES, "--autoscale", "4,1"))
    wait_until(lambda: len(rebalancer.workers()) == 2, JOB_TIMEOUT_S, "both say that they are there")
    first.terminate()
    # It says so itself when it ends in order: nobody has to wait until it has been silent for long.
    wait_until(lambda: len(rebalancer.workers()) == 1, JOB_TIMEOUT_S, "the first has taken its leave")
    assert not rebalancer.status("j1").status.terminal
    rebalancer.set_throttle(None)
    job = finish(rebalancer, context)
    assert (job.completed_moves, job.failed_moves) == (len(SIZES), 0)
    check(fleet.roots, written, job)
    second.require_alive()


def test_two_releases_work_side_by_side(fleet: Fleet, processes: ProcessFactory) -> None:
    rebalancer = rebalancer_of(fleet)
    context, written = context_of(rebalancer), record(fleet.roots)
    older = processes.worker(concurrency=2, app="tests.support.older", extra=QUEUES)
    start(rebalancer)
    wait_until(lambda: any((fleet.roots["n2"] / ".rebalance" / "tmp").glob("*")), JOB_TIMEOUT_S, "it copies")
    processes.worker(concurrency=2, extra=QUEUES)
    wait_until(lambda: len(context.digests()) == 2, JOB_TIMEOUT_S, "both are there, with one configuration")
    assert len(set(context.digests().values())) == 1
    # What the older one does not say is not taken for a no.
    assert context.presence.served(now_ms=context.connection.now_ms()) is None
    assert far_queues(context) == ["rebalance.data.h1"]
    for chore in ("sweep", "cleanup"):  # an argument that it does not know is a hint that is lost
        for _ in range(4):
            context.messenger.publish_chore(chore, "rebalance.data.h1")
    older.terminate()
    job = finish(rebalancer, context)
    assert (job.completed_moves, job.failed_moves) == (len(SIZES), 0)
    check(fleet.roots, written, job)
