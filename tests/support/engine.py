"""The engine without Celery: the same runtime, with messages in a list that a test may drop, double and reorder.

What a worker's tasks do with a message (`rebalance_tasks.tasks`) is done here in one process and in a fixed order, so
that faults between two steps are exact and fast. Tests with real workers stand in test_redelivery.py.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import uuid
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from rebalance_tasks.celery import make_app
from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.cleanup import CleanupReport, run_cleanup
from rebalance_tasks.control.reach import adopt_here, within_reach
from rebalance_tasks.control.relay import run_relay
from rebalance_tasks.control.start import start_job
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.routes import DATA_QUEUE
from rebalance_tasks.drivers import small_burst
from rebalance_tasks.drivers.local import burst as local_burst
from rebalance_tasks.migration import copying, faults
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.runtime import Runtime
from rebalance_tasks.settings import load_settings
from rebalance_tasks.store.leases import LEASE_MS
from tests.support.hooks import DAY_MS
from tests.support.uncounted import uncounted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import JobKeys
    from rebalance_tasks.store.moves import Ending
    from rebalance_tasks.store.records import GroupRecord

#: More messages than any test's job can need: a loop is a failure, not a hang.
MOST_MESSAGES = 500


class Message(NamedTuple):
    task: str
    job_id: str
    group_id: str = ""


class ListMessenger:
    """Keeps messages instead of sending them."""

    def __init__(self) -> None:
        self.queue: deque[Message] = deque()
        self.published: list[Message] = []
        #: of the headers that were published, in that order
        self.queues: list[str] = []
        #: groups whose monitor need not count them
        self.counted: list[str] = []
        self.chores: list[tuple[str, str]] = []
        self.answers: dict[str, list[str]] = {}
        #: what waits on the broker, as far as anybody is told
        self.depths: dict[str, int] = {}
        #: (token, nodes, queue) of each survey asked for, and the tokens of checks that are to go on
        self.surveys: list[tuple[int, tuple[str, ...], str]] = []
        self.concludes: list[int] = []

    def open_chord(self, job_id: str, groups: int) -> None:
        """Nobody counts here: the sweep closes jobs."""

    def publish_group(self, job_id: str, group: GroupRecord) -> None:
        self.queues.append(group.queue)
        self._put(Message("migrate", job_id, group.group_id))

    def publish_extra(self, job_id: str, group: GroupRecord) -> None:
        self._put(Message("extra", job_id, group.group_id))

    def publish_monitor(self, job_id: str, group_id: str, *, counted: bool = False) -> None:
        self.counted += [group_id] * counted
        self._put(Message("monitor", job_id, group_id))

    def publish_finalize(self, job_id: str) -> None:
        self._put(Message("finalize", job_id))

    def publish_start(self, plan_id: str, job_id: str) -> None:
        self._put(Message("start", job_id, plan_id))

    def publish_chore(self, name: str, queue: str) -> None:
        self.chores.append((name, queue))

    def queue_depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: self.depths.get(queue, 0) for queue in queues}

    def worker_queues(self) -> dict[str, list[str]]:
        return self.answers

    def publish_survey(self, token: int, node_ids: Sequence[str], *, queue: str) -> None:
        self.surveys.append((token, tuple(node_ids), queue))

    def publish_conclude(self, token: int) -> None:
        self.concludes.append(token)

    def _put(self, message: Message) -> None:
        self.queue.append(message)
        self.published.append(message)


class Engine:
    """One process of a fleet, from the configuration that ``fleet_config`` has set."""

    def __init__(self) -> None:
        settings = load_settings()
        self.runtime = Runtime(settings, make_app(settings))
        self.messages = ListMessenger()
        self.context: FleetContext = dataclasses.replace(self.runtime.context, messenger=self.messages)
        self.runtime.__dict__["context"] = self.context

    # -- jobs -----------------------------------------------------------------------------------------------------
    def start(self, moves: Iterable[RebalanceMove], *, job_id: str = "j1", **plan: Any) -> str:
        """Start a hand-made plan."""
        made = RebalancePlan(plan_id=f"p-{job_id}", fleet="test", moves=tuple(moves), **plan)
        start_job(self.context, made, job_id=job_id, requested_by="test")
        return job_id

    def job(self, job_id: str = "j1") -> RebalanceJob:
        return self.context.jobs.load(job_id)

    def outcome(self, index: int, job_id: str = "j1") -> str:
        """What is noted of a move that failed or was skipped: JSON {cause, detail}."""
        raw = self.context.connection.hget(self.context.keys.job(job_id).outcomes, str(index))
        return "" if raw is None else raw.decode()

    # -- what a worker does ---------------------------------------------------------------------------------------
    def slice(
        self, group_id: str = "g0000", job_id: str = "j1", *, extra: bool = False, ending: Ending | None = None
    ) -> SliceOutcome:
        """Run one slice."""
        return self.runtime.slice(job_id, group_id, owner=uuid.uuid4().hex, extra=extra, ending=ending).run()

    def relay(
        self, group_id: str = "g0000", job_id: str = "j1", *, queue: str = DATA_QUEUE, **more: Any
    ) -> SliceOutcome:
        """Run a slice and what the gate admits after it."""

        def run_slice(job_id: str, group_id: str, extra: bool, ending: Ending) -> SliceOutcome:
            group = self.context.jobs.group(job_id, group_id)
            adopt_here(self.context, job_id, group_id, queue=queue if group is None else group.queue)
            return self.slice(group_id, job_id, extra=extra, ending=ending)

        return run_relay(self.context, job_id, group_id, queue=queue, run_slice=run_slice, **more)

    def work(self) -> None:
        """Take messages until there are none, as a worker's tasks would."""
        for _ in range(MOST_MESSAGES):
            if not self.messages.queue:
                return
            self.handle(self.messages.queue.popleft())
        msg = f"{MOST_MESSAGES} messages and no end: {list(self.messages.queue)[:5]}"
        raise AssertionError(msg)

    def handle(self, message: Message) -> None:
        """Do what the task of that name does."""
        match message.task:
            case "migrate":
                if self.relay(message.group_id, message.job_id) is SliceOutcome.TERMINAL:
                    self.messages.queue.append(Message("monitor", message.job_id, message.group_id))
            case "extra":
                self.relay(message.group_id, message.job_id, extra=True)
            case "monitor":
                lifecycle.finish_group(self.context, message.job_id, message.group_id)
            case "finalize":
                lifecycle.finalize(self.context, message.job_id)
            case other:
                msg = f"no task {other}"
                raise AssertionError(msg)

    def finish(self, job_id: str = "j1", *, sweeps: int = 10) -> RebalanceJob:
        """Work and sweep (with the waiting times over) until the job is terminal."""
        for _ in range(sweeps):
            self.work()
            if self.job(job_id).status.terminal:
                return self.job(job_id)
            self.hurry(job_id)
            run_sweep(self.context)
        msg = f"not terminal after {sweeps} sweeps: {self.job(job_id)!r}"
        raise AssertionError(msg)

    # -- time travel ----------------------------------------------------------------------------------------------
    def hurry(self, job_id: str = "j1") -> None:
        """Let leases, waiting times and outages of a job run out now."""
        self.hurry_leases(job_id)
        self.outlast_outages()

    def hurry_leases(self, job_id: str = "j1") -> None:
        """Let leases and waiting times of a job run out now."""
        hurry(self.context.connection, self.context.keys.job(job_id), self.context.jobs.groups(job_id))

    def outlast_outages(self) -> None:
        """Let nodes that are out of reach have been so for longer than they are waited for."""
        outages = self.context.keys.outages
        for node_id, times in self.context.connection.hgetall(outages).items():
            self.context.connection.hset(outages, {node_id: b"1 " + times.split()[1]})

    def cleanup(self, *, later_ms: int = 0) -> CleanupReport:
        """Clean up as if ``later_ms`` had passed since the objects were freed, and since claims were taken."""
        if later_ms:
            self.context.connection.client.delete(self.context.keys.claims)
        _let_trash_age(self.context, later_ms)
        return run_cleanup(self.context)

    def clean_within(self, queue: str | None) -> CleanupReport:
        """Clean up as the task does on a host of a queue, or on any host."""
        return run_cleanup(self.context, only=within_reach(self.context, queue))


def clean_up(context: FleetContext) -> None:
    """Clean up as if a day had passed, until nothing is due; what a killed process left unfinished is no longer too young."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
        for _ in range(3):
            _let_trash_age(context, DAY_MS)
            run_cleanup(context)


def _let_trash_age(context: FleetContext, by_ms: int) -> None:
    for move_id in list(context.connection.zrange_due(context.keys.trash_due, 2**52, 10_000)):
        context.connection.client.zincrby(context.keys.trash_due, -by_ms, move_id)


def hurry(connection: Connection, keys: JobKeys, groups: Iterable[str], *, quiet_ms: int = 0) -> None:
    """Let leases and waiting times of groups run out now.

    Args:
        connection: to the state.
        keys: of the job.
        groups: which.
        quiet_ms: leases that were renewed less than so long ago are left alone: their runners live.
    """
    for group_id in groups:
        connection.hset(keys.group(group_id), {"redrive_at": 0, "extra_until": 0})
        for stretch in (connection.hget(keys.group(group_id), "open") or b"").split():
            lease = keys.lease(group_id, int(stretch))
            renewed_ms = int(connection.hget(lease, "lease_until") or 0) - LEASE_MS
            if renewed_ms <= connection.now_ms() - quiet_ms:
                connection.hset(lease, {"lease_until": 0})


def move(key: str, source: str, target: str, size: int, **more: Any) -> RebalanceMove:
    """One move of a hand-made plan."""
    return RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=size, **more)


def moves_between(source: str, target: str, sizes: Mapping[str, int]) -> list[RebalanceMove]:
    """Moves of objects from one node to another, in the order given."""
    return [move(key, source, target, size) for key, size in sizes.items()]


# -- a process that is killed -----------------------------------------------------------------------------------------
def carry(
    environment: dict[str, str],
    job_id: str,
    part_bytes: int,
    counter: str,
    file_size_limit: int | None,
    stranger: str | None,
) -> None:
    """What the killed process runs: every group that holds a permit, until there is nothing to do."""
    os.environ.update(environment)
    faults._registered.cache_clear()
    if file_size_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    small_parts(part_bytes)
    count_copied(Path(counter))
    if stranger is not None:
        write_before_free(Path(stranger))
    engine = Engine()
    groups = engine.context.jobs.groups(job_id)
    for group_id in engine.context.jobs.permits(job_id):
        engine.messages.publish_group(job_id, groups[group_id])
    engine.work()


def killed_carry(
    tmp_path: Path,
    *,
    faults_text: str,
    job_id: str = "j1",
    part_bytes: int = copying.PART_BYTES,
    file_size_limit: int | None = None,
    stranger: str | None = None,
) -> bool:
    """Carry a job in a process of its own with faults registered; return whether it was killed.

    Args:
        tmp_path: gets the ledger of faults and the count of copied bytes.
        faults_text: see `rebalance_tasks.migration.faults`.
        job_id: which job.
        part_bytes: objects above it are large ones.
        file_size_limit: of the process, so that larger objects meet a full disk.
        stranger: a file to which somebody appends right before objects are freed.

    Raises:
        AssertionError: it ended in any other way than killed or cleanly.
    """
    ledger = tmp_path / "ledger"
    ledger.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name.startswith("REBALANCE_")}
    environment |= {faults.ENVIRONMENT: faults_text, faults.LEDGER: str(ledger)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    arguments = (environment, job_id, part_bytes, str(tmp_path / "copied"), file_size_limit, stranger)
    process = context.Process(target=carry, args=arguments)
    with uncounted():
        process.start()
    process.join(60)
    assert process.exitcode in {0, -signal.SIGKILL}, f"the process ended with {process.exitcode}"
    return process.exitcode != 0


def small_parts(part_bytes: int) -> None:
    """Make objects above ``part_bytes`` large ones."""
    # Constants, except for tests that cannot copy 64 MiB each. What has parts goes in no burst.
    copying.PART_BYTES = part_bytes  # type: ignore[misc]
    small_burst.MOST_BYTES = min(part_bytes, small_burst.MOST_BYTES)  # type: ignore[misc]


def write_before_free(path: Path) -> None:
    """Append to a file once, right before the first object of its node is freed."""
    original = Batch._free

    written: list[bool] = []

    def free(self: Batch, pair: Any) -> None:
        if not written:
            written.append(True)
            with path.open("ab") as file:
                file.write(b"from a stranger")
        original(self, pair)

    Batch._free = free  # type: ignore[method-assign]


def count_copied(log: Path) -> None:
    """Append the number of bytes of every write to a file, so that the count survives a kill."""
    original = Copier._part

    def counted(self: Copier, reader: Any, write: Any, copy: Any, key: str) -> None:
        def logged(chunk: memoryview) -> None:
            write(chunk)
            with log.open("a") as file:
                file.write(f"{len(chunk)}\n")

        original(self, reader, None if write is None else logged, copy, key)

    Copier._part = counted  # type: ignore[method-assign]

    def write_at(fd: int, data: memoryview, offset: int) -> int:
        written = os.pwrite(fd, data, offset)
        with log.open("a") as file:
            file.write(f"{written}\n")
        return written

    local_burst.write_at = write_at  # type: ignore[assignment]


def copied_bytes(log: Path) -> int:
    """Sum what `count_copied` wrote."""
    return sum(map(int, log.read_text().split())) if log.exists() else 0
