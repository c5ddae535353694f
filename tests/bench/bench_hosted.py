"""What a host's catalogue costs: a job and a `locate` with the example on SQLite against the same with Redis' own.

Processor time of this process, in turn, so that a busy machine adds to both. The host's part runs in it too, so nothing is left out.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from rebalance_tasks.control.locate import Locator
from rebalance_tasks.embedded import start_server
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support import host
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report

SIZES: Final = {f"{number % 50}/{number:05d}": 4096 for number in range(4000)}
LOOKUPS: Final = 3000
ROUNDS: Final = 7
#: One transaction for each batch of 1,024 objects must not cost as much as a quarter of moving them.
JOB_LIMIT: Final = 1.25
#: A query of SQLite besides the question to Redis and the look on the node.
LOCATE_LIMIT: Final = 2.0
COMMAND: Final = "python -m tests.bench hosted"


def run(report: Report) -> None:
    """Both in turn; the ratio of the medians, and of each pair."""
    folder = scratch()
    jobs: dict[str, list[float]] = {"redis": [], "host": []}
    lookups: dict[str, list[float]] = {"redis": [], "host": []}
    try:
        for number in range(ROUNDS):
            for kind, service in (("redis", {"locator": "catalogue"}), ("host", host.HOSTED)):
                job_s, locate_s = _round(folder / f"{kind}-{number}", service)
                jobs[kind].append(job_s)
                lookups[kind].append(locate_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, taken, limit in (("job of 4,000 × 4 KiB", jobs, JOB_LIMIT), ("locate", lookups, LOCATE_LIMIT)):
        ratios = sorted(ours / theirs for ours, theirs in zip(taken["host"], taken["redis"], strict=True))
        series = {f"{kind}_cpu_s": values for kind, values in taken.items()}
        detail = (
            f"{sorted(taken['host'])[ROUNDS // 2]:.3f} s against {sorted(taken['redis'])[ROUNDS // 2]:.3f} s of CPU"
        )
        report.add(
            Figure(f"hosted: {name} ÷ Redis' catalogue", ratios[ROUNDS // 2], "×", limit, COMMAND, series, detail)
        )


def _round(folder: Path, service: dict[str, Any]) -> tuple[float, float]:
    """Seconds of CPU that a job took, and the lookups after it."""
    (folder / "redis").mkdir(parents=True)
    options = {"throttle_bytes_per_sec": "none", "max_moves_per_cycle": 10**5}
    nodes = {"n1": NodeSpec(SIZES, 10**9), "n2": NodeSpec({}, 10**9)}
    with start_server(folder / "redis") as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("REBALANCE_")]:
            patch.delenv(name)
        host.install(folder, patch)
        made = write_fleet(folder, redis_url=server.url, nodes=nodes, options=options, fleet=service)
        patch.setenv("REBALANCE_CONFIG", str(made.config))
        if service is host.HOSTED:
            host.fill(made.roots)
        engine = Engine()
        engine.start(moves_between("n1", "n2", SIZES))
        begun = time.process_time()
        completed = engine.finish().completed_moves
        job_s = time.process_time() - begun
        if completed != len(SIZES):
            msg = f"{completed} of {len(SIZES)} moves were completed"
            raise AssertionError(msg)
        locator = Locator(engine.context)
        begun = time.process_time()
        for key in list(SIZES)[:LOOKUPS]:
            locator.locate(key)
        return job_s, time.process_time() - begun
