"""Real workers whose processes are killed by SIGKILL while they move objects into a bucket, out of it, within it, and over SFTP.

The kill matrix of the stores (test_kill_matrix_stores.py) dies at every step, in processes that carry a job by themselves. Here it is
Celery that loses a process, gives its message to another, and goes on, for each pair of kinds of nodes at the steps that commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import Rebalancer, RebalanceStatus
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.migration import faults
from rebalance_tasks.migration.faults import Step
from tests.support import checker, engine
from tests.support.arena import context_of
from tests.support.engine import moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.places import LocalPlace, Place, S3Place, SftpPlace
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SIZES = {"one": 2_000, "two": 30_000, "empty": 0}
#: source, target, and the steps at which a process dies in each job: two, since three deaths are an object's own fault.
DEATHS = [
    ("disk", "bucket1", (Step.PUBLISH, Step.FREE)),
    ("bucket1", "disk", (Step.PUBLISH, Step.FREE)),
    ("bucket1", "bucket2", (Step.COPY, Step.FREE)),
    ("bucket1", "bucket2", (Step.MANIFEST, Step.FLIP)),
    ("disk", "far", (Step.PUBLISH, Step.FREE)),
    ("disk", "far", (Step.MANIFEST, Step.FLIP)),
    ("far", "disk", (Step.PUBLISH, Step.FREE)),
    ("far", "bucket1", (Step.MANIFEST, Step.FREE)),
]


class Ledger:
    """Says which faults may strike: a step strikes once, and then again when it is armed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.steps = sorted({step for _, _, steps in DEATHS for step in steps})
        for step in self.steps:
            self.mark(step).touch()

    def environment(self) -> dict[str, str]:
        text = ",".join(f"{step}=kill" for step in self.steps)
        return {faults.ENVIRONMENT: text, faults.LEDGER: str(self.folder)}

    def mark(self, step: Step) -> Path:
        return self.folder / f"{step}=kill"

    def arm(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            self.mark(step).unlink()

    def struck(self, steps: tuple[Step, ...]) -> list[Step]:
        return [step for step in steps if self.mark(step).exists()]


def places_of(folder: Path, weed: Weed, sftp: Sftp) -> dict[str, Place]:
    (folder / "far").mkdir()
    return {
        "disk": LocalPlace(folder / "nodes/disk"),
        "bucket1": S3Place(weed.bucket(), "a/b", weed.options()),
        "bucket2": S3Place(weed.bucket(), "", weed.options()),
        "far": SftpPlace(folder / "far", sftp.port, sftp.options()),
    }


def test_a_job_is_whole_and_counted_once_whatever_step_its_workers_process_was_killed_at(
    fleet_config: FleetFactory,
    weed: Weed,
    sftp: Sftp,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    places, ledger = places_of(tmp_path, weed, sftp), Ledger(tmp_path / "ledger")
    specs = {
        node: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for node, place in places.items()
    }
    fleet_config(specs, options={"throttle_bytes_per_sec": "none", "object_cooldown": "0s"})
    rebalancer = Rebalancer()
    rebalancer.adopt()
    request.getfixturevalue("processes").worker(env=ledger.environment(), concurrency=1)
    written = checker.Written({}, {})
    for number, (source, target, steps) in enumerate(DEATHS):
        objects = {f"{number}/{name}": size for name, size in SIZES.items()}
        for key, size in objects.items():
            places[source].put(key, made_up(key, size))
            written = written.changed(key, made_up(key, size))
        ledger.arm(steps)
        plan = RebalancePlan(plan_id=f"p{number}", fleet="test", moves=tuple(moves_between(source, target, objects)))
        rebalancer.start(plan, f"j{number}")
        finish(rebalancer, f"j{number}")
        job = rebalancer.status(f"j{number}")
        assert ledger.struck(steps) == list(steps), f"{source} to {target}"
        assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(objects), {})
        assert job.bytes_moved == sum(objects.values())
        assert all(places[target].get(key) == made_up(key, size) for key, size in objects.items())
    engine.clean_up(context_of(rebalancer))
    mirrors = {node: place.mirror(tmp_path / f"mirror-{node}") for node, place in places.items()}
    checker.check(mirrors, written, trash=True)


def finish(rebalancer: Rebalancer, job_id: str) -> None:
    """Sweep as beat would; a lease is let run out only when nobody works under it."""
    context = context_of(rebalancer)

    def over() -> bool:
        client = context.connection.client
        if not client.hlen("unacked") and not client.llen("rebalance.data"):
            # A dead process' message came back, was given out once more, and met the lease.
            engine.hurry(context.connection, context.keys.job(job_id), context.jobs.groups(job_id))
            run_sweep(context)
        return rebalancer.status(job_id).status.terminal

    wait_until(over, 60, f"{job_id} is over", interval_s=0.1)
