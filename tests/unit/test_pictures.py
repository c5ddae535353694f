"""What is shown of a plan and of a simulation: bars, pairs, budgets; one HTML page without anything from outside; a PNG."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet
from rich.console import Console, Group

from rebalance_tasks.cli import node_tables, picture, plot_html, plot_png, simulation_inputs
from rebalance_tasks.cli.app import run
from rebalance_tasks.control import inventories
from rebalance_tasks.control.survey import NodeReport
from rebalance_tasks.core.errors import ConfigurationError, InvalidInventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState, RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.simulating.events import Scenario, parse_event
from rebalance_tasks.core.simulating.fleet import synthetic_fleet
from rebalance_tasks.core.simulation import simulate

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.core.simulation import Simulation

Captured = pytest.CaptureFixture[str]
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # Set and taken away: what --config sets in a test is then undone with it.
    monkeypatch.setenv("REBALANCE_CONFIG", "")
    monkeypatch.delenv("REBALANCE_CONFIG")


def move(key: str, source: str, target: str, size: int, cost: str = "0") -> RebalanceMove:
    return RebalanceMove(
        object_key=key, source_node=source, target_node=target, size_bytes=size, cost=Decimal(cost), reason="because"
    )


PLAN = RebalancePlan(
    plan_id="p",
    moves=(move("a", "n1", "n2", 200, "0.5"), move("b", "n1", "n2", 100, "0.25"), move("c", "n1", "n3", 50)),
    estimated_egress_bytes=350,
    estimated_cost=Decimal("0.75"),
    limits_reached=("max_moves_per_cycle",),
    not_moved={"pinned": 3, "something_new": 1},
)
FLEET = [
    NodeDescriptor(node_id="n1", capacity_bytes=1000, used_bytes=900),
    NodeDescriptor(node_id="n2", capacity_bytes=1000, used_bytes=200),
    NodeDescriptor(node_id="n3", capacity_bytes=1000, used_bytes=500),
    NodeDescriptor(node_id="n4", state=NodeState.MAINTENANCE),
]


def text_of(parts: Any) -> str:
    out = StringIO()
    Console(file=out, width=160, highlight=False).print(Group(*parts))
    return out.getvalue()


# -- a plan --------------------------------------------------------------------------------------------------------------
def test_a_plan_shows_each_node_before_and_after_within_its_band() -> None:
    shown = text_of(picture.plan_picture(PLAN, FLEET, RebalancerOptions()))
    lines = {line.split()[0]: line for line in reversed(shown.splitlines()) if line.strip()}
    assert re.search(r"90\.0 %.*55\.0 %.*-350 Bytes", lines["n1"])
    assert re.search(r"20\.0 %.*50\.0 %.*\+300 Bytes", lines["n2"])
    assert re.search(r"50\.0 %.*55\.0 %", lines["n3"])
    assert "maintenance" in lines["n4"]
    assert "band 50.0 % to 60.0 %" in shown
    assert lines["n2"].count("▒") == 4, "the band is two cells wide, in both bars: they end below it and at its edge"


def test_a_plan_shows_pairs_with_money_budgets_with_what_bound_and_what_stays() -> None:
    shown = text_of(picture.plan_picture(PLAN, FLEET, RebalancerOptions(max_moves_per_cycle=3)))
    assert re.search(r"n1 +n2 +2 +300 Bytes +0\.75", shown)
    assert re.search(r"max_moves_per_cycle +3 +3 +bound", shown)
    assert re.search(r"max_egress_bytes_per_cycle +350 Bytes +10\.0 GiB *$", shown, re.MULTILINE)
    assert re.search(r"pinned +3 +it is pinned", shown)
    assert re.search(r"something_new +1", shown)


def test_a_large_fleet_shows_its_ends_and_sums_up_the_rest() -> None:
    nodes = [NodeDescriptor(node_id=f"n{at:03}", capacity_bytes=1000, used_bytes=at) for at in range(1, 201)]
    moves = tuple(move(f"k{at}", f"n{200 - at:03}", f"n{at:03}", 10 + at, "0.5") for at in range(1, 41))
    plan = RebalancePlan(plan_id="p", moves=moves)
    shown = text_of(picture.plan_picture(plan, nodes, RebalancerOptions()))
    rows = [line for line in shown.splitlines() if re.match(r"n\d+ +active", line)]
    assert picture.NODES_SHOWN > len(rows) >= 16
    assert f"{200 - len(rows)} nodes between the fullest and the emptiest are not shown" in shown
    assert re.search(r"10 more pairs +10 +155 Bytes +5\.00", shown)


def test_every_reason_of_the_planner_is_said_in_words() -> None:
    from rebalance_tasks.core.planning.candidates import REASONS

    assert set(REASONS) - {"movable"} <= set(picture.REASONS)


def test_a_draining_node_shows_how_far_it_is_and_when_it_may_be_removed() -> None:
    draining = NodeDescriptor(node_id="n", state=NodeState.DRAINING)
    assert node_tables.state_text(NodeReport(draining, "ok", objects=1234)) == "draining: 1,234 objects left"
    assert node_tables.state_text(NodeReport(draining, "ok", objects=0)) == "draining: empty, may be removed"
    assert node_tables.node_row(NodeReport(draining, "ok", objects=0))["may_be_removed"] is True
    odd = NodeReport(draining, "ok", objects=0, left_out={"symlink": 2})
    assert node_tables.state_text(odd) == "draining: no objects left, but symlink 2"
    assert node_tables.node_row(odd)["may_be_removed"] is False
    missing = NodeReport(draining, "missing")
    assert (node_tables.state_text(missing), node_tables.is_empty(missing)) == ("draining", False)
    active = NodeReport(NodeDescriptor(node_id="n"), "ok", objects=0)
    assert (node_tables.state_text(active), node_tables.is_empty(active)) == ("active", False)


# -- a simulation --------------------------------------------------------------------------------------------------------
def played(nodes: int = 4, *events: str) -> Simulation:
    fleet, inventory = synthetic_fleet(nodes=nodes, objects=400, seed=3, egress_cost_per_gb=Decimal(1))
    told = events or ("3 add node_id=<new> capacity_bytes=100MB",)
    told = tuple(line.replace("<new>", "new") for line in told)
    scenario = Scenario(cycles=6, events=tuple(map(parse_event, told)))
    return simulate(fleet, inventory, options=RebalancerOptions(), scenario=scenario, start=START)


def parsed(chart: str) -> ET.Element:
    return ET.fromstring(chart)  # noqa: S314  we drew it ourselves


@pytest.mark.parametrize("nodes", [4, 30])
def test_the_page_holds_charts_and_tables_and_nothing_from_outside(nodes: int) -> None:
    simulation = played(nodes)
    page = plot_html.html_page(simulation, title="A <title> & more")
    assert "A &lt;title&gt; &amp; more" in page
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page)
    charts = [parsed(chart) for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(charts) == 4
    svg = "{http://www.w3.org/2000/svg}"
    assert len(charts[0].findall(f"{svg}polyline")) == len(simulation.utilisation) == nodes + 1
    assert len(charts[2].findall(f"{svg}rect")) == sum(cycle.bytes > 0 for cycle in simulation.cycles)
    assert "new added" in page
    assert page == plot_html.html_page(played(nodes), title="A <title> & more"), "the same simulation, the same page"


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    chart = plot_html.bar_chart([(1, 0.0)], most=1, events=[], label=str)
    assert parsed(chart).get("role") == "img"
    assert parsed(plot_html.line_chart([], events=[], most=1, label=str)) is not None


def test_the_png_is_one_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plot_png.write_png(played(), tmp_path / name, title="t")
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn == (tmp_path / "two.png").read_bytes()
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", drawn[16:24])) > 500


def test_without_matplotlib_the_page_works_and_the_png_says_what_to_install(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot_png, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="plots"):
        plot_png.require_matplotlib()
    small = ["simulate", "--synthetic", "3", "--objects", "50", "--cycles", "2"]
    assert run([*small, "--png", str(tmp_path / "x.png")]) == 2
    assert "pip install 'rebalance-tasks[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    assert run([*small, "--html", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_loads_no_matplotlib() -> None:
    script = "import sys; import rebalance_tasks.cli.plot_html, rebalance_tasks.cli.simulate; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# -- the command -----------------------------------------------------------------------------------------------------------
SMALL = ["simulate", "--synthetic", "4", "--objects", "300", "--start", "2026-01-01"]


def test_simulate_prints_the_same_document_for_the_same_seed(capsys: Captured) -> None:
    documents = []
    for seed in ("1", "1", "2"):
        assert run([*SMALL, "--seed", seed, "--event", "2 drain node_id=n2", "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1] != documents[2]
    told = documents[0]
    assert (len(told["cycles"]), told["repeated_moves"], told["cycles"][1]["events"]) == (20, 0, ["n2 drained"])
    assert told["totals"]["moves"] == sum(cycle["moves"] for cycle in told["cycles"])
    assert told["recoveries"][0]["bound"]["cycles"] == 1
    assert set(told["utilisation"]) == {"n1", "n2", "n3", "n4"}


def test_flags_win_over_the_scenario_file_and_add_events(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "s.toml"
    file.write_text('cycles = 9\nseed = 5\n[[events]]\ncycle = 2\nkind = "drain"\nnode_id = "n1"\n', encoding="utf-8")
    assert run([*SMALL, "--scenario", str(file), "--cycles", "4", "--event", "3 activate node_id=n1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (len(told["cycles"]), told["seed"]) == (4, 5)
    assert [cycle["events"] for cycle in told["cycles"]] == [[], ["n1 drained"], ["n1 activated"], []]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--event", "2 melt"],
        ["--event", "2 drain node_id=n9"],
        ["--every", "0s"],
        ["--every", "soon"],
        ["--start", "yesterday"],
        ["--mean-size", "big"],
        ["--fill", "0.9"],
        ["--scenario", "nowhere.toml"],
        ["--inventory", "x.csv"],
    ],
    ids=" ".join,
)
def test_wrong_input_of_simulate_is_one_clear_line(wrong: list[str], capsys: Captured) -> None:
    assert run([*SMALL, *wrong]) in {1, 2}
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "defect" not in told


CONFIG = """
[fleet]
name = "t"
[options]
imbalance_threshold = 0.2
[[nodes]]
node_id = "n1"
url = "file:///nowhere/n1"
capacity_bytes = 1000
[[nodes]]
node_id = "n2"
url = "file:///nowhere/n2"
capacity_bytes = 1000
"""


@pytest.mark.parametrize("name", ["i.parquet", "i.arrow", "i.feather", "i.csv"])
def test_an_inventory_file_is_played_with_the_configured_fleet(name: str, tmp_path: Path, capsys: Captured) -> None:
    table = pa.table({"object_key": [f"{at:03}" for at in range(80)], "size_bytes": [10] * 80, "node_id": ["n1"] * 80})
    path, config = tmp_path / name, tmp_path / "rebalance.toml"
    write = {".parquet": parquet.write_table, ".csv": csv.write_csv}.get(path.suffix, feather.write_feather)
    write(table, path)
    config.write_text(CONFIG, encoding="utf-8")
    assert run(["--config", str(config), "simulate", "--inventory", str(path), "--cycles", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["threshold"] == 0.2
    assert told["cycles"][0]["imbalance_before"] == 0.8
    assert told["cycles"][0]["imbalance_after"] <= 0.1


def test_an_inventory_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    odd, broken = tmp_path / "i.txt", tmp_path / "i.parquet"
    broken.write_bytes(b"no parquet")
    with pytest.raises(InvalidInventory, match="ends in"):
        inventories.read_inventory(odd)
    with pytest.raises(InvalidInventory, match="cannot be read"):
        inventories.read_inventory(broken)
    with pytest.raises(InvalidInventory, match="cannot be read"):
        inventories.read_inventory(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="no nodes are configured"):
        simulation_inputs.from_file(broken)
