"""How long a fleet stands still when one of its processes dies for good: at default settings, and those of Sentinels that docs/operations.md gives.

Two hosts, each with a worker that decides and moves and with a beat, a Redis with a replica and three Sentinels. A job runs under a
throttle; one process (or all of one host) is killed and does not come back; measured is the longest time in which no byte of the job
was written. The death of a beat shows in the sweep: there the longest time between two sweeps counts.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil
from redis.exceptions import RedisError

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import MIB
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.servers import Sentinels
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.demo.processes import ManagedProcess
    from tests.bench.report import Report
    from tests.support.workers import Worker

COMMAND: Final = "python -m tests.bench availability"
LIMIT_S: Final = 30.0
#: Slow enough that the job outlasts every death, in one group, so that a dead runner stops all of it.
RATE: Final = MIB // 2
OBJECT_BYTES: Final = MIB // 4
OBJECTS: Final = 400
#: A majority outlives one of them, and the host that it is on.
SENTINELS: Final = 3
#: Sentinel's own default is 30 s; docs/operations.md has this one.
DOWN_AFTER_MS: Final = 5_000
#: What is watched after a death.
WATCH_S: Final = 45.0
STEADY_S: Final = 3.0
READY_S: Final = 120.0


def run(report: Report) -> None:
    """Kill one process after the other, each in a fleet of its own."""
    for name, death in DEATHS.items():
        with ExitStack() as stack:
            world = World(stack, redbeat=death.redbeat)
            seconds = world.gap_of(death.strike, sweeps=death.sweeps)
            figure = f"death of {name}: longest standstill"
            report.add(Figure(figure, seconds, "s", LIMIT_S, COMMAND, {"seconds": [seconds]}, death.takes_over))


class World:
    """A fleet whose every process has a second of its kind."""

    def __init__(self, stack: ExitStack, *, redbeat: bool) -> None:
        """Start everything, and a job; ``redbeat``: of the two beats one works and the other waits for its lock."""
        folder = scratch()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self.sentinels = stack.enter_context(Sentinels(folder, count=SENTINELS, down_after_ms=DOWN_AFTER_MS))
        files = {f"o/{number:03}": OBJECT_BYTES for number in range(OBJECTS)}
        nodes = {"a": NodeSpec(files, 10**10), "b": NodeSpec({}, 10**10)}
        options = {"throttle_bytes_per_sec": RATE}
        self.fleet = write_fleet(folder, redis_url=self.sentinels.url, nodes=nodes, options=options)
        os.environ["REBALANCE_CONFIG"] = str(self.fleet.config)
        factory = ProcessFactory(folder, self.sentinels.url)
        stack.callback(factory.stop_all)
        self.beats: list[ManagedProcess] = [
            factory.redbeat(app="rebalance_tasks") if redbeat else factory.beat() for _ in range(2)
        ]
        self.workers: list[Worker] = [factory.worker(wait=False, concurrency=2) for _ in range(2)]
        self.rebalancer = Rebalancer()
        self.context = self.rebalancer._context
        wait_until(lambda: len(self.rebalancer.workers()) == len(self.workers), READY_S, "both hosts are there")
        moves = [
            RebalanceMove(object_key=key, source_node="a", target_node="b", size_bytes=OBJECT_BYTES) for key in files
        ]
        self.rebalancer.start(RebalancePlan(plan_id="bench", fleet="test", moves=tuple(moves)), "bench")

    def written(self) -> tuple[int, int]:
        """What changes with every byte of the job: files of the target, and bytes of copies under way."""
        root = self.fleet.roots["b"]
        staged = 0
        for path in (root / ".rebalance" / "tmp").glob("*"):
            with suppress(FileNotFoundError):
                staged += path.stat().st_size
        return sum(1 for _ in (root / "o").glob("*")) if (root / "o").exists() else 0, staged

    def writes(self, worker: Worker) -> int:
        """Files of the target that a worker's processes have open."""
        count = 0
        for child in psutil.Process(worker.pid).children(recursive=True):
            with suppress(psutil.Error):
                count += sum(1 for file in child.open_files() if file.path.startswith(str(self.fleet.roots["b"])))
        return count

    def swept(self) -> object:
        """When the last sweep ended."""
        try:
            last = self.rebalancer.last_chore("sweep")
        except (RedisError, RebalanceError):
            return None
        return None if last is None else last.at

    def gap_of(self, strike: Callable[[World], None], *, sweeps: bool) -> float:
        """Seconds of the longest standstill after a death, as far as anything was left to do."""
        look = self.swept if sweeps else self.written
        wait_until(lambda: self.written()[1] > 0 and self.swept(), READY_S, "bytes flow, and somebody sweeps")
        time.sleep(STEADY_S)
        struck = threading.Thread(target=strike, args=(self,))
        struck.start()
        begun = last_at = time.perf_counter()
        last, longest = look(), 0.0
        while time.perf_counter() - begun < WATCH_S or time.perf_counter() - last_at > STEADY_S:
            if not sweeps and self.written()[0] == OBJECTS:
                break
            if time.perf_counter() - begun > WATCH_S * 3:
                return float("inf")
            now = look()
            if now != last:
                longest, last, last_at = max(longest, time.perf_counter() - last_at), now, time.perf_counter()
            time.sleep(0.02)
        struck.join()
        return longest


def _runner(world: World) -> None:
    """The worker whose process holds the stretch, its pool included."""
    max(world.workers, key=world.writes).kill9()


def _idle(world: World) -> None:
    """The worker that moves nothing just now."""
    min(world.workers, key=world.writes).kill9()


def _host(world: World) -> None:
    """All of the host that moves: its worker and its beat."""
    _beat(world)
    _runner(world)


def _beat(world: World) -> None:
    world.beats[0].kill()


def _holder(world: World) -> None:
    """The redbeat that has the lock: the other one has sent nothing."""
    max(world.beats, key=lambda beat: beat.log_path.read_text(encoding="utf-8").count("Sending due task")).kill()


def _sentinel(world: World) -> None:
    world.sentinels.kill_sentinel()


def _master(world: World) -> None:
    world.sentinels.master.kill()


def _host_of_master(world: World) -> None:
    """Whatever matters most, on one host."""
    _host(world)
    _sentinel(world)
    _master(world)


@dataclass(frozen=True)
class Death:
    """Who dies: how, what is to take over, and where it would show."""

    strike: Callable[[World], None]
    takes_over: str
    sweeps: bool = False
    redbeat: bool = False


DEATHS: Final = {
    "the worker that copies": Death(_runner, "the sweep hands its stretch to the other worker"),
    "the other worker": Death(_idle, "the first one also decides"),
    "a whole host, worker and beat": Death(_host, "the other host's beat and worker"),
    "beat": Death(_beat, "the other beat goes on", sweeps=True),
    "the redbeat that holds the lock": Death(_holder, "the other one takes it", sweeps=True, redbeat=True),
    "one of three Sentinels": Death(_sentinel, "nobody asks it while the master lives; the others are a majority"),
    "the Redis master": Death(_master, "the Sentinels make the replica master"),
    "the host of the Redis master, with a Sentinel, the worker that copies and a beat": Death(
        _host_of_master, "two Sentinels make the replica master, the other host's beat and worker go on"
    ),
}
