"""The settings reference and its sample agree with the code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from pydantic import ValidationError

from rebalance_tasks.core.events import NOTICES
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import OPTION_PRESETS, RebalancerOptions
from rebalance_tasks.settings import Settings, environment_variables, load_settings
from rebalance_tasks.settings.model import Service, Webhook
from rebalance_tasks.settings.problems import allowed_range

REFERENCE: Final = Path(__file__).parents[2] / "docs" / "reference"
OPTIONS: Final = list(RebalancerOptions.model_fields)


@cache
def table(section: str, head: str) -> dict[str, list[str]]:
    """Rows of the table in a section whose first column has this head: code in the first cell -> the cells after it."""
    text = (REFERENCE / "settings.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.search(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, f"no table {head!r} in {section!r}"
    rows = {}
    for line in found[1].splitlines():
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", first):
            rows[name] = rest
    return rows


def code(cell: str) -> str:
    found = re.fullmatch(r"`([^`]*)`", cell)
    assert found is not None, cell
    return found[1]


def reads(name: str, value: str) -> bool:
    try:
        RebalancerOptions.model_validate(
            {name: value, "imbalance_threshold": 1} if name == "target_imbalance" else {name: value}
        )
    except ValidationError:
        return False
    return True


def test_every_option_is_in_the_table_in_the_order_of_the_code() -> None:
    assert list(table("`[options]`", "option")) == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_the_row_of_an_option_tells_the_truth(name: str) -> None:
    default, allowed, unit, variable, meaning = table("`[options]`", "option")[name]
    field = RebalancerOptions.model_fields[name]
    assert getattr(RebalancerOptions.model_validate({name: code(default)}), name) == field.default
    assert allowed.startswith(allowed_range(field))
    assert allowed
    assert ("none:" in allowed) == reads(name, "none")
    assert environment_variables()[code(variable)] == ("options", name)
    assert len(meaning.split()) >= 4
    assert (unit in {"size", "rate"}) == reads(name, "1GiB")
    assert (unit == "rate") == reads(name, "1GiB/s")
    assert (unit == "duration") == reads(name, "1h30m")


@pytest.mark.parametrize("preset", OPTION_PRESETS)
def test_the_table_of_presets_tells_the_truth(preset: str) -> None:
    names = [
        "check_interval",
        "imbalance_threshold",
        "max_concurrent_migrations",
        "max_moves_per_cycle",
        "throttle_bytes_per_sec",
    ]
    cells = table("`[options]`", "preset")[preset]
    written = RebalancerOptions.model_validate(dict(zip(names, map(code, cells), strict=True)))
    assert written == RebalancerOptions.named(preset)


def test_every_key_of_the_fleet_is_in_the_table_with_default_and_variable() -> None:
    rows = table("`[fleet]`", "key")
    assert list(rows) == ["name", *Service.model_fields]
    defaults = Settings()
    for name, (default, _, variable, _) in rows.items():
        assert environment_variables()[code(variable)] == ("fleet", name)
        expected = defaults.fleet if name == "name" else getattr(defaults, name)
        assert default == "none" if expected in {"", (), None} else code(default) in {expected, "redis_url"}


def test_every_field_of_a_node_is_in_the_table() -> None:
    assert list(table("`[[nodes]]`", "key")) == list(NodeDescriptor.model_fields)


def test_every_field_of_a_webhook_is_in_the_table() -> None:
    rows = table("`[[webhooks]]`", "key")
    assert list(rows) == list(Webhook.model_fields)
    assert re.findall(r"`([^`]+)`", rows["events"][0]) == [kind.value for kind in NOTICES]


def test_the_variables_of_the_page_are_those_of_the_code() -> None:
    page = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    slip = "REBALANCE_IMBALANCE_TRESHOLD"
    assert set(re.findall(r"`(REBALANCE_[A-Z_]+)`", page)) - {slip, "REBALANCE_CONFIG"} == set(environment_variables())


def test_the_sample_loads_and_says_what_the_defaults_are() -> None:
    settings = load_settings(REFERENCE / "rebalance.example.toml", {})
    assert (settings.fleet, settings.mode, settings.locator) == ("archive", "observe", "union")
    assert [node.node_id for node in settings.nodes] == ["disk1", "disk2", "disk3"]
    assert settings.options.imbalance_threshold == RebalancerOptions().imbalance_threshold
    assert settings.prices[0].from_region == settings.node("disk3").region


def test_the_commented_lines_of_the_sample_load_too(tmp_path: Path) -> None:
    text = (REFERENCE / "rebalance.example.toml").read_text(encoding="utf-8")
    text = text.replace('redis_url = "redis://127.0.0.1:6379/0"\n', "")
    file = tmp_path / "rebalance.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE), encoding="utf-8")
    settings = load_settings(file, {"REDIS_PASSWORD": "x"})
    assert settings.redis_url.startswith("rediss://:x@")
    assert settings.options.target_imbalance == 0.05


def test_the_sample_shows_every_table() -> None:
    text = (REFERENCE / "rebalance.example.toml").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\[+\w+\]+)$", text, re.MULTILINE)) == {
        "[fleet]",
        "[gravity]",
        "[options]",
        "[[nodes]]",
        "[[prices]]",
        "[[webhooks]]",
        "[[rules]]",
    }
