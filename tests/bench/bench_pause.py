"""How fast a pause bites and a resume bites back: seconds to the last byte, seconds to the first, over a large object."""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Final

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from tests.bench import world as worlds
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report

PAUSES: Final = 50
OBJECT_BYTES: Final = 1 << 30
#: Slow enough that the object outlasts all pauses.
RATE: Final = 40 * 2**20
PAUSE_LIMIT_S: Final = 0.25
RESUME_LIMIT_S: Final = 0.5
#: After this long without a byte the copy stands still.
STILL_S: Final = 0.5


def run(report: Report, *, pauses: int = PAUSES) -> None:
    """Pause and resume one 1 GiB object again and again."""
    nodes = {name: NodeSpec(files={}, capacity_bytes=10 * OBJECT_BYTES) for name in ("a", "b")}
    stops: list[float] = []
    starts: list[float] = []
    with worlds.world(nodes, options={"throttle_bytes_per_sec": RATE}) as (fleet, _):
        with (fleet.roots["a"] / "big.bin").open("wb") as file:
            for _ in range(OBJECT_BYTES // (1 << 20)):
                file.write(os.urandom(1 << 20))
        rebalancer = Rebalancer()
        move = RebalanceMove(object_key="big.bin", source_node="a", target_node="b", size_bytes=OBJECT_BYTES)
        job = rebalancer.start(RebalancePlan(plan_id="pauses", fleet="test", moves=(move,)))
        staged = fleet.roots["b"] / ".rebalance" / "tmp" / f"{job.job_id}.0"
        _grow(staged, 0)
        for number in range(pauses):
            # In the middle of steady copying, at another phase of the throttle and of the looks at the flags each time.
            time.sleep(0.1 + number * 0.037 % 0.2)
            begun = time.perf_counter()
            rebalancer.pause(job.job_id)
            last, size = _last_growth(staged)
            stops.append(max(0.0, last - begun))
            begun = time.perf_counter()
            rebalancer.resume(job.job_id)
            starts.append(_grow(staged, size) - begun)
        rebalancer.cancel(job.job_id)
    for name, samples, limit in (
        ("pause to the last byte", stops, PAUSE_LIMIT_S),
        ("resume to the first byte", starts, RESUME_LIMIT_S),
    ):
        report.add(
            Figure(
                name=f"{name}, worst of {pauses} (1 GiB object in flight)",
                value=max(samples),
                unit="s",
                limit=limit,
                command="python -m tests.bench pause",
                samples={"seconds": samples},
                detail=f"median {statistics.median(samples) * 1000:.0f} ms",
            ),
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _grow(path: Path, size: int) -> float:
    """Wait until the file is larger than ``size``; return when."""
    deadline = time.perf_counter() + 30
    while _size(path) <= size:
        if time.perf_counter() > deadline:
            sys.exit(f"{path.name} did not grow within 30 s")
        time.sleep(0.001)
    return time.perf_counter()


def _last_growth(path: Path) -> tuple[float, int]:
    """Watch until the file stands still; return when it last grew, and its size."""
    size, at = _size(path), 0.0
    quiet_since = time.perf_counter()
    while time.perf_counter() - quiet_since < STILL_S:
        now = _size(path)
        if now != size:
            size, at = now, time.perf_counter()
            quiet_since = at
        time.sleep(0.001)
    return at, size
