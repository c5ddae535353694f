"""Pause, resume and cancel with a real worker, real files and a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import JobNotFound, RebalanceStatus
from rebalance_tasks.control.sweep import SweepReport
from tests.support.arena import (
    Arena,
    arena_of,
    assert_counts_add_up,
    context_of,
    objects,
    rebalancer_of,
    tree,
    wait_for,
)
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.embedded import EmbeddedServer
    from tests.conftest import FleetFactory
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

#: 1,000 objects of 1 KB on one of two nodes: half of them move, in two batches (256 objects) of more than half a second each.
SLOW = {"a": objects(1000, 1000)}
#: Done before anybody looks.
QUICK = {"a": objects(40, 1000)}


@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena_of(
        tmp_path_factory.mktemp("arena"),
        nodes=("a", "b"),
        capacity_bytes=1_250_000,
        options={"throttle_bytes_per_sec": 400_000, "imbalance_threshold": 0.01, "target_imbalance": 0.0},
    ) as made:
        yield made


def test_a_job_moves_what_its_plan_says_and_closes_itself(arena: Arena) -> None:
    arena.fill(QUICK)
    plan = arena.rebalancer.plan()
    started = arena.rebalancer.start(plan)
    job = arena.wait(started.job_id)
    assert job.status is RebalanceStatus.COMPLETED
    assert (job.completed_moves, job.failed_moves, job.skipped_moves) == (len(plan.moves), 0, 0)
    assert job.bytes_moved == plan.estimated_egress_bytes
    assert job.imbalance_before == pytest.approx(plan.imbalance_before)
    assert job.imbalance_after == pytest.approx(plan.imbalance_after)
    assert arena.where() == {
        **dict.fromkeys(arena.content, "a"),
        **{move.object_key: move.target_node for move in plan.moves},
    }
    arena.assert_whole()


def test_paused_means_that_no_byte_moves_and_no_slot_is_held_until_it_is_resumed(arena: Arena) -> None:
    arena.fill(SLOW)
    job_id = arena.start().job_id
    arena.wait_moved(job_id)
    answer = arena.rebalancer.pause(job_id)
    assert (answer.status, answer.reason) == (RebalanceStatus.PAUSED, "")
    arena.wait_idle()
    before, stopped = arena.rebalancer.status(job_id), tree(arena.fleet)
    # The only slot is free: another task runs in it, and says why it does nothing.
    assert arena.send("check") == {
        "verdict": "skipped",
        "reason": f"job_active: job {job_id} is still active",
        "plan_id": None,
    }
    arena.redis.hset(arena.context.keys.job(job_id).group("g0000"), "redrive_at", 0)
    assert arena.sweep() == SweepReport(), "a sweep must not wake a paused job"
    assert arena.idle()
    assert arena.active_tasks() == []
    assert arena.scheduled_tasks() == []
    after = arena.rebalancer.status(job_id)
    assert tree(arena.fleet) == stopped
    assert (after.status, after.paused_reasons) == (RebalanceStatus.PAUSED, ("operator",))
    assert (after.bytes_moved, after.completed_moves) == (before.bytes_moved, before.completed_moves)
    assert after.completed_moves < after.total_moves
    answer = arena.rebalancer.resume(job_id)
    assert (answer.status, answer.reason) == (RebalanceStatus.RUNNING, "")
    job = arena.wait(job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    assert_counts_add_up(job)
    arena.assert_whole()


def test_a_pause_does_not_use_up_the_budgets(arena: Arena) -> None:
    arena.fill(SLOW)
    job_id = arena.start().job_id
    arena.wait_moved(job_id)
    arena.rebalancer.pause(job_id)
    arena.wait_idle()
    arena.rebalancer.resume(job_id)
    job = arena.wait(job_id)
    spent = arena.redis.hget(arena.context.keys.job(job_id).base, "egress_bytes")
    assert int(spent or 0) == job.bytes_moved == job.total_bytes


def test_cancelling_a_running_job_finishes_what_is_published_and_counts_the_rest_as_skipped(arena: Arena) -> None:
    arena.fill(SLOW)
    job_id = arena.start().job_id
    arena.wait_moved(job_id)
    assert arena.rebalancer.cancel(job_id).reason == ""
    job = arena.wait(job_id)
    assert (job.status, job.error, job.failed_moves) == (RebalanceStatus.CANCELLED, None, 0)
    assert_counts_add_up(job)
    assert job.failures == {"cancelled": job.skipped_moves}
    assert job.completed_moves > 0
    arena.assert_whole()
    assert list(arena.where().values()).count("b") == job.completed_moves
    assert arena.context.jobs.active() is None


def test_cancelling_a_paused_job_ends_it_without_moving_another_object(arena: Arena) -> None:
    arena.fill(SLOW)
    job_id = arena.start().job_id
    arena.wait_moved(job_id)
    arena.rebalancer.pause(job_id)
    arena.wait_idle()
    before = arena.rebalancer.status(job_id)
    arena.rebalancer.cancel(job_id)
    job = arena.wait(job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.CANCELLED, before.completed_moves)
    assert job.paused_reasons == ()
    assert_counts_add_up(job)
    arena.assert_whole()


def test_each_verb_says_why_it_does_nothing(arena: Arena) -> None:
    arena.fill(SLOW)
    job_id = arena.start().job_id
    client = arena.rebalancer
    assert client.resume(job_id).reason == "the job is not paused"
    client.pause(job_id)
    again = client.pause(job_id)
    assert (again.status, again.reason) == (RebalanceStatus.PAUSED, "")
    assert client.status(job_id).paused_reasons == ("operator",)
    client.cancel(job_id)
    # It may have ended by now, or not: both have a reason, and neither pauses it.
    assert client.pause(job_id).reason in {"the job is being cancelled", "the job is cancelled and cannot be paused"}
    assert client.cancel(job_id).reason in {"a cancel was requested before", "the job is cancelled already"}
    assert arena.wait(job_id).status is RebalanceStatus.CANCELLED
    assert client.pause(job_id).reason == "the job is cancelled and cannot be paused"
    assert client.resume(job_id).reason == "the job is cancelled and cannot be resumed"
    assert client.cancel(job_id).reason == "the job is cancelled already"
    assert client.status(job_id).status is RebalanceStatus.CANCELLED


def test_watch_ends_with_the_job(arena: Arena) -> None:
    arena.fill(QUICK)
    seen = list(arena.rebalancer.watch(arena.start().job_id))
    assert seen[-1].status is RebalanceStatus.COMPLETED
    assert all(not job.status.terminal for job in seen[:-1])


def test_jobs_lists_the_known_ones_newest_first(arena: Arena) -> None:
    arena.fill(QUICK)
    first = arena.wait(arena.start("rebal-first").job_id)
    arena.fleet.roots["a"].joinpath("late.bin").write_bytes(bytes(20_000))
    second = arena.wait(arena.start("rebal-second").job_id)
    assert [job.job_id for job in arena.rebalancer.jobs()] == [second.job_id, first.job_id]
    assert arena.rebalancer.jobs("cancelled") == []


def test_an_unknown_job_is_a_key_error_for_every_verb(arena: Arena) -> None:
    client = arena.rebalancer
    for verb in (client.status, client.pause, client.resume, client.cancel):
        with pytest.raises(JobNotFound) as caught:
            verb("rebal-nobody")
        assert isinstance(caught.value, KeyError)
    with pytest.raises(JobNotFound, match="rebal-nobody"):
        next(client.watch("rebal-nobody"))


# -- without the shared worker ----------------------------------------------------------------------------------------
def test_a_job_cancelled_before_any_worker_came_ends_when_one_comes(
    fleet_config: FleetFactory, processes: ProcessFactory
) -> None:
    fleet = fleet_config({"a": NodeSpec(objects(20, 1000), 30_000), "b": NodeSpec({}, 30_000)})
    content = fleet.all_objects()
    client = rebalancer_of(fleet)
    job_id = client.start(client.plan()).job_id
    assert client.cancel(job_id).status is RebalanceStatus.RUNNING
    processes.worker(concurrency=1)
    job = wait_for(client, job_id)
    assert (job.status, job.completed_moves, job.failures) == (
        RebalanceStatus.CANCELLED,
        0,
        {"cancelled": job.total_moves},
    )
    assert fleet.all_objects() == content
    assert fleet.leftovers() == []


def test_a_job_that_never_got_a_permit_is_cancelled_at_once(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": NodeSpec(objects(20, 1000), 30_000), "b": NodeSpec({}, 30_000)})
    client = rebalancer_of(fleet)
    context = context_of(client)
    context.fleet.pause("operator")
    job_id = client.start(client.plan()).job_id
    assert client.status(job_id).status is RebalanceStatus.PENDING
    assert client.cancel(job_id).status is RebalanceStatus.CANCELLED
    job = client.status(job_id)
    assert (job.skipped_moves, job.failures) == (job.total_moves, {"cancelled": job.total_moves})
    assert context.jobs.active() is None
