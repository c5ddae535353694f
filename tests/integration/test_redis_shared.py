"""A Redis that is not ours alone: a user with as few rights as suffice, keys under prefixes of our own, little memory.

The user is the one of docs/operations.md, read from there; the job is a real worker's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.celery import make_app
from rebalance_tasks.cli.app import run
from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.errors import StateForbidden, StateFull, StateLoginRefused
from tests.support.arena import JOB_TIMEOUT_S, wait_for
from tests.support.rig import rig
from tests.support.servers import FragileServer
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.integration

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FragileServer]:
    with FragileServer(tmp_path / "redis") as made:
        yield made


def documented_user() -> list[str]:
    """The rights of the documented user."""
    found = re.search(
        r"^\s*ACL SETUSER rebalance (.*?)^\s*```", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1].replace("PASSWORD", "pass").split()


def log_in(server: FragileServer, *more: str) -> str:
    """Make the documented user, with further rules; return the URL with which it logs in."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "rebalance", "reset", *documented_user(), *more)
        admin.execute_command("ACL", "LOG", "RESET")
    return f"redis://rebalance:pass@127.0.0.1:{server.port}/0"


# -- rights and prefixes ----------------------------------------------------------------------------------------------
def test_the_documented_user_suffices_for_a_job_and_all_keys_are_below_the_prefix(
    server: FragileServer, tmp_path: Path
) -> None:
    url = log_in(server)
    with server.client() as admin:
        admin.set("neighbour", "untouched")
    with rig(tmp_path, url, message_prefix="rebalance") as fleet:
        fleet.worker()
        app = make_app(fleet.rebalancer.settings)
        plan = fleet.rebalancer.plan()
        asked = app.send_task(
            "rebalance.start", kwargs={"plan_id": plan.plan_id, "job_id": "j1"}, queue="rebalance.control"
        )
        assert asked.get(timeout=JOB_TIMEOUT_S)["status"] == "running"
        # Nobody sweeps here: the chord, on results below the prefix, is what closes the job.
        job = wait_for(fleet.rebalancer, "j1")
        answer = app.send_task("rebalance.check", queue="rebalance.control").get(timeout=JOB_TIMEOUT_S)
        assert answer["verdict"] == "skipped"
        app.close()
        fleet.check(job)
        with server.client() as admin:
            keys = set(admin.scan_iter())
            refused = [entry for entry in admin.acl_log() if entry["username"] == "rebalance"]
        assert {key for key in keys if not key.startswith("rebalance:")} == {"neighbour"}
        assert any(key.startswith("rebalance:celery-task-meta-") for key in keys)
        assert refused == []


def test_a_prefix_of_the_state_is_heeded_by_every_key(server: FragileServer, tmp_path: Path) -> None:
    with rig(tmp_path, server.url, key_prefix="acme") as fleet:
        fleet.start()
        with server.client() as admin:
            ours = [key for key in admin.scan_iter() if "{test}" in key]
        assert len(ours) > 5
        assert all(key.startswith("acme:{test}:") for key in ours)


def read_in_pipeline(state: Connection) -> object:
    pipe = state.client.pipeline()
    pipe.hget("rebalance:{f}:info", "a")
    return pipe.execute()


CALLS: dict[str, tuple[str, Callable[[Connection], object], str]] = {
    "a script": ("-evalsha", lambda state: state.run("check_release", ["rebalance:{f}:check:lock"], [1]), r"\+evalsha"),
    "a command": ("-hgetall", lambda state: state.hgetall("rebalance:{f}:info"), r"\+hgetall"),
    "a pipeline": ("-hget", read_in_pipeline, r"\+hget"),
    "a key": ("resetkeys", lambda state: state.get("rebalance:{f}:active"), "~rebalance:"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_right_that_is_missing_is_named(server: FragileServer, what: str) -> None:
    rule, call, named = CALLS[what]
    state = Connection(connect(log_in(server, rule)))
    with pytest.raises(StateForbidden, match=rf"rebalance:\*\*\*@.*give the user .*{named}.*Least privilege"):
        call(state)


def test_a_right_that_is_missing_inside_a_script_is_named(server: FragileServer) -> None:
    state = Connection(connect(log_in(server, "-incr")))
    with pytest.raises(StateForbidden, match=r"give the user \+incr"):
        state.run("check_acquire", ["rebalance:{f}:check:lock", "rebalance:{f}:check:fence"], [1000, "me"])


def test_a_refused_login_is_told_at_once(server: FragileServer) -> None:
    log_in(server)
    with pytest.raises(StateLoginRefused, match="set user and password in the URL"):
        Connection(connect(f"redis://rebalance:wrong@127.0.0.1:{server.port}/0")).now_ms()


def test_what_the_user_may_not_do_is_refused(server: FragileServer) -> None:
    state = connect(log_in(server))
    for command in (
        "FLUSHALL",
        "KEYS *",
        "CONFIG GET maxmemory",
        "ACL LIST",
        "SHUTDOWN",
        "SCRIPT FLUSH",
    ):
        with pytest.raises(StateForbidden):
            state.execute_command(*command.split())
    with pytest.raises(StateForbidden):
        state.set("neighbour", "mine")


# -- memory -----------------------------------------------------------------------------------------------------------
def test_a_job_waits_out_a_full_redis_and_nothing_is_done_by_half(
    server: FragileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        rig(tmp_path, server.url, options={"throttle_bytes_per_sec": 100_000}) as fleet,
        server.client() as admin,
    ):
        fleet.worker()
        plan = fleet.rebalancer.plan()
        admin.config_set("maxmemory", "1mb")
        for verb in (
            lambda: fleet.rebalancer.start(plan, "j1"),
            fleet.rebalancer.plan,
            lambda: fleet.context.connection.write_durably("rebalance:x", {"a": 1}, timeout_ms=100),
        ):
            with pytest.raises(StateFull, match=r"raise maxmemory or make room") as told:
                verb()
            assert isinstance(told.value, RebalanceError)
        assert fleet.rebalancer.jobs() == []
        assert fleet.context.jobs.active() is None
        admin.config_set("maxmemory", "0")
        fleet.rebalancer.start(plan, "j1")
        fleet.wait_moving()
        admin.config_set("maxmemory", "1mb")
        monkeypatch.setenv("REBALANCE_CONFIG", str(fleet.fleet.config))
        assert run(["pause", "j1", "--json"]) == 1
        said = capsys.readouterr()
        assert "redis_full" in said.out
        assert "Traceback" not in said.err
        # What runs has met it by now, or will: its flip or its count is refused, and that whole.
        job = fleet.rebalancer.status("j1")
        assert job.completed_moves + job.failed_moves + job.skipped_moves <= job.total_moves
        wait_until(
            lambda: "'maxmemory'" in fleet.processes.logs(),
            20,
            "the worker met it",
        )
        admin.config_set("maxmemory", "0")
        fleet.check(fleet.finish())


def test_a_worker_outlives_a_full_redis(server: FragileServer, tmp_path: Path) -> None:
    with rig(tmp_path, server.url) as fleet, server.client() as admin:
        fleet.start()
        # Each write by which it connects, or takes a message, is refused.
        admin.config_set("maxmemory", "1mb")
        worker = fleet.processes.worker(wait=False, env=fleet.env)
        wait_until(lambda: "'maxmemory'" in fleet.processes.logs(), JOB_TIMEOUT_S, "the worker met it")
        worker.require_alive()
        admin.config_set("maxmemory", "0")
        fleet.check(fleet.finish())
        worker.require_alive()


def test_settings_of_the_server_that_lose_jobs_are_warned_of(server: FragileServer) -> None:
    state = Connection(connect(server.url))
    assert state.warnings() == []
    with server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("appendonly", "no")
    policy, log = state.warnings()
    assert "allkeys-lru" in policy
    assert "noeviction" in policy
    assert "appendonly" in log
    assert Connection(connect(log_in(server, "-info"))).warnings() == []
