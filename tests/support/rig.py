"""A fleet with a real worker on whatever Redis a test has set up (its own server, behind TLS, by Sentinel, as a lesser user)."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from rebalance_tasks.control.cleanup import run_cleanup
from rebalance_tasks.control.sweep import run_sweep
from tests.support import checker
from tests.support.arena import JOB_TIMEOUT_S, context_of, rebalancer_of
from tests.support.engine import hurry
from tests.support.fleets import Fleet, NodeSpec, write_fleet
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from tests.support.workers import Worker

#: Enough objects on one node that a job has several groups, and few enough that it takes a second.
OBJECTS = 24
SIZE = 20_000
DAY_MS = 86_400_000
#: A runner under a throttle renews its lease every 50 ms, one that copies freely at least every 3 s.
QUIET_MS = 3_500


@dataclass
class Rig:
    """One fleet, its client, and what was written to it."""

    fleet: Fleet
    processes: ProcessFactory
    env: Mapping[str, str]
    rebalancer: Rebalancer = field(init=False)
    context: FleetContext = field(init=False)
    written: checker.Written = field(init=False)

    def __post_init__(self) -> None:
        self.rebalancer = rebalancer_of(self.fleet)
        self.context = context_of(self.rebalancer)
        self.written = checker.record(self.fleet.roots)

    def worker(self, **options: Any) -> Worker:
        """Start a worker and wait until it has said (in Redis) that it serves."""
        worker = self.processes.worker(wait=False, env=self.env, **options)

        def ready() -> bool:
            worker.require_alive()
            with suppress(RedisError):
                return bool(self.context.digests())
            return False

        wait_until(ready, JOB_TIMEOUT_S, "the worker has published its digest")
        return worker

    def start(self) -> RebalanceJob:
        """Plan and start a job ``j1``."""
        return self.rebalancer.start(self.rebalancer.plan(), "j1")

    def wait_moving(self) -> None:
        """Wait until bytes are on their way."""
        wait_until(lambda: self.rebalancer.status("j1").completed_moves > 0, JOB_TIMEOUT_S, "objects move")

    def finish(self) -> RebalanceJob:
        """Do what beat would do, with waiting times cut short, until the job is over."""

        def over() -> RebalanceJob | None:
            job = None
            with suppress(RedisError):
                job = self.rebalancer.status("j1")
                if not job.status.terminal:
                    groups = self.context.jobs.groups("j1")
                    hurry(self.context.connection, self.context.keys.job("j1"), groups, quiet_ms=QUIET_MS)
                    run_sweep(self.context)
            return job if job is not None and job.status.terminal else None

        return wait_until(over, JOB_TIMEOUT_S, "the job is over", interval_s=0.5)

    def check(self, job: RebalanceJob, *, completed: int | None = None) -> None:
        """Everything is whole, where it should be, and counted; nothing is left over after cleanups."""
        for _ in range(2):
            client = self.context.connection.client
            for move_id in self.context.connection.zrange_due(self.context.keys.trash_due, 2**52, 10_000):
                client.zincrby(self.context.keys.trash_due, -DAY_MS, move_id)
            run_cleanup(self.context)
        checker.check(self.fleet.roots, self.written, job, trash=True)
        assert job.completed_moves == (job.total_moves if completed is None else completed), dict(job.failures)
        assert job.total_moves > 0


@contextmanager
def rig(directory: Path, redis_url: str, *, options: Mapping[str, Any] | None = None, **fleet: Any) -> Iterator[Rig]:
    """Make a fleet with one full node and two empty ones; its processes end with the context.

    Args:
        directory: of the test.
        redis_url: of state, broker and results.
        options: of ``[options]``.
        fleet: of ``[fleet]``.
    """
    capacity = OBJECTS * SIZE * 2
    nodes = {
        "a": NodeSpec({f"o/{number:02d}": SIZE + number for number in range(OBJECTS)}, capacity),
        "b": NodeSpec({}, capacity),
        "c": NodeSpec({}, capacity),
    }
    made = write_fleet(directory, redis_url=redis_url, nodes=nodes, options=options, fleet=fleet)
    env = {name: value for name, value in os.environ.items() if not name.startswith("REBALANCE_")}
    for name in [name for name in os.environ if name.startswith("REBALANCE_")]:
        env[name] = ""
    factory = ProcessFactory(directory, redis_url)
    try:
        yield Rig(made, factory, {**env, "REBALANCE_CONFIG": str(made.config)})
    finally:
        factory.stop_all()
        # Captured output of the teardown is part of a failing test's report only.
        print(factory.logs())  # noqa: T201
