"""A rolling upgrade, and a step back: workers of the last release and of this one carry one job, then one of the two is gone.

The last release is what this project's history has, not an imitation (tests/support/releases.py). What both write lies in
Redis (docs/operations.md, "Upgrades"); what a check or a job meets that is of a newer form is refused, not guessed at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from rebalance_tasks import RebalanceStatus
from tests.support.arena import JOB_TIMEOUT_S, assert_counts_add_up, context_of, rebalancer_of
from tests.support.checker import check, record
from tests.support.engine import clean_up, hurry
from tests.support.fleets import NodeSpec
from tests.support.releases import BEFORE, Client, environment_of, unpacked
from tests.support.wait import wait_until
from tests.support.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.core.models import RebalanceJob
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

OBJECTS: Final = 1_200
SIZE: Final = 1_000
TARGETS: Final = "bcdefg"
QUIET_MS: Final = 3_500


class Release:
    """One of the two: its client, and a worker when it is asked for."""

    def __init__(self, name: str, env: Mapping[str, str], folder: Path, broker_url: str) -> None:
        self._env, self._broker_url, self._log = env, broker_url, folder / f"{name}.log"
        self.client = Client(env)
        self.ask = self.client.ask

    def worker(self) -> Worker:
        return Worker(broker_url=self._broker_url, log_path=self._log, env=self._env, concurrency=2).wait_ready()


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """Six groups, two at a time, of a second or two each: some are over, some under way and some not begun when one dies."""
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(BEFORE, tmp_path_factory.mktemp("releases") / BEFORE)


@pytest.fixture
def releases(fleet: Fleet, tree: Path, tmp_path: Path, redis_url: str) -> Iterator[dict[str, Release]]:
    made = {
        name: Release(name, env, tmp_path, redis_url)
        for name, env in {"older": environment_of(tree), "newer": dict(os.environ)}.items()
    }
    assert Path(made["older"].ask("rebalance_tasks.__file__")).is_relative_to(tree)
    assert not Path(made["newer"].ask("rebalance_tasks.__file__")).is_relative_to(tree)
    yield made
    for name, release in made.items():
        release.client.close()
        log = tmp_path / f"{name}.log"
        print(f"--- {name}\n{log.read_text()[-3000:]}")  # noqa: T201  shown when the test fails


def finish(rebalancer: Rebalancer, release: Release) -> RebalanceJob:
    """Do what the beat of a release would do, with waiting times cut short, until the job is over."""
    context = context_of(rebalancer)

    def over() -> RebalanceJob | None:
        hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"), quiet_ms=QUIET_MS)
        release.ask("run_sweep(r._context)")
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
        assert began.ask("r.start(r.plan(), 'j1').job_id") == "j1"
        total = rebalancer.status("j1").total_moves
        assert total > OBJECTS // 2
        wait_until(lambda: rebalancer.status("j1").completed_moves, JOB_TIMEOUT_S, "it moves")
        assert began.ask("r.pause('j1').status") == RebalanceStatus.PAUSED
        with goes_on.worker():
            wait_until(lambda: len(context.digests()) == 2, JOB_TIMEOUT_S, "both say that they are there")
            moved = int(goes_on.ask("r.status('j1').completed_moves"))
            assert 0 < moved < total
            assert goes_on.ask("r.resume('j1').status") == RebalanceStatus.RUNNING
            wait_until(lambda: rebalancer.status("j1").completed_moves > moved, JOB_TIMEOUT_S, "it goes on")
            leaving.kill9()
            assert not rebalancer.status("j1").status.terminal
            # Also the sweep, which takes up what the dead one left, is that of the release that stays.
            job = finish(rebalancer, goes_on)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, total)
    assert_counts_add_up(job)
    # A kill may have cut off the writing of a manifest; what is left of it nobody counts as an object, and it goes when it is old.
    clean_up(context)
    check(fleet.roots, written, job)
    # What either has written of the ended job, the other one reads.
    assert int(releases["older"].ask("r.status('j1').completed_moves")) == total
