"""The sweep: deadlines, jobs of which Redis lost a part, what ended jobs left undone, samples, and what it says of itself."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.causes import failure_groups
from rebalance_tasks.control.reach import Routes
from rebalance_tasks.control.retry import retry_failed
from rebalance_tasks.control.sweep import SweepReport, run_sweep
from rebalance_tasks.core.routes import DATA_QUEUE
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.store import outcomes as outcomes_module
from rebalance_tasks.store.outcomes import Outcome
from tests.support import checker
from tests.support.engine import Engine, move, moves_between
from tests.support.fleets import NodeSpec
from tests.support.hooks import DAY_MS, SIZES

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


def base(engine: Engine, job_id: str = "j1") -> str:
    return engine.context.keys.job(job_id).base


def sweep_tidily(engine: Engine) -> SweepReport:
    """Sweep, and let the chores that are done once a minute be due."""
    engine.context.connection.client.delete(engine.context.keys.key("chore:tidy"))
    return run_sweep(engine.context)


def started_earlier(engine: Engine, *, by: timedelta) -> None:
    """Let the job have been created so much longer ago."""
    engine.context.connection.client.hincrby(base(engine), "created_ms", -int(by.total_seconds() * 1000))


# -- the deadline ---------------------------------------------------------------------------------------------------------
def test_a_job_past_its_deadline_is_cancelled_and_says_why(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={"job_deadline": "2h"})
    written = checker.record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    started_earlier(engine, by=timedelta(minutes=119))
    assert run_sweep(engine.context).deadlines == 0
    started_earlier(engine, by=timedelta(minutes=2))
    assert run_sweep(engine.context).deadlines == 1
    assert run_sweep(engine.context).deadlines == 0
    job = engine.finish()
    assert job.status is RebalanceStatus.CANCELLED
    assert job.cancelled_by.startswith("deadline")
    assert job.error is not None
    assert "job_deadline 2:00:00" in job.error
    checker.check(fleet.roots, written, job)


def test_a_paused_job_meets_its_deadline_too(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": SIZES, "n2": {}}, options={"job_deadline": "2h"})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.pause(engine.context, "j1")
    started_earlier(engine, by=timedelta(hours=3))
    run_sweep(engine.context)
    assert engine.finish().status is RebalanceStatus.CANCELLED


def test_an_operators_cancel_is_no_error(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.cancel(engine.context, "j1", requested_by="me@host")
    job = engine.finish()
    assert (job.cancelled_by, job.error) == ("me@host", None)


# -- Redis by halves ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lost", ["states", "moves", "groups"])
def test_a_job_of_which_redis_lost_a_part_fails_and_the_fleet_goes_on(fleet: Fleet, engine: Engine, lost: str) -> None:
    written = checker.record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    engine.messages.queue.clear()
    engine.context.connection.client.delete(getattr(engine.context.keys.job("j1"), lost))
    assert run_sweep(engine.context).abandoned == 1
    job = engine.job()
    assert (job.status, job.failed_moves, job.failures) == (RebalanceStatus.FAILED, 5, {"state_lost": 5})
    assert job.completed_moves + job.failed_moves + job.skipped_moves == job.total_moves
    assert job.error is not None
    assert lost in job.error
    assert engine.context.jobs.active() is None
    assert run_sweep(engine.context).abandoned == 0
    engine.start(moves_between("n1", "n2", SIZES), job_id="j2")
    assert engine.finish("j2").completed_moves == len(SIZES)
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, engine.job("j2"), trash=True)


def test_a_job_whose_plan_vanished_goes_on_since_it_holds_its_moves_itself(fleet: Fleet, engine: Engine) -> None:
    written = checker.record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    engine.messages.queue.clear()
    engine.context.connection.client.delete(engine.context.keys.plan("p-j1"))
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(SIZES))
    checker.check(fleet.roots, written, job)


def test_an_active_job_that_is_gone_altogether_is_forgotten(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    for key in engine.context.connection.client.scan_iter(base(engine) + "*"):
        engine.context.connection.client.delete(key)
    sweep_tidily(engine)
    assert engine.context.jobs.active() is None
    assert engine.context.connection.hgetall(engine.context.keys.permits) == {}, (
        "its permit would narrow the gate for ever"
    )


# -- what ended jobs left undone ------------------------------------------------------------------------------------------
def test_a_job_whose_closer_died_before_it_could_retire_it_expires_all_the_same(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    engine.finish()
    client = engine.context.connection.client
    for key in client.scan_iter(base(engine) + "*"):
        client.persist(key)
    assert sweep_tidily(engine).retired == 1
    assert all(client.ttl(key) > 0 for key in client.scan_iter(base(engine) + "*"))
    assert sweep_tidily(engine).retired == 0


def test_an_ended_job_is_gone_from_redis_when_its_time_is_over(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": SIZES, "n2": {}}, options={"job_retention": "1m", "throttle_bytes_per_sec": "none"})
    engine = Engine()
    engine.start([*moves_between("n1", "n2", SIZES), move("never/there", "n1", "n2", 7)])
    assert engine.finish().completed_moves == len(SIZES)
    client = engine.context.connection.client
    left = list(client.scan_iter(base(engine) + "*"))
    assert left
    assert all(0 < client.ttl(key) <= 60 for key in left)
    for key in left:
        client.pexpire(key, 1)
    client.zincrby(engine.context.keys.jobs, -60_001, "j1")
    engine.start([], job_id="j2")
    engine.finish("j2")
    assert engine.context.jobs.ids() == ["j2"]
    assert not list(client.scan_iter(base(engine) + "*"))


def test_permits_and_reservations_of_jobs_that_are_over_are_given_back(fleet: Fleet, engine: Engine) -> None:
    keys, connection = engine.context.keys, engine.context.connection
    engine.start(moves_between("n1", "n2", SIZES), job_id="running")
    connection.hset(keys.permits, {"gone/g0000": 1})
    connection.hset(keys.reserved("n2"), {"gone/g0000/0": 5000, "running/g0000/0": 1})
    assert sweep_tidily(engine).permits == 1
    assert list(connection.hgetall(keys.permits)) == ["running/g0000"]
    assert engine.cleanup().reservations == 1
    assert list(connection.hgetall(keys.reserved("n2"))) == ["running/g0000/0"]


def test_a_thousand_outcomes_of_an_ended_job_are_packed_and_still_tell_each_cause(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fleet.roots["n2"] / "a").mkdir()
    for key in ("a/one", "a/two", "four", "five"):
        (fleet.roots["n2"] / key).write_bytes(b"a stranger's")
    (fleet.roots["n1"] / "b/three").unlink()
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    before = sorted((o.index, o.cause) for o in engine.context.outcomes.of("j1"))
    # So few are left as they are when the job ends.
    monkeypatch.setattr(outcomes_module, "DETAILS_KEPT", 2)
    assert engine.context.outcomes.compact("j1") == 2
    after = list(engine.context.outcomes.of("j1"))
    assert sorted((o.index, o.cause) for o in after) == before
    assert sum(1 for outcome in after if outcome.detail) == 3
    assert engine.context.outcomes.compact("j1") == 0
    assert {group.cause: bool(group.object_key) for group in failure_groups(engine.context, job)} == {
        "target_exists": True,
        "source_vanished": True,
    }
    for key in ("a/one", "a/two", "four", "five"):
        (fleet.roots["n2"] / key).unlink()
    retry_failed(engine.context, "j1")
    assert engine.finish("j1-retry1").completed_moves == 4


def test_a_finished_job_of_ten_thousand_failures_fits_into_a_megabyte(engine: Engine) -> None:
    key = engine.context.keys.job("big").outcomes
    detail = json.dumps({"cause": "target_exists", "detail": "x" * 300})
    connection = engine.context.connection
    connection.hset(key, {str(index): detail for index in range(10_000)})
    assert engine.context.outcomes.compact("big") == 9_900
    assert connection.client.memory_usage(key, samples=0) < 150_000  # type: ignore[operator]
    assert len(list(engine.context.outcomes.of("big"))) == 10_000
    assert Outcome(9_999, "target_exists", "") in list(engine.context.outcomes.of("big"))


# -- rates ----------------------------------------------------------------------------------------------------------------
def test_the_rate_is_that_of_the_last_minute_and_not_the_mean(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    client, job = engine.context.connection.client, base(engine)
    # An hour of nothing, then 1,000 bytes a second since 30 s.
    client.hincrby(job, "started_ms", -3_600_000)
    now_ms = engine.context.connection.now_ms()
    active_ms = now_ms - int(client.hget(job, "started_ms") or 0)
    client.hset(job, "samples", f"{now_ms - 30_000},{active_ms - 30_000},0,0")
    client.hset(job, mapping={"bytes_moved": 30_000, "total_bytes": 90_000, "completed": 3})
    seen = engine.job()
    assert seen.throughput == pytest.approx(1_000, rel=0.1)
    assert seen.eta == pytest.approx(60, rel=0.1)


def test_each_sweep_notes_a_sample_of_a_running_job_and_a_pause_forgets_them(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    client, job = engine.context.connection.client, base(engine)
    for number in range(1, 21):
        run_sweep(engine.context)
        samples: Any = client.hget(job, "samples")
        assert len(samples.split(b";")) == min(number, 13)
    lifecycle.pause(engine.context, "j1")
    assert (engine.job().throughput, engine.job().eta) == (0.0, None)
    run_sweep(engine.context)
    assert client.hget(job, "samples") is None


def test_a_sample_makes_no_job_out_of_one_that_is_gone(fleet: Fleet, engine: Engine) -> None:
    engine.context.progress.note("nobody")
    assert not engine.context.jobs.exists("nobody")


# -- what it says of itself -------------------------------------------------------------------------------------------------
def test_sweep_and_cleanup_leave_word_of_what_they_did_even_when_that_is_nothing(fleet: Fleet, engine: Engine) -> None:
    assert engine.context.fleet.last_chore("sweep") is None
    run_sweep(engine.context)
    record = engine.context.fleet.last_chore("sweep")
    assert record is not None
    assert (record.did, abs((engine.context.now() - record.at).total_seconds()) < 5) == ({}, True)
    engine.start([move("a/one", "n1", "n2", 3000)])
    engine.finish()
    engine.cleanup(later_ms=DAY_MS)
    cleaned: Any = engine.context.fleet.last_chore("cleanup")
    assert cleaned.did == {"purged": 1}


def test_many_stalled_groups_are_driven_over_several_sweeps(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: dict[str, Any] = {"n0": {f"k{n}": 10 for n in range(1, 6)}, **{f"n{n}": {} for n in range(1, 6)}}
    fleet_config(nodes, options={"max_concurrent_migrations": 5})
    monkeypatch.setattr("rebalance_tasks.control.sweep.GROUPS_PER_RUN", 2)
    engine = Engine()
    engine.start([move(f"k{n}", "n0", f"n{n}", 10) for n in range(1, 6)])
    engine.messages.queue.clear()
    engine.hurry()
    driven = [run_sweep(engine.context).redriven for _ in range(4)]
    assert driven == [2, 2, 1, 0]


# -- headers that wait ------------------------------------------------------------------------------------------------------
def pass_time(engine: Engine, seconds: int) -> None:
    """Let so much time pass for what the sweep waits for."""
    group = engine.context.keys.job("j1").group("g0000")
    if int(engine.context.connection.hget(group, "redrive_at") or 0):
        engine.context.connection.client.hincrby(group, "redrive_at", -seconds * 1000)


def swept(engine: Engine, *, for_s: int) -> list[int]:
    """Sweep every 5 s; return when the group's header was published again."""
    times = []
    for second in range(5, for_s + 1, 5):
        pass_time(engine, 5)
        if run_sweep(engine.context).redriven:
            times.append(second)
    return times


@pytest.fixture
def waiting(fleet: Fleet, engine: Engine) -> Engine:
    """A job whose header waits behind other messages."""
    engine.start([move("a/one", "n1", "n2", 3000)])
    engine.messages.depths[DATA_QUEUE] = 9
    return engine


def test_a_header_that_waits_behind_other_messages_is_published_again_ever_more_seldom(waiting: Engine) -> None:
    assert swept(waiting, for_s=1070) == [15, 45, 105, 225, 465, 765, 1065]


def test_a_header_that_the_broker_lost_is_published_again_after_15_s_each_time(waiting: Engine) -> None:
    waiting.messages.depths.clear()
    assert swept(waiting, for_s=60) == [15, 30, 45, 60]


def test_once_nothing_waits_any_more_a_header_that_was_given_more_time_is_published_at_once(waiting: Engine) -> None:
    assert swept(waiting, for_s=120) == [15, 45, 105]
    waiting.messages.depths.clear()
    assert swept(waiting, for_s=10) == [5]


def test_a_queue_that_nobody_serves_gives_no_header_more_time(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_config({"n1": NodeSpec({"a": 10}, settings={"queue": "h1"}), "n2": NodeSpec({}, settings={"queue": "h1"})})
    engine = Engine()
    routes = Routes(engine.context)
    engine.messages.depths |= {DATA_QUEUE: 1, "rebalance.data.h1": 1}
    assert routes.busy == {DATA_QUEUE, "rebalance.data.h1"}
    monkeypatch.setattr(type(engine.context.presence), "served", lambda *_, **__: frozenset({DATA_QUEUE}))
    assert Routes(engine.context).busy == {DATA_QUEUE}


def test_a_group_whose_runner_died_goes_on_at_once_whatever_waits(waiting: Engine) -> None:
    lease = waiting.context.jobs.acquire_lease("j1", "g0000", owner="somebody")
    key = waiting.context.keys.job("j1").lease("g0000", lease.stretch)
    assert swept(waiting, for_s=5) == []
    waiting.context.connection.hset(key, {"lease_until": 1})
    assert swept(waiting, for_s=120) == [5, 35, 95]


def test_a_header_that_its_runner_has_published_itself_is_left_alone_while_messages_wait(waiting: Engine) -> None:
    context = waiting.context
    lease = context.jobs.acquire_lease("j1", "g0000", owner="somebody")
    assert context.jobs.release_lease("j1", "g0000", lease.stretch, epoch=lease.epoch) == "again"
    assert swept(waiting, for_s=60) == [20, 50]
    waiting.messages.depths.clear()
    assert waiting.finish().completed_moves == 1


def test_whoever_takes_a_group_up_ends_its_waiting(waiting: Engine) -> None:
    assert swept(waiting, for_s=50) == [15, 45]
    context = waiting.context
    lease = context.jobs.acquire_lease("j1", "g0000", owner="somebody")
    context.connection.hset(context.keys.job("j1").lease("g0000", lease.stretch), {"lease_until": 1})
    assert swept(waiting, for_s=40) == [5, 35]


def test_resuming_does_not_wait_for_a_header_that_was_given_more_time(waiting: Engine) -> None:
    context = waiting.context
    assert swept(waiting, for_s=50) == [15, 45]
    lifecycle.pause(context, "j1")
    assert context.jobs.acquire_lease("j1", "g0000", owner="somebody").code == "paused"
    waiting.messages.published.clear()
    lifecycle.resume(context, "j1")
    assert [message.task for message in waiting.messages.published] == ["migrate"]
