"""A server, a fleet on a memory file system where there is one, and a worker, for the length of one benchmark."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebalance_tasks.demo.processes import CeleryWorker
from rebalance_tasks.embedded import start_server
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rebalance_tasks.embedded import EmbeddedServer
    from tests.support.fleets import Fleet


def scratch_base() -> Path | None:
    """Where folders lie in memory, where that is possible: what is measured is ours, not the disk."""
    memory = Path("/dev/shm")  # noqa: S108  private folders are made in it
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None


def scratch() -> Path:
    """A new folder, in memory where that is possible."""
    return Path(tempfile.mkdtemp(prefix="rebalance-bench-", dir=scratch_base()))


@contextmanager
def world(
    nodes: Mapping[str, NodeSpec],
    *,
    options: Mapping[str, Any] | None = None,
    app: str = "rebalance_tasks",
    concurrency: int = 2,
) -> Iterator[tuple[Fleet, EmbeddedServer]]:
    """Start a server and a worker over a fleet; everything ends with the context."""
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        with start_server(folder / "redis") as server:
            fleet = write_fleet(folder, redis_url=server.url, nodes=nodes, options=options)
            os.environ["REBALANCE_CONFIG"] = str(fleet.config)
            log_path = folder / "worker.log"
            worker = CeleryWorker(
                broker_url=server.url, log_path=log_path, env=dict(os.environ), app=app, concurrency=concurrency
            )
            try:
                worker.wait_ready()
                yield fleet, server
            finally:
                worker.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
