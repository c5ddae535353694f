"""Chaos: real workers and a beat, killed, doubled, paused and written under, at random; then everything must add up.

A seed decides what happens in which order, and is printed: ``CHAOS_SEED=… CHAOS_ROUNDS=1 make chaos`` plays it again
(the order of the processes' own steps is not in its hands). The judge is `tests.support.checker`, which knows nothing of
our code, with a log of what strangers wrote meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import psutil
import pytest

from rebalance_tasks import Rebalancer
from rebalance_tasks.control.cleanup import run_cleanup
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.models import RebalancePlan
from tests.support import checker
from tests.support.arena import context_of
from tests.support.engine import move
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rebalance_tasks.core.models import RebalanceMove
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory, Worker

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.timeout(170)]

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
#: How long faults rain; a whole round stays under a minute.
STORM_S = 15.0
NODES = ("n1", "n2", "n3", "n4")
OBJECTS = 160
DAY_MS = 86_400_000


@dataclass
class Storm:
    """One round: the fleet, its processes, and what has been done to them."""

    fleet: Fleet
    processes: ProcessFactory
    dice: random.Random
    written: checker.Written
    workers: list[Worker] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rebalancer = Rebalancer()
        self.context = context_of(self.rebalancer)
        self.keys = self.context.keys.job("j1")

    # -- processes ------------------------------------------------------------------------------------------------
    def start_worker(self) -> None:
        self.workers.append(self.processes.worker(wait=False))

    def kill_worker(self) -> None:
        victim = self.dice.randrange(len(self.workers))
        self.workers.pop(victim).kill9()
        self.start_worker()

    def kill_child(self) -> None:
        victim = self.dice.choice(self.workers)
        with suppress(psutil.NoSuchProcess):
            children = [child.pid for child in psutil.Process(victim.pid).children(recursive=True)]
            if children:
                os.kill(self.dice.choice(children), signal.SIGKILL)

    def freeze(self) -> None:
        """Stop a worker for longer than its lease (which is let run out), then let it go on."""
        victim = self.dice.choice(self.workers)
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            os.killpg(victim.pid, signal.SIGSTOP)
            self.expire_leases()
            time.sleep(self.dice.uniform(0.2, 1.0))
            os.killpg(victim.pid, signal.SIGCONT)

    # -- messages and flags ---------------------------------------------------------------------------------------
    def double(self) -> None:
        groups = list(self.context.jobs.groups("j1").values())
        for _ in range(self.dice.randint(1, 5)):
            self.context.messenger.publish_group("j1", self.dice.choice(groups))

    def late_finalize(self) -> None:
        self.context.messenger.publish_finalize("j1")

    def pause(self) -> None:
        self.rebalancer.pause("j1")

    def resume(self) -> None:
        self.rebalancer.resume("j1")

    def expire_leases(self) -> None:
        for group_id in self.context.jobs.groups("j1"):
            self.context.connection.hset(self.keys.group(group_id), {"lease_until": 0, "redrive_at": 0})

    def sweep(self) -> None:
        run_sweep(self.context)

    def cleanup(self) -> None:
        run_cleanup(self.context)

    # -- strangers on the nodes -----------------------------------------------------------------------------------
    def append(self) -> None:
        """Append to an object where it was at the start, if it is still there; what is seen there afterwards must not be lost."""
        key, path = self.some_object()
        with suppress(FileNotFoundError), path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(b"+")
            file.flush()
            file.seek(0)
            digest = hashlib.sha256(file.read()).hexdigest()
            if self.stands(path, file.fileno()):
                # Seen at its key after it was written: from here on nothing older will do.
                self.written = replace(
                    self.written,
                    digests={**self.written.digests, key: digest},
                    also={**self.written.also, key: frozenset()},
                )
            else:
                raced = self.written.also.get(key, frozenset()) | {digest}
                self.written = replace(self.written, also={**self.written.also, key: raced})

    @staticmethod
    def stands(path: Path, descriptor: int) -> bool:
        try:
            return os.path.samestat(path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def delete(self) -> None:
        key, path = self.some_object()
        with suppress(FileNotFoundError):
            path.unlink()
            self.written = replace(self.written, deletable=self.written.deletable | {key})

    def some_object(self) -> tuple[str, Path]:
        key = self.dice.choice(sorted(self.written.origins))
        return key, self.fleet.roots[self.written.origins[key]] / key

    # -- the round ------------------------------------------------------------------------------------------------
    def rage(self) -> None:
        acts: list[tuple[Callable[[], None], int]] = [
            (self.kill_worker, 2),
            (self.kill_child, 4),
            (self.freeze, 2),
            (self.double, 4),
            (self.late_finalize, 1),
            (self.pause, 2),
            (self.resume, 4),
            (self.expire_leases, 2),
            (self.sweep, 4),
            (self.cleanup, 1),
            (self.append, 4),
            (self.delete, 1),
        ]
        choices, weights = zip(*acts, strict=True)
        until = time.monotonic() + STORM_S
        while time.monotonic() < until and not self.rebalancer.status("j1").status.terminal:
            act = self.dice.choices(choices, weights)[0]
            self.log.append(act.__name__)
            act()
            time.sleep(self.dice.uniform(0.05, 0.4))

    def calm(self) -> None:
        """No more faults: beat and the workers alone must bring the job to its end; waiting times are cut short."""

        def over() -> bool:
            # A worker whose first children were killed while it started ends by itself.
            self.workers = [worker for worker in self.workers if worker.alive]
            if not self.workers:
                self.start_worker()
            if self.context.connection.client.hlen("unacked") == 0:
                self.expire_leases()
            return self.rebalancer.status("j1").status.terminal

        self.resume()
        wait_until(over, 60, f"the job is over after {self.log}", interval_s=0.5)
        for worker in self.workers:
            worker.stop()


def random_plan(dice: random.Random, written: checker.Written, sizes: dict[str, int]) -> list[RebalanceMove]:
    """Most objects go somewhere."""
    chosen = dice.sample(sorted(written.origins), k=OBJECTS * 3 // 4)
    return [
        move(key, written.origins[key], dice.choice([n for n in NODES if n != written.origins[key]]), sizes[key])
        for key in chosen
    ]


def seed_of(number: int) -> int:
    """Seed of a round: from ``CHAOS_SEED`` on, or a fresh one."""
    first = os.environ.get("CHAOS_SEED")
    return random.SystemRandom().randrange(10**6) if first is None else int(first) + number


@pytest.mark.parametrize("number", range(ROUNDS))
def test_nothing_is_lost_and_everything_is_counted_once_whatever_is_killed(
    fleet_config: FleetFactory, processes: ProcessFactory, number: int
) -> None:
    seed = seed_of(number)
    print(f"CHAOS_SEED={seed}")  # noqa: T201  to be played again
    dice = random.Random(seed)
    sizes = {f"{number % 7}/o{number:03}": dice.choice([0, 1, 5_000, 20_000, 60_000]) for number in range(OBJECTS)}
    homes = {key: dice.choice(NODES) for key in sizes}
    nodes = {
        node: NodeSpec({key: size for key, size in sizes.items() if homes[key] == node}, capacity_bytes=10**8)
        for node in NODES
    }
    fleet = fleet_config(nodes, options={"throttle_bytes_per_sec": 150_000}, fleet={"mode": "observe"})
    written = checker.record(fleet.roots)
    storm = Storm(fleet, processes, dice, written)
    for _ in range(2):
        storm.start_worker()
    processes.beat()
    plan = RebalancePlan(plan_id="p1", fleet="test", moves=tuple(random_plan(dice, written, sizes)))
    storm.rebalancer.start(plan, "j1")
    storm.rage()
    storm.calm()
    job = storm.rebalancer.status("j1")
    counts = (job.completed_moves, job.failed_moves, job.skipped_moves, job.total_moves)
    print(f"{job.status}: {counts}, {dict(job.failures)} after {Counter(storm.log)}")  # noqa: T201
    assert set(job.failures) <= {"source_vanished", "source_changed", "worker_died", "conflict"}, storm.log
    purge(storm)
    checker.check(fleet.roots, storm.written, job)


def purge(storm: Storm) -> None:
    """Clean up as if a day had passed, twice: what was freed late is trash first."""
    keys, redis = storm.context.keys, storm.context.connection.client
    for _ in range(2):
        for move_id in storm.context.connection.zrange_due(keys.trash_due, 2**52, OBJECTS):
            redis.zincrby(keys.trash_due, -DAY_MS, move_id)
        run_cleanup(storm.context)
