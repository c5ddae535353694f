"""An arena: one fleet and one real worker for all tests of a module, emptied between them.

Starting a worker costs seconds, so the tests of a module share one; `Arena.fill` waits until it is idle and takes
everything away that an earlier test left, in Redis and on disk.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery

from rebalance_tasks import Rebalancer
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.embedded import start_server
from rebalance_tasks.settings import load_settings
from tests.support.fleets import Content, Fleet, NodeSpec, made_up, toml_table, write_fleet
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.control.sweep import SweepReport
    from rebalance_tasks.core.models import RebalanceJob
    from tests.support.workers import Worker

QUEUES = ("rebalance.control", "rebalance.data")
#: A job of these tests takes one or two seconds; a busy machine many times that.
JOB_TIMEOUT_S = 40.0


def rebalancer_of(fleet: Fleet, **options: Any) -> Rebalancer:
    """A client of a fleet, optionally with other options than its file says."""
    settings = load_settings(fleet.config, environ={})
    if options:
        changed = settings.options.model_validate({**settings.options.model_dump(), **options})
        settings = settings.model_copy(update={"options": changed})
    return Rebalancer(settings)


def context_of(rebalancer: Rebalancer) -> FleetContext:
    """What the client's verbs work with."""
    return rebalancer._context


def objects(count: int, size: int, prefix: str = "o") -> dict[str, Content]:
    """Names and sizes of so many objects."""
    return {f"{prefix}/{number:04d}.bin": size for number in range(count)}


def tree(fleet: Fleet) -> dict[str, tuple[int, int, bytes]]:
    """Everything on all nodes, ours included: path -> (mtime_ns, mode, content); folders have no content."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for node_id, root in fleet.roots.items():
        for path in (root, *root.rglob("*")):
            status = path.stat()
            content = path.read_bytes() if path.is_file() else b""
            found[f"{node_id}:{path.relative_to(root)}"] = (status.st_mtime_ns, status.st_mode, content)
    return found


def assert_counts_add_up(job: RebalanceJob) -> None:
    """Invariant 3."""
    assert job.completed_moves + job.failed_moves + job.skipped_moves == job.total_moves
    assert sum(job.failures.values()) == job.failed_moves + job.skipped_moves


def wait_for(rebalancer: Rebalancer, job_id: str, *wanted: str, timeout_s: float = JOB_TIMEOUT_S) -> RebalanceJob:
    """Wait until a job has one of the statuses (default: any terminal one) and return it."""

    def look() -> RebalanceJob | None:
        job = rebalancer.status(job_id)
        arrived = job.status in wanted if wanted else job.status.terminal
        return job if arrived else None

    return wait_until(look, timeout_s, f"job {job_id} is {' or '.join(wanted) or 'over'}")


class Arena:
    """A fleet whose files each test chooses, and the worker that serves it."""

    def __init__(self, directory: Path, redis_url: str, fleet: Fleet, worker: Worker) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.fleet = fleet
        self.worker = worker
        self.rebalancer = rebalancer_of(fleet)
        self.context = context_of(self.rebalancer)
        self.redis: redis.Redis = redis.Redis.from_url(redis_url, decode_responses=True)
        #: what a service has that knows nothing but Celery and the names of our tasks
        self.app = Celery("service", broker=redis_url, backend=redis_url, set_as_current=False)
        self.content: dict[str, bytes] = {}

    # -- between two tests ----------------------------------------------------------------------------------------
    def idle(self) -> bool:
        """Whether no message waits anywhere and none is being worked on."""
        return not any(self.redis.llen(queue) for queue in QUEUES) and self.redis.hlen("unacked") == 0

    def wait_idle(self) -> None:
        """Wait until nothing waits and nothing runs."""
        wait_until(self.idle, JOB_TIMEOUT_S, "the worker is idle")

    def fill(self, nodes: Mapping[str, Mapping[str, Content]]) -> None:
        """Begin a test: an idle worker, no job, no plan, and these files on the nodes (the others are empty)."""
        active = self.context.jobs.active()
        if active is not None:
            self.rebalancer.cancel(active)
            wait_for(self.rebalancer, active)
        self.wait_idle()
        digests = self.context.keys.digests
        ours = [f"{self.context.keys.prefix}*", "celery-task-meta-*"]
        for key in [key for pattern in ours for key in self.redis.scan_iter(pattern, count=1000)]:
            if key != digests:
                self.redis.delete(key)
        for node_id, root in self.fleet.roots.items():
            for path in list(root.iterdir()):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            for key, content in nodes.get(node_id, {}).items():
                path = root / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else made_up(key, content))
        self.content = self.fleet.all_objects()

    # -- during a test --------------------------------------------------------------------------------------------
    def start(self, job_id: str | None = None) -> RebalanceJob:
        """Plan and start a job."""
        return self.rebalancer.start(self.rebalancer.plan(), job_id)

    def wait(self, job_id: str, *wanted: str) -> RebalanceJob:
        """Wait for a status (default: any terminal one)."""
        return wait_for(self.rebalancer, job_id, *wanted)

    def wait_moved(self, job_id: str) -> RebalanceJob:
        """Wait until the running job has carried some, but not all, of its objects over."""

        def some() -> RebalanceJob | None:
            job = self.rebalancer.status(job_id)
            return job if job.completed_moves else None

        job = wait_until(some, JOB_TIMEOUT_S, "some objects have moved")
        assert job.status is RebalanceStatus.RUNNING
        assert job.completed_moves < job.total_moves
        return job

    def send(self, task: str, **arguments: Any) -> Any:
        """Send a task by its name, as another service would, and return its answer."""
        return self.app.send_task(f"rebalance.{task}", kwargs=arguments, queue=QUEUES[0]).get(timeout=JOB_TIMEOUT_S)

    def active_tasks(self) -> list[str]:
        """Names of the tasks that hold a slot of the worker."""
        return self._inspected("active")

    def scheduled_tasks(self) -> list[str]:
        """Names of the tasks that wait in the worker's memory for their time to come."""
        return self._inspected("scheduled")

    def _inspected(self, what: str) -> list[str]:
        inspect = self.app.control.inspect(destination=[self.worker.node_name], timeout=5.0)
        reply = getattr(inspect, what)()
        assert reply, "the worker did not answer"
        return [str(entry.get("name", entry)) for entry in reply[self.worker.node_name]]

    def sweep(self) -> SweepReport:
        """Sweep once, here."""
        return run_sweep(self.context)

    def assert_whole(self) -> None:
        """Every object is there once, byte for byte, and no temporary file is left."""
        assert self.fleet.all_objects() == self.content
        assert self.fleet.leftovers() == []

    def hash(self, key: str) -> dict[str, str]:
        """A hash in Redis, as text."""
        return {name: value.decode() for name, value in self.context.connection.hgetall(key).items()}

    def where(self) -> dict[str, str]:
        """Object key -> node, read from disk."""
        return {key: node_id for node_id in self.fleet.roots for key in self.fleet.objects(node_id)}


@contextmanager
def arena_of(
    directory: Path,
    *,
    nodes: Sequence[str],
    capacity_bytes: int = 1_000_000,
    options: Mapping[str, Any] | None = None,
    fleet: Mapping[str, Any] | None = None,
    concurrency: int = 1,
    log_level: str = "WARNING",
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Iterator[Arena]:
    """Make an arena of empty nodes and start its server and its worker; all end with the context.

    The server is its own: tests of the same module that need no worker must not meet this one on theirs.
    """
    (directory / "redis").mkdir()
    specs = {node_id: NodeSpec(capacity_bytes=capacity_bytes) for node_id in nodes}
    env = {name: value for name, value in os.environ.items() if not name.startswith("REBALANCE_")}
    with start_server(directory / "redis") as server:
        made = write_fleet(directory, redis_url=server.url, nodes=specs, options=options, fleet=fleet)
        for name, rows in (tables or {}).items():
            with made.config.open("a", encoding="utf-8") as file:
                file.writelines(f"\n[[{name}]]\n{toml_table(row)}" for row in rows)
        factory = ProcessFactory(directory, server.url)
        try:
            worker = factory.worker(
                env={**env, "REBALANCE_CONFIG": str(made.config)}, concurrency=concurrency, log_level=log_level
            )
            arena = Arena(directory, server.url, made, worker)
            yield arena
            arena.redis.close()
            arena.app.close()
        finally:
            factory.stop_all()
            # Captured output of the teardown is part of a failing test's report only.
            print(factory.logs())  # noqa: T201
