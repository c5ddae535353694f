"""The demo's parts that need no server: its corpus, its independent verification, its processes and its signals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import psutil
import pytest
from rich.console import Console

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.demo import corpus as corpora
from rebalance_tasks.demo import inspect
from rebalance_tasks.demo.corpus import DemoNode, collect, design_nodes
from rebalance_tasks.demo.display import Frame, PlainDisplay, picture, save_picture
from rebalance_tasks.demo.inspect import DemoFailed, NodeUsage, spread, survey, utilisations, verify
from rebalance_tasks.demo.processes import ManagedProcess, ProcessFailed, child_environment
from rebalance_tasks.demo.scenario import Order, run
from rebalance_tasks.demo.signals import Interrupted, Signals
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.demo.corpus import Corpus


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two hundred files of many sizes, and what must be left out."""
    root = tmp_path / "source"
    for number in range(200):
        path = root / f"folder{number % 7}" / f"file {number} ü.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1) * (number * 13))
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "cached.pyc").write_bytes(b"x")
    (root / "link").symlink_to(root / "folder0")
    (root / "huge").write_bytes(b"x" * (corpora.MAX_OBJECT_BYTES + 1))
    return root


def build(directory: Path, source: Path, *, seed: int = 1, count: int = 6) -> Corpus:
    directory.mkdir()
    files = collect(source, seed=seed)
    total = sum(file.size_bytes for file in files)
    return corpora.build(
        directory, files, design_nodes(directory, count=count, total_bytes=total, seed=seed), seed=seed
    )


# -- corpus ----------------------------------------------------------------------------------------------------------


def test_only_plain_files_of_bearable_size_are_collected(source: Path) -> None:
    files = collect(source, seed=1)
    assert len(files) == 200
    assert all(file.path.is_file() and not file.path.is_symlink() for file in files)


def test_the_default_source_has_at_least_five_thousand_files() -> None:
    files = collect(None, seed=1)
    assert corpora.MAX_OBJECTS >= len({file.key for file in files}) == len(files) >= corpora.MIN_OBJECTS
    assert sum(file.size_bytes for file in files) <= corpora.MAX_TOTAL_BYTES


def test_a_small_installation_is_copied_again_under_other_keys(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sysconfig.get_paths", lambda: {"stdlib": str(source), "purelib": str(source / "site-packages")}
    )
    monkeypatch.setattr(corpora, "MIN_OBJECTS", 500)
    files = collect(None, seed=1)
    assert len(files) == 600
    assert len({file.key for file in files}) == 600


@pytest.mark.parametrize(("cap", "most", "counted"), [("MAX_TOTAL_BYTES", 50_000, False), ("MAX_OBJECTS", 30, True)])
def test_what_does_not_fit_under_a_cap_is_left_out_by_chance(
    source: Path, monkeypatch: pytest.MonkeyPatch, cap: str, most: int, counted: bool
) -> None:
    monkeypatch.setattr(corpora, cap, most)
    one, same, other = (collect(source, seed=seed) for seed in (1, 1, 2))
    assert 0 < sum(1 if counted else file.size_bytes for file in one) <= most
    assert one == same != other


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_source_without_files_is_refused_with_the_way_out(tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match=r"files|directory"):
        collect(tmp_path / missing, seed=1)


def test_the_same_seed_builds_the_same_fleet_and_another_one_another(tmp_path: Path, source: Path) -> None:
    def placed(name: str, seed: int) -> dict[str, list[str]]:
        built = build(tmp_path / name, source, seed=seed)
        return {
            node.node_id: sorted(str(p.relative_to(node.root)) for p in node.root.rglob("*")) for node in built.nodes
        }

    one, same, other = placed("a", 1), placed("b", 1), placed("c", 2)
    assert one == same != other


@pytest.mark.parametrize("count", [3, 6, 11])
def test_nodes_differ_in_capacity_span_three_zones_and_are_filled_unevenly(
    tmp_path: Path, source: Path, count: int
) -> None:
    built = build(tmp_path / "demo", source, count=count)
    assert {node.zone for node in built.nodes} == {"a", "b", "c"}
    assert len({node.capacity_bytes for node in built.nodes}) > 1
    shares = utilisations(built.nodes, survey(built.nodes))
    assert spread(shares) > 0.6
    assert max(shares.values()) < 1.0


def test_the_manifest_on_disk_is_what_was_read_from_the_source(tmp_path: Path, source: Path) -> None:
    built = build(tmp_path / "demo", source)
    manifest = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert manifest == dict(built.digests)
    assert len(manifest) == 200


def test_an_interrupted_copy_leaves_no_half_written_object(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "demo", source)
    assert [path for path in (tmp_path / "demo" / "nodes").rglob("*") if path.is_file()] == []


def test_the_configuration_says_what_was_built(tmp_path: Path) -> None:
    node = DemoNode("disk1", tmp_path / 'odd "name" ü', "a", 1000)
    path = tmp_path / "rebalance.toml"
    corpora.write_config(path, [node], redis_url="redis://127.0.0.1:1/0", options={"preset": "default", "grace": "2s"})
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    assert told["fleet"]["mode"] == "auto"
    assert told["options"] == {"preset": "default", "grace": "2s"}
    assert told["nodes"] == [{"node_id": "disk1", "url": node.root.as_uri(), "capacity_bytes": 1000, "zone": "a"}]


def test_a_full_disk_is_refused_before_anything_is_copied(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InvalidArgument, match="--dir"):
        corpora.require_room(tmp_path, collect(source, seed=1))


# -- verification ----------------------------------------------------------------------------------------------------


def any_object(node: DemoNode) -> Path:
    return max((path for path in node.root.rglob("*.bin")), key=lambda path: path.stat().st_size)


def test_an_untouched_fleet_verifies(tmp_path: Path, source: Path) -> None:
    built = build(tmp_path / "demo", source)
    result = verify(built.nodes, built.digests)
    result.require_success()
    assert (result.verified, result.total) == (200, 200)


def damage_lost(one: DemoNode, other: DemoNode) -> None:
    any_object(one).unlink()


def damage_doubled(one: DemoNode, other: DemoNode) -> None:
    path = any_object(one)
    copy = other.root / path.relative_to(one.root)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(path.read_bytes())


def damage_torn(one: DemoNode, other: DemoNode) -> None:
    path = any_object(one)
    path.write_bytes(path.read_bytes()[:-1])


def damage_linked(one: DemoNode, other: DemoNode) -> None:
    os.link(any_object(one), one.root.parent / "elsewhere")


def damage_stranger(one: DemoNode, other: DemoNode) -> None:
    (one.root / "stranger").write_bytes(b"")


def damage_leftover(one: DemoNode, other: DemoNode) -> None:
    (one.root / ".rebalance" / "tmp").mkdir(parents=True)
    (one.root / ".rebalance" / "tmp" / "job.1").write_bytes(b"half")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (damage_lost, "nowhere"),
        (damage_doubled, "too"),
        (damage_torn, "differs"),
        (damage_linked, "2 links"),
        (damage_stranger, "not in the manifest"),
        (damage_leftover, "left behind"),
    ],
)
def test_any_damage_is_found(tmp_path: Path, source: Path, damage: object, word: str) -> None:
    built = build(tmp_path / "demo", source)
    damage(built.nodes[0], built.nodes[1])  # type: ignore[operator]
    with pytest.raises(DemoFailed, match=word):
        verify(built.nodes, built.digests).require_success()


def test_our_own_folder_is_no_object_and_staged_bytes_are_counted_apart(tmp_path: Path, source: Path) -> None:
    built = build(tmp_path / "demo", source)
    node = built.nodes[0]
    before = survey(built.nodes)[node.node_id]
    for folder in ("tmp", "trash"):
        (node.root / ".rebalance" / folder).mkdir(parents=True)
        (node.root / ".rebalance" / folder / "job.1").write_bytes(b"12345")
    assert survey(built.nodes)[node.node_id] == NodeUsage(before.objects, before.used_bytes, 5)
    assert len(inspect.trash_files(node)) == 1
    inspect.remove_staged([node.root])
    assert inspect.staged_files(node) == []
    verify(built.nodes, built.digests).require_success()


# -- processes and signals -------------------------------------------------------------------------------------------


def test_killing_a_process_takes_its_group_along(tmp_path: Path) -> None:
    script = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    process = ManagedProcess("parent", [sys.executable, "-c", script], log_path=tmp_path / "log", env=os.environ)
    try:
        child = int(wait_until(process.log_tail, 20, "the child has started"))
        assert psutil.pid_exists(child)
    finally:
        process.kill()
    wait_until(
        lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE,
        10,
        "the child is gone",
    )
    process.kill()


def test_a_process_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    with ManagedProcess(
        "odd", [sys.executable, "-c", "raise SystemExit('no such luck')"], log_path=tmp_path / "log", env=os.environ
    ) as process:
        wait_until(lambda: not process.alive, 20, "it has ended")
        with pytest.raises(ProcessFailed, match="no such luck"):
            process.require_alive()


def test_settings_of_another_fleet_do_not_leak_into_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBALANCE_IMBALANCE_THRESHOLD", "0.9")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere")
    env = child_environment(tmp_path / "rebalance.toml")
    assert env["REBALANCE_CONFIG"] == str(tmp_path / "rebalance.toml")
    assert {name for name in env if name.startswith(("REBALANCE_", "CELERY_"))} == {"REBALANCE_CONFIG"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_later_ones_only_say_hurry(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with Signals() as signals:
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signum)
        assert caught.value.exit_code == 128 + signum
        assert not signals.hurry.is_set()
        signal.raise_signal(signum)
        assert signals.hurry.is_set()
        with pytest.raises(Interrupted):
            signals.check()
    assert signal.getsignal(signum) is before


def test_a_signal_during_the_clean_up_raises_nothing() -> None:
    with Signals() as signals:
        signals.shield()
        signal.raise_signal(signal.SIGINT)
        signals.check()
        assert signals.hurry.is_set()


# -- display ---------------------------------------------------------------------------------------------------------


def frame(tmp_path: Path) -> Frame:
    nodes = (DemoNode("disk1", tmp_path, "a", 100), DemoNode("disk2", tmp_path, "b", 200))
    usage = {"disk1": NodeUsage(5, 50, 7), "disk2": NodeUsage(1, 20, 0)}
    return Frame(nodes, {"disk1": 0.9, "disk2": 0.0}, usage, "moving")


def test_plain_lines_come_at_most_once_a_second(tmp_path: Path) -> None:
    out, now = io.StringIO(), iter([0.0, 0.1, 0.1, 0.2, 1.5, 1.5, 1.6])
    display = PlainDisplay(Console(file=out, width=200), clock=lambda: next(now))
    for _ in range(3):
        display.frame(frame(tmp_path))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert "disk1=50% disk2=10% | spread 40.0 %" in lines[0]


def test_the_picture_shows_every_node_and_the_spread(tmp_path: Path) -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(picture(frame(tmp_path), ["it began"]))
    shown = out.getvalue()
    for expected in ("disk1", "disk2", "zone b", "50.0 %", "-40.0", "40.0 %", "was 90.0 %", "it began"):
        assert expected in shown
    save_picture(tmp_path / "demo.svg", [picture(frame(tmp_path), [])])
    assert (tmp_path / "demo.svg").read_text(encoding="utf-8").startswith("<svg")


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("precious")
    assert run(Order(directory=tmp_path)) == 1
    assert "not an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_source_that_is_not_there_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Order(source=tmp_path / "nowhere", directory=tmp_path / "demo")) == 1
    assert "not a directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_presets_and_too_few_nodes_are_wrong_usage() -> None:
    for arguments in (["--preset", "odd"], ["--nodes", "2"]):
        script = "import sys; from rebalance_tasks.cli.app import run; sys.exit(run(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", script, "demo", *arguments], capture_output=True, check=False)
        assert done.returncode == 2
