"""A process that serves several fleets reads a file for each; they share a broker, and nothing else but the workers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from rebalance_tasks.celery import make_app
from rebalance_tasks.core.errors import ConfigurationError, UnknownFleet
from rebalance_tasks.core.pacing.turns import Shares
from rebalance_tasks.runtime import runtime_for
from rebalance_tasks.settings import configured_fleet, load_fleets, load_settings
from tests.support.fleets import toml_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def files(folder: Path, **fleets: Mapping[str, Any]) -> str:
    """What `REBALANCE_CONFIG` says for these tables of ``[fleet]``, each in a file of its own."""
    paths = []
    for name, table in fleets.items():
        path = folder / f"{name}.toml"
        path.write_text("[fleet]\n" + toml_table({"name": name, **table}), encoding="utf-8")
        paths.append(str(path))
    return os.pathsep.join(paths)


def test_each_file_is_a_fleet_and_the_first_one_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = files(tmp_path, archive={"priority": 1}, media={"priority": 4, "mode": "auto"})
    assert [(one.fleet, one.priority) for one in load_fleets({"REBALANCE_CONFIG": config})] == [
        ("archive", 1),
        ("media", 4),
    ]
    assert load_settings(environ={"REBALANCE_CONFIG": config}).fleet == "archive"
    monkeypatch.setenv("REBALANCE_CONFIG", config)
    assert configured_fleet("media").mode == "auto"
    assert configured_fleet(None).fleet == "archive"


def test_variables_override_the_first_file_alone(tmp_path: Path) -> None:
    config = files(tmp_path, archive={"priority": 1}, media={"priority": 4})
    first, second = load_fleets(
        {"REBALANCE_CONFIG": config, "REBALANCE_PRIORITY": "7", "REBALANCE_MODE": "auto", "REBALANCE_FLEET": "books"}
    )
    assert (first.fleet, first.priority, first.mode) == ("books", 7, "auto")
    assert (second.fleet, second.priority, second.mode) == ("media", 4, "observe")


def test_one_file_whose_name_holds_the_separator_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a:b.toml"
    path.write_text('[fleet]\nname = "odd"\n', encoding="utf-8")
    assert [one.fleet for one in load_fleets({"REBALANCE_CONFIG": str(path)})] == ["odd"]


def test_without_a_file_there_is_one_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [only] = load_fleets({})
    assert (only.fleet, only.priority) == ("default", None)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = files(tmp_path, archive={"priority": 1}) + os.pathsep + str(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match=r"REBALANCE_CONFIG: there is no settings file .*none\.toml"):
        load_fleets({"REBALANCE_CONFIG": config})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no priority": ({}, r"fleet\.priority: is missing; .* write for example priority = 1"),
    "another broker": (
        {"priority": 1, "broker_url": "redis://:secret@other/0"},
        r"fleet\.broker_url = 'redis://:\*\*\*@other/0': .* fleet 'archive' has 'redis://127\.0\.0\.1:6379/0'",
    ),
    "another prefix": ({"priority": 1, "message_prefix": "x"}, r"fleet\.message_prefix = 'x': "),
    "the same name": ({"priority": 1, "name": "archive"}, r"fleet\.name = 'archive': is in several files"),
}


@pytest.mark.parametrize("what", WRONG)
def test_fleets_that_cannot_share_workers_are_refused_with_the_way_out(tmp_path: Path, what: str) -> None:
    table, told = WRONG[what]
    config = files(tmp_path, archive={"priority": 1}, media=table)
    with pytest.raises(ConfigurationError, match=told) as error:
        load_fleets({"REBALANCE_CONFIG": config})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("value", ["0", "101", "high"])
def test_a_priority_out_of_range_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigurationError, match="REBALANCE_PRIORITY"):
        load_fleets({"REBALANCE_CONFIG": files(tmp_path, archive={}), "REBALANCE_PRIORITY": value})


# -- the app ----------------------------------------------------------------------------------------------------------
def test_the_app_of_several_fleets_serves_the_queues_of_each_and_beats_for_each(tmp_path: Path) -> None:
    fleets = load_fleets({"REBALANCE_CONFIG": files(tmp_path, archive={"priority": 1}, media={"priority": 4})})
    with make_app(*fleets) as app:
        queues = {f"rebalance.{kind}@{fleet}" for kind in ("control", "data") for fleet in ("archive", "media")}
        assert set(app.amqp.queues) == queues
        checks = {name: entry for name, entry in app.conf.beat_schedule.items() if "check" in name}
        assert set(checks) == {"rebalance-check@archive", "rebalance-check@media"}
        media = checks["rebalance-check@media"]
        assert (media["kwargs"], media["options"]["queue"]) == ({"fleet": "media"}, "rebalance.control@media")
        shares = app.conf.broker_transport_options["queue_order_strategy"]
        assert isinstance(shares, Shares)
        assert [shares.priority(fleet) for fleet in ("archive", "media")] == [1, 4]
        assert runtime_for(app).settings.fleet == "archive"
        assert runtime_for(app, "media").settings is fleets[1]
        with pytest.raises(UnknownFleet, match="archive, media"):
            runtime_for(app, "books")


def test_a_stock_app_serves_the_fleets_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBALANCE_CONFIG", files(tmp_path, archive={"priority": 1}, media={"priority": 4}))
    with Celery("stock", set_as_current=False) as app:
        assert [runtime_for(app, name).settings.fleet for name in (None, "media")] == ["archive", "media"]


def test_the_app_of_one_fleet_is_as_it_always_was() -> None:
    with make_app(load_settings(environ={})) as app:
        assert set(app.amqp.queues) == {"rebalance.control", "rebalance.data"}
        assert set(app.conf.beat_schedule) == {"rebalance-check", "rebalance-sweep", "rebalance-cleanup"}
        assert "queue_order_strategy" not in app.conf.broker_transport_options


def test_whether_workers_are_shared_is_part_of_the_digest_and_the_priority_is_not(tmp_path: Path) -> None:
    """Who does not know the fleet's queues by the same names must not plan; a priority may be changed host by host."""
    plain, one, four = (
        load_settings(files(tmp_path, archive=table), {}) for table in ({}, {"priority": 1}, {"priority": 4})
    )
    assert plain.digest() != one.digest() == four.digest()
