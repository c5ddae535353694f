"""Flower beside a running job: stable names, short arguments, progress, and a password."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import RebalanceStatus
from tests.support.arena import objects, rebalancer_of, wait_for
from tests.support.fleets import NodeSpec
from tests.support.flowers import FlowerProcess
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

SHOWN_S = 40.0


def test_flower_shows_the_groups_of_a_running_job_and_asks_for_a_password(
    fleet_config: FleetFactory, processes: ProcessFactory, tmp_path: Path
) -> None:
    rebalancer = rebalancer_of(
        fleet_config(
            {"a": NodeSpec(objects(60, 1000), 80_000), "b": NodeSpec({}, 80_000), "c": NodeSpec({}, 80_000)},
            options={"throttle_bytes_per_sec": 10_000},
        )
    )
    processes.worker(concurrency=2, extra=("-E",))
    flower = FlowerProcess(log_path=tmp_path / "flower.log", env=os.environ)
    processes.started.append(flower)
    flower.wait_ready()
    assert flower.get("/tasks", auth=None).status_code == 401
    assert flower.get("/workers", auth=("operator", "wrong")).status_code == 401
    job = rebalancer.start(rebalancer.plan())

    def seen(name: str, state: str) -> list[dict[str, Any]]:
        return [task for task in flower.tasks().values() if (task["name"], task["state"]) == (name, state)]

    running = wait_until(lambda: seen("rebalance.migrate", "STARTED"), SHOWN_S, "Flower shows a group that runs")
    # What it is about, in words that fit a column: no object key, no URL.
    assert all(len(task["kwargs"]) <= 160 for task in running)
    assert {f"job_id={job.job_id}" in task["kwargs"] for task in running} == {True}
    assert all("group_id=g" in task["kwargs"] for task in running)
    ended = wait_for(rebalancer, job.job_id)
    assert ended.status is RebalanceStatus.COMPLETED
    wait_until(lambda: seen("rebalance.finalize", "SUCCESS"), SHOWN_S, "Flower shows the end of the job")
    # Names are those of the tasks, not of jobs or groups: Flower's Prometheus labels stay few.
    assert {str(task["name"]).partition(".")[0] for task in flower.tasks().values()} == {"rebalance"}
    known = {task["name"] for task in flower.tasks().values()}
    assert known <= {
        f"rebalance.{verb}" for verb in ("check", "start", "migrate", "monitor", "finalize", "sweep", "cleanup")
    }
