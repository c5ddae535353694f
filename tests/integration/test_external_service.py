"""A service without our package has a fleet balanced: docs/examples/enqueue_service.py against a real worker."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import RebalanceStatus
from tests.support.arena import Arena, arena_of, objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

SERVICE = Path(__file__).parents[2] / "docs" / "examples" / "enqueue_service.py"


@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena_of(
        tmp_path_factory.mktemp("arena"),
        nodes=("a", "b"),
        capacity_bytes=50_000,
        fleet={"mode": "observe"},
    ) as made:
        yield made


def call(arena: Arena, *arguments: str) -> tuple[int, Any]:
    """Run the service as anybody would, in an environment that knows no configuration of ours."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("REBALANCE_")}
    done = subprocess.run(
        [sys.executable, str(SERVICE), *arguments],
        env={**env, "BROKER_URL": arena.redis_url},
        cwd=arena.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count("\n") <= 1, done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_the_service_imports_celery_and_nothing_of_ours() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SERVICE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert {name.partition(".")[0] for name in imported} == {"__future__", "json", "os", "sys", "celery"}


def test_a_service_checks_starts_pauses_and_resumes_by_name(arena: Arena) -> None:
    arena.fill({"a": objects(40, 1000)})
    code, checked = call(arena, "check")
    assert (code, checked["verdict"]) == (0, "planned")
    arena.context.fleet.pause("test")
    code, started = call(arena, "start", checked["plan_id"], "rebal-service")
    assert (code, started) == (0, {"job_id": "rebal-service", "status": "pending", "reason": ""})
    code, paused = call(arena, "pause", "rebal-service")
    assert (code, paused) == (0, {"job_id": "rebal-service", "status": "paused", "reason": ""})
    arena.context.fleet.resume("test")
    code, resumed = call(arena, "resume", "rebal-service")
    assert (code, resumed) == (0, {"job_id": "rebal-service", "status": "running", "reason": ""})
    assert arena.wait("rebal-service").status is RebalanceStatus.COMPLETED
    arena.assert_whole()
    code, late = call(arena, "pause", "rebal-service")
    assert (code, late["reason"]) == (1, "the job is completed and cannot be paused")


def test_a_service_learns_what_is_wrong(arena: Arena) -> None:
    arena.fill({})
    code, answer = call(arena, "pause", "rebal-nobody")
    assert (code, answer["status"], answer["reason"].split(":")[0]) == (1, None, "job_not_found")
    code, answer = call(arena, "cancel", "../nobody")
    assert code == 1
    assert "job_id" in answer["reason"]
    code, usage = call(arena, "destroy")
    assert code == 2
    assert "enqueue_service.py check" in usage
