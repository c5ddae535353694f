"""What a second worker brings: the same job by one worker of one process and by two, in turn, for large objects and for small ones.

Large ones are bound by memory, small ones by system calls and by what a worker does for each object. Beside each ratio stands what a second
process brings to bare copies of the same size here: where memory is shared, or a virtual machine gets it from its host page by page, nobody doubles.
"""

from __future__ import annotations

import os
import shutil
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from rebalance_tasks.core.options import KIB, MIB
from rebalance_tasks.core.scale import Work
from tests.bench.bare_copies import second_process
from tests.bench.report import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report

COMMAND: Final = "python -m tests.bench scale"
ROUNDS: Final = 5
#: Two workers in at most so much of the time of one: 1.8 times the throughput.
LIMIT: Final = 1 / 1.8
#: Room that the objects, their copies and the trash take.
ROOM: Final = 10 * 2**30
#: Objects and bytes of each. Jobs last for seconds: what a job does before the first byte and after the last one (a tenth of a second, told
#: beside the figure) no second worker can do.
KINDS: Final = ((4_096, MIB), (65_536, 8 * KIB))
#: As much of each size for the bare copies.
BARE_FILES: Final = {MIB: 1_024, 8 * KIB: 16_384}
#: A job that is all beginning and end, and one after which each process has loaded what it loads once in its life (machine code, from 8,192 small objects on).
SHORT: Final = Work(objects=64, mean_bytes=MIB, groups=2, nodes=4)
WARM: Final = Work(objects=40_000, mean_bytes=4 * KIB, groups=4, nodes=8)


class Ran(Protocol):
    """One job as it was (`bench_scale.Run`)."""

    @property
    def seconds(self) -> float:
        """By the clock."""

    @property
    def data_s(self) -> float:
        """Of the processors, by those who move."""

    @property
    def control_s(self) -> float:
        """By those who decide."""

    @property
    def redis_s(self) -> float:
        """By Redis."""


class Crew(Protocol):
    """Who carries jobs (`bench_scale.Crew`)."""

    folder: Path

    def hire(self, workers: int, *, processes: int) -> None:
        """Replace the workers that move."""

    def job(self, work: Work) -> Ran:
        """Make the objects, move them, take them away."""


@dataclass
class _Runs:
    one: list[Ran] = field(default_factory=list)
    two: list[Ran] = field(default_factory=list)
    short_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of the seconds."""
        return statistics.median(b.seconds / a.seconds for a, b in zip(self.one, self.two, strict=True))

    @property
    def dearer(self) -> float:
        """What two spend more on the same work: they share a memory, or a core."""
        return statistics.median(b.data_s / a.data_s for a, b in zip(self.one, self.two, strict=True))

    @property
    def idle_s(self) -> float:
        """What nobody spends is waited for."""
        return statistics.median(2 * b.seconds - b.data_s - b.control_s - b.redis_s for b in self.two)

    def samples(self) -> dict[str, list[float]]:
        """All of it."""
        return {"short_s": self.short_s} | {
            f"{name}_{what}": [getattr(run, what) for run in runs]
            for name, runs in (("one", self.one), ("two", self.two))
            for what in ("seconds", "data_s", "control_s", "redis_s")
        }


def second_worker(report: Report, crew: Crew) -> None:
    """Measure each kind of objects."""
    if shutil.disk_usage(crew.folder).free < ROOM:
        report.skip("two workers ÷ one", f"{crew.folder} has less than {ROOM >> 30} GiB of room")
        return
    kinds = {kind: _Runs() for kind in KINDS}
    for number in range(ROUNDS):
        # Who comes first finds other memory than who comes after.
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            crew.hire(workers, processes=1)
            crew.job(WARM)
            for (objects, size_bytes), runs in kinds.items():
                short = crew.job(SHORT)
                runs.short_s.append(short.seconds - short.data_s / workers)
                run = crew.job(Work(objects=objects, mean_bytes=size_bytes, groups=4, nodes=8))
                (runs.one if workers == 1 else runs.two).append(run)
    for kind, runs in kinds.items():
        _add(report, crew, kind, runs)


def _add(report: Report, crew: Crew, kind: tuple[int, int], runs: _Runs) -> None:
    objects, size_bytes = kind
    bare, bare_seconds = second_process(crew.folder, size_bytes=size_bytes, files=BARE_FILES[size_bytes], rounds=ROUNDS)
    first, second = (statistics.median(run.seconds for run in some) for some in (runs.one, runs.two))
    detail = (
        f"{1 / runs.ratio:.2f} times the throughput; medians {first:.2f} and {second:.2f} s; two spend {runs.dearer:.2f} times the "
        f"processor time of one, and leave {runs.idle_s:.2f} s of two processors idle; {statistics.median(runs.short_s):.2f} s of any job are its "
        f"beginning and end; bare copies by two processes: {bare:.2f} times those by one"
    )
    limit = LIMIT if os.getloadavg()[0] < (os.cpu_count() or 1) + 1 else None
    samples = runs.samples() | {f"bare_{name}_s": seconds for name, seconds in bare_seconds.items()}
    name = f"two workers ÷ one, seconds of {objects:,} × {size_bytes >> 10:,} KiB"
    report.add(Figure(name, runs.ratio, "×", limit, COMMAND, samples, detail))
