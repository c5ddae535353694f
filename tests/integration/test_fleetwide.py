"""The whole fleet is held, let go on, and limited at run time; every status says what is true meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import fleetwide, lifecycle
from rebalance_tasks.control.check import run_check
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.store.throttle import ByteBucket
from tests.support.engine import Engine, move, moves_between
from tests.support.hooks import SIZES

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


def test_pausing_the_fleet_holds_the_running_job_and_resuming_wakes_it(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    result = fleetwide.pause_all(engine.context)
    assert (result.job_id, result.status, result.reason) == ("j1", RebalanceStatus.PAUSED, "")
    assert engine.job().paused_reasons == ("global",)
    assert engine.slice() is SliceOutcome.PARKED
    assert fleet.objects("n2") == {"resident": fleet.objects("n2")["resident"]}
    engine.messages.queue.clear()
    result = fleetwide.resume_all(engine.context)
    assert (result.status, result.reason) == (RebalanceStatus.RUNNING, "")
    assert engine.messages.queue, "nobody woke the job"
    assert engine.finish().completed_moves == len(SIZES)


def test_a_paused_fleet_starts_no_check_and_lets_no_new_job_begin(fleet: Fleet, engine: Engine) -> None:
    assert fleetwide.pause_all(engine.context).job_id == ""
    assert run_check(engine.context, force=True).reason.startswith("paused")
    engine.start(moves_between("n1", "n2", SIZES))
    run_sweep(engine.context)
    assert not engine.messages.queue
    assert engine.job().status in {RebalanceStatus.PENDING, RebalanceStatus.PAUSED}
    assert engine.job().paused_reasons == ("global",)
    assert fleetwide.resume_all(engine.context).status is RebalanceStatus.RUNNING
    assert engine.messages.queue
    assert engine.finish().completed_moves == len(SIZES)


def test_a_job_started_while_the_fleet_is_paused_runs_when_that_is_lifted(fleet: Fleet, engine: Engine) -> None:
    fleetwide.pause_all(engine.context)
    engine.start(moves_between("n1", "n2", SIZES))
    assert engine.job().status is RebalanceStatus.PENDING
    assert fleetwide.resume_all(engine.context).status is RebalanceStatus.RUNNING
    assert engine.messages.queue


def test_the_fleets_pause_and_the_operators_are_lifted_apart(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.pause(engine.context, "j1")
    fleetwide.pause_all(engine.context)
    assert engine.job().paused_reasons == ("global", "operator")
    assert lifecycle.resume(engine.context, "j1").reason == "still paused by global"
    lifecycle.pause(engine.context, "j1")
    assert fleetwide.resume_all(engine.context).reason == "still paused by operator"
    assert engine.job().status is RebalanceStatus.PAUSED
    assert lifecycle.resume(engine.context, "j1").reason == ""


def test_resuming_a_fleet_that_is_not_paused_says_so(fleet: Fleet, engine: Engine) -> None:
    assert fleetwide.resume_all(engine.context).reason == "the fleet is not paused"


def test_the_sweep_mends_a_pause_of_the_fleet_that_died_half_way(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    engine.context.fleet.pause(fleetwide.GLOBAL)
    run_sweep(engine.context)
    assert engine.job().status is RebalanceStatus.PAUSED
    engine.work()  # the header is picked up and parks
    engine.context.fleet.resume(fleetwide.GLOBAL)
    run_sweep(engine.context)
    assert engine.job().status is RebalanceStatus.RUNNING
    assert engine.messages.queue


def test_a_cancel_gets_through_to_a_paused_fleet(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    fleetwide.pause_all(engine.context)
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    assert engine.finish().status is RebalanceStatus.CANCELLED


def test_a_limit_set_at_run_time_wins_and_can_be_taken_back(fleet: Fleet, engine: Engine) -> None:
    configured = engine.context.settings.options.max_concurrent_migrations
    assert fleetwide.limit_in_force(engine.context) == configured
    assert fleetwide.set_limit(engine.context, 7) == 7
    assert fleetwide.limit_in_force(Engine().context) == 7
    assert fleetwide.set_limit(engine.context, None) == configured
    with pytest.raises(InvalidArgument, match="at least 1"):
        fleetwide.set_limit(engine.context, 0)


def test_a_changed_limit_acts_on_the_running_job(fleet_config: FleetFactory) -> None:
    fleet_config(
        {"n1": {"a": 1, "b": 2, "c": 3}, "n2": {}, "n3": {}, "n4": {}}, options={"max_concurrent_migrations": 1}
    )
    engine = Engine()
    engine.start(
        [move(key, "n1", target, size) for key, target, size in (("a", "n2", 1), ("b", "n3", 2), ("c", "n4", 3))]
    )

    def headers() -> list[str]:
        return [message.group_id for message in engine.messages.queue if message.task == "migrate"]

    assert headers() == ["g0000"]
    fleetwide.set_limit(engine.context, 3)
    assert headers() == ["g0000", "g0001", "g0002"], "a raised limit lets others in at once"
    fleetwide.set_limit(engine.context, 1)
    outcomes = [engine.slice(group) for group in headers()]
    assert outcomes == [SliceOutcome.DROPPED, SliceOutcome.DROPPED, SliceOutcome.TERMINAL]
    assert len(engine.context.jobs.permits("j1")) == 1
    assert engine.finish().completed_moves == 3


def test_a_throttle_set_at_run_time_wins_and_can_be_taken_back(fleet: Fleet, engine: Engine) -> None:
    context = engine.context
    configured = context.settings.options.throttle_bytes_per_sec
    assert fleetwide.throttle_in_force(context) == configured
    assert fleetwide.set_throttle(context, 7_000_000) == 7_000_000
    assert fleetwide.throttle_in_force(Engine().context) == 7_000_000
    bucket = ByteBucket(
        context.connection, "rebalance:bucket", rate_bytes_per_s=configured, override_key=context.keys.throttle
    )
    seen: list[int | None] = []
    bucket.take()
    seen.append(bucket.rate_bytes_per_s)
    assert fleetwide.set_throttle(context, None) is None
    bucket.take()
    seen.append(bucket.rate_bytes_per_s)
    assert seen == [7_000_000, None]
    assert fleetwide.reset_throttle(context) == configured
    with pytest.raises(InvalidArgument, match="at least 1 byte"):
        fleetwide.set_throttle(context, 0)
