"""A rolling upgrade, and a step back: workers of the last release and of this one carry one job, then one of the two is gone.

The last release is what this project's history has, not an imitation (tests/support/releases.py). What both write lies in
Redis (docs/operations.md, "Upgrades"); what a check or a job meets that is of a newer form is refused, not guessed at.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from rebalance_tasks import RebalanceStatus
from tests.support.arena import JOB_TIMEOUT_S, assert_counts_add_up, context_of, rebalancer_of
from tests.support.checker import check, record
from tests.support.engine import hurry
from tests.support.fleets import NodeSpec
from tests.support.releases import BEFORE, environment_of, run_in, unpacked
from tests.support.wait import wait_until
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.core.models import RebalanceJob
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

OBJECTS: Final = 2_000
SIZE: Final = 1_000
TARGETS: Final = "bcdefghi"
QUIET_MS: Final = 3_500
VERB: Final = "from rebalance_tasks import Rebalancer; r = Rebalancer(); print(r.{})"
SWEEP: Final = "from rebalance_tasks import Rebalancer; from rebalance_tasks.control.sweep import run_sweep; run_sweep(Rebalancer()._context)"


@dataclass
class Release:
    """One of the two: its processes are started in this environment."""

    env: Mapping[str, str]
    folder: Path
    broker_url: str
    name: str

    def worker(self) -> Worker:
        log = self.folder / f"{self.name}.log"
        return Worker(broker_url=self.broker_url, log_path=log, env=self.env, concurrency=2).wait_ready()

    def run(self, code: str) -> str:
        return run_in(self.env, code)


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """Eight groups, two at a time, of a second or two each: some are over, some under way and some not begun when one dies."""
    files = {f"o/{number:04}": SIZE for number in range(OBJECTS)}
    capacity = OBJECTS * SIZE * 2
    nodes = {"a": NodeSpec(files, capacity)} | {target: NodeSpec({}, capacity) for target in TARGETS}
    options = {
        "throttle_bytes_per_sec": 100 * SIZE,
        "max_moves_per_cycle": OBJECTS,
        "max_concurrent_migrations": 2,
        "imbalance_threshold": 0.02,
    }
    return fleet_config(nodes, options=options)


@pytest.fixture
def releases(fleet: Fleet, tmp_path: Path, redis_url: str) -> Iterator[dict[str, Release]]:
    older = environment_of(unpacked(BEFORE, tmp_path / "older"))
    yield {
        "older": Release(older, tmp_path, redis_url, "older"),
        "newer": Release(dict(os.environ), tmp_path, redis_url, "newer"),
    }
    for log in tmp_path.glob("*er*.log"):
        print(f"--- {log.name}\n{log.read_text()[-3000:]}")  # noqa: T201  shown when the test fails


def finish(rebalancer: Rebalancer, release: Release) -> RebalanceJob:
    """Do what the beat of a release would do, with waiting times cut short, until the job is over."""
    context = context_of(rebalancer)

    def over() -> RebalanceJob | None:
        hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"), quiet_ms=QUIET_MS)
        release.run(SWEEP)
        job = rebalancer.status("j1")
        return job if job.status.terminal else None

    return wait_until(over, JOB_TIMEOUT_S * 2, "the job is over", interval_s=0.3)


@pytest.mark.parametrize(("first", "second"), [("older", "newer"), ("newer", "older")], ids=["upgrade", "step back"])
def test_workers_of_two_releases_carry_one_job_and_either_goes_on_when_the_other_is_killed(
    fleet: Fleet, releases: dict[str, Release], first: str, second: str
) -> None:
    rebalancer, written = rebalancer_of(fleet), record(fleet.roots)
    context = context_of(rebalancer)
    began, goes_on = releases[first], releases[second]
    with began.worker() as leaving:
        assert began.run(VERB.format("start(r.plan(), 'j1').job_id")).strip() == "j1"
        total = rebalancer.status("j1").total_moves
        assert total > OBJECTS // 2
        wait_until(lambda: rebalancer.status("j1").completed_moves, JOB_TIMEOUT_S, "it moves")
        assert began.run(VERB.format("pause('j1').status")).strip() == RebalanceStatus.PAUSED
        with goes_on.worker():
            wait_until(lambda: len(context.digests()) == 2, JOB_TIMEOUT_S, "both say that they are there")
            moved = int(goes_on.run(VERB.format("status('j1').completed_moves")))
            assert 0 < moved < total
            assert goes_on.run(VERB.format("resume('j1').status")).strip() == RebalanceStatus.RUNNING
            wait_until(lambda: rebalancer.status("j1").completed_moves > moved, JOB_TIMEOUT_S, "it goes on")
            leaving.kill9()
            assert not rebalancer.status("j1").status.terminal
            # Also the sweep, which takes up what the dead one left, is that of the release that stays.
            job = finish(rebalancer, goes_on)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, total)
    assert_counts_add_up(job)
    check(fleet.roots, written, job)
    # What either has written of the ended job, the other one reads.
    assert int(releases["older"].run(VERB.format("status('j1').completed_moves"))) == total
