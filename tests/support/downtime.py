"""A whole rebalance of disks, buckets and SFTP by real workers, which are killed, while a crowd reads and writes through ``fleet://``."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fsspec
import pytest

from rebalance_tasks import Flip, Rebalancer, RebalanceStatus
from rebalance_tasks.control.cleanup import run_cleanup
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.embedded import start_server
from tests.support import host
from tests.support.arena import context_of
from tests.support.engine import hurry
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.hammer import INITIAL, Crowd, id_of, value_of
from tests.support.history import Op, violations
from tests.support.places import MANIFESTS, LocalPlace, S3Place, SftpPlace
from tests.support.sftp import sftp_server
from tests.support.wait import wait_until
from tests.support.weed import weed_server
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.core.models import RebalanceJob
    from tests.support.places import Place
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed
    from tests.support.workers import Worker

#: A live runner renews its lease several times within this.
QUIET_MS: Final = 4_000
JOB_TIMEOUT_S: Final = 300.0
#: Slow enough that the crowd meets every step of it.
OPTIONS: Final = {"throttle_bytes_per_sec": 100_000, "imbalance_threshold": 0.05, "target_imbalance": 0.02}


def places_of(folder: Path, weed: Weed, sftp: Sftp) -> dict[str, Place]:
    """Two disks, two buckets, two folders behind SFTP: of each kind one that is full at first, and an empty one."""
    found: dict[str, Place] = {}
    for number in (1, 2):
        far = folder / f"far{number}"
        far.mkdir()
        found |= {
            f"disk{number}": LocalPlace(folder / f"nodes/disk{number}"),
            f"bucket{number}": S3Place(weed.bucket(), "a/b", weed.options()),
            f"far{number}": SftpPlace(far, port=sftp.port, options=sftp.options()),
        }
    return found


FULL: Final = ("disk1", "bucket1", "far1")
EMPTY: Final = ("disk2", "bucket2", "far2")


def specs(places: Mapping[str, Place], capacity_bytes: int) -> dict[str, NodeSpec]:
    return {
        node: NodeSpec(settings={"url": place.url(), **place.settings()}, capacity_bytes=capacity_bytes)
        for node, place in places.items()
    }


@dataclass
class Outcome:
    """What was seen."""

    job: RebalanceJob
    ops: list[Op]
    kills: int
    #: when the job began and ended, on the clock of the operations
    started: float
    ended: float
    #: nodes that gave and nodes that took, as their manifests say
    gave: frozenset[str]
    took: frozenset[str]
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        reads = sum(op.kind == "read" for op in self.ops)
        job, longest = self.job, max(self.ops, key=lambda op: op.ended - op.begun)
        return (
            f"{job.completed_moves} moves, {job.skipped_moves} skipped {dict(job.failures)}, {self.kills} kills, "
            f"{reads} reads, {len(self.ops) - reads} writes, the longest a {longest.kind} of {longest.ended - longest.begun:.1f} s, "
            f"{len(self.problems)} problems"
        )


@dataclass
class Rebalance:
    """One job under a crowd."""

    folder: Path
    places: Mapping[str, Place]
    processes: ProcessFactory
    keys: int = 120
    kills: int = 2
    seed: int = 0
    #: how long the crowd is at it before anything moves
    idle_s: float = 0.0
    #: the catalogue is the host's
    hosted: bool = False

    def fill(self) -> list[str]:
        """Put everything on half of the nodes, one of each kind."""
        names = [f"o/{number:03d}" for number in range(self.keys)]
        homes = {key: FULL[number % len(FULL)] for number, key in enumerate(names)}
        for key, node in homes.items():
            self.places[node].put(key, value_of(key, INITIAL))
        if self.hosted:
            host.catalogue().flip([Flip(key, None, node, 0) for key, node in homes.items()])
        return names

    def run(self) -> Outcome:
        """Rebalance; judge."""
        names = self.fill()
        rebalancer = Rebalancer()
        rebalancer.adopt()
        workers = [self.processes.worker(concurrency=1) for _ in range(2)]
        crowd = Crowd(self.folder / "crowd", names[: len(names) // 2], names[len(names) // 2 :], seed=self.seed)
        with crowd:
            wait_until(crowd.ready, 60, "the crowd is at it")
            time.sleep(self.idle_s)
            started = time.monotonic()
            job_id = rebalancer.start(rebalancer.plan()).job_id
            kills = self._kill(rebalancer, job_id, workers)
            ended = time.monotonic()
            ops = crowd.stop()
        job = rebalancer.status(job_id)
        gave, took = self._ways()
        return Outcome(job, ops, kills, started, ended, gave, took, self._judge(rebalancer, ops, names, job))

    def _ways(self) -> tuple[frozenset[str], frozenset[str]]:
        told = [
            json.loads(line)
            for place in self.places.values()
            for name in place.names(MANIFESTS)
            for line in (place.get(name) or b"").splitlines()
        ]
        return frozenset(entry["source"] for entry in told), frozenset(entry["target"] for entry in told)

    def _kill(self, rebalancer: Rebalancer, job_id: str, workers: list[Worker]) -> int:
        """Kill one worker after the other, evenly over the moves of the job, the first at once; return how many."""
        context = context_of(rebalancer)
        killed = 0

        def over() -> bool:
            nonlocal killed
            job = rebalancer.status(job_id)
            done = job.completed_moves + job.failed_moves + job.skipped_moves
            if killed < self.kills and not job.status.terminal and done * (self.kills + 1) >= killed * job.total_moves:
                workers.pop(0).kill9()
                workers.append(self.processes.worker(concurrency=1, wait=False))
                killed += 1
            hurry(context.connection, context.keys.job(job_id), context.jobs.groups(job_id), quiet_ms=QUIET_MS)
            run_sweep(context)
            return job.status.terminal

        wait_until(over, JOB_TIMEOUT_S, "the job is over", interval_s=0.2)
        return killed

    def _judge(self, rebalancer: Rebalancer, ops: list[Op], names: list[str], job: RebalanceJob) -> list[str]:
        problems = [f"failed: {op}" for op in ops if op.error]
        problems += violations([*ops, *self._last_look(names)], dict.fromkeys(names, INITIAL))
        if job.status is not RebalanceStatus.COMPLETED:
            problems.append(f"the job is {job.status}: {job.error}")
        run_cleanup(context_of(rebalancer))
        where = {key: [node for node, place in self.places.items() if place.get(key) is not None] for key in names}
        problems += [f"{key} is on {nodes}" for key, nodes in where.items() if len(nodes) > 1]
        fs = fsspec.filesystem("fleet")
        if self.hosted:
            told = dict(host.catalogue().entries())
            places = {key: nodes[0] for key, nodes in where.items() if nodes}
            problems += [f"the host's catalogue: {wrong}" for wrong in sorted(told.items() ^ places.items())]
        there = sorted(key for key, nodes in where.items() if nodes)
        listed = sorted(path.removeprefix("test/") for path in fs.find("test"))
        if listed != there:
            problems.append(f"listed and not there, or the other way round: {set(listed) ^ set(there)}")
        return problems

    @staticmethod
    def _last_look(names: list[str]) -> list[Op]:

        fs = fsspec.filesystem("fleet")
        ops: list[Op] = []
        for key in names:
            begun = time.monotonic()
            found: Any = None
            if fs.exists(f"test/{key}"):
                found = id_of(key, fs.cat_file(f"test/{key}"))
            ops.append(Op(key, "read", begun, time.monotonic(), found))
        return ops


def play(locator: str, **options: Any) -> Outcome:
    """Play one round with servers of its own; what a round with problems left is kept.

    Args:
        locator: of the fleet; ``host`` for a catalogue of the host's.
        options: of `Rebalance`.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"downtime-{locator}-"))
    for name in ("redis", "weed", "sftp"):
        (folder / name).mkdir()
    with (
        pytest.MonkeyPatch.context() as patch,
        start_server(folder / "redis") as server,
        weed_server(folder / "weed") as weed,
        sftp_server(folder / "sftp") as sftp,
    ):
        places = places_of(folder, weed, sftp)
        nodes = specs(places, 12_500 * options["keys"])
        hosted = locator == "host"
        if hosted:
            host.install(folder, patch)
        service = host.HOSTED if hosted else {"locator": locator}
        made = write_fleet(folder, redis_url=server.url, nodes=nodes, options=OPTIONS, fleet=service)
        # Taken back with the round: a server of the next one would look for this file as soon as it is imported.
        patch.setenv("REBALANCE_CONFIG", str(made.config))
        factory = ProcessFactory(folder, server.url)
        try:
            outcome = Rebalance(folder, places, factory, hosted=hosted, **options).run()
        finally:
            factory.stop_all()
    if outcome.problems:
        outcome.problems.append(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
