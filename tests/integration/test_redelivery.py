"""Real workers that are killed, messages that are doubled or late, and results that expire: the job ends right all the same.

What these tests wait for is a lease or a waiting time to run out; they let it (`Engine.hurry`) instead of sleeping, and
sweep in beat's place.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from celery import Celery

from rebalance_tasks import Rebalancer
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.core.states import RebalanceStatus
from tests.support import engine
from tests.support.arena import context_of, wait_for
from tests.support.checker import check, record
from tests.support.engine import clean_up, moves_between
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob, RebalanceMove
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

SIZES = {f"o/{number:02}": 20_000 for number in range(30)}
#: The whole job takes three seconds: long enough to be killed in, short enough to wait for.
OPTIONS = {"throttle_bytes_per_sec": 200_000}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    return fleet_config({"n1": SIZES, "n2": {}, "n3": {}}, options=OPTIONS)


def start(sizes: Mapping[str, int] = SIZES, *, targets: tuple[str, ...] = ("n2",)) -> tuple[Rebalancer, FleetContext]:
    """Start job j1: the objects go to the targets in turn."""
    parts = [dict(list(sizes.items())[number :: len(targets)]) for number in range(len(targets))]
    return start_moves(
        [move for target, part in zip(targets, parts, strict=True) for move in moves_between("n1", target, part)]
    )


def start_moves(moves: list[RebalanceMove]) -> tuple[Rebalancer, FleetContext]:
    rebalancer = Rebalancer()
    rebalancer.start(RebalancePlan(plan_id="p1", fleet="test", moves=tuple(moves)), "j1")
    return rebalancer, context_of(rebalancer)


def hurry(context: FleetContext) -> None:
    """Let the leases of dead runners and the waiting times of lost messages be over, and sweep."""
    engine.hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"))
    run_sweep(context)


def completed(rebalancer: Rebalancer) -> RebalanceJob:
    job = wait_for(rebalancer, "j1")
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, job.total_moves, {})
    return job


# -- deaths -----------------------------------------------------------------------------------------------------------
def test_a_new_worker_finishes_the_job_of_one_that_was_killed_in_the_middle(
    fleet: Fleet, processes: ProcessFactory
) -> None:
    written = record(fleet.roots)
    first = processes.worker()
    rebalancer, context = start()
    wait_until(lambda: len(fleet.leftovers()) > 3, 20, "some objects are staged")
    first.kill9()
    assert not rebalancer.status("j1").status.terminal
    processes.worker()
    hurry(context)
    job = completed(rebalancer)
    clean_up(context)
    check(fleet.roots, written, job)
    assert job.bytes_moved == sum(SIZES.values())


def test_another_child_finishes_what_a_killed_child_began(
    fleet: Fleet, processes: ProcessFactory, tmp_path: Path
) -> None:
    written = record(fleet.roots)
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    faults = {"REBALANCE_FAULTS": "stage=kill:5,publish=kill:7", "REBALANCE_FAULTS_LEDGER": str(ledger)}
    processes.worker(env=faults)
    rebalancer, context = start()
    wait_until((ledger / "stage=kill").exists, 20, "a child has killed itself while it copied")
    wait_until(lambda: idle(context), 20, "the lease of the dead child was met")
    hurry(context)
    wait_until((ledger / "publish=kill").exists, 20, "another one while it published")
    hurry(context)
    hurry_until_over(rebalancer, context)
    check(fleet.roots, written, completed(rebalancer))


def idle(context: FleetContext) -> bool:
    """Whether no header waits and no worker holds one: a dead child's came back and dropped itself at the lease."""
    return context.connection.client.hlen("unacked") == 0 and context.connection.client.llen("rebalance.data") == 0


def hurry_until_over(rebalancer: Rebalancer, context: FleetContext) -> None:
    """Sweep as beat would; a lease is let run out only when nobody works under it."""

    def over() -> bool:
        if idle(context):
            hurry(context)
        return rebalancer.status("j1").status.terminal

    wait_until(over, 40, "the job is over", interval_s=0.2)


def test_a_copy_corrupted_in_a_worker_is_noticed_and_made_again(
    fleet: Fleet, processes: ProcessFactory, tmp_path: Path
) -> None:
    written = record(fleet.roots)
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    processes.worker(env={"REBALANCE_FAULTS": "stage=corrupt:3", "REBALANCE_FAULTS_LEDGER": str(ledger)})
    rebalancer, _ = start()
    job = completed(rebalancer)
    assert (ledger / "stage=corrupt").exists()
    check(fleet.roots, written, job)


def test_a_worker_that_is_stopped_and_goes_on_after_its_lease_is_over_changes_nothing(
    fleet: Fleet, processes: ProcessFactory
) -> None:
    """A virtual machine that was frozen: its runner wakes up in the middle of a batch that another one has finished."""
    written = record(fleet.roots)
    frozen = processes.worker()
    rebalancer, context = start()
    wait_until(lambda: len(fleet.leftovers()) > 3, 20, "some objects are staged")
    family = [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGSTOP)
    processes.worker()
    hurry(context)
    job = completed(rebalancer)
    for process in family:
        process.send_signal(signal.SIGCONT)
    wait_until(lambda: context.connection.client.hlen("unacked") == 0, 20, "the frozen runner has given up")
    check(fleet.roots, written, job)
    assert rebalancer.status("j1") == job


# -- messages ---------------------------------------------------------------------------------------------------------
def test_a_header_that_comes_five_times_does_the_work_once(
    fleet: Fleet, processes: ProcessFactory, redis_client: redis.Redis
) -> None:
    written = record(fleet.roots)
    rebalancer, context = start(targets=("n2", "n3"))
    for group in context.jobs.groups("j1").values():
        for _ in range(4):
            context.messenger.publish_group("j1", group)
    assert redis_client.llen("rebalance.data") == 10
    processes.worker(concurrency=4)
    job = completed(rebalancer)
    check(fleet.roots, written, job)
    wait_until(lambda: redis_client.llen("rebalance.data") == 0, 20, "the duplicates are gone")
    assert job.bytes_moved == sum(SIZES.values())
    assert spent_egress(context) == sum(SIZES.values())


def test_a_header_a_monitor_and_a_finalize_that_come_after_the_end_change_nothing(
    fleet: Fleet, processes: ProcessFactory, redis_client: redis.Redis
) -> None:
    processes.worker()
    rebalancer, context = start({key: SIZES[key] for key in list(SIZES)[:3]})
    job = completed(rebalancer)
    group = context.jobs.groups("j1")["g0000"]
    written = record(fleet.roots)
    context.messenger.publish_group("j1", group)
    context.messenger.publish_finalize("j1")
    with Celery(broker=fleet.redis_url, set_as_current=False) as app:
        late = {"job_id": "j1", "group_id": "g0000"}
        app.send_task("rebalance.monitor", kwargs=late, queue="rebalance.control", ignore_result=True)
    queues = ("rebalance.data", "rebalance.control")
    wait_until(
        lambda: not any(redis_client.llen(name) for name in queues) and not redis_client.hlen("unacked"),
        20,
        "the late messages are taken",
    )
    assert rebalancer.status("j1") == job
    check(fleet.roots, written)
    assert context.jobs.active() is None


def spent_egress(context: FleetContext) -> int:
    return int(context.connection.hget(context.keys.job("j1").base, "egress_bytes") or 0)


# -- results ----------------------------------------------------------------------------------------------------------
def test_a_pause_that_outlasts_the_results_of_a_chord_is_made_up_for_by_the_sweep(
    fleet: Fleet, processes: ProcessFactory, redis_client: redis.Redis
) -> None:
    written = record(fleet.roots)
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    processes.worker(app="tests.support.short_results", env={"PYTHONPATH": python_path}, concurrency=2)
    uneven = [moves_between("n1", "n2", {"o/00": 20_000}), moves_between("n1", "n3", dict(list(SIZES.items())[1:]))]
    rebalancer, context = start_moves([move for group in uneven for move in group])
    wait_until(lambda: rebalancer.status("j1").groups_done == 1, 20, "the first group is counted")
    rebalancer.pause("j1")
    wait_until(lambda: not chord_counters(redis_client), 20, "the chord has forgotten it")
    rebalancer.resume("j1")
    wait_until(lambda: rebalancer.status("j1").groups_done == 2, 20, "the second group is counted")
    wait_until(lambda: idle(context), 20, "the worker is idle")
    run_sweep(context)
    check(fleet.roots, written, completed(rebalancer))


def chord_counters(client: redis.Redis) -> list[str]:
    """Where the result backend keeps which headers have come back."""
    return list(client.scan_iter("celery-task-meta-*.j"))
