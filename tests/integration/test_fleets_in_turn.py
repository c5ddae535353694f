"""Two fleets share one worker process: the one of higher priority is served first, the other one is not starved.

Each fleet's state is another user's, who may touch nothing else; what they share is the broker. The rights are those of
docs/how-to/many-hosts.md, read from there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import Rebalancer, RebalanceStatus
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.settings import load_settings
from tests.support import checker
from tests.support.arena import JOB_TIMEOUT_S, context_of, wait_for
from tests.support.engine import moves_between
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.servers import FragileServer
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fleets import Fleet

from rebalance_tasks.core.models import RebalanceJob, RebalancePlan

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "many-hosts.md"
PRIORITIES = {"low": 1, "high": 4}
SIZE = 20_000
#: Of the urgent fleet; the other one has so many more that it is never done first.
OBJECTS = 80


def documented_user(name: str) -> list[str]:
    """The rights of a user of shared workers, as the page gives them for the fleet `archive` and for the `pool`."""
    found = re.search(
        rf"^ACL SETUSER {name} (.*?)^```", PAGE.read_text("utf-8").split("\n## ")[-1], re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1].replace("PASSWORD", "pw").split()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FragileServer]:
    with FragileServer(tmp_path / "redis") as made, made.client() as admin:
        for fleet in PRIORITIES:
            rights = [word.replace("{archive}", f"{{{fleet}}}") for word in documented_user("archive")]
            admin.execute_command("ACL", "SETUSER", fleet, "reset", *rights)
        admin.execute_command("ACL", "SETUSER", "pool", "reset", *documented_user("pool"))
        yield made


@pytest.fixture
def fleets(server: FragileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Fleet]:
    monkeypatch.delenv("REBALANCE_CONFIG", raising=False)
    made = {}
    for fleet, priority in PRIORITIES.items():
        (tmp_path / fleet).mkdir()
        shared = f"redis://pool:pw@127.0.0.1:{server.port}/0"
        table = {
            "name": fleet,
            "priority": priority,
            "broker_url": shared,
            "result_backend": shared,
            "message_prefix": "pool",
        }
        count = OBJECTS if fleet == "high" else OBJECTS * 4
        made[fleet] = write_fleet(
            tmp_path / fleet,
            redis_url=f"redis://{fleet}:pw@127.0.0.1:{server.port}/0",
            nodes={"a": NodeSpec({f"o/{number:03}": SIZE for number in range(count)}, 10**8), "b": NodeSpec({}, 10**8)},
            fleet=table,
            options={"throttle_bytes_per_sec": 16 * SIZE},
        )
    return made


@pytest.fixture
def processes(fleets: dict[str, Fleet], server: FragileServer, tmp_path: Path) -> Iterator[ProcessFactory]:
    factory = ProcessFactory(tmp_path, server.url)
    yield factory
    factory.stop_all()
    print(factory.logs())  # noqa: T201  shown when the test fails


def client_of(fleet: Fleet) -> Rebalancer:
    return Rebalancer(load_settings(fleet.config, environ={}))


def start(rebalancer: Rebalancer, fleet: Fleet) -> None:
    sizes = {key: len(content) for key, content in fleet.objects("a").items()}
    moves = moves_between("a", "b", sizes)
    rebalancer.start(RebalancePlan(plan_id="p", fleet=rebalancer.settings.fleet, moves=tuple(moves)), "j1")


def copied(fleet: Fleet) -> int:
    """Objects whose copies have been made, whether they are published yet or not."""
    return sum(1 for path in fleet.roots["b"].glob("o/*")) + sum(1 for _ in fleet.roots["b"].glob(".rebalance/tmp/*"))


def settle(rebalancer: Rebalancer) -> RebalanceJob:
    """Nobody beats here."""

    def over() -> bool:
        run_sweep(context_of(rebalancer))
        return rebalancer.status("j1").status.terminal

    wait_until(over, JOB_TIMEOUT_S, "the job is over")
    return rebalancer.status("j1")


def test_the_urgent_fleet_is_served_first_and_the_other_one_goes_on_too(
    server: FragileServer, fleets: dict[str, Fleet], processes: ProcessFactory
) -> None:
    low, high = (client_of(fleets[name]) for name in ("low", "high"))
    written = {name: checker.record(fleet.roots) for name, fleet in fleets.items()}
    config = os.pathsep.join(str(fleets[name].config) for name in ("low", "high"))
    processes.worker(wait=False, concurrency=1, app="tests.support.short_slices", env={"REBALANCE_CONFIG": config})
    for client in (low, high):
        [queues] = wait_until(client.workers, JOB_TIMEOUT_S, "each fleet sees the worker").values()
        assert queues == ("rebalance.control", "rebalance.data")
    start(low, fleets["low"])
    wait_until(lambda: copied(fleets["low"]), JOB_TIMEOUT_S, "the first one copies")
    start(high, fleets["high"])
    before = copied(fleets["low"])
    ended = wait_for(high, "j1")
    meanwhile = copied(fleets["low"]) - before
    assert (ended.status, ended.completed_moves) == (RebalanceStatus.COMPLETED, OBJECTS)
    # One turn in five, and the one that it was at; with equal turns it would have copied as many.
    assert 0 < meanwhile <= OBJECTS * 0.6
    wait_until(lambda: copied(fleets["low"]) > before + meanwhile + 8, JOB_TIMEOUT_S, "it goes on alone")
    low.cancel("j1")
    jobs = {"low": settle(low), "high": ended}
    for name, fleet in fleets.items():
        checker.check(fleet.roots, written[name], jobs[name])
    for name, client in (("low", low), ("high", high)):
        samples = [sample for metric in client.metrics_registry().collect() for sample in metric.samples]
        assert {sample.labels["fleet"] for sample in samples} == {name}
        # Each counts its own tasks, though one process ran them all.
        assert [s.value > 0 for s in samples if s.name == "rebalance_tasks_total" and s.labels["task"] == "migrate"]
    with server.client() as admin:
        assert [entry for entry in admin.acl_log() if entry["username"] in {*PRIORITIES, "pool"}] == []
        keys = set(admin.scan_iter())
    assert {key for key in keys if not key.startswith(("rebalance:{low}:", "rebalance:{high}:", "pool:"))} == set()
