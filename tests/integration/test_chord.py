"""What closes a job: the chord's callback, its errback, or the sweep. No beat runs here, so nothing sweeps by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import RebalanceStatus
from rebalance_tasks.control.sweep import run_sweep
from tests.support.arena import (
    JOB_TIMEOUT_S,
    QUEUES,
    Arena,
    arena_of,
    assert_counts_add_up,
    context_of,
    objects,
    rebalancer_of,
    wait_for,
)
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from rebalance_tasks import RebalanceJob
    from rebalance_tasks.embedded import EmbeddedServer
    from tests.conftest import FleetFactory
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

#: From one full node to three empty ones: three groups, of which one at a time may transfer.
FULL = {"a": objects(40, 1000)}
GROUPS = 3


@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena_of(
        tmp_path_factory.mktemp("arena"),
        nodes=("a", "b", "c", "d"),
        capacity_bytes=50_000,
        options={"max_concurrent_migrations": 1},
    ) as made:
        yield made


def chord_key(arena: Arena, job_id: str, part: str) -> str:
    """A key of the job's chord in Celery's result backend."""
    return f"celery-taskset-meta-test.{job_id}.groups{part}"


def wait_done(arena: Arena, job_id: str, groups: int) -> None:
    wait_until(
        lambda: arena.rebalancer.status(job_id).groups_done == groups, JOB_TIMEOUT_S, f"{groups} groups are done"
    )


def pass_redrive_time(arena: Arena, job_id: str) -> None:
    """Let the time pass that a published header has for being picked up."""
    for group_id in arena.context.jobs.groups(job_id):
        arena.redis.hset(arena.context.keys.job(job_id).group(group_id), "redrive_at", 0)


def assert_complete(arena: Arena, job: RebalanceJob) -> None:
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    assert (job.groups_done, job.groups_total) == (GROUPS, GROUPS)
    assert_counts_add_up(job)
    arena.assert_whole()
    arena.wait_idle()
    assert arena.context.jobs.active() is None
    assert arena.redis.hlen(arena.context.keys.permits) == 0


def test_the_chords_callback_closes_the_job(arena: Arena) -> None:
    arena.fill(FULL)
    job_id = arena.start().job_id
    assert arena.redis.get(chord_key(arena, job_id, ".s")) == str(GROUPS)
    assert_complete(arena, arena.wait(job_id))


def test_only_as_many_headers_are_published_as_may_transfer(
    fleet_config: FleetFactory, redis_client: redis.Redis
) -> None:
    """Without a worker, what is published stays in the queue."""
    nodes = {"a": NodeSpec(FULL["a"], 50_000), **{name: NodeSpec({}, 50_000) for name in "bcd"}}
    rebalancer = rebalancer_of(fleet_config(nodes, options={"max_concurrent_migrations": 2}))
    job = rebalancer.start(rebalancer.plan())
    assert job.groups_total == GROUPS
    assert redis_client.llen("rebalance.data") == 2
    assert len(context_of(rebalancer).jobs.permits(job.job_id)) == 2


def test_a_lost_callback_is_made_up_for_by_the_sweep(arena: Arena) -> None:
    arena.fill(FULL)
    arena.context.fleet.pause("test")
    job_id = arena.start().job_id
    # As after a result backend that lost its keys, or a header that outlived them.
    assert arena.redis.delete(chord_key(arena, job_id, ".s")) == 1
    arena.context.fleet.resume("test")
    arena.sweep()
    wait_done(arena, job_id, GROUPS)
    arena.wait_idle()
    assert arena.rebalancer.status(job_id).status is RebalanceStatus.RUNNING
    assert arena.sweep().finalized == 1
    assert_complete(arena, arena.rebalancer.status(job_id))


def test_a_finalize_that_comes_too_early_does_nothing(arena: Arena) -> None:
    arena.fill(FULL)
    arena.context.fleet.pause("test")
    job_id = arena.start().job_id
    arena.app.send_task("rebalance.finalize", kwargs={"job_id": job_id}, queue=QUEUES[0])
    arena.wait_idle()
    job = arena.rebalancer.status(job_id)
    assert (job.status, job.completed_utc, arena.context.jobs.active()) == (RebalanceStatus.PENDING, None, job_id)
    arena.context.fleet.resume("test")
    arena.sweep()
    assert_complete(arena, arena.wait(job_id))


def test_a_finalize_that_comes_again_changes_nothing(arena: Arena) -> None:
    arena.fill(FULL)
    job = arena.wait(arena.start().job_id)
    arena.wait_idle()
    epoch = arena.context.fleet.epoch()
    arena.app.send_task("rebalance.finalize", kwargs={"job_id": job.job_id}, queue=QUEUES[0])
    arena.wait_idle()
    assert (arena.rebalancer.status(job.job_id), arena.context.fleet.epoch()) == (job, epoch)


def test_a_header_that_an_operator_revoked_leads_to_finalize_all_the_same(arena: Arena) -> None:
    """A revoked header fails the chord: its errback is finalize too; the relay has counted the group already."""
    arena.fill(FULL)
    arena.context.fleet.pause("test")
    job_id = arena.start("rebal-revoked").job_id
    revoke(arena, f"test.{job_id}.g0000.monitor")
    arena.context.fleet.resume("test")
    arena.sweep()
    # From here on nobody sweeps: the last header to return fires the errback.
    assert_complete(arena, arena.wait(job_id))


def test_a_group_whose_header_was_revoked_is_driven_again(arena: Arena) -> None:
    arena.fill(FULL)
    arena.context.fleet.pause("test")
    job_id = arena.start("rebal-revoked-2").job_id
    revoke(arena, f"test.{job_id}.g0000.migrate")
    arena.context.fleet.resume("test")
    arena.sweep()
    arena.wait_idle()
    # (Whether it was dropped just now or ran already depends on how its message is named.)
    pass_redrive_time(arena, job_id)
    arena.sweep()
    assert_complete(arena, arena.wait(job_id))


def revoke(arena: Arena, task_id: str) -> None:
    arena.app.control.revoke(task_id)
    inspect = arena.app.control.inspect(destination=[arena.worker.node_name], timeout=5.0)
    wait_until(lambda: task_id in str(inspect.revoked()), JOB_TIMEOUT_S, "the worker knows what is revoked")


def test_a_lost_header_is_published_again_by_the_sweep(
    fleet_config: FleetFactory, redis_client: redis.Redis, processes: ProcessFactory
) -> None:
    fleet = fleet_config({"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000)})
    content = fleet.all_objects()
    rebalancer = rebalancer_of(fleet)
    context = context_of(rebalancer)
    job_id = rebalancer.start(rebalancer.plan()).job_id
    assert redis_client.delete("rebalance.data") == 1
    assert run_sweep(context).redriven == 0, "it may still be on its way"
    redis_client.hset(context.keys.job(job_id).group("g0000"), "redrive_at", 0)
    assert run_sweep(context).redriven == 1
    assert run_sweep(context).redriven == 0, "once is enough for a while"
    assert redis_client.llen("rebalance.data") == 1
    processes.worker(concurrency=1)
    job = wait_for(rebalancer, job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    assert fleet.all_objects() == content


def test_a_job_created_by_a_client_that_died_at_once_is_started_by_the_sweep(arena: Arena) -> None:
    """Between the creation and the first message there is a gap; the sweep goes on from there."""
    arena.fill(FULL)
    arena.context.fleet.pause("test")
    job_id = arena.start().job_id
    assert arena.idle()
    arena.context.fleet.resume("test")
    assert arena.sweep().admitted == 1
    assert_complete(arena, arena.wait(job_id))
