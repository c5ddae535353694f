"""Several beats: plain ones double every message and change nothing else; of several redbeats one works and the others wait."""

from __future__ import annotations

import importlib.util
import os
import time
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import RebalanceStatus
from tests.support.arena import context_of, objects, rebalancer_of, wait_for
from tests.support.checker import check, record
from tests.support.fleets import NodeSpec
from tests.support.short_lock import LOCK_S, LOOP_S
from tests.support.wait import wait_until

if TYPE_CHECKING:
    import redis

    from rebalance_tasks.demo.processes import ManagedProcess
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

CHECK_SENT = "Sending due task rebalance-check"
SWEEP_SENT = "Sending due task rebalance-sweep"


def uneven(fleet_config: FleetFactory) -> Fleet:
    nodes = {"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000)}
    return fleet_config(nodes, options={"check_interval": "1s"})


def sent(beat: ManagedProcess, line: str) -> int:
    return beat.log_path.read_text(encoding="utf-8", errors="replace").count(line)


def test_two_plain_beats_make_one_plan_and_one_job(
    fleet_config: FleetFactory, processes: ProcessFactory, redis_client: redis.Redis
) -> None:
    fleet = uneven(fleet_config)
    written = record(fleet.roots)
    rebalancer = rebalancer_of(fleet)
    beats = [processes.beat(log_level="INFO") for _ in range(2)]
    # Both have sent their first check before anybody can have carried one out.
    for beat in beats:
        wait_until(lambda beat=beat: sent(beat, CHECK_SENT), 60, "each beat has asked for a check")  # type: ignore[misc]
    # One after the other, with the start that the first one asks for behind them both.
    processes.worker(concurrency=1)
    [job] = wait_until(rebalancer.jobs, 60, "a check has started a job")
    job = wait_for(rebalancer, job.job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    assert job.imbalance_after is not None
    assert job.imbalance_after <= rebalancer.settings.options.imbalance_threshold
    wait_until(lambda: rebalancer.checks()[0]["reason"].startswith("under_threshold"), 60, "a later check has skipped")
    assert [known.job_id for known in rebalancer.jobs()] == [job.job_id]
    assert redis_client.zcard(context_of(rebalancer).keys.plans) == 1
    check(fleet.roots, written, job)


@pytest.mark.skipif(
    not importlib.util.find_spec("redbeat") and not os.environ.get("CI"),
    reason="celery-redbeat is not installed (the extra `redbeat`)",
)
def test_a_second_redbeat_takes_over_when_the_one_that_holds_the_lock_is_killed(
    fleet_config: FleetFactory, processes: ProcessFactory
) -> None:
    fleet = uneven(fleet_config)
    written = record(fleet.roots)
    rebalancer = rebalancer_of(fleet)
    beats = [processes.redbeat(app="tests.support.short_lock") for _ in range(2)]
    holder = wait_until(lambda: [beat for beat in beats if sent(beat, SWEEP_SENT)], 60, "one of them works")[0]
    [other] = [beat for beat in beats if beat is not holder]
    wait_until(lambda: sent(holder, CHECK_SENT) >= 2, 60, "it goes on working")
    assert not sent(other, "Sending due task"), "the other one waits for the lock"
    holder.kill()
    killed = time.monotonic()
    wait_until(lambda: sent(other, CHECK_SENT), 60, "the other one has taken over")
    # It asks for the lock once a loop; the rest is what a busy machine needs.
    assert time.monotonic() - killed < LOCK_S + LOOP_S + 3
    processes.worker(concurrency=1)
    [job] = wait_until(rebalancer.jobs, 60, "a check has started a job")
    job = wait_for(rebalancer, job.job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    check(fleet.roots, written, job)
