"""A stock Celery app with a broker and a result backend of its own carries our tasks: docs/examples/stock_app.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from rebalance_tasks import RebalanceStatus
from tests.support.arena import context_of, objects, rebalancer_of, wait_for
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from rebalance_tasks import Rebalancer
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory, Worker

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
QUEUES = ("-Q", "celery,rebalance.control,rebalance.data")


def database(url: str, number: int) -> str:
    return f"{url.rsplit('/', 1)[0]}/{number}"


def stock_fleet(fleet_config: FleetFactory, url: str, backend: str) -> tuple[Fleet, Rebalancer]:
    """A fleet whose state is in one database, while its messages go to the stock app's broker in another."""
    fleet = fleet_config(
        {"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000), "c": NodeSpec({}, 50_000)},
        options={"max_concurrent_migrations": 1},
        fleet={"broker_url": database(url, 1), "result_backend": backend},
    )
    return fleet, rebalancer_of(fleet)


def stock_worker(processes: ProcessFactory, url: str, env: Mapping[str, str]) -> Worker:
    path = os.pathsep.join(filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH", "")]))
    return processes.worker(
        app="stock_app",
        concurrency=1,
        extra=QUEUES,
        broker_url=database(url, 1),
        env={"PYTHONPATH": path, "STOCK_BROKER_URL": database(url, 1), **env},
    )


def test_a_stock_app_completes_a_job_beside_its_own_tasks(
    fleet_config: FleetFactory, redis_url: str, redis_client: redis.Redis, processes: ProcessFactory
) -> None:
    fleet, rebalancer = stock_fleet(fleet_config, redis_url, database(redis_url, 2))
    content = fleet.all_objects()
    stock_worker(processes, redis_url, {"STOCK_RESULT_BACKEND": database(redis_url, 2)})
    plan = rebalancer.plan()
    with Celery("other", broker=database(redis_url, 1), backend=database(redis_url, 2), set_as_current=False) as app:
        assert app.send_task("stock_app.add", (2, 3)).get(timeout=30) == 5
        answer = app.send_task("rebalance.start", kwargs={"plan_id": plan.plan_id}, queue="rebalance.control")
        assert answer.get(timeout=30)["status"] == "running"
    # Nobody sweeps here: the chord on the stock app's own result backend is what closes the job.
    job = wait_for(rebalancer, f"rebal-{plan.plan_id}")
    assert (job.status, job.completed_moves, job.groups_total) == (RebalanceStatus.COMPLETED, len(plan.moves), 2)
    assert fleet.all_objects() == content
    # State in its database, messages in theirs.
    assert [key for key in redis_client.scan_iter() if not str(key).startswith("rebalance:{test}:")] == []


def test_without_a_result_backend_a_sweep_closes_the_job(
    fleet_config: FleetFactory, redis_url: str, processes: ProcessFactory
) -> None:
    fleet, rebalancer = stock_fleet(fleet_config, redis_url, "disabled://")
    content = fleet.all_objects()
    stock_worker(processes, redis_url, {"STOCK_RESULT_BACKEND": "disabled://"})
    plan = rebalancer.plan()
    with Celery("other", broker=database(redis_url, 1), set_as_current=False) as app:
        app.send_task("rebalance.start", kwargs={"plan_id": plan.plan_id}, queue="rebalance.control")
        wait_until(rebalancer.jobs, 30, "the job has started")
        job_id = f"rebal-{plan.plan_id}"
        wait_until(lambda: rebalancer.status(job_id).groups_done == 2, 30, "both groups are done")
        app.send_task("rebalance.sweep", queue="rebalance.control")
    job = wait_for(rebalancer, job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(plan.moves))
    assert fleet.all_objects() == content
    assert context_of(rebalancer).jobs.active() is None
