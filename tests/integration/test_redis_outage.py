"""Redis goes away and comes back while a real worker carries a job; whoever asks meanwhile is told so in time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from rebalance_tasks.cli.app import run
from rebalance_tasks.store import connection
from rebalance_tasks.store.errors import StateUnreachable
from tests.support.rig import rig
from tests.support.servers import FragileServer
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rebalance_tasks import Rebalancer

pytestmark = pytest.mark.integration


def test_a_job_outlives_a_frozen_a_killed_and_a_restarted_redis(tmp_path: Path) -> None:
    """Frozen for a moment, then killed for longer than a worker waits; appended data are all it comes back with."""
    with (
        FragileServer(tmp_path / "redis") as server,
        rig(tmp_path, server.url, options={"throttle_bytes_per_sec": 100_000}) as fleet,
    ):
        fleet.worker()
        fleet.start()
        fleet.wait_moving()
        with server.frozen():
            time.sleep(0.5)
        before = fleet.rebalancer.status("j1")
        assert not before.status.terminal
        server.kill()
        time.sleep(1.0)
        server.back()
        wait_until(lambda: fleet.rebalancer.status("j1").status, 20, "the client speaks to the new server")
        assert fleet.rebalancer.status("j1").completed_moves >= before.completed_moves
        fleet.check(fleet.finish())


# -- who asks meanwhile -----------------------------------------------------------------------------------------------
@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rebalancer]:
    """A client whose server is gone; waiting times are cut short."""
    monkeypatch.setattr(connection, "RETRY_S", 0.2)
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT_S", 0.4)
    with FragileServer(tmp_path / "redis") as server, rig(tmp_path, server.url) as fleet:
        fleet.start()
        monkeypatch.setenv("REBALANCE_CONFIG", str(fleet.fleet.config))
        server.kill()
        yield fleet.rebalancer


VERBS: dict[str, Callable[[Rebalancer], object]] = {
    "status": lambda client: client.status("j1"),
    "jobs": lambda client: client.jobs(),
    "watch": lambda client: next(client.watch("j1")),
    "pause": lambda client: client.pause("j1"),
    "resume": lambda client: client.resume("j1"),
    "cancel": lambda client: client.cancel("j1"),
    "plan": lambda client: client.plan(),
    "check": lambda client: client.check(),
    "start": lambda client: client.start("p1"),
    "locate": lambda client: client.locate("o/00"),
    "nodes": lambda client: client.nodes(),
    "checks": lambda client: client.checks(),
}


def test_every_verb_says_in_time_which_server_does_not_answer(away: Rebalancer) -> None:
    address = away.settings.redis_url.split("//")[1]
    for name, verb in VERBS.items():
        begun = time.monotonic()
        with pytest.raises(StateUnreachable, match=address) as told:
            verb(away)
        assert time.monotonic() - begun < 2.0, name
        assert "is it running" in str(told.value)
        assert "redis_url" in str(told.value)


@pytest.mark.parametrize("argv", [["jobs"], ["status", "j1"], ["pause", "j1"], ["jobs", "--json"]])
def test_the_command_line_says_it_in_one_line(
    away: Rebalancer, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: Redis at redis://127.0.0.1:")
    assert "Traceback" not in said.err + said.out
    assert ("redis_unreachable" in said.out) == ("--json" in argv)


def test_a_frozen_server_costs_one_socket_timeout_and_no_password_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RETRY_S", 0.2)
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT_S", 0.5)
    with FragileServer(tmp_path) as server:
        client = connection.Connection(connection.connect(server.url.replace("//", "//default:hunter2@")))
        server.client().config_set("requirepass", "hunter2")
        calls: list[Callable[[], object]] = [
            client.now_ms,
            lambda: client.run("check_release", ["lock"], [1]),
            lambda: client.write_durably("mark", {"a": 1}, timeout_ms=10),
        ]
        for call in calls:
            call()
        for call in calls:
            begun = time.monotonic()
            with server.frozen(), pytest.raises(StateUnreachable, match=r"default:\*\*\*@127\.0\.0\.1") as told:
                call()
            assert 0.4 < time.monotonic() - begun < 0.9
            assert "hunter2" not in str(told.value)
            call()


def test_a_server_that_is_down_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    with FragileServer(tmp_path) as server:
        client = connection.Connection(connection.connect(server.url))
        assert client.run("check_acquire", ["lock", "fence"], [60_000, "me"]) == 1
        server.kill()
        server.back()
        assert client.run("check_release", ["lock"], [1]) == 1
        assert client.get("fence") == b"1"
        assert client.run("check_acquire", ["lock", "fence"], [60_000, "me"]) == 2


def test_nested_retries_wait_no_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_S", 0.3)
    client = connection.connect("redis://127.0.0.1:1/0")
    retry = client.get_retry()
    assert isinstance(retry, connection.BoundedRetry)

    def fails() -> None:
        raise RedisConnectionError

    begun = time.monotonic()
    with pytest.raises(RedisConnectionError):
        retry.call_with_retry(lambda: retry.call_with_retry(fails, lambda _: None), lambda _: None)
    assert 0.2 < time.monotonic() - begun < 1.0
