"""Trying is free: a plan, its picture, an explanation, a drain's look ahead and a simulation leave no trace on the nodes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.cli.app import run
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def observed(fleet_config: FleetFactory) -> Fleet:
    """Two uneven nodes under observation."""
    files = {f"k{number:02}": 5_000 for number in range(40)}
    return fleet_config({"n1": NodeSpec(files, 400_000), "n2": NodeSpec({}, 400_000)}, fleet={"mode": "observe"})


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["plan"], "50.0 %"),
        (["plan", "--explain", "k00"], "k00"),
        (["drain", "n1", "--dry-run"], "nothing was changed"),
        (["simulate", "--cycles", "2"], "nothing was moved"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_in_observe_mode_all_can_be_tried_and_nothing_is_touched(
    observed: Fleet, capsys: Captured, command: list[str], told: str
) -> None:
    before = {path: path.stat().st_mtime_ns for root in observed.roots.values() for path in [root, *root.rglob("*")]}
    assert run(command) == 0
    assert told in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for root in observed.roots.values() for path in [root, *root.rglob("*")]}
    assert after == before
    assert run(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_object_that_is_nowhere_cannot_be_explained(observed: Fleet, capsys: Captured) -> None:
    assert run(["plan", "--explain", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert set(observed.objects("n1")) == {f"k{number:02}" for number in range(40)}


def test_draining_and_activating_from_the_command_line(observed: Fleet, capsys: Captured) -> None:
    assert run(["drain", "n1"]) == 0
    assert "is draining" in capsys.readouterr().out
    assert run(["nodes", "--json"]) == 0
    rows = {row["node_id"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["n1"]["state"], rows["n1"]["may_be_removed"]) == ("draining", False)
    assert run(["activate", "n1"]) == 0
    assert "was draining, is now active" in capsys.readouterr().out
    assert run(["activate", "n1", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["fits"], told["check"]["over_bytes"]) == ("active", True, 0)
    assert run(["maintenance", "n2"]) == 0
    assert run(["drain", "n1", "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out[captured.out.index("{") :])
    assert (told["fits"], told["reason"]) == (False, "does_not_fit")
    assert [(held["reason"], held["objects"]) for held in told["check"]["blocked"]] == [("no_other_node", 40)]
    assert "--force" in captured.err
    assert run(["drain", "n9"]) == 1
    assert "not configured" in capsys.readouterr().err
    assert observed.objects("n2") == {}
