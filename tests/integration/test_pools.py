"""A pool of threads does what a pool of processes does: one job with kills, pauses, a cancel and doubled messages in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import Rebalancer, RebalanceStatus
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalancePlan
from tests.support.arena import assert_counts_add_up, context_of, wait_for
from tests.support.checker import check, record
from tests.support.engine import clean_up, hurry, moves_between
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from rebalance_tasks.control.context import FleetContext
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

TARGETS = ("n2", "n3", "n4", "n5")
SIZES = dict.fromkeys((f"o/{number:03}" for number in range(120)), 20_000)
THREADS = ("--pool", "threads")


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    nodes = {"n1": NodeSpec(SIZES, 10**7)} | {target: NodeSpec({}, 10**7) for target in TARGETS}
    return fleet_config(nodes, options={"throttle_bytes_per_sec": 300_000, "max_concurrent_migrations": len(TARGETS)})


def start(job_id: str = "j1") -> tuple[Rebalancer, FleetContext]:
    """One group for each target, so that all threads work at once."""
    keys = list(SIZES)
    moves = [
        move
        for number, target in enumerate(TARGETS)
        for move in moves_between("n1", target, {key: SIZES[key] for key in keys[number :: len(TARGETS)]})
    ]
    rebalancer = Rebalancer()
    rebalancer.start(RebalancePlan(plan_id="p1", fleet="test", moves=tuple(moves)), job_id)
    return rebalancer, context_of(rebalancer)


def double(context: FleetContext) -> None:
    for group in context.jobs.groups("j1").values():
        for _ in range(2):
            context.messenger.publish_group("j1", group)


def staging(fleet: Fleet) -> int:
    """On how many targets copies are being made."""
    return sum(any(fleet.roots[target].glob(".rebalance/tmp/*")) for target in TARGETS)


def test_threads_carry_a_job_that_is_killed_paused_and_doubled(fleet: Fleet, processes: ProcessFactory) -> None:
    written = record(fleet.roots)
    first = processes.worker(concurrency=4, extra=THREADS)
    rebalancer, context = start()
    double(context)
    wait_until(lambda: staging(fleet) == len(TARGETS), 20, "all threads copy")
    rebalancer.pause("j1")
    wait_until(lambda: context.connection.client.hlen("unacked") == 0, 20, "all threads have parked")
    rebalancer.resume("j1")
    wait_until(lambda: staging(fleet) == len(TARGETS), 20, "all threads copy again")
    first.kill9()
    processes.worker(concurrency=4, extra=THREADS)
    double(context)
    sweep_until_over(rebalancer, context)
    job = wait_for(rebalancer, "j1")
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    assert job.bytes_moved == sum(SIZES.values())
    clean_up(context)
    check(fleet.roots, written, job)


def test_threads_wind_a_cancelled_job_up(fleet: Fleet, processes: ProcessFactory) -> None:
    written = record(fleet.roots)
    processes.worker(concurrency=4, extra=THREADS)
    rebalancer, _ = start()
    wait_until(lambda: staging(fleet) == len(TARGETS), 20, "all threads copy")
    rebalancer.cancel("j1")
    job = wait_for(rebalancer, "j1")
    assert job.status is RebalanceStatus.CANCELLED
    assert_counts_add_up(job)
    check(fleet.roots, written, job)


def sweep_until_over(rebalancer: Rebalancer, context: FleetContext) -> None:
    """Sweep as beat would, and let the dead worker's leases be over at once."""
    hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"))

    def over() -> bool:
        run_sweep(context)
        return rebalancer.status("j1").status.terminal

    wait_until(over, 40, "the job is over", interval_s=0.2)
