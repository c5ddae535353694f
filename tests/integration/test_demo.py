"""The demo as a newcomer runs it: real processes, real files, and what is left when it ends or is interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rebalance_tasks.demo.corpus import DemoNode
from rebalance_tasks.demo.inspect import staged_files, verify
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from rebalance_tasks.cli import main; main()", "demo"]


@pytest.fixture
def source(tmp_path: Path, redis_server: EmbeddedServer) -> Path:
    """Eight hundred files, about 8 MB (and the certainty that a server can be started here)."""
    chance = random.Random(7)
    root = tmp_path / "source"
    for number in range(800):
        path = root / f"folder{number % 20}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(20_000)))
    return root


def start(tmp_path: Path, source: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--from", str(source), "--dir", str(tmp_path / "demo"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


@pytest.fixture
def demo(tmp_path: Path, source: Path) -> Iterator[subprocess.Popen[str]]:
    with start(tmp_path, source, "--keep") as process:
        try:
            yield process
        finally:
            process.kill()


def processes_in(directory: Path) -> list[psutil.Process]:
    """Processes that work in the demo's directory, or talk of it."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        cwd = process.info["cwd"] or ""
        if process.info["status"] != psutil.STATUS_ZOMBIE and cwd.startswith(str(directory)):
            found.append(process)
    return found


def kept_nodes(directory: Path) -> list[DemoNode]:
    return [DemoNode(root.name, root, "", 1) for root in sorted((directory / "nodes").iterdir())]


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Read the demo's lines until one holds the word."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if word in line:
            return text
    pytest.fail(f"the demo ended before {word!r} (exit {process.wait()}):\n{text}")


@pytest.mark.timeout(120)
def test_demo_balances_pauses_verifies_and_leaves_nothing_behind(tmp_path: Path, source: Path) -> None:
    with start(tmp_path, source, "--picture", str(tmp_path / "demo.svg")) as process:
        try:
            shown, _ = process.communicate(timeout=110)
        finally:
            process.kill()
    assert process.returncode == 0, shown
    assert "800 of 800 objects verified" in shown
    assert "nothing had moved while it was paused" in shown
    before, _, after = shown.partition("spread    ")[2].partition("\n")[0].partition(" → ")
    assert float(before.rstrip(" %")) > 60
    assert float(after.rstrip(" %")) < 10
    assert not (tmp_path / "demo").exists()
    assert (tmp_path / "demo.svg").read_text(encoding="utf-8").startswith("<svg")
    assert processes_in(tmp_path) == []


@pytest.mark.timeout(120)
def test_ctrl_c_in_the_middle_ends_everything_and_leaves_every_object_whole(
    tmp_path: Path, demo: subprocess.Popen[str]
) -> None:
    read_until(demo, "moving |")
    assert len(processes_in(tmp_path / "demo")) >= 3
    demo.send_signal(signal.SIGINT)
    shown, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, shown
    assert processes_in(tmp_path / "demo") == []
    nodes = kept_nodes(tmp_path / "demo")
    assert [path for node in nodes for path in staged_files(node)] == []
    verify(nodes, json.loads((tmp_path / "demo" / "manifest.json").read_text())).require_success()


@pytest.mark.timeout(120)
def test_two_ctrl_c_while_starting_end_everything_at_once(tmp_path: Path, demo: subprocess.Popen[str]) -> None:
    read_until(demo, "spread between")
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGINT)
    shown, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, shown
    assert processes_in(tmp_path / "demo") == []


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
@pytest.mark.timeout(120)
def test_no_process_survives_a_demo_that_is_killed(tmp_path: Path, demo: subprocess.Popen[str]) -> None:
    read_until(demo, "are up")
    demo.kill()
    demo.wait()
    wait_until(lambda: not processes_in(tmp_path / "demo"), 30, "worker, pool children, beat and server are gone")


@pytest.mark.timeout(120)
def test_a_worker_that_dies_ends_the_demo_with_its_log(tmp_path: Path, demo: subprocess.Popen[str]) -> None:
    read_until(demo, "are up")
    [worker] = [
        process
        for process in processes_in(tmp_path / "demo")
        if "worker" in process.cmdline() and process.ppid() == demo.pid
    ]
    worker.kill()
    shown, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "the worker process ended" in shown
    assert "kept: " in shown
    assert processes_in(tmp_path / "demo") == []
