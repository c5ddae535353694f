"""The network falls in two: on either side a Redis that is master, a host that carries the same job on, and the disks of both.

What one side writes no script of the other can refuse. An object still has one owner: copies and what is freed bear the move's
name, publishing replaces nothing, and freeing compares and is reversible (docs/invariants.md, steps 8 and 13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import Rebalancer
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.settings import load_settings
from tests.support import checker
from tests.support.arena import JOB_TIMEOUT_S, assert_counts_add_up, context_of
from tests.support.engine import hurry, moves_between
from tests.support.fleets import NodeSpec
from tests.support.servers import FragileServer
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

SIZE = 20_000
OBJECTS = 60
#: Runners under a throttle renew their leases every 50 ms.
QUIET_MS = 3_500


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[FragileServer, FragileServer]]:
    """A master and its replica."""
    with FragileServer(tmp_path / "master") as master:
        extra = ("--replicaof", "127.0.0.1", str(master.port))
        with FragileServer(tmp_path / "replica", extra=extra) as replica:
            yield master, replica


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    files = {f"o/{number:02}": SIZE + number for number in range(OBJECTS)}
    nodes = {"a": NodeSpec(files, 10**7), "b": NodeSpec({}, 10**7), "c": NodeSpec({}, 10**7)}
    return fleet_config(nodes, options={"throttle_bytes_per_sec": 5 * SIZE, "object_cooldown": "0s"})


def side(fleet: Fleet, server: FragileServer) -> Rebalancer:
    return Rebalancer(load_settings(fleet.config, environ={}), redis_url=server.url)


def copies(fleet: Fleet, node: str) -> bool:
    return any(fleet.roots[node].glob(".rebalance/tmp/*"))


def sweep(rebalancer: Rebalancer) -> bool:
    """Do what the beat of one side would do, with waiting times cut short; whether the job is over there."""
    context = context_of(rebalancer)
    hurry(context.connection, context.keys.job("j1"), context.jobs.groups("j1"), quiet_ms=QUIET_MS)
    run_sweep(context)
    return rebalancer.status("j1").status.terminal


def test_two_sides_that_know_nothing_of_each_other_leave_one_owner_of_each_object(
    fleet: Fleet, servers: tuple[FragileServer, FragileServer], processes: ProcessFactory
) -> None:
    master, replica = servers
    here, written = side(fleet, master), checker.record(fleet.roots)
    keys = sorted(fleet.objects("a"))
    sizes = {key: SIZE + number for number, key in enumerate(keys)}
    moves = [
        move for n, to in enumerate(("b", "c")) for move in moves_between("a", to, {k: sizes[k] for k in keys[n::2]})
    ]
    processes.worker(wait=False, concurrency=2, env={"REBALANCE_REDIS_URL": master.url}, log_level="ERROR")
    before = wait_until(here.workers, JOB_TIMEOUT_S, "the first host is there").keys()
    here.start(RebalancePlan(plan_id="p1", fleet="test", moves=tuple(moves)), "j1")
    wait_until(lambda: copies(fleet, "b") and copies(fleet, "c"), JOB_TIMEOUT_S, "both groups copy")
    here.pause("j1")
    there = side(fleet, replica)
    # Until the job is there, too, asking for it alone would be an error.
    wait_until(lambda: any(job.paused_reasons for job in there.jobs()), JOB_TIMEOUT_S, "the replica is in step")
    replica.client().replicaof("NO", "ONE")
    processes.worker(wait=False, concurrency=2, env={"REBALANCE_REDIS_URL": replica.url}, log_level="ERROR")
    wait_until(lambda: there.workers().keys() - before, JOB_TIMEOUT_S, "the second host is there")
    # Both sides carry the same moves on from the same point, side by side.
    for one in (here, there):
        one.resume("j1")
    wait_until(lambda: sweep(here) & sweep(there), JOB_TIMEOUT_S * 2, "the job is over on both sides", interval_s=0.3)
    seen = checker.look(fleet.roots)
    assert {key: [content for _, content in places] for key, places in seen.objects.items()} == {
        key: [digest] for key, digest in written.digests.items()
    }, "each object stands whole at one place"
    for one in (here, there):
        job = one.status("j1")
        assert_counts_add_up(job)
        # Both write to the same name aside and free the same source: what the other side carries off or begins anew in the middle
        # of a step is missed here, or does not pass this side's verification. Nothing of it is lost: see above.
        assert set(job.failures) <= {"source_vanished", "checksum_mismatch"}
        assert job.total_moves == OBJECTS
    for key, [(node, _)] in seen.objects.items():
        assert there.locate(key).node_id == node
