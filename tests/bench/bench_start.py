"""What a start costs: processor time a move, from a kept plan to a created job, in the process that decides."""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import time
from typing import TYPE_CHECKING, Final
from unittest import mock

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.control.start import start_job
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.embedded import start_server
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rebalance_tasks.control.context import FleetContext
    from tests.bench.report import Report

MOVES: Final = 50_000
PAIRS: Final = 8
FOLDER_OBJECTS: Final = 1_000
SIZE_BYTES: Final = 100
ROUNDS: Final = 3
#: (epoch of the plan, what that asks of a start, µs a move): a plan of an epoch that is over has its objects looked at.
CASES: Final = ((0, "from a plan of now", 5.0), (1, "from an older plan, looking at each source", 10.0))


def run(report: Report) -> None:
    """Start a plan of each kind a few times."""
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        with start_server(folder / "redis") as server:
            nodes = {f"{side}{n}": NodeSpec(capacity_bytes=10**12) for n in range(PAIRS) for side in "st"}
            fleet = write_fleet(folder, redis_url=server.url, nodes=nodes)
            with mock.patch.dict(os.environ, {"REBALANCE_CONFIG": str(fleet.config)}):
                rebalancer = Rebalancer()
                rebalancer.adopt()
                moves = tuple(_move(fleet.roots, number) for number in range(MOVES))
                for epoch, kind, limit in CASES:
                    report.add(_figure(rebalancer._context, moves, epoch, kind, limit))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(roots: Mapping[str, Path], number: int) -> RebalanceMove:
    """One move, with its object in place."""
    pair = number % PAIRS
    key = f"objects/{number // PAIRS // FOLDER_OBJECTS:04d}/{number:07d}.bin"
    path = roots[f"s{pair}"] / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(SIZE_BYTES))
    return RebalanceMove(object_key=key, source_node=f"s{pair}", target_node=f"t{pair}", size_bytes=SIZE_BYTES)


def _figure(context: FleetContext, moves: tuple[RebalanceMove, ...], epoch: int, kind: str, limit_us: float) -> Figure:
    samples = [
        _start(context, RebalancePlan(plan_id=f"p{epoch}-{n}", fleet="test", moves=moves, epoch=epoch))
        for n in range(ROUNDS)
    ]
    return Figure(
        name=f"a start {kind}, processor time a move ({MOVES:,} moves)",
        value=statistics.median(samples),
        unit="µs",
        limit=limit_us,
        command="python -m tests.bench start",
        samples={"us": samples},
    )


def _start(context: FleetContext, plan: RebalancePlan) -> float:
    """Return µs a move."""
    context.plans.save(plan, fence=None)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    job = start_job(context, plan.plan_id, job_id=f"job-{plan.plan_id}", requested_by="bench")
    spent = time.process_time() - begun
    if job.skipped_moves:
        msg = f"{job.skipped_moves} moves were taken for stale: {job.failures}"
        raise RuntimeError(msg)
    # Nobody works on it: the next one may begin.
    context.connection.client.delete(context.keys.active, context.keys.job(job.job_id).base)
    return spent / len(plan.moves) * 1e6
