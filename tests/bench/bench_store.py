"""What a small object costs in Redis and in saying to Redis what it is to keep: processor time, not time on the clock.

The engine runs in this process over real files of 4 KiB in memory. Of the worker only what has to do with the store counts:
taking a stretch, journalling, flipping and settling it, with all that is built and packed for that. The server's part is what
it says of itself (``INFO cpu``), the heartbeats and the rewriting of its file included.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from rebalance_tasks.embedded import start_server
from rebalance_tasks.migration import slice as slices
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.store.leases import LeaseStore
from rebalance_tasks.store.moves import MoveStore
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.report import Report

OBJECTS: Final = 20_000
SIZE_BYTES: Final = 4096
ROUNDS: Final = 3
LIMIT_US: Final = 8.0
PLENTY: Final = 10**12
#: Where a worker builds, packs and reads what Redis keeps.
MEASURED: Final[tuple[tuple[Any, str], ...]] = (
    (LeaseStore, "acquire_lease"),
    (slices, "_items"),
    (Batch, "_begin"),
    (Batch, "_journal_staged"),
    (MoveStore, "flip"),
    (Batch, "_settle"),
)


def run(report: Report) -> None:
    """Move the objects a few times, each time in a fleet of its own."""
    server_us, worker_us = zip(*(_round() for _ in range(ROUNDS)), strict=True)
    for name, samples in (("the server", server_us), ("the worker", worker_us)):
        report.add(
            Figure(
                name=f"the store's part of an object of 4 KiB, in {name} (median of {ROUNDS} × {OBJECTS:,})",
                value=statistics.median(samples),
                unit="µs",
                limit=LIMIT_US,
                command="python -m tests.bench store",
                samples={"us": list(samples)},
            )
        )


def _round() -> tuple[float, float]:
    """Return processor time of the server and of the worker's part, µs an object."""
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        with start_server(folder / "redis") as server:
            sizes = {f"folder-{number // 1000:03d}/object-{number:06d}.bin": SIZE_BYTES for number in range(OBJECTS)}
            nodes = {"a": NodeSpec(sizes, capacity_bytes=PLENTY), "b": NodeSpec(capacity_bytes=PLENTY)}
            options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": PLENTY}
            fleet = write_fleet(folder, redis_url=server.url, nodes=nodes, options=options)
            with mock.patch.dict(os.environ, {"REBALANCE_CONFIG": str(fleet.config)}):
                return _carry(Engine(), sizes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _carry(engine: Engine, sizes: dict[str, int]) -> tuple[float, float]:
    engine.start(moves_between("a", "b", sizes))
    spent = [0.0]
    # As a worker's process does after its fork: what was there before is no work for the collector.
    gc.collect()
    gc.freeze()
    begun = _server_s(engine)
    with ExitStack() as patches:
        for owner, name in MEASURED:
            patches.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), spent)))
        job = engine.finish()
    if job.completed_moves != len(sizes):
        msg = f"only {job.completed_moves} of {len(sizes)} moves completed: {job.failures}"
        raise RuntimeError(msg)
    return (_server_s(engine) - begun) / len(sizes) * 1e6, spent[0] / len(sizes) * 1e6


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Add the processor time of each call of a function to ``spent``."""

    def timed(*args: Any, **options: Any) -> Any:
        begun = time.thread_time()
        try:
            return function(*args, **options)
        finally:
            spent[0] += time.thread_time() - begun

    return timed


def _server_s(engine: Engine) -> float:
    used: Any = engine.context.connection.client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
