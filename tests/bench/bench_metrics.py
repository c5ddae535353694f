"""A scrape of a fleet of 1,000 nodes over loopback, and `rebalance status` from a cold start."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Final

from prometheus_client import start_http_server

from rebalance_tasks import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.embedded import start_server
from rebalance_tasks.settings import load_settings
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report

NODES: Final = 1_000
SCRAPES: Final = 31
COLD_STARTS: Final = 15
SCRAPE_LIMIT_MS: Final = 50.0
STATUS_LIMIT_MS: Final = 400.0
STATUS: Final = "from rebalance_tasks.cli import main; main()"


def run(report: Report) -> None:
    """Measure both on one fleet with a running job."""
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        with start_server(folder / "redis") as server:
            _measure(report, folder, server.url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(report: Report, folder: Path, redis_url: str) -> None:
    nodes = {f"node-{number:04d}": NodeSpec(settings={"zone": f"z{number % 8}"}) for number in range(NODES)}
    fleet = write_fleet(folder, redis_url=redis_url, nodes=nodes)
    client = Rebalancer(load_settings(fleet.config, environ={}))
    context = client._context
    context.fleet.set_usage({node: 500_000 + 400 * number for number, node in enumerate(nodes)})
    context.fleet.set_capacities(dict.fromkeys(nodes, 1_000_000))
    context.connection.hset(context.keys.awaiting, dict.fromkeys(nodes, 1))
    moves = [
        RebalanceMove(object_key=f"o{n}", source_node="node-0999", target_node=f"node-{n:04d}", size_bytes=9)
        for n in range(500)
    ]
    client.start(RebalancePlan(plan_id="p1", fleet="test", moves=tuple(moves)), "j1")
    http, _ = start_http_server(0, addr="127.0.0.1", registry=client.metrics_registry())
    http.set_app(client.metrics_app())
    url = f"http://127.0.0.1:{http.server_port}/metrics"
    _get(url)  # a first scrape opens the connections
    scrapes, cpu = [], []
    for _ in range(SCRAPES):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        text = _get(url)
        scrapes.append((time.perf_counter() - begun) * 1000)
        cpu.append((time.process_time() - cpu_begun) * 1000)
    http.shutdown()
    report.add(
        Figure(
            f"scrape of {NODES:,} nodes, median of {SCRAPES}",
            statistics.median(scrapes),
            "ms",
            SCRAPE_LIMIT_MS,
            "python -m tests.bench metrics",
            {"ms": scrapes, "cpu ms": cpu},
            f"CPU time {statistics.median(cpu):.0f} ms, worst {max(scrapes):.0f} ms, {len(text.splitlines()):,} lines",
        )
    )
    env = {**os.environ, "REBALANCE_CONFIG": str(_small(folder, redis_url))}
    # As after `pip install`, which leaves bytecode: a machine that is told to write none compiled a hundred modules each time.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-c", STATUS, "status", "j1"], env=env, check=True, capture_output=True)
    starts, cpu = [], []
    for _ in range(COLD_STARTS):
        begun, cpu_begun = time.perf_counter(), _children_s()
        subprocess.run([sys.executable, "-c", STATUS, "status", "j1"], env=env, check=True, capture_output=True)
        starts.append((time.perf_counter() - begun) * 1000)
        cpu.append((_children_s() - cpu_begun) * 1000)
    report.add(
        Figure(
            f"`rebalance status` from a cold start, median of {COLD_STARTS}",
            statistics.median(starts),
            "ms",
            STATUS_LIMIT_MS,
            "python -m tests.bench metrics",
            {"ms": starts, "cpu ms": cpu},
            f"CPU time {statistics.median(cpu):.0f} ms, best {min(starts):.0f} ms, worst {max(starts):.0f} ms",
        )
    )


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:  # noqa: S310  our own server
        body: bytes = answer.read()
    return body


def _children_s() -> float:
    """CPU time of the children that have ended, which a busy machine stretches less than the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _small(folder: Path, redis_url: str) -> Path:
    """The configuration of a fleet of ordinary size."""
    (folder / "small").mkdir()
    return write_fleet(folder / "small", redis_url=redis_url, nodes={"a": {}, "b": {}, "c": {}}).config
