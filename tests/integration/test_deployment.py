"""The commands of docker-compose.yml do what they are there for, without Docker; and the wheel works where nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2
import pytest
import redis
import yaml

from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.demo.processes import ManagedProcess
from rebalance_tasks.embedded import find_server_binary
from tests.support.arena import objects, rebalancer_of, wait_for
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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


def composed(name: str, tmp_path: Path, env: Mapping[str, str], swaps: Mapping[str, str]) -> ManagedProcess:
    """Start a service by its own command; only places and ports are the test's."""
    service = SERVICES[name]
    own = {key: swapped(value, swaps) for key, value in service.get("environment", {}).items()}
    program, *arguments = (swapped(word, swaps) for word in service["command"])
    path = f"{tmp_path}:{BIN}:{os.environ['PATH']}"
    known = {**own, **env, "PATH": path, "PYTHONPATH": str(ROOT)}
    found = str(BIN / program) if (BIN / program).exists() else program
    return ManagedProcess(name, [found, *arguments], log_path=tmp_path / f"{name}.log", env=known)


def swapped(word: object, swaps: Mapping[str, str]) -> str:
    """A word as the container sees it ("$$" is compose's "$"), with this test's places in it."""
    text = str(word).replace("$$", "$")
    for old, new in swaps.items():
        text = text.replace(old, new)
    return text


def logs(processes: Iterable[ManagedProcess]) -> str:
    return "\n".join(f"--- {process.log_path.name}\n{process.log_tail(40)}" for process in processes)


@pytest.fixture
def services(fleet: Fleet, tmp_path: Path, port: str) -> Iterator[dict[str, ManagedProcess]]:
    """The services that balance the fleet."""
    env = {**os.environ, "REBALANCE_CONFIG": str(fleet.config)}
    swaps = {"/tmp/": f"{tmp_path}/", "9817": port}  # noqa: S108  as compose says
    started: dict[str, ManagedProcess] = {}
    try:
        for name in RUN:
            started[name] = composed(name, tmp_path, env, swaps)
        yield started
    finally:
        for process in started.values():
            process.kill()
        print(logs(started.values()))  # noqa: T201


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


@pytest.mark.parametrize(
    ("name", "inside", "asked", "secret"),
    [
        ("console", "8580", "/api/v1/fleet", "console_operator"),
        ("flower", "5555", "/api/workers", "flower_auth"),
    ],
)
def test_a_composed_page_is_well_and_asks_for_the_secret_in_its_file(
    fleet: Fleet, tmp_path: Path, port: str, name: str, inside: str, asked: str, secret: str
) -> None:
    subprocess.run([ROOT / "ops/make-secrets", tmp_path / "secrets"], check=True)
    swaps = {"/run/secrets/": f"{tmp_path}/secrets/", inside: port, "0.0.0.0": "127.0.0.1"}  # noqa: S104  compose's
    env = {**os.environ, "REBALANCE_CONFIG": str(fleet.config)}
    process = composed(name, tmp_path, env, swaps)
    kind, program, *words = (swapped(word, swaps) for word in SERVICES[name]["healthcheck"]["test"])
    assert (kind, program) == ("CMD", "python")

    def well() -> bool:
        process.require_alive()
        return subprocess.run([sys.executable, *words], capture_output=True, check=False).returncode == 0

    try:
        wait_until(well, 60, "its health check is content", interval_s=0.3)
        url, given = f"http://127.0.0.1:{port}{asked}", (tmp_path / "secrets" / secret).read_text().strip()
        headers = {"authorization": f"Bearer {given}"} if name == "console" else {}
        auth = None if name == "console" else (given.partition(":")[0], given.partition(":")[2])
        assert httpx2.get(url, timeout=20).status_code == 401
        assert httpx2.get(url, headers=headers, auth=auth, timeout=20).status_code == 200
        assert given not in process.log_path.read_text()
    finally:
        process.kill()
        print(logs([process]))  # noqa: T201


def test_the_composed_redis_asks_for_its_password_and_keeps_what_it_is_told(tmp_path: Path, port: str) -> None:
    (tmp_path / "redis-server").symlink_to(find_server_binary())
    (tmp_path / "redis_password").write_text("p" * 32)
    swaps = {"/run/secrets/": f"{tmp_path}/", "/data": str(tmp_path), "redis-server -": f"redis-server - --port {port}"}
    process = composed("redis", tmp_path, os.environ, swaps)
    try:
        client = redis.Redis(port=int(port), password="p" * 32)

        def answers() -> bool:
            process.require_alive()
            with suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        wait_until(answers, 30, "the server answers")
        info = client.info()
        assert (info["aof_enabled"], info["maxmemory_policy"]) == (1, "noeviction")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=int(port)).ping()
        shown = Path(f"/proc/{process.pid}/cmdline")
        assert not shown.exists() or "pppp" not in shown.read_text()
        client.close()
    finally:
        process.kill()
        print(logs([process]))  # noqa: T201
