"""Settings: where values come from, and what happens to wrong ones and to secrets."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import traceback
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest
from pydantic import ValidationError

from rebalance_tasks.core.errors import ConfigurationError, UnknownNode
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.settings import DEFAULT_REDIS_URL, Price, Settings, environment_variables, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET: Final = "hunter2"  # noqa: S105  what must not be shown

TWO_NODES: Final = """
[[nodes]]
node_id = "a"
url = "file:///srv/a"
[[nodes]]
node_id = "b"
url = "file:///srv/b"
"""


class Load(Protocol):
    def __call__(self, text: str, **environ: str) -> Settings: ...


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(text: str, **environ: str) -> Settings:
        file = tmp_path / "rebalance.toml"
        file.write_text(text, encoding="utf-8")
        return load_settings(file, environ)

    return write_and_load


def complaint(load: Load, text: str, **environ: str) -> str:
    """The message of the refusal; never with a secret, in itself or in its traceback."""
    with pytest.raises(ConfigurationError) as caught:
        load(text, **environ)
    message = str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in message + shown
    return message


# -- where values come from -----------------------------------------------------------------------------------------


def test_without_file_and_environment_there_are_defaults_and_no_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ={})
    assert settings == Settings()
    assert (settings.fleet, settings.mode, settings.locator) == ("default", "observe", "union")
    assert settings.redis_url == settings.broker_url == settings.result_backend == DEFAULT_REDIS_URL
    assert (settings.nodes, settings.prices, settings.config_path) == ((), (), None)
    assert settings.options == RebalancerOptions()


def test_the_working_directory_is_looked_in_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rebalance", "named", "argument"):
        Path(f"{name}.toml").write_text(f'[fleet]\nname = "{name}"\n', encoding="utf-8")
    assert load_settings(environ={}).fleet == "rebalance"
    assert load_settings(environ={"REBALANCE_CONFIG": "named.toml"}).fleet == "named"
    settings = load_settings(Path("argument.toml"), {"REBALANCE_CONFIG": "named.toml"})
    assert (settings.fleet, settings.config_path) == ("argument", Path("argument.toml"))
    assert load_settings("argument.toml", {}).fleet == "argument"


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REBALANCE_FLEET", "from-environment")
    assert load_settings().fleet == "from-environment"
    assert load_settings(environ={}).fleet == "default"


def test_a_whole_file_is_read(load: Load) -> None:
    settings = load("""
        [fleet]
        name = "archive"
        mode = "auto"
        locator = "crush"
        redis_url = "redis://db:6379/1"
        broker_url = "amqp://mq//"
        [options]
        imbalance_threshold = 0.2
        quiet_hours = [22, 6]
        throttle_bytes_per_sec = "10MB/s"
        grace = "1h30m"
        [options.scoring_weights]
        latency = 1.0
        [[nodes]]
        node_id = "disk1"
        url = "file:///srv/disk1"
        capacity_bytes = "4TB"
        zone = "a"
        storage_classes = ["hdd"]
        egress_cost_per_gb = 0.09
        [[prices]]
        from = "eu-west-1"
        to = "us-east-1"
        per_gb = "0.02"
        """)
    assert (settings.fleet, settings.mode, settings.locator) == ("archive", "auto", "crush")
    assert (settings.redis_url, settings.broker_url) == ("redis://db:6379/1", "amqp://mq//")
    assert settings.result_backend == settings.redis_url
    assert settings.options.quiet_hours == (22, 6)
    assert settings.options.throttle_bytes_per_sec == 10**7
    assert settings.options.grace == timedelta(minutes=90)
    assert settings.options.scoring_weights.latency == 1.0
    assert settings.node("disk1").capacity_bytes == 4 * 10**12
    assert settings.node("disk1").egress_cost_per_gb == Decimal("0.09")
    assert settings.prices == (Price(from_region="eu-west-1", to_region="us-east-1", per_gb=Decimal("0.02")),)
    with pytest.raises(UnknownNode, match="disk2"):
        settings.node("disk2")


def test_later_wins_default_preset_file_environment(load: Load) -> None:
    text = '[options]\npreset = "aggressive"\nmax_moves_per_cycle = 7\nimbalance_threshold = 0.3\n'
    options = load(text, REBALANCE_IMBALANCE_THRESHOLD="0.4").options
    assert options.max_cost_per_cycle == Decimal(100)
    assert options.max_concurrent_migrations == 10
    assert options.max_moves_per_cycle == 7
    assert options.imbalance_threshold == 0.4


def test_a_preset_of_the_environment_replaces_that_of_the_file_but_not_its_options(load: Load) -> None:
    text = '[options]\npreset = "aggressive"\nmax_moves_per_cycle = 7\n'
    options = load(text, REBALANCE_PRESET="conservative").options
    assert (options.max_concurrent_migrations, options.max_moves_per_cycle) == (1, 7)


#: variable -> (text, what it becomes)
GIVEN: Final[Mapping[str, tuple[str, Any]]] = {
    "REBALANCE_FLEET": ("archive", "archive"),
    "REBALANCE_MODE": ("auto", "auto"),
    "REBALANCE_LOCATOR": ("catalogue", "catalogue"),
    "REBALANCE_CATALOGUE": ("redis", "redis"),  # a provider needs its locator: test_host_catalogue.py
    "REBALANCE_PLACEMENT_RULE": ("tree", "tree"),
    "REBALANCE_REDIS_URL": ("redis://x:1/2", "redis://x:1/2"),
    "REBALANCE_BROKER_URL": ("amqp://mq//", "amqp://mq//"),
    "REBALANCE_RESULT_BACKEND": ("rpc://", "rpc://"),
    "REBALANCE_KEY_PREFIX": ("acme.rebalance", "acme.rebalance"),
    "REBALANCE_MESSAGE_PREFIX": ("acme", "acme"),
    "REBALANCE_PRIORITY": ("4", 4),
    "REBALANCE_SURVEYS": ("tasks", "tasks"),
    "REBALANCE_SURVEY_DIR": ("/var/cache/rebalance", "/var/cache/rebalance"),
    "REBALANCE_FULL_SURVEY_INTERVAL": ("30m", timedelta(minutes=30)),
    "REBALANCE_INVENTORY": ("provider:acme", "provider:acme"),
    "REBALANCE_MUST_CARRY": ("mtime, tags", ("mtime", "tags")),
    "REBALANCE_CHECK_INTERVAL": ("2m", timedelta(minutes=2)),
    "REBALANCE_IMBALANCE_THRESHOLD": ("0.25", 0.25),
    "REBALANCE_TARGET_IMBALANCE": ("0.05", 0.05),
    "REBALANCE_MAX_CONCURRENT_MIGRATIONS": ("5", 5),
    "REBALANCE_MAX_MOVES_PER_CYCLE": ("50", 50),
    "REBALANCE_MAX_EGRESS_BYTES_PER_CYCLE": ("1GiB", 2**30),
    "REBALANCE_MAX_COST_PER_CYCLE": ("0.10", Decimal("0.10")),
    "REBALANCE_MAX_COST_PER_DAY": ("7.5", Decimal("7.5")),
    "REBALANCE_MAX_CONCURRENT_PER_NODE": ("2", 2),
    "REBALANCE_GRAVITY_PROTECTION_THRESHOLD": ("0.5", 0.5),
    "REBALANCE_THROTTLE_BYTES_PER_SEC": ("none", None),
    "REBALANCE_THROTTLE_TIMETABLE": ("8-18 1MiB/s, 22-6 none", ((8, 18, 2**20), (22, 6, 0))),
    "REBALANCE_ADAPTIVE_THROTTLE": ("true", True),
    "REBALANCE_ENABLE_READ_FORWARDING": ("false", False),
    "REBALANCE_VALIDATE_CHECKSUMS": ("0", False),
    "REBALANCE_QUIET_HOURS": ("22-6", (22, 6)),
    "REBALANCE_QUIET_HOURS_TIMEZONE": ("Europe/Berlin", "Europe/Berlin"),
    "REBALANCE_SCORING_WEIGHTS": ("compliance_first", RebalancerOptions().scoring_weights.compliance_first()),
    "REBALANCE_GRACE": ("1h", timedelta(hours=1)),
    "REBALANCE_FORWARDING_TTL": ("2h", timedelta(hours=2)),
    "REBALANCE_OBJECT_COOLDOWN": ("3h", timedelta(hours=3)),
    "REBALANCE_MIN_OBJECT_AGE": ("0", timedelta(0)),
    "REBALANCE_MIN_OBJECT_SIZE": ("4KiB", 4096),
    "REBALANCE_MAX_UTILISATION": ("0.8", 0.8),
    "REBALANCE_JOB_DEADLINE": ("6h", timedelta(hours=6)),
    "REBALANCE_JOB_RETENTION": ("2d", timedelta(days=2)),
    "REBALANCE_CHECK_RETENTION": ("90d", timedelta(days=90)),
}


def test_every_variable_is_tried_here() -> None:
    assert set(GIVEN) | {"REBALANCE_PRESET"} == set(environment_variables())


@pytest.mark.parametrize("variable", GIVEN)
def test_each_setting_has_its_environment_variable(variable: str, load: Load) -> None:
    text, expected = GIVEN[variable]
    settings = load("", **{variable: text})
    table, name = environment_variables()[variable]
    found = (
        settings.fleet
        if (table, name) == ("fleet", "name")
        else getattr(settings if table == "fleet" else settings.options, str(name))
    )
    assert found == expected


def test_an_empty_variable_counts_as_not_set(load: Load) -> None:
    assert (
        load("[options]\nimbalance_threshold = 0.3\n", REBALANCE_IMBALANCE_THRESHOLD="").options.imbalance_threshold
        == 0.3
    )


def test_foreign_variables_are_left_alone(load: Load) -> None:
    load(
        "",
        REBALANCE_REDIS_PORT="tcp://10.0.0.1:6379",
        REBALANCE_SERVICE_HOST="10.0.0.2",
        REBALANCE_LOG_LEVEL="DEBUG",
        HOME="/",
    )


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rebalance.toml"
    file.write_bytes(b'\xef\xbb\xbf[fleet]\nname = "bom"\n')
    assert load_settings(file, {}).fleet == "bom"


# -- files that cannot be read --------------------------------------------------------------------------------------


def test_a_missing_file_is_refused_by_the_name_it_was_given_under(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.toml"
    with pytest.raises(ConfigurationError, match=r"there is no settings file .*nowhere\.toml"):
        load_settings(missing, {})
    with pytest.raises(ConfigurationError, match="environment variable REBALANCE_CONFIG: there is no settings file"):
        load_settings(environ={"REBALANCE_CONFIG": str(missing)})


def test_broken_toml_names_file_and_line(load: Load) -> None:
    message = complaint(load, '[fleet]\nname = archive\nredis_url = "redis://:hunter2@h"\n')
    assert "rebalance.toml: not valid TOML" in message
    assert "line 2" in message


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rebalance.toml"
    file.write_bytes('[fleet]\nname = "ü"\n'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="not UTF-8 text"):
        load_settings(file, {})


# -- wrong values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "path", "said"),
    [
        ("imbalance_threshold = 1.7", "options.imbalance_threshold", ["= 1.7", "from 0 to 1"]),
        ("imbalance_threshold = -0.1", "options.imbalance_threshold", ["= -0.1", "from 0 to 1"]),
        ("imbalance_threshold = nan", "options.imbalance_threshold", ["= nan", "from 0 to 1"]),
        ("imbalance_threshold = true", "options.imbalance_threshold", ["true or false does not fit"]),
        ('imbalance_threshold = "much"', "options.imbalance_threshold", ["= 'much'", "valid number", "from 0 to 1"]),
        ("target_imbalance = 1.5", "options.target_imbalance", ["= 1.5", "from 0 to 1"]),
        ("max_utilisation = 0", "options.max_utilisation", ["= 0", "more than 0, at most 1"]),
        ("max_utilisation = inf", "options.max_utilisation", ["= inf", "more than 0, at most 1"]),
        ("max_concurrent_migrations = 0", "options.max_concurrent_migrations", ["= 0", "at least 1"]),
        ("max_concurrent_migrations = -3", "options.max_concurrent_migrations", ["= -3", "at least 1"]),
        ("max_concurrent_migrations = 2.5", "options.max_concurrent_migrations", ["= 2.5", "valid integer"]),
        ("max_moves_per_cycle = -1", "options.max_moves_per_cycle", ["= -1", "at least 0"]),
        (
            'max_egress_bytes_per_cycle = "-1GB"',
            "options.max_egress_bytes_per_cycle",
            ["must not be negative, got '-1GB'"],
        ),
        ('max_egress_bytes_per_cycle = "10G"', "options.max_egress_bytes_per_cycle", ["'10G'", "write GB", "GiB"]),
        ("throttle_bytes_per_sec = 0", "options.throttle_bytes_per_sec", ["= 0", "at least 1"]),
        ("max_cost_per_cycle = -0.01", "options.max_cost_per_cycle", ["= -0.01", "at least 0"]),
        ("max_cost_per_day = nan", "options.max_cost_per_day", ["= nan", "at least 0"]),
        ('check_interval = "10ms"', "options.check_interval", ["= '10ms'", "at least 1 second"]),
        ('grace = "soon"', "options.grace", ["'soon' is not a duration", '"1h30m"']),
        ("quiet_hours = [22, 24]", "options.quiet_hours", ["[22, 24]", "from 0 to 23"]),
        ("quiet_hours = [22]", "options.quiet_hours", ["[22]", "two whole hours"]),
        ('quiet_hours_timezone = "Europe/Berln"', "options.quiet_hours_timezone", ["did you mean 'Europe/Berlin'?"]),
        (
            'quiet_hours_timezone = "Nirgends"',
            "options.quiet_hours_timezone",
            ["'Nirgends' is not a known IANA time zone"],
        ),
        ('preset = "agressive"', "options.preset", ["= 'agressive'", "did you mean 'aggressive'?"]),
        ("preset = 3", "options.preset", ["= 3", "default, aggressive, conservative"]),
        (
            "imbalance_treshold = 0.1",
            "options.imbalance_treshold",
            ["unknown key", "did you mean 'imbalance_threshold'?"],
        ),
        ('mode = "auto"', "options.mode", ["unknown key", "it belongs under [fleet]"]),
        ("scoring_weights = {latency = 2}", "options.scoring_weights.latency", ["= 2", "from 0 to 1"]),
        ("scoring_weights = {latancy = 1}", "options.scoring_weights.latancy", ["did you mean 'latency'?"]),
    ],
)
def test_a_wrong_option_is_named_with_file_path_value_and_range(
    line: str, path: str, said: list[str], load: Load
) -> None:
    message = complaint(load, f"[options]\n{line}\n")
    assert "settings are wrong" not in message
    assert f"rebalance.toml: {path}" in message
    assert [part for part in said if part not in message] == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("REBALANCE_IMBALANCE_THRESHOLD", "1.7", ["options.imbalance_threshold = '1.7'", "from 0 to 1"]),
        ("REBALANCE_MAX_CONCURRENT_MIGRATIONS", "0", ["options.max_concurrent_migrations = '0'", "at least 1"]),
        ("REBALANCE_QUIET_HOURS", "22-25", ["options.quiet_hours", "'22-25'", "from 0 to 23"]),
        ("REBALANCE_MODE", "atuo", ["fleet.mode = 'atuo'", "did you mean 'auto'?"]),
        ("REBALANCE_LOCATOR", "crash", ["fleet.locator = 'crash'", "did you mean 'crush'?"]),
        ("REBALANCE_FLEET", "my fleet", ["fleet.name = 'my fleet'"]),
        ("REBALANCE_PRESET", "fast", ["options.preset = 'fast'"]),
        ("REBALANCE_REDIS_URL", f"http://:{SECRET}@h", ["fleet.redis_url = 'http://:***@h'", "redis://"]),
        ("REBALANCE_BROKER_URL", f"guest:{SECRET}@mq", ["fleet.broker_url = 'guest:***@mq'", "is not a URL"]),
        ("REBALANCE_MODES", "auto", ["unknown variable", "did you mean REBALANCE_MODE?"]),
        ("REBALANCE_IMBALANCE_TRESHOLD", "0.2", ["did you mean REBALANCE_IMBALANCE_THRESHOLD?"]),
        ("REBALANCE_REDIS_URI", f"redis://:{SECRET}@h", ["did you mean REBALANCE_REDIS_URL?"]),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, said: list[str], load: Load) -> None:
    message = complaint(load, "", **{variable: value})
    assert message.startswith(f"environment variable {variable}: ")
    assert [part for part in said if part not in message] == []


def test_a_target_above_the_threshold_names_both_sources(load: Load) -> None:
    message = complaint(load, "[options]\ntarget_imbalance = 0.2\n", REBALANCE_IMBALANCE_THRESHOLD="0.15")
    assert "rebalance.toml and environment variable REBALANCE_IMBALANCE_THRESHOLD: options: " in message
    assert "target_imbalance 0.2 must not exceed imbalance_threshold 0.15" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[nodes]\nnode_id = "a"', ["nodes: must be a list of tables; write [[nodes]]"]),
        ("prices = 3", ["prices: must be a list of tables; write [[prices]]"]),
        ("fleet = 3", ["fleet: must be a table; write [fleet]"]),
        ('redis_url = "redis://h"', ["redis_url: unknown key; it belongs under [fleet]"]),
        ('zone = "a"', ["zone: unknown key; it belongs under [[nodes]]"]),
        ('[fleat]\nname = "x"', ["fleat: unknown key; did you mean 'fleet'?"]),
        ('[fleet]\nnmae = "x"', ["fleet.nmae: unknown key; did you mean 'name'?"]),
        ("[fleet]\nimbalance_threshold = 0.1", ["fleet.imbalance_threshold: unknown key; it belongs under [options]"]),
        ('[fleet]\nname = "{x}"', ["fleet.name = '{x}'"]),
        ("nodes = [3]", ["nodes[0] = 3"]),
        ('[[nodes]]\nurl = "file:///a"', ["nodes[0].node_id: is missing"]),
        ('[[nodes]]\nnode_id = "a"', ["nodes[0] (node 'a'): url is missing"]),
        (TWO_NODES + "weight = -1", ["nodes[1].weight (node 'b') = -1", "at least 0"]),
        (TWO_NODES + 'capacity_bytes = "4T"', ["nodes[1].capacity_bytes (node 'b')", "write TB"]),
        (TWO_NODES + 'state = "drainin"', ["nodes[1].state (node 'b') = 'drainin'", "did you mean 'draining'?"]),
        (
            TWO_NODES + 'storage_classes = ["hdd", "hhd"]',
            ["nodes[1].storage_classes[1] (node 'b') = 'hhd'", "did you mean 'hdd'?"],
        ),
        (
            TWO_NODES + "storage_option = {}",
            ["nodes[1].storage_option (node 'b'): unknown key; did you mean 'storage_options'?"],
        ),
        (TWO_NODES + 'storage_options = "x"', ["nodes[1].storage_options (node 'b') = ***: has the wrong type"]),
        (TWO_NODES.replace('"b"', '"a"'), ["nodes: node_id 'a' is used twice"]),
        (TWO_NODES.replace("/srv/b", "/srv/a"), ["nodes 'a' and 'b' have the same url"]),
        (TWO_NODES.replace("/srv/b", "/srv/a/"), ["nodes 'a' and 'b' have the same url"]),
        (TWO_NODES.replace("/srv/b", "${HOME}/b"), ["nodes[1] (node 'b'): ${…} does not expand in a node's url"]),
        ('[[prices]]\nfrom = "a"\nper_gb = 1', ["prices[0].to: is missing"]),
        ('[[prices]]\nfrom = "a"\nto = "b"\nper_gb = -1', ["prices[0].per_gb = -1", "at least 0"]),
        ('[[prices]]\nfrom = "a"\nto = "b"\nper_gb = 1\n' * 2, ["the price from 'a' to 'b' is given twice"]),
    ],
)
def test_a_wrong_table_is_explained(text: str, said: list[str], load: Load) -> None:
    message = complaint(load, text)
    assert "settings are wrong" not in message
    assert [part for part in said if part not in message] == []


def test_several_problems_are_told_at_once(load: Load) -> None:
    message = complaint(
        load,
        '[fleet]\nmode = "atuo"\n[options]\nimbalance_threshold = 2\nfoo = 1\n' + TWO_NODES + "weight = -1\n",
        REBALANCE_GRACE="soon",
        REBALANCE_MODES="x",
    )
    lines = message.splitlines()
    assert lines[0] == "6 settings are wrong:"
    assert len(lines) == 7
    for part in (
        "fleet.mode",
        "options.imbalance_threshold",
        "options.foo",
        "nodes[1].weight",
        "REBALANCE_GRACE",
        "REBALANCE_MODES",
    ):
        assert sum(part in line for line in lines) == 1


def test_a_long_value_is_cut(load: Load) -> None:
    assert len(complaint(load, f'[fleet]\nmode = "{"x" * 5000}"\n')) < 400


# -- secrets --------------------------------------------------------------------------------------------------------


def test_variables_expand_in_storage_options_and_fleet_urls(load: Load) -> None:
    text = (
        '[fleet]\nredis_url = "redis://:${REDIS_PASSWORD}@${REDIS_HOST}/0"\nbroker_url = "${BROKER}"\n'
        + TWO_NODES
        + 'storage_options = { key = "k-${PART}", nested = { list = ["${PART}", 3] }, literal = "$${PART}", price = "$5" }\n'
    )
    settings = load(text, REDIS_PASSWORD="p@ss/wörd", REDIS_HOST="db:6379", BROKER="amqp://u:p@mq//", PART="x")  # noqa: S106  made up
    assert settings.redis_url == "redis://:p%40ss%2Fw%C3%B6rd@db:6379/0"
    assert settings.broker_url == "amqp://u:p@mq//"
    assert settings.node("b").storage_options == {
        "key": "k-x",
        "nested": {"list": ["x", 3]},
        "literal": "${PART}",
        "price": "$5",
    }


def test_an_expanded_value_is_not_expanded_again(load: Load) -> None:
    settings = load(TWO_NODES + 'storage_options = { a = "${A}" }\n', A="${B}")
    assert settings.node("b").storage_options == {"a": "${B}"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TWO_NODES + 'storage_options = { password = "${NOPE}" }',
            "nodes[1].storage_options.password: environment variable NOPE is not set",
        ),
        ('[fleet]\nredis_url = "redis://:${NOPE}@h"', "fleet.redis_url: environment variable NOPE is not set"),
        ('[fleet]\nredis_url = "${NOPE}"', "fleet.redis_url: environment variable NOPE is not set"),
        (TWO_NODES + 'storage_options = { password = "${NO-PE}" }', "write ${NAME}"),
        (TWO_NODES + 'storage_options = { password = "${NOPE" }', "write ${NAME}"),
    ],
)
def test_an_unknown_variable_is_an_error(text: str, said: str, load: Load) -> None:
    message = complaint(load, text)
    assert said in message
    assert "settings are wrong" not in message


def test_a_url_that_the_environment_overrides_need_not_expand(load: Load) -> None:
    settings = load('[fleet]\nredis_url = "redis://:${NOPE}@h"', REBALANCE_REDIS_URL="redis://other")
    assert settings.redis_url == "redis://other"


def test_values_of_the_environment_are_taken_as_they_are(load: Load) -> None:
    assert load("", REBALANCE_REDIS_URL="redis://:a${B}@h", B="x").redis_url == "redis://:a${B}@h"


@pytest.mark.parametrize(
    "text",
    [
        '[fleet]\nredis_url = "redis://:${PW}@h:port/0"',
        '[fleet]\nredis_url = "redis://:hunter2@h:port/0"',
        '[fleet]\nredis_url = ["redis://:hunter2@h"]',
        '[fleet]\nredis_url = "redis://:hun/ter2hunter2@h"\nmode = "x"',
        '[fleet]\nredis_pasword = "hunter2"',
        '[[nodes]]\nnode_id = "a"\nurl = "sftp://u:hunter2@h/x"',
        '[[nodes]]\nnode_id = "a"\nurl = "sftp://u:hunter2@h/x"\nweight = -1',
        '[[nodes]]\nurl = "sftp://u:hunter2@h/x"',
        '[[nodes]]\nnode_id = "a"\nurl = "file:///a"\nstorage_options = "hunter2"',
        '[[nodes]]\nnode_id = "a"\nurl = "file:///a"\nstorage_options = ["hunter2"]',
        '[[nodes]]\nnode_id = "a"\nurl = "file:///a"\npassword = "hunter2"',
        '[[nodes]]\nnode_id = "a"\nurl = "file:///a"\nstorage_options = { password = "${PW}" }\nweight = -1',
        '[options]\nscoring_weights = { password = "hunter2" }',
    ],
)
def test_no_message_holds_a_secret(text: str, load: Load) -> None:
    assert complaint(load, text, PW=SECRET)  # which looks for it


def test_a_node_url_with_credentials_is_refused_with_the_way_out(load: Load) -> None:
    message = complaint(load, TWO_NODES.replace("file:///srv/b", f"sftp://u:{SECRET}@h/b"))
    assert "nodes[1] (node 'b'): url must not hold credentials" in message
    assert "storage_options" in message


@pytest.fixture
def secretive(load: Load) -> Settings:
    text = (
        '[fleet]\nredis_url = "redis://:${PW}@h/0"\nbroker_url = "amqp://u:hunter2@mq//"\n'
        + TWO_NODES
        + 'storage_options = { endpoint = "https://hunter2@h", deep = { list = ["hunter2"] } }\n'
    )
    return load(text, PW=SECRET)


def test_secrets_are_masked_in_everything_that_is_shown(secretive: Settings) -> None:
    shown = [
        repr(secretive),
        str(secretive),
        f"{secretive.nodes}",
        secretive.model_dump_json(),
        str(secretive.model_dump()),
        str(secretive.public()),
    ]
    assert not [text for text in shown if SECRET in text]
    assert "redis://:***@h/0" in shown[0]
    assert secretive.public()["nodes"][1]["storage_options"] == {"endpoint": "***", "deep": "***"}


def test_the_process_itself_keeps_its_secrets(secretive: Settings) -> None:
    assert secretive.redis_url == f"redis://:{SECRET}@h/0"
    assert secretive.result_backend == secretive.redis_url
    assert secretive.node("b").storage_options["endpoint"] == f"https://{SECRET}@h"
    assert pickle.loads(pickle.dumps(secretive)) == secretive  # noqa: S301  our own bytes; prefork pools pickle


def test_settings_made_in_code_are_checked_too_and_do_not_tell_their_input() -> None:
    with pytest.raises(ValidationError, match="not a Redis URL") as caught:
        Settings(redis_url=f"http://:{SECRET}@h")
    assert SECRET not in str(caught.value)
    node = NodeDescriptor(node_id="a", url="file:///a")
    with pytest.raises(ValidationError, match="used twice"):
        Settings(nodes=(node, node))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().mode = "auto"  # type: ignore[misc]


def test_public_settings_name_the_fleet_and_carry_the_digest(secretive: Settings) -> None:
    public = secretive.public()
    assert public["fleet"] == "default"
    assert public["digest"] == secretive.digest()
    assert public["options"]["check_interval"] == "PT5M"


# -- what workers must agree on -------------------------------------------------------------------------------------


def test_the_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    file = tmp_path / "rebalance.toml"
    file.write_text(TWO_NODES + 'tags = { x = "1", y = "2" }\nstorage_classes = ["hdd", "ssd"]\n', encoding="utf-8")
    code = (
        "import sys; from rebalance_tasks.settings import load_settings; print(load_settings(sys.argv[1], {}).digest())"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", code, str(file)], env=environ, check=True, capture_output=True, text=True
    ).stdout
    assert told.strip() == load_settings(file, {}).digest()
    assert re.fullmatch(r"[0-9a-f]{16}\n", told)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[fleet]\nredis_url = "redis://other"\nbroker_url = "amqp://x"\n'),
        (TWO_NODES, TWO_NODES + 'storage_options = { password = "x" }\n'),
        (
            TWO_NODES,
            TWO_NODES.replace('"a"', '"t"')
            .replace('"b"', '"a"')
            .replace('"t"', '"b"')
            .replace("/a", "/t")
            .replace("/b", "/a")
            .replace("/t", "/b"),
        ),
        ("[options]\nmax_cost_per_cycle = 100\n", '[options]\nmax_cost_per_cycle = "100.00"\n'),
        ('[options]\ngrace = "15m"\n', "[options]\ngrace = 900\n"),
        ('[options]\npreset = "default"\n', ""),
    ],
)
def test_what_may_differ_between_machines_does_not_change_the_digest(before: str, after: str, load: Load) -> None:
    assert load(before).digest() == load(after).digest()


@pytest.mark.parametrize(
    "after",
    [
        '[fleet]\nname = "other"\n',
        '[fleet]\nmode = "auto"\n',
        '[fleet]\nlocator = "crush"\n',
        "[options]\nimbalance_threshold = 0.11\n",
        '[options]\ngrace = "16m"\n',
        "[options]\nquiet_hours = [22, 6]\n",
        "[options.scoring_weights]\nlatency = 0.16\n",
        TWO_NODES,
        '[[prices]]\nfrom = "a"\nto = "b"\nper_gb = 1\n',
    ],
)
def test_what_must_agree_changes_the_digest(after: str, load: Load) -> None:
    assert load("").digest() != load(after).digest()


@pytest.mark.parametrize(
    "line", ['zone = "a"', 'capacity_bytes = "1TB"', "weight = 2.0", 'state = "draining"', 'tags = { x = "y" }']
)
def test_every_field_of_a_node_counts_in_the_digest(line: str, load: Load) -> None:
    assert load(TWO_NODES).digest() != load(f"{TWO_NODES}{line}\n").digest()


# -- secrets from files, and webhooks -------------------------------------------------------------------------------------
def test_a_secret_is_read_from_its_file_and_encoded_within_a_url(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss/word of sixteen\n", encoding="utf-8")
    config = tmp_path / "rebalance.toml"
    config.write_text(
        f'[fleet]\nredis_url = "redis://:${{file:{secret}}}@db/0"\n'
        f'[[webhooks]]\nurl = "https://hooks.example/x"\nsecret = "${{file:{secret}}}"\n',
        encoding="utf-8",
    )
    settings = load_settings(config, environ={})
    assert settings.redis_url == "redis://:p%40ss%2Fword%20of%20sixteen@db/0"
    assert settings.webhooks[0].secret.get_secret_value() == "p@ss/word of sixteen"
    assert "sixteen" not in repr(settings) + settings.model_dump_json() + json.dumps(settings.public())


def test_a_secret_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = tmp_path / "rebalance.toml"
    config.write_text('[fleet]\nredis_url = "redis://:${file:/nowhere/x}@db/0"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="secret file '/nowhere/x' cannot be read"):
        load_settings(config, environ={})


def test_webhooks_do_not_belong_to_what_workers_must_agree_on(tmp_path: Path) -> None:
    config = tmp_path / "rebalance.toml"
    config.write_text('[[webhooks]]\nurl = "https://h.example"\nsecret = "0123456789abcdef"\n', encoding="utf-8")
    assert load_settings(config, environ={}).digest() == load_settings(None, environ={}).digest()
