"""What a job costs in Redis: 100,000 moves while they run, 10,000 after the end. Real files, real moves, MEMORY USAGE of keys.

While it runs every key of the fleet counts: forwardings, cooldowns and trash records are the job's doing as well. Of the
finished job its own keys and its plan count; the rest has times of its own (`forwarding_ttl`, `object_cooldown`, `grace`).

The engine runs in this process, so that the server's memory can be read between two batches; what is kept in Redis is the
same as with workers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.start import start_job
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.embedded import start_server
from rebalance_tasks.migration.batch import Batch
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report

MB: Final = 10**6
RUNNING_MOVES: Final = 100_000
RUNNING_LIMIT_MB: Final = 50.0
FINISHED_MOVES: Final = 10_000
FINISHED_LIMIT_MB: Final = 1.0
#: Every so many batches the running job is weighed.
EVERY_BATCHES: Final = 40
#: Names as an archive has them: folders that repeat, and a part that no compression can shorten.
KEY: Final = "collections/{0:02d}/2024/{1:02d}/{2}.jpg"
COMMAND: Final = "python -m tests.bench retention"
OPTIONS: Final = {
    "throttle_bytes_per_sec": "none",
    "max_moves_per_cycle": RUNNING_MOVES,
    "grace": "15m",
}


def run(report: Report, *, running: int = RUNNING_MOVES, finished: int = FINISHED_MOVES) -> None:
    """Weigh both."""
    weights, _, heaviest = _job(running)
    report.add(
        Figure(
            name=f"job of {running:,} moves in Redis while it runs (peak of all keys of the fleet)",
            value=max(weights) / MB,
            unit="MB",
            limit=RUNNING_LIMIT_MB,
            command=COMMAND,
            samples={"fleet_mb": [weight / MB for weight in weights]},
            detail=heaviest,
        ),
    )
    _, weight, heaviest = _job(finished)
    report.add(
        Figure(
            name=f"finished job of {finished:,} moves in Redis (its keys and its plan)",
            value=weight / MB,
            unit="MB",
            limit=FINISHED_LIMIT_MB * finished / FINISHED_MOVES,
            command=COMMAND,
            samples={"job_mb": [weight / MB]},
            detail=heaviest,
        ),
    )


def _job(moves: int) -> tuple[list[int], int, str]:
    """Run a job of so many moves of one byte each.

    Returns:
        Bytes of all keys of the fleet from the start to the end, bytes of the ended job's own keys, and the heaviest keys.
    """
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        with start_server(folder / "redis") as server:
            nodes = {name: NodeSpec(files={}, capacity_bytes=10**9) for name in ("a", "b", "c", "d")}
            fleet = write_fleet(folder, redis_url=server.url, nodes=nodes, options=OPTIONS)
            os.environ["REBALANCE_CONFIG"] = str(fleet.config)
            plan = _plan(moves, fleet.roots)
            return _weigh(plan)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plan(count: int, roots: dict[str, Path] | Any) -> RebalancePlan:
    """Write the files and plan to move each: from two nodes to two others."""
    moves: list[RebalanceMove] = []
    for number in range(count):
        key = KEY.format(number % 50, number % 12, hashlib.blake2b(str(number).encode(), digest_size=10).hexdigest())
        source, target = ("a", "c") if number % 2 else ("b", "d")
        path = roots[source] / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        moves.append(RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=1, reason="full"))
    return RebalancePlan(plan_id="retention", fleet="test", moves=tuple(moves), created_utc=None)


def _weigh(plan: RebalancePlan) -> tuple[list[int], int, str]:
    engine = Engine()
    begun = time.perf_counter()
    start_job(engine.context, plan, job_id="retention", requested_by="bench")
    weights = [_memory(engine, all_keys=True)]
    original, batches = Batch.run, [0]

    def weighed(self: Batch) -> int:
        left = original(self)
        batches[0] += 1
        if batches[0] % EVERY_BATCHES == 0:
            weights.append(_memory(engine, all_keys=True))
        return left

    Batch.run = weighed  # type: ignore[method-assign]
    try:
        for _ in range(1000):
            engine.work()
            if engine.job("retention").status.terminal:
                break
            lifecycle.finalize(engine.context, "retention")
    finally:
        Batch.run = original  # type: ignore[method-assign]
    job = engine.job("retention")
    if job.completed_moves != len(plan.moves):
        msg = f"only {job.completed_moves} of {len(plan.moves)} moves completed: {job.failures}"
        raise RuntimeError(msg)
    weights.append(_memory(engine, all_keys=True))
    took = time.perf_counter() - begun
    return weights, _memory(engine), f"{_heaviest(engine)}; {took:.0f} s"


def _sizes(engine: Engine, *, all_keys: bool = False) -> dict[str, int]:
    """MEMORY USAGE of every key, sampled in full."""
    client, prefix = engine.context.connection.client, engine.context.keys.prefix
    patterns = [f"{prefix}*"] if all_keys else [f"{prefix}job:*", f"{prefix}plan:*"]
    keys = [key for pattern in patterns for key in client.scan_iter(pattern, count=1000)]
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.memory_usage(key, samples=0)
    names = (key.decode().removeprefix(prefix) for key in keys)
    return {name: int(size or 0) for name, size in zip(names, pipe.execute(), strict=True)}


def _memory(engine: Engine, *, all_keys: bool = False) -> int:
    return sum(_sizes(engine, all_keys=all_keys).values())


def _heaviest(engine: Engine) -> str:
    sizes = sorted(_sizes(engine, all_keys=True).items(), key=lambda item: -item[1])[:6]
    return ", ".join(f"{name} {size / MB:.2f}" for name, size in sizes)
