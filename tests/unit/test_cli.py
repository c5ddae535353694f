"""The command line against a fake client: exit codes, the shape of its JSON, its errors, and which job it means."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import redis

from rebalance_tasks.cli import output, session, simulate, tables
from rebalance_tasks.cli.app import app, run
from rebalance_tasks.control.drain import StateChange
from rebalance_tasks.control.examining.findings import Finding
from rebalance_tasks.control.inventories import read_inventory
from rebalance_tasks.control.reindex_report import ReindexReport
from rebalance_tasks.control.survey import Survey
from rebalance_tasks.control.throttles import NodeThrottle
from rebalance_tasks.core.activation import ActivationCheck
from rebalance_tasks.core.drain import DrainCheck, Held
from rebalance_tasks.core.errors import ConfigurationError, JobNotFound, NodeMissing, ObjectNotFound
from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.models import (
    CheckResult,
    ControlResult,
    FailureGroup,
    NodeDescriptor,
    NodeState,
    RebalanceJob,
    RebalanceMove,
    RebalancePlan,
)
from rebalance_tasks.core.pacing.pace import Pace
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.core.undo import WayBack
from rebalance_tasks.settings import Settings
from rebalance_tasks.store.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class FakeReport:
    node: NodeDescriptor
    used_bytes: int = 50
    capacity_bytes: int | None = 100
    utilisation: float | None = 0.5
    objects: int | None = 3
    status: str = "ok"
    detail: str = ""
    left_out: dict[str, int] | None = None


class Place(str):
    __slots__ = ("node_id", "url", "via")

    node_id: str
    url: str
    via: str
    hops = 1


def job(job_id: str = "rebal-1", status: RebalanceStatus = RebalanceStatus.RUNNING, **more: Any) -> RebalanceJob:
    return RebalanceJob(
        job_id=job_id,
        plan_id="plan-1",
        status=status,
        created_utc=datetime(2024, 1, 31, 12, tzinfo=UTC),
        total_moves=10,
        completed_moves=4,
        bytes_moved=2048,
        total_bytes=4096,
        **more,
    )


def move(key: str, **more: Any) -> RebalanceMove:
    return RebalanceMove(object_key=key, source_node="n1", target_node="n2", size_bytes=10, reason="n1 is full", **more)


SEEN = Survey(
    (
        NodeDescriptor(node_id="n1", capacity_bytes=100, used_bytes=70),
        NodeDescriptor(node_id="n2", capacity_bytes=100, used_bytes=20),
        NodeDescriptor(node_id="n3", state=NodeState.MAINTENANCE),
    ),
    Inventory.from_listings(
        {
            "n1": (["a", "b\n[red]", "other"], np.array([10, 10, 50]), None),
            "n2": (["still"], np.array([20]), None),
        }
    ),
    (),
)
FITS = DrainCheck(
    "n1", "default", 3, 70, 3, 70, 75, (), (Held("cooldown", 1, 10, "a"),), Decimal("0.5"), 2, "max_moves_per_cycle"
)
HOLDS = ActivationCheck("n1", "default", 70, 100, 25, 0, 0, 0.5, 0.25, ())


@dataclass
class FakeClient:
    """What the commands see of `Rebalancer`; records what was asked of it."""

    known: list[RebalanceJob] = field(default_factory=lambda: [job()])
    findings: list[Finding] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    made_plan: RebalancePlan = field(
        default_factory=lambda: RebalancePlan(
            plan_id="plan-1",
            moves=(move("a", cost=Decimal("0.125")), move("b\n[red]")),
            imbalance_before=0.5,
            imbalance_after=0.05,
            estimated_egress_bytes=20,
            limits_reached=("max_moves_per_cycle",),
            not_moved={"protected_gravity": 7},
        ),
    )
    reason: str = ""
    ends_as: RebalanceStatus = RebalanceStatus.COMPLETED
    error: Exception | None = None
    active: str = "rebal-1"
    failed: list[FailureGroup] = field(
        default_factory=lambda: [
            FailureGroup(cause="target_exists", moves=3, hint="compare", object_key="k", detail="there"),
            FailureGroup(cause="cancelled", moves=2, hint="retry"),
        ]
    )
    reindexed: ReindexReport = field(default_factory=lambda: ReindexReport(nodes=["n1"], objects=7, frees=2))
    settings: Settings = field(
        default_factory=lambda: Settings(nodes=[{"node_id": "disk1", "url": "file:///srv/disk1"}])
    )
    serving: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"w1@h1": ("rebalance.control", "rebalance.data")}
    )
    seen: Survey = field(default_factory=lambda: SEEN)
    drained: DrainCheck = field(default_factory=lambda: FITS)
    activated: ActivationCheck = field(default_factory=lambda: HOLDS)

    def doctor(self) -> list[Finding]:
        return self.findings

    def snapshots(self, limit: int) -> list[Snapshot]:
        at = datetime(2024, 5, 1, tzinfo=UTC)
        return [Snapshot(at=at, verdict="planned", reason="observe: 2 moves", plan_id="plan-1", moves=2, bytes=20)][
            :limit
        ]

    def jobs(self, status: RebalanceStatus | None = None) -> list[RebalanceJob]:
        if self.error is not None:
            raise self.error
        return [known for known in self.known if status in {None, known.status}]

    def status(self, job_id: str) -> RebalanceJob:
        for known in self.known:
            if known.job_id == job_id:
                return known
        raise JobNotFound(job_id)

    def watch(self, job_id: str) -> Iterator[RebalanceJob]:
        yield self.status(job_id)
        yield self.status(job_id).model_copy(update={"status": self.ends_as, "completed_moves": 10})

    def _control(self, verb: str, job_id: str, status: RebalanceStatus) -> ControlResult:
        self.calls.append((verb, job_id))
        return ControlResult(job_id=job_id, status=status, reason=self.reason)

    def pause(self, job_id: str) -> ControlResult:
        return self._control("pause", job_id, RebalanceStatus.PAUSED)

    def resume(self, job_id: str) -> ControlResult:
        return self._control("resume", job_id, RebalanceStatus.RUNNING)

    def cancel(self, job_id: str) -> ControlResult:
        return self._control("cancel", job_id, RebalanceStatus.CANCELLED)

    def pause_all(self) -> ControlResult:
        return self._control("pause --all", self.active, RebalanceStatus.PAUSED)

    def resume_all(self) -> ControlResult:
        return self._control("resume --all", self.active, RebalanceStatus.RUNNING)

    def failures(self, job_id: str) -> list[FailureGroup]:
        return self.failed

    def retry_failed(self, job_id: str, *, skipped: bool = False) -> RebalanceJob:
        self.calls.append(("retry-failed", job_id, skipped))
        self.known.append(job(f"{job_id}-retry1"))
        return self.known[-1]

    def limit(self) -> int:
        return 5

    def set_limit(self, limit: int | None) -> int:
        self.calls.append(("limit", limit))
        return limit or 3

    def throttle(self) -> int | None:
        return None

    def set_throttle(self, rate_bytes_per_s: int | None) -> int | None:
        self.calls.append(("throttle", rate_bytes_per_s))
        return rate_bytes_per_s

    def reset_throttle(self) -> int | None:
        self.calls.append(("throttle", "default"))
        return 1

    def node_throttles(self) -> list[NodeThrottle]:
        pace = Pace(usual_ms=8.0, smoothed_ms=40.0, full_bytes_per_s=2**21, rate_bytes_per_s=2**20)
        return [NodeThrottle("disk1", "write", 2**22, pace), NodeThrottle("disk1", "requests", 20, None)]

    def in_flight(self) -> dict[tuple[str, str], str]:
        return {("disk1", "away"): "8 objects at once instead of 16: they take 90.0 ms, usually 20.0 ms"}

    def set_node_throttle(self, node_id: str, direction: str, rate: int | str | None) -> None:
        self.calls.append(("node_throttle", node_id, direction, rate))

    def reindex(self, *, force: bool = False, progress: Any = None) -> ReindexReport:
        self.calls.append(("reindex", force))
        return self.reindexed

    def start(self, plan: RebalancePlan | str, job_id: str | None = None) -> RebalanceJob:
        self.calls.append(("start", plan, job_id))
        return job(job_id or "rebal-1")

    def plan(self) -> RebalancePlan:
        self.calls.append(("plan",))
        return self.made_plan

    def dry_run(self) -> tuple[RebalancePlan, Survey]:
        self.calls.append(("dry_run",))
        return self.made_plan, self.seen

    def survey(self) -> Survey:
        return self.seen

    def cluster_map(self) -> list[NodeDescriptor]:
        return list(self.seen.nodes)

    def drain(self, node_id: str, *, force: bool = False, dry_run: bool = False) -> StateChange[Any]:
        self.calls.append(("drain", node_id, force, dry_run))
        asked = force or self.drained.fits
        reason = "" if asked or dry_run else "does_not_fit"
        state = NodeState.DRAINING if asked and not dry_run else NodeState.ACTIVE
        return StateChange(node_id, NodeState.ACTIVE, state, reason, self.drained)

    def activate(self, node_id: str, *, force: bool = False, dry_run: bool = False) -> StateChange[Any]:
        self.calls.append(("activate", node_id, force, dry_run))
        asked = force or self.activated.fits
        reason = "" if asked or dry_run else "does_not_fit"
        state = NodeState.ACTIVE if asked and not dry_run else NodeState.MAINTENANCE
        return StateChange(node_id, NodeState.MAINTENANCE, state, reason, self.activated)

    def maintenance(self, node_id: str) -> StateChange[Any]:
        self.calls.append(("maintenance", node_id))
        return StateChange(node_id, NodeState.MAINTENANCE, NodeState.MAINTENANCE)

    def undo(self, job_id: str) -> WayBack:
        self.calls.append(("undo", job_id))
        plan = self.made_plan.model_copy(update={"plan_id": "undo-1", "undo_of": job_id})
        return WayBack(job_id, 5, plan, {"moved_on": 3}, self.seen.nodes)

    def check(self, *, force: bool = False) -> CheckResult:
        self.calls.append(("check", force))
        return CheckResult(verdict="skipped", reason="under_threshold: imbalance 0.04 < 0.10")

    def locate(self, key: str) -> Place:
        if key == "nowhere":
            raise ObjectNotFound(key)
        place = Place("n1")
        place.node_id, place.url, place.via = "n1", "sftp://me:secret@host/srv", "forwarding"
        return place

    def adopt(self) -> list[str]:
        self.calls.append(("adopt",))
        return ["n2"]

    def workers(self) -> dict[str, tuple[str, ...]]:
        return self.serving

    def nodes(self) -> list[FakeReport]:
        secret = NodeDescriptor(node_id="n1", url="sftp://me:secret@host/srv", storage_options={"password": "secret"})
        return [
            FakeReport(secret),
            FakeReport(NodeDescriptor(node_id="n2", url="file:///srv/n2"), utilisation=0.1, status="unadopted"),
            FakeReport(
                NodeDescriptor(node_id="n3", url="file:///gone", queue="h2"),
                0,
                None,
                None,
                None,
                "missing",
                "no such directory",
            ),
        ]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(session, "open_client", lambda: fake)
    monkeypatch.delenv("REBALANCE_DEBUG", raising=False)
    return fake


Captured = pytest.CaptureFixture[str]


def document(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)


# -- every command ---------------------------------------------------------------------------------------------------

DATA_COMMANDS = [
    ["check"],
    ["plan"],
    ["plan", "--explain"],
    ["plan", "--explain", "a"],
    ["plan", "--explain", "other"],
    ["checks"],
    ["checks", "--limit", "1"],
    ["start"],
    ["start", "plan-1", "--job-id", "rebal-9"],
    ["start", "plan-1", "--watch"],
    ["pause"],
    ["resume", "rebal-1"],
    ["cancel", "rebal-1"],
    ["jobs"],
    ["jobs", "--status", "running"],
    ["status"],
    ["watch"],
    ["nodes"],
    ["nodes", "--adopt"],
    ["locate", "a"],
    ["pause", "--all"],
    ["resume", "--all"],
    ["retry-failed", "rebal-1"],
    ["retry-failed", "rebal-1", "--skipped", "--watch"],
    ["limit"],
    ["limit", "4"],
    ["limit", "none"],
    ["throttle"],
    ["throttle", "20MiB/s"],
    ["throttle", "none"],
    ["throttle", "default"],
    ["reindex"],
    ["reindex", "--force"],
    ["drain", "n1"],
    ["drain", "n1", "--dry-run"],
    ["drain", "n1", "--force"],
    ["activate", "n1"],
    ["activate", "n1", "--dry-run"],
    ["activate", "n1", "--force"],
    ["maintenance", "n1"],
    ["undo", "rebal-1"],
    ["undo", "rebal-1", "--start"],
    ["undo", "rebal-1", "--watch"],
    ["place", "a"],
    ["place", "a", "b\n[red]", "--replicas", "3", "--rule", "tree"],
    ["simulate", "resize", "--add", "node_id=n9 weight=2", "--keys", "1000"],
    ["simulate", "--cycles", "3"],
    ["simulate", "--synthetic", "3", "--objects", "50", "--event", "2 drain node_id=n1"],
]


@pytest.mark.parametrize("command", DATA_COMMANDS, ids=" ".join)
def test_json_is_one_document_and_nothing_else(client: FakeClient, capsys: Captured, command: list[str]) -> None:
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert captured.err == ""
    assert "secret" not in captured.out


@pytest.mark.parametrize("command", DATA_COMMANDS, ids=" ".join)
def test_tables_have_no_colour_codes_in_a_pipe_and_no_credentials(
    client: FakeClient, capsys: Captured, command: list[str]
) -> None:
    assert run(command) == 0
    captured = capsys.readouterr()
    assert captured.out.strip()
    assert "\x1b" not in captured.out
    assert "secret" not in captured.out


JSON_PAGE = Path(__file__).parents[2] / "docs/reference/json-output.md"
#: Documented elsewhere, or printing no document.
NOT_HERE = {"demo", "console", "metrics", "init", "events", "doctor"}


def shape(data: Any) -> list[str]:
    """Fields of a document, or of the entries of a list."""
    return sorted(data[0] if isinstance(data, list) else data)


def documented_shapes() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `rebalance (.+?)` \| (.+?) \|", JSON_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {command: sorted(re.findall(r"`(\w+)`", fields)) for command, fields in rows}


@pytest.mark.parametrize("command", documented_shapes())
def test_a_document_has_the_fields_that_its_page_tells(client: FakeClient, capsys: Captured, command: str) -> None:
    assert run([*command.split(), "--json"]) == 0
    assert shape(document(capsys)) == documented_shapes()[command]


def test_every_command_that_prints_a_document_is_on_the_page() -> None:
    told = {command.split()[0] for command in documented_shapes()}
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {str(group.name) for group in app.registered_groups}
    assert names - NOT_HERE == told


def test_every_command_has_help_with_an_example(capsys: Captured) -> None:
    for command in (*app.registered_commands, *simulate.group.registered_commands):
        assert command.callback is not None
        assert command.callback.__doc__
        name = command.callback.__name__.replace("_", "-")
        assert re.match(rf"Example: rebalance (simulate )?{name}", command.epilog or "")


def test_the_commands_are_those_of_the_design() -> None:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    names |= {str(group.name) for group in app.registered_groups}
    expected = {"demo", "check", "plan", "start", "pause", "resume", "cancel", "jobs", "status", "watch"}
    assert names == expected | {
        "nodes",
        "locate",
        "place",
        "doctor",
        "retry_failed",
        "limit",
        "throttle",
        "reindex",
    } | {
        "drain",
        "activate",
        "maintenance",
        "checks",
        "undo",
        "simulate",
        "console",
        "events",
        "init",
        "metrics",
    }


def test_place_says_where_objects_belong_how_far_apart_and_what_is_missing(
    client: FakeClient, capsys: Captured
) -> None:
    run(["place", "a", "b", "--replicas", "3", "--json"])
    found = document(capsys)
    assert [row["object_key"] for row in found] == ["a", "b"]
    for row in found:
        assert sorted(row["target_nodes"]) == ["n1", "n2"]  # n3 is in maintenance
        assert (row["placement_rule_id"], row["separation"], row["missing_replicas"]) == ("flat", "host", 1)


def test_resize_tells_what_moves_in_all_and_per_node(client: FakeClient, capsys: Captured) -> None:
    run(["simulate", "resize", "--add", "node_id=n9 weight=2 zone=b", "--keys", "5000", "--json"])
    found = document(capsys)
    assert set(found["nodes"]) == {"n1", "n2", "n3", "n9"}
    assert found["moved"] == found["least"] == found["nodes"]["n9"]["arriving"] == found["nodes"]["n9"]["held_after"]
    assert found["ratio"] == 1.0
    assert found["share"] == pytest.approx(2 / 4, abs=0.03)
    assert found["estimated_share"] == pytest.approx(2 / 4)


def test_resize_takes_several_changes_at_once(client: FakeClient, capsys: Captured) -> None:
    changes = ["--add", "node_id=n9", "--weight", "n1=0", "--remove", "n3", "--rule", "tree"]
    run(["simulate", "resize", *changes, "--keys", "5000", "--json"])
    nodes = document(capsys)["nodes"]
    assert nodes["n1"]["held_after"] == nodes["n3"]["held_before"] == 0
    assert nodes["n9"]["held_after"] + nodes["n2"]["held_after"] == 5000


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([], "nothing would change: give --add, --remove or --weight"),
        (["--remove", "n8"], "--remove: no node 'n8' in this fleet; there are n1, n2, n3"),
        (["--weight", "n1"], "--weight 'n1': write NODE=W"),
        (["--weight", "n1=nan"], "--weight 'n1=nan'"),
        (["--weight", "n8=1"], "--weight: no node 'n8'"),
        (["--add", "n9"], "node 'n9': write field=value"),
        (["--add", "node_id=n9 weight=-1"], "weight: Input should be greater than or equal to 0"),
        (["--add", "node_id=n1"], "--add: node 'n1' is there already; --weight changes its share"),
        (["--remove", "n1", "--remove", "n2"], "no eligible node: state=active"),
    ],
)
def test_wrong_changes_are_one_clear_line(client: FakeClient, capsys: Captured, wrong: list[str], told: str) -> None:
    assert run(["simulate", "resize", *wrong]) == 1
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1


# -- shapes ----------------------------------------------------------------------------------------------------------


def test_jobs_as_json_is_a_list_of_jobs(client: FakeClient, capsys: Captured) -> None:
    run(["jobs", "--json"])
    [found] = document(capsys)
    assert RebalanceJob.model_validate(found) == client.known[0]


def test_plan_as_json_reads_back_as_the_plan(client: FakeClient, capsys: Captured) -> None:
    run(["plan", "--json"])
    assert RebalancePlan.model_validate(document(capsys)) == client.made_plan


def test_nodes_as_json_say_state_health_and_what_was_adopted_now(client: FakeClient, capsys: Captured) -> None:
    run(["nodes", "--adopt", "--json"])
    rows = {row["node_id"]: row for row in document(capsys)}
    assert ("adopt",) in client.calls
    assert [rows[name]["adopted_now"] for name in ("n1", "n2", "n3")] == [False, True, False]
    assert rows["n1"]["url"] == "sftp://me:***@host/srv"
    assert rows["n3"] == {
        "node_id": "n3",
        "url": "file:///gone",
        "pool": "default",
        "zone": "",
        "state": "active",
        "used_bytes": 0,
        "capacity_bytes": None,
        "utilisation": None,
        "objects": None,
        "status": "missing",
        "detail": "no such directory",
        "left_out": {},
        "may_be_removed": False,
        "queues": ["rebalance.data.h2"],
        "served_by": [],
        "adopted_now": False,
    }
    assert rows["n1"]["served_by"] == ["w1@h1"]


def test_nodes_are_shown_with_who_serves_them_and_which_nobody_reaches(client: FakeClient, capsys: Captured) -> None:
    run(["nodes"])
    told = " ".join(capsys.readouterr().out.split())
    assert "w1@h1 rebalance.control, rebalance.data n1, n2" in told
    assert "nobody reaches n3 (rebalance.data.h2)" in told
    client.serving = {"w1@h1": ("rebalance.data",)}
    run(["nodes"])
    assert "nobody serves rebalance.control" in capsys.readouterr().out
    client.serving = {}
    run(["nodes"])
    assert "no worker is there" in capsys.readouterr().out


def test_locate_tells_node_and_how_it_was_found(client: FakeClient, capsys: Captured) -> None:
    run(["locate", "a", "--json"])
    assert document(capsys) == {
        "object_key": "a",
        "node_id": "n1",
        "url": "sftp://me:***@host/srv",
        "via": "forwarding",
        "hops": 1,
    }


def test_explaining_an_object_tells_its_move_or_that_it_stays(client: FakeClient, capsys: Captured) -> None:
    run(["plan", "--explain", "a", "--json"])
    moves = document(capsys)
    assert (moves["moves"], moves["target_node"], moves["reason"], moves["cost"]) == (True, "n2", "n1 is full", "0.125")
    run(["plan", "--explain", "other", "--json"])
    stays = document(capsys)
    assert (stays["moves"], stays["node_id"]) == (False, "n1")


def test_a_plan_can_record_its_inventory_for_a_simulation(client: FakeClient, tmp_path: Path) -> None:
    run(["plan", "--save", str(tmp_path / "fleet.parquet")])
    assert len(read_inventory(tmp_path / "fleet.parquet")) == len(client.seen.inventory)


def test_a_fleet_of_which_only_candidates_are_kept_is_not_recorded_as_if_that_were_all(
    client: FakeClient, tmp_path: Path, capsys: Captured
) -> None:
    client.seen = replace(client.seen, rows=replace(client.seen.inventory, unlisted=Unlisted({"not_a_candidate": 7})))
    assert run(["plan", "--save", str(tmp_path / "fleet.parquet")]) == 1
    assert "7 are known only as numbers" in capsys.readouterr().err
    assert not (tmp_path / "fleet.parquet").exists()


def test_a_plan_shows_totals_moves_limits_and_what_stays(client: FakeClient, capsys: Captured) -> None:
    run(["plan"])
    shown = capsys.readouterr().out
    for expected in ("50.0 % → 5.0 %", "max_moves_per_cycle", "protected_gravity", "rebalance start plan-1"):
        assert expected in shown
    # A key cannot break the table or pass for markup.
    assert r"b\n[red]" in shown


def test_a_long_plan_is_cut_unless_explained(client: FakeClient, capsys: Captured) -> None:
    client.made_plan = client.made_plan.model_copy(update={"moves": tuple(move(f"key-{n:03}") for n in range(50))})
    run(["plan"])
    shown = capsys.readouterr().out
    assert "key-019" in shown
    assert "key-020" not in shown
    assert "30 more" in shown
    run(["plan", "--explain"])
    assert "key-049" in capsys.readouterr().out


# -- which job is meant ----------------------------------------------------------------------------------------------


def test_the_only_active_job_is_meant_when_none_is_named(client: FakeClient) -> None:
    client.known = [job("old", RebalanceStatus.COMPLETED), job("active", RebalanceStatus.PAUSED)]
    assert run(["resume"]) == 0
    assert client.calls == [("resume", "active")]


@pytest.mark.parametrize(
    ("known", "word"),
    [
        ([job("old", RebalanceStatus.FAILED)], "no job is active"),
        ([job("a"), job("b")], "several jobs are active (a, b)"),
    ],
)
@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "status", "watch"])
def test_without_exactly_one_active_job_naming_none_is_wrong_usage(
    *, client: FakeClient, capsys: Captured, verb: str, known: list[RebalanceJob], word: str
) -> None:
    client.known = known
    assert run([verb]) == 2
    assert word in capsys.readouterr().err
    assert client.calls == []


# -- exit codes and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [[], ["no-such-command"], ["locate"], ["jobs", "--status", "odd"], ["plan", "a"], ["status", "--no-such-option"]],
    ids=" ".join,
)
def test_wrong_usage_exits_2(client: FakeClient, capsys: Captured, command: list[str]) -> None:
    assert run(command) == 2


def test_wrong_usage_with_json_is_a_document_too(client: FakeClient, capsys: Captured) -> None:
    assert run(["locate", "--json"]) == 2
    assert document(capsys)["cause"] == "usage"


def test_an_unknown_job_exits_1_with_one_line(client: FakeClient, capsys: Captured) -> None:
    assert run(["status", "rebal-x"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no job 'rebal-x' in this fleet; `rebalance jobs` lists the known ones\n"


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (NodeMissing("n1", "no such directory"), 1, "node_missing"),
        (ConfigurationError("[options] imbalance_threshold 7: must be in [0, 1]"), 2, "configuration"),
        (redis.exceptions.ConnectionError("Connection refused"), 1, "redis_unreachable"),
        (RuntimeError("oops [/]"), 1, "defect"),
    ],
)
def test_errors_are_one_line_and_with_json_a_document(
    *, client: FakeClient, capsys: Captured, error: Exception, code: int, cause: str
) -> None:
    client.error = error
    assert run(["jobs", "--json"]) == code
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["cause"] == cause
    assert str(error) in told["error"]
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_debug_shows_where_an_error_came_from(
    client: FakeClient, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBALANCE_DEBUG", "1")
    client.error = RuntimeError("oops")
    assert run(["jobs"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_control_that_did_not_do_it_exits_1_and_says_why(client: FakeClient, capsys: Captured) -> None:
    client.reason = "it has ended"
    assert run(["pause", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["reason"] == "it has ended"
    assert "it has ended" in captured.err


@pytest.mark.parametrize(
    ("ends_as", "code"), [(RebalanceStatus.COMPLETED, 0), (RebalanceStatus.FAILED, 1), (RebalanceStatus.CANCELLED, 1)]
)
@pytest.mark.parametrize("command", [["watch"], ["start", "plan-1", "--watch"]], ids=" ".join)
def test_watching_exits_as_the_job_ends(
    *, client: FakeClient, capsys: Captured, command: list[str], ends_as: RebalanceStatus, code: int
) -> None:
    client.ends_as = ends_as
    assert run(command) == code
    assert ends_as.value in capsys.readouterr().out


def test_ctrl_c_exits_130(client: FakeClient, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(job_id: str) -> Iterator[RebalanceJob]:
        yield job()
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "watch", interrupted)
    assert run(["watch"]) == 130


def test_start_without_a_plan_makes_one_and_passes_the_job_id_on(client: FakeClient) -> None:
    assert run(["start", "--job-id", "mine"]) == 0
    assert client.calls == [("dry_run",), ("start", client.made_plan, "mine")]
    client.calls.clear()
    assert run(["start", "plan-7"]) == 0
    assert client.calls == [("start", "plan-7", None)]


def test_force_reaches_the_check(client: FakeClient) -> None:
    run(["check"])
    run(["check", "--force"])
    assert client.calls == [("check", False), ("check", True)]


def test_config_is_handed_to_everything_the_command_starts(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REBALANCE_CONFIG", "other.toml")
    monkeypatch.chdir(tmp_path)
    assert run(["--config", "mine.toml", "jobs"]) == 0
    assert os.environ["REBALANCE_CONFIG"] == str(tmp_path / "mine.toml")


def test_help_and_version_load_no_celery_redis_or_pyarrow() -> None:
    script = (
        "import sys; from rebalance_tasks.cli.app import run; code = run([sys.argv[1]]);"
        "heavy = {'celery', 'redis', 'pyarrow', 'numpy'} & set(sys.modules); sys.exit(f'{heavy}' if heavy else code)"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "rebalance" in done.stdout


def test_a_client_that_only_asks_redis_loads_no_celery_pyarrow_or_numpy() -> None:
    script = (
        "import sys; from rebalance_tasks.client import Rebalancer; from rebalance_tasks.settings import Settings;"
        "Rebalancer(Settings(redis_url='redis://127.0.0.1:1/0'))._state;"
        "heavy = {'celery', 'pyarrow', 'numpy'} & set(sys.modules); sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- when something went wrong ----------------------------------------------------------------------------------------


def test_status_groups_failures_by_cause_with_an_example_and_the_way_out(client: FakeClient, capsys: Captured) -> None:
    run(["status", "rebal-1"])
    shown = capsys.readouterr().out
    for expected in ("target_exists", "k (", "there", "compare", "cancelled", "WHAT TO DO"):
        assert expected in shown
    run(["status", "rebal-1", "--json"])
    told = document(capsys)
    assert [group["cause"] for group in told["failure_groups"]] == ["target_exists", "cancelled"]
    assert told["job_id"] == "rebal-1"


def test_jobs_name_the_most_frequent_cause(client: FakeClient, capsys: Captured) -> None:
    client.known = [job(failures={"target_exists": 3, "unreadable": 1})]
    run(["jobs"])
    shown = capsys.readouterr().out
    assert "target_exists" in shown
    assert "3, 1 more" in shown


def test_status_shows_the_deadline_of_a_job_that_runs(client: FakeClient, capsys: Captured) -> None:
    client.settings = Settings(options={"job_deadline": "2h"})
    run(["status", "--json"])
    assert document(capsys)["deadline_utc"] == "2024-01-31T14:00:00+00:00"
    client.known = [job(status=RebalanceStatus.COMPLETED)]
    run(["status", "rebal-1", "--json"])
    assert document(capsys)["deadline_utc"] is None


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_verb_for_the_whole_fleet_needs_no_job_and_takes_none(
    client: FakeClient, capsys: Captured, verb: str
) -> None:
    client.active = ""
    client.known = []
    assert run([verb, "--all"]) == 0
    assert "no job is active" in capsys.readouterr().out
    assert client.calls == [(f"{verb} --all", "")]
    assert run([verb, "rebal-1", "--all"]) == 2
    client.reason = "the fleet is not paused"
    assert run([verb, "--all"]) == 1
    assert "the fleet is not paused" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "limit"), [("4", 4), ("none", None), ("OFF", None)])
def test_limit_reaches_the_fleet(client: FakeClient, word: str, limit: int | None) -> None:
    assert run(["limit", word]) == 0
    assert client.calls == [("limit", limit)]


@pytest.mark.parametrize("word", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_none_is_a_usage_error(client: FakeClient, word: str) -> None:
    assert run(["limit", "--", word]) == 2
    assert client.calls == []


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["20MiB/s", "--node", "disk1"], ("disk1", "write", 20 * 2**20)),
        (["none", "--node", "disk1", "--of", "read"], ("disk1", "read", None)),
        (["30", "--node", "disk1", "--of", "requests"], ("disk1", "requests", 30)),
        (["default", "--node", "disk1"], ("disk1", "write", "default")),
    ],
)
def test_throttle_of_a_node_reaches_the_fleet(client: FakeClient, words: list[str], call: tuple[Any, ...]) -> None:
    assert run(["throttle", *words]) == 0
    assert ("node_throttle", *call) in client.calls


def test_a_node_that_is_held_back_says_why_in_status(client: FakeClient, capsys: Captured) -> None:
    client.known = [job(status=RebalanceStatus.RUNNING)]
    assert run(["status"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in ("disk1", "1.0 MiB/s", "its calls take 40.0 ms, usually 8.0 ms"):
        assert words in told


@pytest.mark.parametrize("words", [["x"], ["0"], ["20MiB/s", "--of", "sideways"], ["1.5", "--of", "requests"]])
def test_a_limit_of_a_node_that_makes_no_sense_is_a_usage_error(client: FakeClient, words: list[str]) -> None:
    assert run(["throttle", *words, "--node", "disk1"]) == 2
    assert client.calls == []


@pytest.mark.parametrize(
    ("word", "rate"), [("20MiB/s", 20 * 2**20), ("none", None), ("OFF", None), ("default", "default"), ("7", 7)]
)
def test_throttle_reaches_the_fleet(client: FakeClient, word: str, rate: object) -> None:
    assert run(["throttle", word]) == 0
    assert client.calls == [("throttle", rate)]


@pytest.mark.parametrize("word", ["0", "-1", "fast", "10G"])
def test_a_rate_that_is_none_is_a_usage_error(client: FakeClient, capsys: Captured, word: str) -> None:
    assert run(["throttle", "--", word]) == 2
    assert client.calls == []
    assert "RATE" in capsys.readouterr().err


def test_reindex_says_what_it_did_and_what_it_left_alone(client: FakeClient, capsys: Captured) -> None:
    client.reindexed = ReindexReport(
        nodes=["n1"], objects=7, frees=2, ambiguous=30, ambiguous_keys=[f"k{n}" for n in range(30)]
    )
    assert run(["reindex", "--force"]) == 0
    shown = capsys.readouterr().out
    assert client.calls == [("reindex", True)]
    assert "30 ambiguous" in shown
    assert "k19" in shown
    assert "k20" not in shown
    assert "10 more" in shown


def test_reindex_exits_1_when_a_node_was_missing(client: FakeClient, capsys: Captured) -> None:
    client.reindexed = ReindexReport(nodes=["n1"], missing={"n2": "not mounted"})
    assert run(["reindex"]) == 1
    assert "n2" in capsys.readouterr().out


# -- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "blocks"), [(0.0, 0), (0.5, 12), (1.0, 24), (1.7, 24), (-1.0, 0)])
def test_a_bar_is_as_long_as_its_share_and_never_breaks_the_table(share: float, blocks: int) -> None:
    drawn = tables.bar(share).plain
    assert len(drawn) == tables.BAR_WIDTH
    assert drawn.count(tables.FULL_BLOCK) == blocks


def test_json_keeps_odd_file_names_printable() -> None:
    assert output.jsonable({"key": "a\udcff"}) == {"key": "a\\udcff"}


def test_doctor_shows_what_to_do_next_and_fails_when_something_does_not_work(
    client: FakeClient, capsys: Captured
) -> None:
    client.findings = [Finding("redis", "ok", "answers"), Finding("workers", "warn", "[b]slow[/b]", "wake them")]
    assert run(["doctor"]) == 0
    assert "[b]slow[/b]" in (text := capsys.readouterr().out)
    assert "→ wake them" in text
    client.findings = [*client.findings, Finding("node n1", "fail", "missing", "mount it")]
    assert run(["doctor", "--json"]) == 1
    assert document(capsys)[2] == {"name": "node n1", "verdict": "fail", "detail": "missing", "next_step": "mount it"}
