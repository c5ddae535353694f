"""The metrics say what Redis says, for any number of processes; no total goes back; no label grows without a bound."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rebalance_tasks import Rebalancer
from rebalance_tasks.control import fleetwide, lifecycle
from rebalance_tasks.control.check import run_check
from rebalance_tasks.control.cleanup import run_cleanup
from rebalance_tasks.control.metering.table import METRICS
from rebalance_tasks.control.metering.text import metrics_app
from rebalance_tasks.control.metrics import FleetCollector
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.control.throttles import set_node_throttle
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.store.abandon import abandon
from rebalance_tasks.store.presence import Presence
from tests.support.arena import Arena, arena_of, objects
from tests.support.engine import moves_between
from tests.support.hooks import SIZES
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rebalance_tasks.embedded import EmbeddedServer
    from tests.support.engine import Engine
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

Values = dict[tuple[str, tuple[str, ...]], float]


def exposition(engine: Engine) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(engine.context, lambda queues: dict.fromkeys(queues, 0)))
    return generate_latest(registry).decode()


def values(text: str) -> Values:
    """(name, values of the labels but the fleet) → value."""
    return {
        (sample.name, tuple(value for name, value in sample.labels.items() if name != "fleet")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def totals(engine: Engine) -> Values:
    found = values(exposition(engine))
    return {key: value for key, value in found.items() if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}


def names(text: str) -> set[str]:
    """Names of the table's metrics that a text has samples of."""
    seen = {name for name, _ in values(text)}
    return {metric.name for metric in METRICS if metric.name in seen or f"{metric.name}_count" in seen}


def test_a_busy_fleet_serves_every_metric_of_the_table(engine: Engine, fleet: Fleet) -> None:
    run_check(engine.context, force=True, by="test")
    engine.start(moves_between("n1", "n2", SIZES))
    engine.context.presence.publish(
        Presence("w@h", engine.context.settings.digest(), engine.context.connection.now_ms())
    )
    lifecycle.pause(engine.context, "j1")
    fleetwide.pause_node(engine.context, "n2")
    set_node_throttle(engine.context, "n2", "write", 1000)
    engine.context.fleet.set_node_state("n1", NodeState.DRAINING)
    engine.context.connection.hset(engine.context.keys.awaiting, {"n1": 7})
    engine.context.connection.hset(engine.context.keys.reserved("n2"), {"j0/g0/0": 9, "j0/g1/0": 1})
    engine.context.counters.add({"tasks:check:done": 1, "cause:target_full": 2})
    held = exposition(engine)
    fleetwide.resume_node(engine.context, "n2")
    lifecycle.resume(engine.context, "j1")
    run_sweep(engine.context)
    run_cleanup(engine.context)
    running = exposition(engine)
    engine.slice()
    run_sweep(engine.context)
    seen = names(held) | names(running) | names(exposition(engine))
    # The pace is known only while some of many moves have ended; nodes are measured in a fleet that asks for it (below).
    assert {metric.name for metric in METRICS} - seen <= {"rebalance_job_eta_seconds", "rebalance_node_latency_seconds"}
    found = values(held)
    assert found["rebalance_node_reserved_bytes", ("n2",)] == 10
    assert found["rebalance_node_trash_bytes", ("n1",)] == 7
    assert found["rebalance_node_rate_bytes", ("write", "n2", "limit")] == 1000


def test_totals_never_go_back_while_a_job_runs_ends_and_is_forgotten(engine: Engine) -> None:
    before = totals(engine)
    job_id = engine.start(moves_between("n1", "n2", SIZES))
    steps: list[Callable[[], object]] = [
        engine.slice,
        lambda: run_sweep(engine.context),
        lambda: run_sweep(engine.context),
        lambda: engine.context.connection.client.delete(engine.context.keys.job(job_id).base),
    ]
    for step in steps:
        step()
        after = totals(engine)
        assert {key for key in before if after.get(key, 0) < before[key]} == set()
        before = after
    assert before["rebalance_moves_total", ("completed",)] == len(SIZES)
    assert before["rebalance_moved_bytes_total", ()] == sum(SIZES.values())
    assert before["rebalance_jobs_total", ("completed",)] == 1
    assert before["rebalance_job_duration_seconds_count", ()] == 1


def test_a_job_that_is_given_up_counts_all_its_moves_once(engine: Engine) -> None:
    job_id = engine.start(moves_between("n1", "n2", SIZES))
    context = engine.context
    for _ in range(2):
        abandon(context.connection, context.keys, job_id, why="lost", now_ms=context.connection.now_ms())
    found = totals(engine)
    assert found["rebalance_moves_total", ("failed",)] == len(SIZES)
    assert found["rebalance_move_causes_total", ("state_lost",)] == len(SIZES)
    assert found["rebalance_jobs_total", ("failed",)] == 1


def test_a_cause_that_nobody_knows_makes_no_series_of_its_own(engine: Engine) -> None:
    engine.context.counters.add({f"cause:{number}": 1 for number in range(50)} | {"cause:target_full": 2})
    causes = {
        labels: value for (name, labels), value in totals(engine).items() if name == "rebalance_move_causes_total"
    }
    assert causes == {("other",): 50, ("target_full",): 2}


def test_labels_hold_no_keys_no_urls_and_no_ids_of_jobs(engine: Engine, fleet: Fleet) -> None:
    engine.start(moves_between("n1", "n2", SIZES), job_id="job-with-a-name")
    text = exposition(engine)
    secrets = ["job-with-a-name", fleet.redis_url, *map(str, fleet.roots.values()), *SIZES]
    assert [secret for secret in secrets if secret in text.replace("rebalance_", "")] == []


def test_without_redis_only_that_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(type(engine.context.connection.client), "execute_command", away)
    assert values(exposition(engine)) == {("rebalance_redis_up", ()): 0.0}


def served(collector: FleetCollector, **environ: str) -> tuple[dict[str, str], bytes]:
    """What the application answers to a GET."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    told: dict[str, str] = {}
    given = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", **environ}

    def start(_status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        told.update(headers)

    return told, b"".join(metrics_app(collector, registry)(given, start))


def test_what_is_served_is_what_the_library_would_write(engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    engine.slice()
    run_sweep(engine.context)
    collector = FleetCollector(engine.context, lambda queues: dict.fromkeys(queues, 0))
    for _ in range(2):  # the second time from what was kept of the first
        headers, body = served(collector)
        # How long nothing came on, and when the sweep ran, go by the clock.
        assert [line.rpartition(b" ")[0] for line in body.splitlines()] == [
            line.rpartition(b" ")[0] for line in exposition(engine).encode().splitlines()
        ]
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    headers, packed = served(collector, HTTP_ACCEPT_ENCODING="gzip", HTTP_ACCEPT="application/openmetrics-text")
    assert headers["Content-Encoding"] == "gzip"
    assert names(gzip.decompress(packed).decode()) == names(body.decode())
    _, body = served(collector, REQUEST_METHOD="POST")
    assert b"use OPTIONS or GET" in body


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: prometheus)")
def test_promtool_finds_nothing_to_say_of_the_metrics(engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    engine.slice()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], check=False, input=exposition(engine), capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


# -- real workers, the real command ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena_of(
        tmp_path_factory.mktemp("arena"), nodes=("a", "b"), capacity_bytes=50_000, concurrency=2, log_level="INFO"
    ) as made:
        yield made


def test_tasks_of_all_children_count_and_say_one_line_each(arena: Arena) -> None:
    arena.fill({"a": objects(40, 1000)})
    arena.send("check")
    arena.send("pause", job_id="rebal-nobody")
    log = arena.worker.log_path
    wait_until(lambda: "task=rebalance.finalize" in log.read_text() or None, 40, "the job has been closed")
    arena.wait_idle()
    lines = [line for line in log.read_text().splitlines() if "task.done" in line]
    assert all(line.count("task_id=") == 1 and "seconds=" in line for line in lines)
    (check,) = [line for line in lines if "task=rebalance.check" in line]
    assert "verdict=started" in check
    assert any("task=rebalance.migrate" in line and "outcome=terminal" in line and "job_id=" in line for line in lines)

    def counted() -> bool:
        found = arena.context.counters.totals()
        return found["tasks:check:done"] == 1 and found["tasks:migrate:done"] >= 1 and found["tasks:finalize:done"] >= 1

    wait_until(counted, 40, "both children have added their counts", interval_s=0.3)


def test_the_command_serves_to_loopback_until_it_is_told_to_end(arena: Arena, tmp_path: Path) -> None:
    arena.fill({"a": objects(4, 1000)})
    arena.rebalancer.check()
    arena.app.send_task("rebalance.nothing", queue="rebalance.data.nobody")
    command = [sys.executable, "-c", "from rebalance_tasks.cli import main; main()", "metrics", "--port", "0"]
    env = {**os.environ, "REBALANCE_CONFIG": str(arena.fleet.config)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        found = values(urllib.request.urlopen(url, timeout=10).read().decode())  # noqa: S310  checked above
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert found["rebalance_queue_messages", ("rebalance.control",)] == 0
    assert found["rebalance_node_used_bytes", ("a",)] == 4000
    assert found["rebalance_redis_up", ()] == 1


def test_a_taken_port_is_named_with_the_way_out(
    arena: Arena, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rebalance_tasks.cli.app import run

    monkeypatch.setenv("REBALANCE_CONFIG", str(arena.fleet.config))
    port = arena.redis_url.rpartition(":")[2].partition("/")[0]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert run(["metrics", "--port", port]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before, "what this process starts next could not be stopped"


def test_once_prints_what_the_client_has_to_say(
    arena: Arena, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rebalance_tasks.cli.app import run

    monkeypatch.setenv("REBALANCE_CONFIG", str(arena.fleet.config))
    assert run(["metrics", "--once"]) == 0
    assert names(capsys.readouterr().out) == names(
        generate_latest(Rebalancer(arena.rebalancer.settings).metrics_registry()).decode()
    )
