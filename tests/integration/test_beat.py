"""Beat does it all by itself: `-A beat_schedule` triggers the check, whose plan a worker carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import RebalanceStatus
from tests.support.arena import objects, rebalancer_of, wait_for
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration


def test_beat_alone_balances_a_fleet(fleet_config: FleetFactory, processes: ProcessFactory) -> None:
    fleet = fleet_config(
        {"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000)}, options={"check_interval": "1s"}
    )
    content = fleet.all_objects()
    rebalancer = rebalancer_of(fleet)
    beat = processes.beat()
    processes.worker(concurrency=1)
    [job] = wait_until(rebalancer.jobs, 60, "a check has started a job")
    job = wait_for(rebalancer, job.job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, job.total_moves)
    assert job.imbalance_after is not None
    assert job.imbalance_after <= rebalancer.settings.options.imbalance_threshold
    assert fleet.all_objects() == content
    # It goes on looking, and leaves a balanced fleet alone.
    wait_until(lambda: rebalancer.checks()[0]["reason"].startswith("under_threshold"), 60, "a later check has skipped")
    assert beat.alive
    assert len(rebalancer.jobs()) == 1
