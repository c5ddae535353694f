"""How soon a dead worker's group runs again: ``kill -9`` of a whole worker, with beat and a second worker, default settings.

The first worker is killed in the middle of a large object; what is measured is the time until the object's staged copy
grows again. The second figure is a lost callback: how long a job whose moves are all counted, but which nobody told to
finish, waits for the sweep.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Final

from celery import Celery

from rebalance_tasks.celery import SWEEP_EVERY_S
from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import MIB
from rebalance_tasks.core.routes import DATA_QUEUE
from rebalance_tasks.demo.processes import CeleryBeat, CeleryWorker
from tests.bench import world as worlds
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.report import Report
    from tests.support.fleets import Fleet

KILLS: Final = 6
CALLBACKS: Final = 4
RUNS_AGAIN_LIMIT_S: Final = 15.0
#: One sweep, and a second for its message.
FINALISED_LIMIT_S: Final = SWEEP_EVERY_S + 1.0
RATE: Final = MIB
#: Half a minute at that rate: what is left when it was killed and has begun again does not matter.
OBJECT_BYTES: Final = 30 * RATE
COMMAND: Final = "python -m tests.bench recovery"


def run(report: Report, *, kills: int = KILLS, callbacks: int = CALLBACKS) -> None:
    """Kill one of two workers again and again, then lose callbacks."""
    nodes = {name: NodeSpec(files={}, capacity_bytes=1000 * OBJECT_BYTES) for name in ("a", "b")}
    with worlds.world(nodes, options={"throttle_bytes_per_sec": RATE}, concurrency=1) as (fleet, server):
        crew = Crew(fleet.config.parent, server.url)
        try:
            again = [_killed(fleet, crew, number) for number in range(kills)]
            finalised = [_lost_callback(fleet, number) for number in range(callbacks)]
        finally:
            crew.end()
    _report(report, f"kill -9 of a worker to its group running again, worst of {kills}", again, RUNS_AGAIN_LIMIT_S)
    _report(report, f"lost callback to the job's end, worst of {callbacks}", finalised, FINALISED_LIMIT_S)


def _report(report: Report, name: str, samples: list[float], limit: float) -> None:
    detail = f"median {statistics.median(samples):.1f} s"
    report.add(Figure(name, max(samples), "s", limit, COMMAND, {"seconds": samples}, detail))


class Crew:
    """A beat and, beside the world's worker, one that is going to be killed."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        """Start the beat."""
        self._folder = folder
        self._broker_url = broker_url
        self._app = Celery(broker=broker_url, set_as_current=False)
        self._count = 0
        (folder / "beat").mkdir()
        self._beat = CeleryBeat(state_dir=folder / "beat", log_path=folder / "beat.log", env=dict(os.environ))
        self._doomed: CeleryWorker | None = None

    def hire(self) -> None:
        """Start the worker that will be killed; the others leave it all the copying for now."""
        self._count += 1
        self._app.control.cancel_consumer(DATA_QUEUE, reply=True)
        log_path = self._folder / f"doomed-{self._count}.log"
        self._doomed = CeleryWorker(broker_url=self._broker_url, log_path=log_path, env=dict(os.environ), concurrency=2)
        self._doomed.wait_ready()

    def others_serve(self, queue: str) -> None:
        """Let the others take messages of a queue again."""
        self._app.control.add_consumer(queue, reply=True)

    def kill(self) -> None:
        """``kill -9`` of the doomed one, its pool included."""
        if self._doomed is not None:
            self._doomed.kill()

    def end(self) -> None:
        """Kill them all."""
        self._beat.kill()
        self.kill()
        self._app.close()


def _killed(fleet: Fleet, crew: Crew, number: int) -> float:
    """Seconds from the death of the worker that copies to the next byte."""
    rebalancer = Rebalancer()
    crew.hire()
    job_id, staged = _start(fleet, rebalancer, f"kill-{number}")
    _wait(staged.exists, "the copy is begun")
    crew.others_serve(DATA_QUEUE)
    # Anywhere between two sweeps, and early, when the message that was published last still counts.
    time.sleep(0.3 + (number * 0.77) % SWEEP_EVERY_S)
    crew.kill()
    begun, last = time.perf_counter(), _changed(staged)
    _wait(lambda: _changed(staged) != last, "it runs again", 60)
    seconds = time.perf_counter() - begun
    rebalancer.cancel(job_id)
    _wait(lambda: rebalancer.status(job_id).status.terminal, "the job is cancelled", 60)
    return seconds


def _changed(path: Path) -> int:
    """When a file was last written to; a copy that is begun anew is another file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _lost_callback(fleet: Fleet, number: int) -> float:
    """Seconds from the last move of a job whose chord never calls back to the job's end."""
    rebalancer = Rebalancer()
    time.sleep(number * 0.77 % 1)  # at another moment between two sweeps each time
    job_id, _ = _start(fleet, rebalancer, f"callback-{number}", size=(3 + number) * RATE)
    # The chord counts to one more group than there is.
    rebalancer._context.messenger.open_chord(job_id, 2)
    job = rebalancer.status(job_id)
    while job.groups_done < job.groups_total:
        time.sleep(0.01)
        job = rebalancer.status(job_id)
    begun = time.perf_counter()
    _wait(lambda: rebalancer.status(job_id).status.terminal, "the sweep has finalised it")
    return time.perf_counter() - begun


def _start(fleet: Fleet, rebalancer: Rebalancer, name: str, *, size: int = OBJECT_BYTES) -> tuple[str, Path]:
    with (fleet.roots["a"] / name).open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    move = RebalanceMove(object_key=name, source_node="a", target_node="b", size_bytes=size)
    job = rebalancer.start(RebalancePlan(plan_id=name, fleet="test", moves=(move,)))
    return job.job_id, fleet.roots["b"] / ".rebalance" / "tmp" / f"{job.job_id}.0"


def _wait(until: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.perf_counter() + timeout_s
    while not until():
        if time.perf_counter() > deadline:
            sys.exit(f"waited {timeout_s:g} s in vain until {what}")
        time.sleep(0.002)
