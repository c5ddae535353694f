"""How exactly the throttle holds: bytes on the target, sampled every 100 ms while a real worker copies one large object.

Two figures per rate: the worst of all ten-second windows (how far the average is off, either way) and the worst of all
one-second windows (how far it is exceeded). One rate is fast, one slow, and one is shared by several slices.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import MIB
from tests.bench import world as worlds
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report

RATES: Final = (50 * MIB, MIB)
#: The average over ten seconds is off by this share at most …
AVERAGE_LIMIT: Final = 0.03
#: … and no second is over by more than this.
PEAK_LIMIT: Final = 0.20
SAMPLE_S: Final = 0.1
#: Windows of ten seconds, over so long that a slice (20 s) ends and another one begins.
RUN_S: Final = 24.0


def run(report: Report, *, seconds: float = RUN_S) -> None:
    """Measure each rate with a worker of its own."""
    for rate in RATES:
        samples = _samples(rate, seconds)
        average, peak = average_error(samples, rate), peak_excess(samples, rate)
        command = "python -m tests.bench throttle"
        name = f"{rate // MIB} MiB/s"
        series = {"elapsed_s": [at for at, _ in samples], "bytes": [float(size) for _, size in samples]}
        mean = (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])
        detail = f"{mean / rate * 100:.2f} % of the rate over {samples[-1][0] - samples[0][0]:.0f} s"
        report.add(
            Figure(
                f"throttle at {name}, worst ten seconds off by", average, "×", AVERAGE_LIMIT, command, series, detail
            )
        )
        report.add(Figure(f"throttle at {name}, worst second over by", peak, "×", PEAK_LIMIT, command, {}))


def average_error(samples: list[tuple[float, int]], rate: int, *, window_s: float = 10.0) -> float:
    """Worst deviation of the average over a window, as a share of the rate."""
    return max(abs(share - 1) for share in _shares(samples, rate, window_s))


def peak_excess(samples: list[tuple[float, int]], rate: int, *, window_s: float = 1.0) -> float:
    """Worst excess of a window over the rate, as a share of the rate (0 when there is none)."""
    return max(0.0, *(share - 1 for share in _shares(samples, rate, window_s)))


def _shares(samples: list[tuple[float, int]], rate: int, window_s: float) -> list[float]:
    """What went through in each window (from each sample to the first one that is so much later), as a share of the rate."""
    shares, end = [], 0
    for begun, size in samples:
        while end < len(samples) and samples[end][0] - begun < window_s - SAMPLE_S / 10:
            end += 1
        if end == len(samples):
            break
        at, later = samples[end]
        shares.append((later - size) / ((at - begun) * rate))
    return shares


def _samples(rate: int, seconds: float) -> list[tuple[float, int]]:
    size = int(rate * (seconds + 4))
    nodes = {name: NodeSpec(files={}, capacity_bytes=4 * size) for name in ("a", "b")}
    with worlds.world(nodes, options={"throttle_bytes_per_sec": rate}) as (fleet, _):
        _fill(fleet.roots["a"] / "big.bin", size)
        move = RebalanceMove(object_key="big.bin", source_node="a", target_node="b", size_bytes=size)
        rebalancer = Rebalancer()
        job = rebalancer.start(RebalancePlan(plan_id="throttle", fleet="test", moves=(move,)))
        staged = fleet.roots["b"] / ".rebalance" / "tmp" / f"{job.job_id}.0"
        samples = _watch(staged, seconds)
        rebalancer.cancel(job.job_id)
    return samples


def _fill(path: Path, size: int) -> None:
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
        file.truncate(size)


def _watch(path: Path, seconds: float) -> list[tuple[float, int]]:
    """(seconds since the copy was begun, bytes on the target), every 100 ms."""
    patience = time.perf_counter() + 30
    while not path.exists():
        if time.perf_counter() > patience:
            sys.exit(f"{path.name} was not begun within 30 s")
        time.sleep(0.001)
    begun = time.perf_counter()
    samples = []
    while (elapsed := time.perf_counter() - begun) < seconds:
        samples.append((elapsed, path.stat().st_size))
        time.sleep(max(0.0, begun + len(samples) * SAMPLE_S - time.perf_counter()))
    return samples
