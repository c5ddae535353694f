"""A check that lists a fleet itself holds the nodes that it is at, not the fleet: the rest goes to a file, and comes back as candidates."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import survey as surveys
from rebalance_tasks.control.check import run_check
from rebalance_tasks.control.survey import survey
from rebalance_tasks.control.surveying import gathering, streams
from rebalance_tasks.control.surveying.memory import SurveyMemory
from tests.support.arena import objects
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

CAPACITY = 60_000
#: One object of a lies on b as well.
NODES = {
    "a": NodeSpec(objects(40, 1000), CAPACITY),
    "b": NodeSpec({"o/0001.bin": 10, **objects(5, 1000, "p")}, CAPACITY),
    "c": NodeSpec({}, CAPACITY),
}


@pytest.fixture
def engine(fleet_config: FleetFactory, tmp_path: Path) -> Engine:
    fleet_config(NODES, fleet={"mode": "observe", "survey_dir": str(tmp_path / "seen")})
    return Engine()


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "IN_MEMORY_ROWS", 4)
    monkeypatch.setattr(streams, "BATCH_ROWS", 7)


def spills(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "seen").rglob("*.parquet")]


def test_what_does_not_fit_is_planned_as_if_it_did(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = engine.context
    fitting = run_check(context)
    read = streams._batches
    seen: list[str] = []

    def noted(*args: object) -> object:
        seen.extend(spills(tmp_path))
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gathering, "IN_MEMORY_ROWS", 4)
    monkeypatch.setattr(streams, "BATCH_ROWS", 7)
    monkeypatch.setattr(streams, "_batches", noted)
    spilled = run_check(context)
    plans = [context.plans.load(result.plan_id or "") for result in (fitting, spilled)]
    assert len(plans[0].moves) == len(plans[1].moves) > 0
    assert plans[0].not_moved == plans[1].not_moved
    assert plans[1].not_moved["ambiguous"] == 2
    assert context.fleet.usage() == {"a": 40_000, "b": 5_010}
    assert context.snapshots.newest(1)[0].objects == 46
    assert len(set(seen)) == 1, "it was read from a file"
    assert spills(tmp_path) == [], "which is gone"


def test_of_a_fleet_that_does_not_fit_candidates_are_kept(
    engine: Engine, small_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "LEAST_ROWS", 12)
    monkeypatch.setattr(surveys, "FLEET_ROWS", 12)
    found = survey(engine.context)
    assert found.objects == 46
    assert dict(found.inventory.unlisted.objects) == {"not_a_candidate": 28, "ambiguous": 2}
    assert len(found.inventory) + len(found.inventory.unlisted) == 46
    assert {report.node.node_id: report.objects for report in found.reports} == {"a": 40, "b": 6, "c": 0}


def test_what_wants_every_object_has_every_object(engine: Engine, small_memory: None, tmp_path: Path) -> None:
    found = survey(engine.context, whole=True)
    assert (len(found.inventory), spills(tmp_path)) == (46, [])


def test_a_place_that_cannot_take_it_is_named(engine: Engine, small_memory: None, tmp_path: Path) -> None:
    folder = tmp_path / "seen" / "test"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    result = run_check(engine.context)
    assert result.verdict == "skipped"
    assert "survey_dir: the fleet holds more than 4 objects" in result.reason


KILLED = """
import os, signal, sys
from rebalance_tasks.control import survey
from rebalance_tasks.control.surveying import gathering
from rebalance_tasks.control.surveying import streams
from rebalance_tasks.runtime import Runtime
from rebalance_tasks.celery import make_app
from rebalance_tasks.settings import load_settings

gathering.IN_MEMORY_ROWS = 4
survey.kept_of = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
settings = load_settings()
survey.survey(Runtime(settings, make_app(settings)).context)
"""


def test_what_a_killed_check_left_is_never_read_and_removed_in_the_end(
    engine: Engine, small_memory: None, tmp_path: Path
) -> None:
    dead = subprocess.run([sys.executable, "-c", KILLED], check=False, env=dict(os.environ))
    assert dead.returncode == -signal.SIGKILL
    [left] = (tmp_path / "seen").rglob("*.parquet")
    assert run_check(engine.context).verdict == "planned"
    assert left.exists(), "whoever writes may be at it still"
    long_ago = left.stat().st_mtime_ns - 3_700 * 10**9
    os.utime(left, ns=(long_ago, long_ago))
    assert run_check(engine.context).verdict == "planned"
    assert not left.exists()


def test_a_temporary_place_is_tidied_as_well(tmp_path: Path) -> None:
    (tmp_path / "spill-1.parquet").write_bytes(b"x")
    os.utime(tmp_path / "spill-1.parquet", ns=(0, 0))
    SurveyMemory(None, timedelta(hours=1), tmp_path).tidy(now_ns=10**18)
    assert list(tmp_path.iterdir()) == []
