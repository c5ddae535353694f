"""The commands of docker-compose.yml do what they are there for, without Docker; and the wheel works where nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.demo.processes import ManagedProcess
from tests.support.arena import objects, rebalancer_of, wait_for
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

ROOT: Final = Path(__file__).parents[2]
BIN: Final = Path(sys.executable).parent
SERVICES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
RUN: Final = ("control", "data", "beat", "metrics")


@pytest.fixture
def port() -> str:
    """One that is free, or was a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    nodes = {"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000)}
    return fleet_config(nodes, options={"check_interval": "1s"})


@pytest.fixture
def services(fleet: Fleet, tmp_path: Path, port: str) -> Iterator[dict[str, ManagedProcess]]:
    """The services of ours, each by its own command; only places and the port are this test's."""
    env = {**os.environ, "REBALANCE_CONFIG": str(fleet.config), "PYTHONPATH": str(ROOT)}
    started: dict[str, ManagedProcess] = {}
    try:
        for name in RUN:
            service = SERVICES[name]
            own = {key: value for key, value in service["environment"].items() if key != "REBALANCE_CONFIG"}
            program, *arguments = (
                str(word).replace("/tmp/", f"{tmp_path}/").replace("9817", port)  # noqa: S108  as compose says
                for word in service["command"]
            )
            started[name] = ManagedProcess(
                name, [str(BIN / program), *arguments], log_path=tmp_path / f"{name}.log", env={**env, **own}
            )
        yield started
    finally:
        for process in started.values():
            process.kill()
        print("\n".join(f"--- {process.log_path.name}\n{process.log_tail(40)}" for process in started.values()))  # noqa: T201


def test_the_composed_commands_balance_a_fleet_and_say_so(
    fleet: Fleet, services: dict[str, ManagedProcess], port: str
) -> None:
    content = fleet.all_objects()
    rebalancer = rebalancer_of(fleet)
    [job] = wait_until(rebalancer.jobs, 90, "beat's check has started a job")
    assert wait_for(rebalancer, job.job_id, timeout_s=90).status is RebalanceStatus.COMPLETED
    assert fleet.all_objects() == content
    url = f"http://127.0.0.1:{port}/metrics"
    wanted = (
        f'rebalance_moves_total{{fleet="test",outcome="completed"}} {job.total_moves}.0',
        'rebalance_workers{fleet="test",same="yes"} 2.0',
    )

    def told() -> bool:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        return all(line in text for line in wanted)

    wait_until(told, 30, "the metrics say what was done")

    def well() -> bool:
        found = {finding.name: finding.verdict for finding in rebalancer.doctor()}
        assert {name for name, verdict in found.items() if verdict == "fail"} == set()
        # A job may be over before the first sweep.
        return {found[name] for name in ("queue rebalance.control", "queue rebalance.data", "sweep")} == {"ok"}

    wait_until(well, 30, "the doctor has nothing to say of queues and sweep")
    for name in ("control", "data", "beat", "metrics"):
        services[name].stop(45)
        assert not services[name].alive, name


def test_the_wheel_works_where_nothing_of_the_source_tree_is(fleet: Fleet, tmp_path: Path) -> None:
    builder = import_module("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path / "dist"), versions=["standard"])
    place = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), wheel]
    subprocess.run(pip, check=True)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        # -I: neither the working directory, nor PYTHONPATH, nor the editable install's hook decides what is imported.
        code = (
            f"import sys; sys.path.insert(0, {str(place)!r})\n"
            "import rebalance_tasks; assert rebalance_tasks.__file__.startswith(sys.path[0]), rebalance_tasks.__file__\n"
            "from rebalance_tasks.cli.app import run; sys.exit(run(sys.argv[1:]))"
        )
        env = {"PATH": os.defpath, "REBALANCE_CONFIG": str(fleet.config)}
        command = [sys.executable, "-I", "-c", code, *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    version = run("--version")
    assert version.returncode == 0, version.stderr
    for command in (["plan", "--json"], ["metrics", "--once"], ["events", "--json"], ["nodes"]):
        done = run(*command)
        assert done.returncode == 0, done.stderr
