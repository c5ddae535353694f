"""Quiet hours pause work that runs and let it go on after them; here the slices run in this process, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import RebalanceStatus
from rebalance_tasks.celery import make_app
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.runtime import Runtime
from tests.support.arena import context_of, objects, rebalancer_of, wait_for
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    import redis

    from rebalance_tasks import Rebalancer
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    return fleet_config({"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000)})


@pytest.fixture
def loud(fleet: Fleet) -> Rebalancer:
    """A client for which no hour is quiet."""
    return rebalancer_of(fleet)


@pytest.fixture
def quiet(fleet: Fleet, loud: Rebalancer) -> Rebalancer:
    """A client for which it is a quiet hour now, and whatever minute it is for an hour to come."""
    hour = context_of(loud).now().hour
    return rebalancer_of(fleet, quiet_hours=((hour - 1) % 24, (hour + 2) % 24))


def run_slice(rebalancer: Rebalancer, job_id: str) -> SliceOutcome:
    """What a worker with this configuration does with the job's first group."""
    settings = rebalancer.settings
    return Runtime(settings, make_app(settings)).slice(job_id, "g0000", owner="this test").run()


def test_a_runner_pauses_its_job_when_quiet_hours_begin(
    fleet: Fleet, loud: Rebalancer, quiet: Rebalancer, redis_client: redis.Redis, processes: ProcessFactory
) -> None:
    content = fleet.all_objects()
    job_id = loud.start(loud.plan()).job_id
    redis_client.delete("rebalance.data")  # the message is in our hands
    assert run_slice(quiet, job_id) is SliceOutcome.PARKED
    job = loud.status(job_id)
    assert (job.status, job.paused_reasons, job.bytes_moved) == (RebalanceStatus.PAUSED, ("quiet_hours",), 0)
    assert (fleet.objects("b"), fleet.all_objects()) == ({}, content)
    # While the hours last, neither the sweep nor a second look nor the operator's resume lets it go on.
    run_sweep(context_of(quiet))
    assert run_slice(quiet, job_id) is SliceOutcome.PARKED
    assert quiet.resume(job_id).reason == "still paused by quiet_hours"
    assert redis_client.llen("rebalance.data") == 0
    # They are over: the sweep lifts its own reason and wakes the group.
    run_sweep(context_of(loud))
    assert loud.status(job_id).status is RebalanceStatus.RUNNING
    assert redis_client.llen("rebalance.data") == 1
    processes.worker(concurrency=1)
    job = wait_for(loud, job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    assert fleet.all_objects() == content


def test_the_sweep_pauses_a_job_whose_groups_all_wait(loud: Rebalancer, quiet: Rebalancer) -> None:
    job_id = loud.start(loud.plan()).job_id
    run_sweep(context_of(quiet))
    assert loud.status(job_id).paused_reasons == ("quiet_hours",)
    assert run_slice(loud, job_id) is SliceOutcome.PARKED


def test_the_end_of_quiet_hours_does_not_lift_an_operators_pause(
    loud: Rebalancer, quiet: Rebalancer, redis_client: redis.Redis
) -> None:
    job_id = loud.start(loud.plan()).job_id
    redis_client.delete("rebalance.data")
    loud.pause(job_id)
    run_sweep(context_of(quiet))
    assert loud.status(job_id).paused_reasons == ("operator", "quiet_hours")
    run_sweep(context_of(loud))
    assert loud.status(job_id).paused_reasons == ("operator",)
    assert loud.status(job_id).status is RebalanceStatus.PAUSED
    assert redis_client.llen("rebalance.data") == 0
    assert loud.resume(job_id).status is RebalanceStatus.RUNNING


def test_a_job_can_be_cancelled_in_quiet_hours(fleet: Fleet, loud: Rebalancer, quiet: Rebalancer) -> None:
    content = fleet.all_objects()
    job_id = loud.start(loud.plan()).job_id
    assert run_slice(quiet, job_id) is SliceOutcome.PARKED
    quiet.cancel(job_id)
    assert run_slice(quiet, job_id) is SliceOutcome.TERMINAL
    run_sweep(context_of(quiet))
    job = loud.status(job_id)
    assert (job.status, job.failures) == (RebalanceStatus.CANCELLED, {"cancelled": job.total_moves})
    assert (fleet.objects("b"), fleet.all_objects()) == ({}, content)
