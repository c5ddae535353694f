"""The scale model against real runs: costs measured on small jobs predict jobs of 1,000, 10,000 and 100,000 objects here.

Costs are processor time of the workers and of Redis, which a busy machine changes little; seconds by the clock are predicted as well,
and judged where the machine is quiet. Besides: the share of the control plane in a job of 100,000 moves, and what a second worker brings.

``python -m tests.bench.bench_scale --fit`` measures the costs alone (some minutes), prints how far each job is off by them, and writes them
into `core/scale.py` as the defaults: on a quiet machine, whenever what a job costs has changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import psutil
import redis
from rich.console import Console
from rich.table import Table

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core import scale
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import KIB, MIB
from rebalance_tasks.core.scale import Costs, Farm, Work, forecast, stretches_of
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.demo.processes import CeleryWorker
from rebalance_tasks.embedded import start_server
from rebalance_tasks.migration.control import BEAT_EVERY_S
from tests.bench.jobs import wait_for_end
from tests.bench.report import Figure
from tests.bench.second_worker import second_worker
from tests.bench.world import scratch
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.embedded import EmbeddedServer
    from tests.bench.report import Report
    from tests.support.fleets import Fleet

COMMAND: Final = "python -m tests.bench scale"
PAIRS: Final = 16
#: Jobs from which the costs are taken: (objects, bytes of each, groups). None is of a size that is then predicted. Objects, stretches
#: and groups vary one without the other: 128 to 768 objects a stretch, 1 to 16 stretches a group; so do seconds, by the job of large ones.
CALIBRATION: Final = (
    *((512, 4_096, 4), (2_048, 8_192, 16), (6_144, 8_192, 1), (4_096, 4_096, 8), (24_576, 8_192, 16)),
    *((49_152, 8_192, 4), (32_768, 8_192, 8), (2_048, 32_768, 4), (1_024, MIB, 4)),
)
#: Jobs that are predicted.
SIZES: Final = (1_000, 10_000, 100_000)
OBJECT_BYTES: Final = 8_192
GROUPS: Final = 8
REPEATS: Final = 5
#: Jobs of fewer objects take a tenth of a second, and any disturbance is a large part of it: they are run so many times as often.
FEW_OBJECTS: Final = 8_000
MORE_OFTEN: Final = 4
ERROR_LIMIT: Final = 0.15
CONTROL_LIMIT: Final = 0.05
#: With more than so many processes at work already, seconds by the clock say nothing.
QUIET_LOAD: Final = 0.7
#: Looks at the flags of a job that there is not, of which one's cost is taken.
LOOKS: Final = 4_000
NOBODYS: Final = "nobodys"
#: What Redis spends: for each object, stretch, group, job, and second.
REDIS_COSTS: Final = ("redis_object_s", "redis_stretch_s", "redis_group_s", "redis_job_s", "redis_second_s")
#: Jobs of objects of this size and more say nothing of what Redis spends.
LARGE_BYTES: Final = 256 * KIB
#: What a job takes by the clock beside what it spends.
CLOCK_COSTS: Final = ("late_s", "fixed_s")
#: How long idleness is measured.
IDLE_S: Final = 6.0


@dataclass(frozen=True)
class Run:
    """One job as it was: seconds by the clock, and of the processors."""

    work: Work
    seconds: float
    data_s: float
    control_s: float
    redis_s: float


def run(report: Report) -> None:
    """Calibrate, predict, compare."""
    quiet = os.getloadavg()[0] < QUIET_LOAD
    with Crew() as crew:
        runs = crew.medians(_works([*CALIBRATION, *((objects, OBJECT_BYTES, GROUPS) for objects in SIZES)]))
        costs = costs_of(runs[: len(CALIBRATION)], redis_second_s=crew.second())
        report.console.print(f"costs: {costs!r}")
        farm = _here()
        for found in runs[len(CALIBRATION) :]:
            _compare(report, found, forecast(found.work, farm, costs), quiet=quiet)
        share = found.control_s / (found.control_s + found.data_s + found.redis_s)
        report.add(
            Figure(
                f"control plane's share of the processor time of {found.work.objects:,} moves",
                share,
                "",
                CONTROL_LIMIT,
                COMMAND,
                {"control": [found.control_s], "data": [found.data_s], "redis": [found.redis_s]},
                f"control {found.control_s:.2f} s, data {found.data_s:.2f} s, Redis {found.redis_s:.2f} s; with all of Redis "
                f"{(found.control_s + found.redis_s) / (found.control_s + found.data_s + found.redis_s):.3f}",
            )
        )
        second_worker(report, crew)


def fit(console: Console, *, write: bool) -> None:
    """Measure the costs, say how well they tell the jobs they were taken from, and make them the defaults."""
    load = os.getloadavg()[0]
    if load >= QUIET_LOAD:
        console.print(f"[yellow]a load of {load:.1f}: these costs are rather too high; fit again on a quiet machine")
    with Crew() as crew:
        runs = crew.medians(_works(CALIBRATION))
        costs = costs_of(runs, redis_second_s=crew.second())
    table = Table(
        "objects", "bytes", "groups", "worker s", "error", "Redis s", "error", "control s", "error", "s", "error"
    )
    for found in runs:
        told = forecast(found.work, _here(), costs)
        cells = [f"{found.work.objects:,}", f"{found.work.mean_bytes:,.0f}", str(found.work.groups)]
        pairs = [(told.worker_s, found.data_s), (told.redis_s, found.redis_s), (told.control_s, found.control_s)]
        for predicted, measured in (*pairs, (told.seconds, found.seconds)):
            cells += [f"{measured:.3f}", f"{predicted / measured - 1:+.0%}" if measured else "–"]
        table.add_row(*cells)
    console.print(table)
    console.print(costs.model_dump_json(indent=2))
    if write:
        source = Path(scale.__file__)
        source.write_text(with_costs(source.read_text(encoding="utf-8"), costs), encoding="utf-8")
        console.print(f"written to {source}")


def with_costs(source: str, costs: Costs) -> str:
    """Return the source of `core.scale` with other defaults, to three digits. Raises: ValueError when one is not found."""
    for name, value in costs.model_dump().items():
        line = re.compile(rf"^    {name}: Seconds = \S+$", re.MULTILINE)
        source, found = line.subn(f"    {name}: Seconds = {float(f'{value:.3g}')!r}", source)
        if found != 1:
            msg = f"core/scale.py has no default of {name} to replace"
            raise ValueError(msg)
    return source


def _works(jobs: Sequence[tuple[int, int, int]]) -> list[Work]:
    return [Work(objects=n, mean_bytes=size, groups=g, nodes=2 * g) for n, size, g in jobs]


def _median(runs: Sequence[Run]) -> Run:
    return Run(
        runs[0].work,
        seconds=statistics.median(run.seconds for run in runs),
        data_s=statistics.median(run.data_s for run in runs),
        control_s=statistics.median(run.control_s for run in runs),
        redis_s=statistics.median(run.redis_s for run in runs),
    )


def _here() -> Farm:
    """This machine, as the crew uses it."""
    return Farm(processes=2, cores=os.cpu_count() or 1, shares_cores=True, limit=PAIRS)


def _compare(report: Report, found: Run, told: object, *, quiet: bool) -> None:
    name = f"{found.work.objects:,} objects"
    pairs = {
        "workers' processor time": (told.worker_s, found.data_s, True),  # type: ignore[attr-defined]
        # A part of it follows the clock.
        "Redis' processor time": (told.redis_s, found.redis_s, quiet),  # type: ignore[attr-defined]
        "seconds by the clock": (told.seconds, found.seconds, quiet),  # type: ignore[attr-defined]
    }
    for what, (predicted, measured, judged) in pairs.items():
        error = abs(predicted - measured) / measured
        detail = f"predicted {predicted:.3g} s, measured {measured:.3g} s{'' if judged else ' (busy machine)'}"
        samples = {"predicted": [predicted], "measured": [measured]}
        report.add(
            Figure(f"{what} of {name}: error", error, "", ERROR_LIMIT if judged else None, COMMAND, samples, detail)
        )


def costs_of(runs: list[Run], farm: Farm | None = None, *, redis_second_s: float) -> Costs:
    """Fit the costs to some runs on a farm (default: this machine), by least squares of the relative errors; what comes out below zero is zero.

    What Redis spends by the clock is given: in jobs that are bound by objects it cannot be told from what those cost.
    """
    farm = farm or _here()
    rows = np.array(
        [[r.work.objects, r.work.objects * r.work.mean_bytes, stretches_of(r.work), r.work.groups, 1] for r in runs]
    )
    worker = _fitted(rows[:, :4], np.array([r.data_s for r in runs]))
    control = _fitted(rows[:, [0, 3, 4]], np.array([r.control_s for r in runs]))
    costs = Costs(
        object_s=worker[0],
        byte_s=worker[1],
        stretch_s=worker[2],
        group_s=worker[3],
        start_object_s=control[0],
        control_group_s=control[1],
        start_job_s=control[2],
        **dict.fromkeys((*REDIS_COSTS, *CLOCK_COSTS), 0),
    )
    # Calls that come far apart cost the server twice as much each; where objects are large they are so few that nobody waits for it.
    small = np.array([r.work.mean_bytes < LARGE_BYTES for r in runs])
    by_clock = np.array([forecast(r.work, farm, costs).worked_s * redis_second_s for r in runs])
    server = _fitted(rows[small][:, [0, 2, 3, 4]], (np.array([r.redis_s for r in runs]) - by_clock)[small])
    costs = costs.model_copy(update=dict(zip(REDIS_COSTS, [*server, redis_second_s], strict=True)))
    # By the same errors: a median over all jobs was what the large ones lacked, and twice what a small one takes.
    seconds = np.array([r.seconds for r in runs])
    told = np.array([forecast(r.work, farm, costs).seconds for r in runs])
    late = _fitted(np.column_stack([told, np.ones(len(runs))]), seconds - told, of=seconds)
    return costs.model_copy(update=dict(zip(CLOCK_COSTS, late, strict=True)))


def _fitted(rows: np.ndarray, seconds: np.ndarray, of: np.ndarray | None = None) -> list[float]:
    """Non-negative least squares by leaving out, one by one, what would be negative; errors count by the share of ``of`` (default: ``seconds``)."""
    left = list(range(rows.shape[1]))
    whole = seconds if of is None else of
    while True:
        found, *_ = np.linalg.lstsq(rows[:, left] / whole[:, None], seconds / whole, rcond=None)
        if (found >= 0).all():
            break
        left.pop(int(np.argmin(found)))
    result = [0.0] * rows.shape[1]
    for at, value in zip(left, found, strict=True):
        result[at] = float(value)
    return result


class Crew:
    """A server, a worker that decides and one that moves, over pairs of nodes in memory."""

    def __enter__(self) -> Self:
        """Start everything."""
        self.folder = scratch()
        (self.folder / "redis").mkdir()
        # A rewrite of its file in the background comes when the file has grown, not with a job.
        self.server: EmbeddedServer = start_server(self.folder / "redis", extra=("--auto-aof-rewrite-percentage", "0"))
        nodes = {f"{side}{n}": NodeSpec(capacity_bytes=10**12) for n in range(PAIRS) for side in "st"}
        options = {"throttle_bytes_per_sec": "none", "max_concurrent_migrations": PAIRS}
        self.fleet: Fleet = write_fleet(self.folder, redis_url=self.server.url, nodes=nodes, options=options)
        os.environ["REBALANCE_CONFIG"] = str(self.fleet.config)
        self.rebalancer = Rebalancer()
        self.redis = redis.Redis.from_url(self.server.url)
        self.data: list[CeleryWorker] = []
        self.idle: tuple[float, ...] = (0.0, 0.0, 0.0)
        self.control = self._worker("rebalance.control", 1)
        self.hire(1, processes=2)
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        for worker in (self.control, *self.data):
            worker.kill()
        self.server.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _worker(self, queue: str, processes: int) -> CeleryWorker:
        return CeleryWorker(
            broker_url=self.server.url,
            log_path=self.folder / f"{queue}-{time.monotonic_ns()}.log",
            env=dict(os.environ),
            concurrency=processes,
            extra=("-Q", queue),
        ).wait_ready()

    def hire(self, workers: int, *, processes: int) -> None:
        """Replace the workers that move."""
        for worker in self.data:
            worker.kill()
        self.data = [self._worker("rebalance.data", processes) for _ in range(workers)]

    def rest(self) -> None:
        """Measure what everybody spends on nothing, in a second."""
        before, begun = self._spent(), time.perf_counter()
        time.sleep(IDLE_S)
        whole = time.perf_counter() - begun
        self.idle = tuple((after - was) / whole for after, was in zip(self._spent(), before, strict=True))

    def second(self) -> float:
        """Measure what Redis spends in a second on a process at work that looks at its job's flags as often as it may."""
        context = self.rebalancer._context
        lease = context.keys.job(NOBODYS).lease("g0000", 0)
        self.redis.hset(lease, mapping={"epoch": 1, "owner": NOBODYS})
        before = _of(self.server.process.pid)
        for _ in range(LOOKS):
            context.jobs.beat(NOBODYS, "g0000", 0, epoch=1)
        spent = _of(self.server.process.pid) - before
        self.redis.delete(lease)
        return spent / LOOKS / BEAT_EVERY_S

    def medians(self, works: Sequence[Work]) -> list[Run]:
        """The median of each time over some runs of each job, all jobs in turn: what slows the machine for a while meets all of them."""
        self.job(Work(objects=256, mean_bytes=4096, groups=2, nodes=4))  # warms up
        self.rest()
        found: list[list[Run]] = [[] for _ in works]
        for number in range(REPEATS * MORE_OFTEN):
            for runs, work in zip(found, works, strict=True):
                if work.objects < FEW_OBJECTS or number % MORE_OFTEN == 0:
                    runs.append(self.job(work))
        return [_median(runs) for runs in found]

    def job(self, work: Work) -> Run:
        """Make the objects, move them, take them away."""
        name = uuid.uuid4().hex[:8]
        moves = self._fill(name, work)
        context = self.rebalancer._context
        # Of the present epoch, as one that a check has just made.
        plan = RebalancePlan(plan_id=f"bench-{name}", fleet="test", moves=moves, epoch=context.fleet.epoch())
        context.plans.save(plan, fence=None)
        seen = context.events.last_id()
        before = self._spent()
        begun = time.perf_counter()
        context.messenger.publish_start(plan.plan_id, f"job-{name}")
        wait_for_end(self.rebalancer, f"job-{name}", after=seen)
        seconds = time.perf_counter() - begun
        job = self.rebalancer.status(f"job-{name}")
        if job.status is not RebalanceStatus.COMPLETED or job.completed_moves != work.objects:
            sys.exit(f"{job.completed_moves} of {work.objects} moved: {job.failures}")
        time.sleep(0.2)  # the last messages
        spent = [after - was for after, was in zip(self._spent(), before, strict=True)]
        # Heartbeats go on whether there is a job or not.
        whole = time.perf_counter() - begun
        data_s, control_s, redis_s = (max(0.0, s - rate * whole) for s, rate in zip(spent, self.idle, strict=True))
        self._empty()
        return Run(work, seconds, data_s, control_s, redis_s)

    def _spent(self) -> tuple[float, float, float]:
        """Processor seconds of those who move, of those who decide, and of Redis."""
        return (
            sum(_of_group(worker.pid) for worker in self.data),
            _of_group(self.control.pid),
            _of(self.server.process.pid),
        )

    def _fill(self, name: str, work: Work) -> tuple[RebalanceMove, ...]:
        content = os.urandom(round(work.mean_bytes))
        moves = []
        for number in range(work.objects):
            pair = number % work.groups
            key = f"{name}/{number // work.groups // 1_000}/{number}"
            path = self.fleet.roots[f"s{pair}"] / key
            if number // work.groups % 1_000 == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            moves.append(
                RebalanceMove(
                    object_key=key, source_node=f"s{pair}", target_node=f"t{pair}", size_bytes=len(content), priority=0
                )
            )
        return tuple(moves)

    def _empty(self) -> None:
        for root in self.fleet.roots.values():
            for path in root.iterdir():
                if path.name != ".rebalance":
                    shutil.rmtree(path)
            for folder in ("tmp", "trash", "manifests"):
                for path in (root / ".rebalance" / folder).glob("*"):
                    path.unlink()
        # What a job leaves in Redis is not the next one's.
        context = self.rebalancer._context
        for key in (context.keys.trash, context.keys.trash_batches, context.keys.trash_due, context.keys.forwarding):
            self.redis.delete(key)
        self.redis.delete(context.keys.moved, context.keys.moved_batches)


def _of_group(pid: int) -> float:
    found = psutil.Process(pid)
    return sum(_of(one.pid) for one in (found, *found.children(recursive=True)))


def _of(pid: int) -> float:
    """Processor seconds of a process, of all threads that it has or had; to the nanosecond where the kernel tells."""
    try:
        # What clock_getcpuclockid(3) gives for another process on Linux.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def main() -> None:
    """Fit the costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fit", action="store_true", required=True, help="measure the costs and make them the defaults"
    )
    parser.add_argument("--dry-run", action="store_true", help="print them only")
    fit(Console(), write=not parser.parse_args().dry_run)


if __name__ == "__main__":
    main()
