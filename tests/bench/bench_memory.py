"""How much memory a worker takes: the largest resident set of any of its processes while one 10 GiB object moves.

The object is a sparse file with data in it here and there, so that it needs no 10 GiB of disk; every byte of it is read,
written (holes are kept) and read back all the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import MIB
from tests.bench import world as worlds
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.report import Report

OBJECT_BYTES: Final = 10 * 1024 * MIB
#: A mebibyte of data in so many.
DATA_EVERY_BYTES: Final = 64 * MIB
LIMIT_MB: Final = 300.0
PLENTY: Final = 10**13
TIMEOUT_S: Final = 600.0
SAMPLE_S: Final = 0.05


def run(report: Report, *, object_bytes: int = OBJECT_BYTES) -> None:
    """Move one object and watch the worker's processes."""
    if not Path("/proc/self/status").exists():
        report.skip("memory of a worker", "there is no /proc here")
        return
    nodes = {name: NodeSpec(files={}, capacity_bytes=PLENTY) for name in ("a", "b")}
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": PLENTY}
    scratch = Path(tempfile.mkdtemp(prefix="rebalance-bench-"))
    with (
        mock.patch.object(worlds, "scratch", return_value=scratch),
        worlds.world(nodes, options=options) as (fleet, _),
    ):
        _write(fleet.roots["a"] / "big.bin", object_bytes)
        rebalancer = Rebalancer()
        rebalancer.adopt()
        move = RebalanceMove(object_key="big.bin", source_node="a", target_node="b", size_bytes=object_bytes)
        job = rebalancer.start(RebalancePlan(plan_id="memory", fleet="test", moves=(move,)))
        samples: list[float] = []
        deadline = time.monotonic() + TIMEOUT_S
        while not (job := rebalancer.status(job.job_id)).status.terminal and time.monotonic() < deadline:
            samples.append(max(_resident_mb(pid) for pid in _below(os.getpid())))
            time.sleep(SAMPLE_S)
        if job.completed_moves != 1:
            sys.exit(f"the object did not move: {job!r}")
    report.add(
        Figure(
            name=f"largest process of a worker that moves an object of {object_bytes // MIB // 1024} GiB",
            value=max(samples),
            unit="MB",
            limit=LIMIT_MB,
            command="python -m tests.bench memory",
            samples={"resident_mb": samples},
            detail=f"{len(samples)} samples over {len(samples) * SAMPLE_S:.0f} s and more",
        ),
    )


def _write(path: Path, size: int) -> None:
    block = os.urandom(MIB)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, DATA_EVERY_BYTES):
            file.seek(offset)
            file.write(block)
        file.truncate(size)


def _below(pid: int) -> Iterator[int]:
    """Yield the Python processes that descend from one: the worker and its children."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            try:
                if b"celery" in Path(f"/proc/{child}/cmdline").read_bytes():
                    yield child
                yield from _below(child)
            except FileNotFoundError:
                continue


def _resident_mb(pid: int) -> float:
    """Largest resident set so far (VmHWM), in 10⁶ bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)
