"""Straight from host to host: a host pushes objects to another's disk over its remote URL, and nobody else takes part."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.errors import InvalidArgument, NodeError
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.demo.processes import ManagedProcess
from tests.support import checker
from tests.support.arena import JOB_TIMEOUT_S, assert_counts_add_up, context_of, rebalancer_of, wait_for
from tests.support.engine import hurry, move
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.sftp import Sftp

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

SIZE = 10_000
EACH = 40
#: Runners renew their leases at least every 3 s.
QUIET_MS = 3_500


@pytest.fixture
def fleet(fleet_config: FleetFactory, sftp: Sftp, tmp_path: Path) -> Fleet:
    """Host h1 has a full disk, host h2 an empty one, which its SFTP server shows to others."""
    far = {
        "queue": "h2",
        "remote_url": f"sftp://127.0.0.1:{sftp.port}{tmp_path / 'nodes' / 'b'}",
        "storage_options": sftp.options(),
    }
    nodes = {
        "a": NodeSpec({f"o/{n:02}": SIZE for n in range(EACH)}, settings={"queue": "h1"}),
        "b": NodeSpec(settings=far),
    }
    made = fleet_config(nodes, options={"throttle_bytes_per_sec": 200_000, "object_cooldown": "0s"})
    assert made.roots["b"] == tmp_path / "nodes" / "b"
    return made


@pytest.fixture
def host(fleet: Fleet, tmp_path: Path) -> Iterator[Callable[..., ManagedProcess]]:
    """Start a worker of one host; where the kernel lets us, the other's disk is an empty folder to it."""
    started: list[ManagedProcess] = []

    def start(name: str, *, hidden: str) -> ManagedProcess:
        command = [
            *(sys.executable, "-m", "celery", "-A", "rebalance_tasks", "worker", "--pool", "prefork", "-l", "WARNING"),
            *("--concurrency", "2", "-n", f"{name}@{name}-{len(started)}"),
            *("-Q", f"rebalance.control,rebalance.data.{name}"),
        ]
        unshare = [shutil.which("unshare") or "false", "--mount"]
        if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0:
            mount = f'mount -t tmpfs none {shlex.quote(str(fleet.roots[hidden]))}; exec "$@"'
            command = [*unshare, "sh", "-ec", mount, "sh", *command]
        log = tmp_path / f"{name}-{len(started)}.log"
        started.append(ManagedProcess(f"worker of {name}", command, log_path=log, env=dict(os.environ)))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def moved(fleet: Fleet) -> RebalancePlan:
    """Half of what lies on a."""
    names = sorted(fleet.objects("a"))[: EACH // 2]
    return RebalancePlan(plan_id="push", fleet="test", moves=tuple(move(name, "a", "b", SIZE) for name in names))


def test_a_host_pushes_to_another_whose_own_worker_sleeps_and_survives_a_kill(
    fleet: Fleet, host: Callable[..., ManagedProcess]
) -> None:
    rebalancer = rebalancer_of(fleet)
    context = context_of(rebalancer)
    written = checker.record(fleet.roots)
    worker = host("h1", hidden="b")
    rebalancer.start(moved(fleet), "j1")
    wait_until(lambda: any((fleet.roots["b"] / ".rebalance" / "tmp").glob("*")), JOB_TIMEOUT_S, "copies are under way")
    worker.kill()
    host("h1", hidden="b")

    def over() -> bool:
        hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"), quiet_ms=QUIET_MS)
        run_sweep(context)
        return rebalancer.status("j1").status.terminal

    wait_until(over, JOB_TIMEOUT_S, "the job is over", interval_s=0.3)
    job = wait_for(rebalancer, "j1")
    assert_counts_add_up(job)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, EACH // 2)
    checker.check(fleet.roots, written, job)
    # What was published is known as its SFTP server shows it, not by inode: nobody wrote to the disk itself.
    lines = [
        json.loads(line)
        for manifest in (fleet.roots["b"] / ".rebalance" / "manifests").iterdir()
        for line in manifest.read_text().splitlines()
    ]
    assert len(lines) >= EACH // 2
    assert {line["published"]["inode"] for line in lines} == {0}
    # The way back is planned from what b holds, which only h2 can tell …
    with pytest.raises(NodeError, match=r"nobody serves rebalance\.data\.h2"):
        rebalancer.undo("j1")
    # … and there is none: nobody of h2 reaches a.
    host("h2", hidden="a")

    def told() -> bool:
        with pytest.raises((NodeError, InvalidArgument)) as refused:
            rebalancer.undo("j1")
        return refused.type is InvalidArgument and "unreachable" in str(refused.value)

    wait_until(told, JOB_TIMEOUT_S, "the plan of the way back says so")
