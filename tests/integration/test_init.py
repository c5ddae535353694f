"""`rebalance init` writes a configuration that loads, and says what is not well with it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.cli import init
from rebalance_tasks.cli.app import run
from rebalance_tasks.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_flags_make_a_file_that_loads_and_is_tested(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk1").mkdir()
    path = tmp_path / "rebalance.toml"
    nodes = ["--node", f"d1={tmp_path}/disk1,zone=a,capacity_bytes=1GB", "--node", f"d2={tmp_path}/nowhere,zone=b"]
    assert run(["init", "--path", str(path), "--name", "archive", "--redis-url", redis_url, *nodes, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["path"] == str(path)
    verdicts = {finding["name"]: finding["verdict"] for finding in written["findings"]}
    assert (verdicts["redis"], verdicts["node d1"], verdicts["node d2"]) == ("ok", "warn", "fail")
    assert "workers" not in verdicts
    settings = load_settings(path, environ={})
    assert (settings.fleet, settings.mode, settings.redis_url) == ("archive", "observe", redis_url)
    assert [(node.node_id, node.zone, node.capacity_bytes) for node in settings.nodes] == [
        ("d1", "a", 10**9),
        ("d2", "b", None),
    ]


def test_a_file_that_is_there_is_replaced_only_by_force(
    tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rebalance.toml"
    path.write_text("precious")
    assert run(["init", "--path", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert run(["init", "--path", str(path), "--redis-url", redis_url, "--force"]) == 0
    assert "REBALANCE_CONFIG" in capsys.readouterr().out


@pytest.mark.parametrize("node", ["d1", "=x", "d1=", "d1=/x,zone", "d1=/x,colour=red"])
def test_a_node_that_cannot_be_read_is_refused_with_the_form(
    tmp_path: Path, node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rebalance.toml"
    assert run(["init", "--path", str(path), "--node", node]) == 2
    assert "ID=PLACE" in capsys.readouterr().err
    assert not path.exists()


def test_a_configuration_that_does_not_load_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rebalance.toml"
    assert run(["init", "--path", str(path), "--redis-url", "http://no"]) == 2
    assert run(["init", "--path", str(path), "--node", "d1=/x", "--node", "d1=/y"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_without_redis_the_file_is_written_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rebalance.toml"
    assert run(["init", "--path", str(path), "--redis-url", "redis://:hunter22@127.0.0.1:1/0", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["findings"][0]["verdict"] == "fail"
    assert "hunter22" not in out


@given(name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True), place=st.text(min_size=1, max_size=30))
def test_any_place_is_written_so_that_it_is_read_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: str
) -> None:
    path = tmp_path_factory.mktemp("init") / "rebalance.toml"
    url = "file:///" + place.encode("unicode_escape").decode().replace("${", "").replace("@", "").replace("?", "")
    answers = init.Answers(name, "redis://h/0", "auto", [{"node_id": name, "url": url}])
    init.write(path, answers)
    settings = load_settings(path, environ={})
    assert (settings.fleet, settings.mode, settings.nodes[0].url) == (name, "auto", url)


def test_questions_are_asked_for_what_no_flag_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    given_answers = iter(["archive", "redis://h/0", "/srv/disk1", "disk1", "a", "sftp://h/x", "far", "", ""])
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(given_answers))
    answers = init.Answers("", "", "observe")
    init._ask(answers)
    assert answers.nodes == [
        {"node_id": "disk1", "url": "file:///srv/disk1", "zone": "a"},
        {"node_id": "far", "url": "sftp://h/x"},
    ]
    assert (answers.name, answers.redis_url) == ("archive", "redis://h/0")


# -- the command as a shell and a script see it ---------------------------------------------------------------------------
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_given_their_completion(shell: str) -> None:
    code = "from rebalance_tasks.cli import main; main()"
    asked = {"_REBALANCE_COMPLETE": f"complete_{shell}", "COMP_WORDS": "rebalance re", "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": "rebalance re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=False)
    assert {"resume", "reindex", "retry-failed"} <= set(done.stdout.replace('"', " ").replace(":", " ").split()), done


#: Modules that `rebalance status` may load, Python's own included: 492 by 3.11, and room for other versions.
STATUS_MODULES = 530
#: What a look at a job has no use for.
HEAVY = ("celery", "kombu", "numpy", "pyarrow", "structlog", "prometheus_client", "redis.asyncio.client", "starlette")


def test_looking_at_a_job_loads_little_and_builds_one_command(redis_url: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from rebalance_tasks.cli import main\n"
        "try: main()\n"
        "except SystemExit as end:\n"
        f"    heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        f"    print(end.code, heavy, len(sys.modules) if len(sys.modules) > {STATUS_MODULES} else 'few')\n"
    )
    env = {"REBALANCE_REDIS_URL": redis_url}
    done = subprocess.run(
        [sys.executable, "-c", code, "status", "rebal-none"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1 [] few\n", done


@pytest.mark.parametrize(
    ("argv", "built"),
    [
        (["status", "j1"], {"status"}),
        (["simulate", "resize"], {"simulate"}),
        (["--config", "plan", "jobs"], {"plan", "jobs"}),
        (["--help", "jobs"], None),
        (["statsu"], None),
        ([], None),
    ],
)
def test_only_commands_that_a_line_names_are_built(argv: list[str], built: set[str] | None) -> None:
    from rebalance_tasks.cli import app as cli

    made = cli._app_for(argv)
    assert (made is cli.app) if built is None else (cli.names(made) == built)


def test_a_package_that_waits_runs_when_something_of_it_is_used() -> None:
    code = (
        "import sys\n"
        "from rebalance_tasks import lazily\n"
        "lazily.package('redis', 'asyncio')\n"
        "import redis\n"
        "before = 'redis.asyncio.client' in sys.modules\n"
        "from redis.asyncio import Redis\n"
        "print(before, Redis.__module__, redis.asyncio is sys.modules['redis.asyncio'])\n"
        "lazily.package('redis', 'asyncio')\n"
        "lazily.package('redis', 'nothing_of_this_name')\n"
        "print(redis.asyncio.Redis is Redis, 'redis.nothing_of_this_name' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False redis.asyncio.client True\nTrue False\n", done
