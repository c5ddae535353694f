"""Metrics, alerts, dashboard and runbook speak of the same things, and the docs of all of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from rebalance_tasks.control.metering.table import METRICS
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.signature import sign

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = {metric.name for metric in METRICS}
ALERTS: Final[list[dict[str, Any]]] = yaml.safe_load((ROOT / "ops/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "ops/grafana/dashboard.json").read_text())
#: What a histogram is asked for.
PARTS: Final = re.compile(r"_(bucket|sum|count)$")


def used(expression: str) -> set[str]:
    return {PARTS.sub("", name) for name in re.findall(r"\brebalance_\w+", expression)}


def test_the_table_of_the_docs_is_the_table_of_the_code() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    described = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert described == [(metric.name, metric.kind, metric.labels, metric.help) for metric in METRICS]


def test_every_event_is_described_and_the_snippet_of_the_docs_checks_a_signature() -> None:
    page = (ROOT / "docs/reference/events.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+\.\w+)` \|", page, re.MULTILINE) == [kind.value for kind in EventKind]
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def is_ours" in code]
    scope: dict[str, Any] = {}
    exec(snippet, scope)  # noqa: S102  our own page
    header = sign("secret", b"{}", at_s=int(time.time()))
    assert scope["is_ours"](header, b"{}", "secret")
    assert not scope["is_ours"](header, b"{ }", "secret")
    assert not scope["is_ours"](sign("secret", b"{}", at_s=int(time.time()) - 400), b"{}", "secret")


def test_names_tell_kind_and_unit() -> None:
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_bytes")), metric.name
        # Units that are spelled in another way, or left out.
        assert not re.search(r"_(ms|minutes|hours|percent|mb|gb|count)(_|$)", metric.name), metric.name


def test_labels_are_bounded_by_the_code_or_by_the_nodes() -> None:
    bounded = {"pool", "zone", "node", "owner", "state", "outcome", "cause", "status", "reason", "queue", "verdict"}
    assert {label for metric in METRICS for label in metric.labels} <= bounded | {
        "task",
        "ended",
        "result",
        "same",
        "direction",
    }


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_exist_and_says_what_is_wrong(rule: dict[str, Any]) -> None:
    assert used(rule["expr"]) <= NAMES
    assert used(rule["expr"]) or "up{" in rule["expr"]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"].endswith(".")


def test_the_runbook_has_an_entry_for_each_alert() -> None:
    entries = re.findall(r"^## (\w+)$", (ROOT / "ops/runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert entries == [rule["alert"] for rule in ALERTS]


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert used(" ".join(expressions)) <= NAMES
    assert all('fleet="$fleet"' in expression for expression in expressions)


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert all(p["x"] + p["w"] <= 24 for p in places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: prometheus)")
def test_promtool_reads_rules_and_configuration(tmp_path: Path) -> None:
    shutil.copy(ROOT / "ops/alerts.yml", tmp_path)
    shutil.copy(ROOT / "ops/prometheus/prometheus.yml", tmp_path)
    checked = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: prometheus)")
def test_alerts_fire_for_what_they_are_there_for() -> None:
    rules = ROOT / "ops/prometheus/alerts.test.yml"
    checked = subprocess.run(["promtool", "test", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
