"""Three hosts with disks of their own: one dies for good in the middle, another is cut off from Redis and comes back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalancePlan
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.store.presence import DESERTED_MS
from tests.support import checker
from tests.support.arena import JOB_TIMEOUT_S, assert_counts_add_up, context_of, rebalancer_of
from tests.support.engine import hurry, move
from tests.support.hosts import HOSTS, Host, exported, grave, nodes_of_hosts, private
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.embedded import EmbeddedServer
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

SIZE = 20_000
EACH = 24
CAPACITY = EACH * SIZE * 4
#: Runners renew their leases at least every 3 s.
QUIET_MS = 3_500


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """Private disks are fuller than exported ones."""
    files = {private(host): {f"{host}/own/{n:02}": SIZE + n for n in range(EACH)} for host in HOSTS}
    files |= {exported(host): {f"{host}/shared/{n:02}": SIZE + n for n in range(EACH // 4)} for host in HOSTS}
    options = {"throttle_bytes_per_sec": 60_000, "max_concurrent_migrations": 9, "object_cooldown": "0s"}
    return fleet_config(nodes_of_hosts(files, capacity=CAPACITY), options=options)


@pytest.fixture
def hosts(fleet: Fleet, tmp_path: Path, redis_server: EmbeddedServer) -> Iterator[dict[str, Host]]:
    """A worker on each; those of h1 and h3 also decide."""
    with ExitStack() as stack:
        made = {}
        for name in HOSTS:
            made[name] = Host(name, fleet, tmp_path, redis_server.port, control=name != "h2")
            stack.callback(made[name].end)
            made[name].start()
        rebalancer = rebalancer_of(fleet)
        wait_until(lambda: len(rebalancer.workers()) == len(HOSTS), JOB_TIMEOUT_S, "all hosts are there")
        yield made
        for log in sorted(tmp_path.glob("h*.log")):
            print(f"--- {log.name}\n{log.read_text()[-3000:]}")  # noqa: T201  shown when the test fails


def plan_of(fleet: Fleet) -> RebalancePlan:
    """On each host half of its own disk goes to the one that it exports, and what is there to the next host's."""
    moves = []
    for host, following in zip(HOSTS, (*HOSTS[1:], HOSTS[0]), strict=True):
        own, shared = fleet.objects(private(host)), fleet.objects(exported(host))
        moves += [move(key, private(host), exported(host), len(own[key])) for key in sorted(own)[: EACH // 2]]
        moves += [move(key, exported(host), exported(following), len(shared[key])) for key in sorted(shared)]
    return RebalancePlan(plan_id="apart", fleet="test", moves=tuple(moves))


def copying(fleet: Fleet, *nodes: str) -> bool:
    """Whether copies for these nodes are under way."""
    return all(any((fleet.roots[node] / ".rebalance" / "tmp").glob("*")) for node in nodes)


def finish(rebalancer: Rebalancer, context: FleetContext, job_id: str, *, give_up: bool = False) -> RebalanceJob:
    """Do what beat would do, with waiting times cut short, until the job is over."""

    def over() -> RebalanceJob | None:
        job = rebalancer.status(job_id)
        if job.status.terminal:
            return job
        hurry(context.connection, context.keys.job(job_id), context.jobs.groups(job_id), quiet_ms=QUIET_MS)
        if give_up:
            for node, times in context.connection.hgetall(context.keys.outages).items():
                context.connection.hset(context.keys.outages, {node: b"1 " + times.split()[1]})
        run_sweep(context)
        return None

    return wait_until(over, JOB_TIMEOUT_S * 2, f"job {job_id} is over", interval_s=0.3)


def check_survivors(fleet: Fleet, written: checker.Written, *, dead: str) -> None:
    """Nothing that stood on a living host is lost or doubled; what is not there lies on the dead host's disks."""
    graves = {node: grave(fleet.roots[node]) for node in (private(dead), exported(dead))}
    living = {node: root for node, root in fleet.roots.items() if node not in graves}
    here, there = checker.look(living), checker.look(graves)
    for key, digest in written.digests.items():
        places = here.objects.get(key, [])
        assert len(places) <= 1, f"{key} has two owners: {places}"
        assert places or key in there.objects, f"{key} is lost"
        # On the dead disks may lie what went there before, or a source that could not be freed any more.
        assert {seen for _, seen in [*places, *there.objects.get(key, [])]} == {digest}
    assert here.objects.keys() <= written.digests.keys()


def test_the_fleet_ends_balanced_among_the_living(
    fleet: Fleet, hosts: dict[str, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    rebalancer = rebalancer_of(fleet)
    context = context_of(rebalancer)
    written = checker.record(fleet.roots)
    rebalancer.start(plan_of(fleet), "j1")
    wait_until(lambda: copying(fleet, *map(exported, HOSTS)), JOB_TIMEOUT_S, "all hosts copy")
    hosts["h3"].cut_off()
    hosts["h2"].die()
    _silent(context, "h2", "h3")
    # h1 goes on alone; what is left of h3's own waits for it.
    wait_until(
        lambda: _sweeping(context, "j1") and {"p-h2", "p-h3"} <= _missing(context), JOB_TIMEOUT_S, "both are missed"
    )
    hosts["h3"].back()
    wait_until(
        lambda: _sweeping(context, "j1") and not _missing(context) & {"p-h3", "s-h3"}, JOB_TIMEOUT_S, "h3 is back"
    )
    job = finish(rebalancer, context, "j1", give_up=True)
    assert_counts_add_up(job)
    assert job.status is RebalanceStatus.COMPLETED
    # What could not move is reported, with its cause.
    assert job.failed_moves > 0
    assert set(job.failures) <= {"node_missing", "free_pending"}
    assert "node_missing" in job.failures
    assert all("h2" in f"{group.source_node} {group.target_node}" for group in rebalancer.failures("j1"))
    check_survivors(fleet, written, dead="h2")
    for node in ("p-h2", "s-h2"):
        rebalancer.maintenance(node)
    second = finish(rebalancer, context, rebalancer.start(rebalancer.plan(), "j2").job_id)
    assert (second.status, second.failed_moves) == (RebalanceStatus.COMPLETED, 0)
    assert second.imbalance_after is not None
    assert second.imbalance_after <= rebalancer.settings.options.imbalance_threshold
    check_survivors(fleet, written, dead="h2")


def _silent(context: FleetContext, *hosts: str) -> None:
    """Let it be long ago that these hosts' workers said anything."""
    for worker in context.digests():
        if worker.partition("@")[2] in hosts:
            context.presence.forget(worker)


def _sweeping(context: FleetContext, job_id: str) -> bool:
    """Sweep once, with leases, and the time in which a worker might come back, cut short."""
    hurry(context.connection, context.keys.job(job_id), context.jobs.groups(job_id), quiet_ms=QUIET_MS)
    for queue, mark in context.connection.hgetall(context.keys.deserted).items():
        since, asked = map(int, mark.split())
        context.connection.hset(context.keys.deserted, {queue: f"{since - DESERTED_MS} {asked}"})
    run_sweep(context)
    return True


def _missing(context: FleetContext) -> set[str]:
    return {hold.node_id for hold in context.holds.all() if hold.owner == "missing"}
