"""What a check of a large fleet takes: everything listed, nothing changed, a little changed; and what Redis holds meanwhile.

A real worker with two processes surveys real directories, whose files are holes of lognormal sizes: a survey reads no contents.
``SURVEY_OBJECTS=5000000 SURVEY_PLACE=/some/disk`` measures the fleet that the limits are for; memory file systems have too few inodes.
``SURVEY_ROWS=100000000`` streams a list of so many rows (10 bytes each on the disk). ``SURVEY_MADE_UP=1000000000`` has so many rows that no disk
holds pass through the same code. ``SURVEY_GATHERED=30000000`` has one process gather listings of so many objects.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import redis
from pyarrow import parquet

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.control.survey import most_rows
from rebalance_tasks.control.surveying import round as survey_round
from rebalance_tasks.control.surveying.gathering import Gathering
from rebalance_tasks.control.surveying.merge import merged
from rebalance_tasks.control.surveying.other_keys import HashFiles
from rebalance_tasks.control.surveying.parts import question_about
from rebalance_tasks.control.surveying.question import KeysUnmet
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS
from rebalance_tasks.control.surveying.streams import BATCH_ROWS, IN_MEMORY_ROWS, candidates_of, found_in, kept_of
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.keeping.keeper import Keeper
from rebalance_tasks.core.keeping.sought import Sought, unpacked
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.verify import verify_plan
from rebalance_tasks.demo.processes import CeleryWorker
from rebalance_tasks.drivers.remembered import Remembered
from rebalance_tasks.embedded import start_server
from rebalance_tasks.settings.model import Settings
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.fleet import FleetStore
from rebalance_tasks.store.keys import FleetKeys
from rebalance_tasks.store.surveys import Asked, Finding, Found, SurveyStore
from tests.bench.bench_plan import peak_mb
from tests.bench.report import Figure
from tests.bench.world import scratch_base
from tests.support.fleets import toml_table
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.embedded import EmbeddedServer
    from tests.bench.report import Report

COMMAND: Final = "python -m tests.bench survey"
NODES: Final = 1_000
OBJECTS: Final = 500_000
FOLDERS: Final = 10
COLD_S: Final = 60.0
UNCHANGED_S: Final = 5.0
REDIS_MB: Final = 200.0
PLAN_MB: Final = 2_000.0
#: Rows that a fleet of 1,000 nodes keeps of each.
ROWS: Final = most_rows(NODES)
ROWS_MADE_UP: Final = 100_000_000
#: Rows of the list that is streamed: more than are held in memory.
ROWS_STREAMED: Final = IN_MEMORY_ROWS + IN_MEMORY_ROWS // 5
RUNS: Final = 3
#: Answers to the second question that are made from files.
ANSWERS: Final = 20
#: Nodes of which one folder changes, in a thousand.
CHANGED: Final = 10
#: A folder is believed when it was not changed for so long (`drivers.local.listing`).
SETTLE_S: Final = 4.0


def run(report: Report, *, objects: int | None = None, nodes: int = NODES) -> None:
    """Make the fleet, check it, and check it again."""
    _passed(report, rows=int(os.environ.get("SURVEY_MADE_UP", ROWS_MADE_UP)))
    count = objects or int(os.environ.get("SURVEY_OBJECTS", OBJECTS))
    place = Path(tempfile.mkdtemp(prefix="rebalance-survey-", dir=os.environ.get("SURVEY_PLACE") or scratch_base()))
    try:
        _billion(report, place)
        _gathered(report, place, rows=int(os.environ.get("SURVEY_GATHERED", ROWS_STREAMED)))
        _streamed(report, place, rows=int(os.environ.get("SURVEY_ROWS", ROWS_STREAMED)))
        roots = _make(place, nodes, count // nodes)
        (place / "redis").mkdir()
        with start_server(place / "redis") as server:
            _measure(report, _World(place, roots, server), f"{nodes:,} nodes, {count:,} objects")
    finally:
        shutil.rmtree(place, ignore_errors=True)


# -- a fleet that fits on no machine here -----------------------------------------------------------------------------
class _Handed:
    """What survey tasks of 1,000 nodes with a million objects each hand in, made up, to a real server; their other keys stay in files."""

    def __init__(self, server: EmbeddedServer, nodes: list[NodeDescriptor], objects: int, folder: Path) -> None:
        connection, keys = Connection(connect(server.url)), FleetKeys("large")
        self.server, self.files = redis.Redis.from_url(server.url), HashFiles(folder)
        self.surveys = SurveyStore(connection, keys)
        self._nodes, self._objects = nodes, objects
        self._rng = np.random.default_rng(1)
        self.token = FleetStore(connection, keys).acquire_check(ttl_ms=CHECK_LOCK_MS) or 0
        self.context: Any = SimpleNamespace(
            settings=Settings(),
            surveys=self.surveys,
            nodes=lambda: nodes,
            locations=SimpleNamespace(last_moved=dict),
        )

    def hand_in(self) -> None:
        """Of each node its candidates, and that the hashes of its other keys are in a file."""
        unlisted = {"not_a_candidate": self._objects - ROWS}
        self.surveys.open(self.token, [node.node_id for node in self._nodes], Asked(), lock_ms=CHECK_LOCK_MS)
        for at, node in enumerate(self._nodes):
            finding = Finding(
                node_id=node.node_id,
                adopted=True,
                used_bytes=int((node.capacity_bytes or 0) * (0.25 + 0.5 * at / len(self._nodes))),
                objects=self._objects,
                unlisted=unlisted,
                others_apart=f"{at:016x}",
            )
            sizes = np.maximum(1, self._rng.lognormal(15.0, 2.0, ROWS)).astype(np.int64)
            keys = [f"{node.node_id}/{number:07}" for number in range(ROWS)]
            rows = survey_round._packed(Inventory.from_columns(node.node_id, keys, sizes).to_arrow())
            self.surveys.report(self.token, finding, Found(rows), lock_ms=CHECK_LOCK_MS)

    def answer(self, unmet: KeysUnmet) -> tuple[list[float], float]:
        """Ask and answer for all nodes, for some of them from real files; return what an answer costs (s) and bytes a hash in the file."""
        names = [question_about(place) for place in unmet.places]
        self.surveys.ask(self.token, names, unmet.sought.packed(), lock_ms=CHECK_LOCK_MS)
        hashes = np.sort(self._rng.integers(0, 2**63, self._objects - ROWS).astype(np.uint64))
        mark = self.files.keep("n", hashes)
        costs: list[float] = []
        sought = Sought(unpacked(self.surveys.sought()))
        for place in unmet.places:
            ticks = time.process_time()
            if len(costs) < ANSWERS:
                self.files.among("n", mark, sought)
                costs.append(time.process_time() - ticks)
            self.surveys.answer(self.token, question_about(place), place, b"", lock_ms=CHECK_LOCK_MS)
        size = sum(path.stat().st_size for path in self.files.folder.iterdir())
        return costs, size / len(hashes)


def _billion(report: Report, place: Path, *, nodes: int = NODES, objects: int = 1_000_000) -> None:
    """Put the findings of 10⁹ objects together, ask where their keys lie as well, and plan; the memory is that of this process."""
    described = [NodeDescriptor(node_id=f"n{at:04}", capacity_bytes=10**13, zone="abc"[at % 3]) for at in range(nodes)]
    (place / "billion").mkdir()
    with start_server(place / "billion") as server:
        handed = _Handed(server, described, objects, place / "hashes")
        handed.hand_in()
        base, ticks = peak_mb(begin=True), time.process_time()
        answers, each = _asked(handed)
        seen = merged(handed.context)
        plan = plan_rebalance(seen.nodes, seen.inventory, options=RebalancerOptions())
        verify_plan(plan, seen.nodes, seen.inventory, RebalancerOptions())
        cpu, memory = time.process_time() - ticks, peak_mb() - base
        in_redis = handed.server.info("memory")["used_memory_peak"] / 1e6
    fleet = f"{nodes:,} nodes × {objects:,} objects"
    detail = f"{len(plan.moves)} moves, {cpu:.0f} s of processor time with {len(answers)} answers from files"
    report.add(
        Figure(f"plan of {fleet} from candidates: memory", memory, "MB", PLAN_MB, COMMAND, {"cpu_s": [cpu]}, detail)
    )
    report.add(Figure(f"survey of {fleet}: Redis at its peak", in_redis, "MB", REDIS_MB, COMMAND))
    name = f"a node of {objects:,} objects says which of all candidates' keys it holds: processor time"
    detail = f"{each:.1f} bytes a key in its file"
    report.add(Figure(name, statistics.median(answers), "s", None, COMMAND, {"s": answers}, detail))


def _asked(handed: _Handed) -> tuple[list[float], float]:
    try:
        len(merged(handed.context).inventory)
    except KeysUnmet as unmet:
        return handed.answer(unmet)
    msg = "hashes are kept apart, and nobody was to be asked"
    raise AssertionError(msg)


# -- a check that lists the nodes itself --------------------------------------------------------------------------------
def _gathered(report: Report, place: Path, *, rows: int, nodes: int = 12) -> None:
    """Have the listings of so many objects gathered by one process, as `rebalance plan` does, and keep candidates; listing them is not measured."""
    described = [NodeDescriptor(node_id=f"n{at:04}", capacity_bytes=10**15) for at in range(nodes)]
    settings = Settings(survey_dir=str(place / "gathered"))
    now, each = datetime.now(tz=UTC), rows // nodes
    base, ticks = peak_mb(begin=True), time.process_time()
    with Gathering(settings, whole=False) as gathering:
        for at, node in enumerate(described):
            gathering.take(node.node_id, _listing(at, each))
        path = gathering.rows()
        if not isinstance(path, Path):
            sys.exit(f"{rows:,} rows fit into memory; ask for more")
        size = path.stat().st_size
        keeper = Keeper(described, most=most_rows(nodes), options=RebalancerOptions(), now=now)
        inventory, _ = kept_of(path, keeper, measured=lambda found: found)
    cpu, memory = time.process_time() - ticks, peak_mb() - base
    name = f"{rows:,} objects of {nodes} nodes listed by one process: memory"
    detail = f"{cpu / rows * 1e6:.2f} µs of processor time a row, {size / rows:.1f} bytes on disk; {len(inventory):,} rows kept"
    report.add(Figure(name, memory, "MB", PLAN_MB, COMMAND, {"cpu_s": [cpu], "mb": [memory]}, detail))


def _listing(node: int, objects: int) -> Remembered:
    numbers = pc.utf8_lpad(pa.array(np.arange(objects)).cast(pa.large_string()), 12, "0")
    sizes = np.maximum(1, np.random.default_rng(node).lognormal(15.0, 2.0, objects)).astype(np.int64)
    parts = [pa.scalar(text, pa.large_string()) for text in ("data", str(node), "/")]
    keys = pc.binary_join_element_wise(*parts[:2], numbers, parts[2])
    return Remembered((keys, sizes, np.zeros(objects, np.int64)), {})


# -- a list that does not fit into memory -----------------------------------------------------------------------------
def _streamed(report: Report, place: Path, *, rows: int, nodes: int = NODES) -> None:
    """Plan from a Parquet file of so many rows; the file is made up a batch at a time, and the machine decides how fast it is read."""
    path = place / "list.parquet"
    _write_list(path, rows, nodes)
    described = [NodeDescriptor(node_id=f"n{at:04}", capacity_bytes=10**13, zone="abc"[at % 3]) for at in range(nodes)]
    settings = Settings(inventory=str(path), survey_dir="none")
    now, most = datetime.now(tz=UTC), most_rows(nodes)
    base, ticks, begun = peak_mb(begin=True), time.process_time(), time.perf_counter()
    inventory, used = found_in(settings, described, most=most, now=now, measured=lambda found: found)
    cpu, seconds, memory = time.process_time() - ticks, time.perf_counter() - begun, peak_mb() - base
    path.unlink()
    full = _filled(described, used)
    plan = plan_rebalance(full, inventory, options=RebalancerOptions(), now=now)
    verify_plan(plan, full, inventory, RebalancerOptions(), now=now)
    whole = peak_mb() - base
    name = f"a list of {rows:,} objects on {nodes:,} nodes, streamed and planned: memory"
    detail = (
        f"{memory:.0f} MB while it is read; {cpu / rows * 1e6:.2f} µs of processor time a row, {seconds:.0f} s; "
        f"{len(plan.moves)} moves, {len(inventory):,} rows kept"
    )
    report.add(
        Figure(name, whole, "MB", PLAN_MB, COMMAND, {"cpu_s": [cpu], "s": [seconds], "mb": [memory, whole]}, detail)
    )


class _MadeUp:
    """A list of any length, of which only a batch exists at a time: 20-byte keys in order, nodes in turn, lognormal sizes."""

    def __init__(self, rows: int, nodes: int) -> None:
        self._batches = -(-rows // BATCH_ROWS)
        self.rows = self._batches * BATCH_ROWS
        self._ids = pa.array([f"n{at:04}" for at in range(nodes)])
        self._sizes = np.maximum(1, np.random.default_rng(1).lognormal(15.0, 2.0, 4 * BATCH_ROWS)).astype(np.int64)
        digits = np.char.zfill(np.arange(BATCH_ROWS).astype("S6"), 6)
        self._digits = digits.view(np.uint8).reshape(BATCH_ROWS, 6)
        self._offsets = pa.py_buffer(np.arange(BATCH_ROWS + 1, dtype=np.int32) * 20)
        self._nodes = np.arange(BATCH_ROWS, dtype=np.int64) * 2_654_435_761

    def read(self, columns: list[str] | None) -> Iterator[tuple[int, pa.Table]]:
        """As `streams.candidates_of` wants it."""
        for number in range(self._batches):
            data = np.empty((BATCH_ROWS, 20), np.uint8)
            data[:, :14] = np.frombuffer(f"data/{number:08}/".encode(), np.uint8)
            data[:, 14:] = self._digits
            nodes = ((self._nodes + number) % len(self._ids)).astype(np.int32)
            made = {
                "object_key": pa.StringArray.from_buffers(BATCH_ROWS, self._offsets, pa.py_buffer(data.reshape(-1))),
                "size_bytes": np.roll(self._sizes, 7_919 * number)[:BATCH_ROWS],
                "node_id": pa.DictionaryArray.from_arrays(pa.array(nodes), self._ids),
            }
            yield number * BATCH_ROWS, pa.table(made).select(columns or list(made))


def _passed(report: Report, *, rows: int, nodes: int = NODES) -> None:
    """Have so many made-up rows pass through what keeps candidates, twice as ever, and plan: what a list costs beside its reading."""
    described = [NodeDescriptor(node_id=f"n{at:04}", capacity_bytes=10**13, zone="abc"[at % 3]) for at in range(nodes)]
    now, options = datetime.now(tz=UTC), RebalancerOptions()
    source = _MadeUp(rows, nodes)
    base, ticks, begun = peak_mb(begin=True), time.process_time(), time.perf_counter()
    keeper = Keeper(described, most=most_rows(nodes), options=options, now=now)
    inventory, used = candidates_of(source.read, keeper, measured=lambda found: found)
    cpu, seconds = time.process_time() - ticks, time.perf_counter() - begun
    full = _filled(described, used)
    plan = plan_rebalance(full, inventory, options=options, now=now)
    verify_plan(plan, full, inventory, options, now=now)
    memory = peak_mb() - base
    detail = (
        f"{cpu / source.rows * 1e6:.2f} µs of processor time a row with making it up twice, {seconds:.0f} s; "
        f"{len(plan.moves)} moves, {len(inventory):,} rows kept"
    )
    name = f"{source.rows:,} rows of {nodes:,} nodes kept as candidates and planned: memory"
    samples = {"cpu_s": [cpu], "s": [seconds], "mb": [memory]}
    report.add(Figure(name, memory, "MB", PLAN_MB, COMMAND, samples, detail))


def _filled(nodes: list[NodeDescriptor], used: dict[str, int]) -> list[NodeDescriptor]:
    """With capacities by which the nodes are from 25 to 75 % full."""
    shares = np.linspace(0.25, 0.75, len(nodes)).tolist()
    return [
        node.model_copy(update={"used_bytes": used[node.node_id], "capacity_bytes": int(used[node.node_id] / share)})
        for node, share in zip(nodes, shares, strict=True)
    ]


def _write_list(path: Path, rows: int, nodes: int) -> None:
    """Lognormal sizes, keys in order as an S3 inventory has them, nodes as they fall."""
    rng = np.random.default_rng(1)
    ids = pa.array([f"n{at:04}" for at in range(nodes)])
    writer = None
    for first in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - first)
        numbers = pc.utf8_lpad(pa.array(np.arange(first, first + count)).cast(pa.string()), 12, "0")
        table = pa.table(
            {
                "object_key": pc.binary_join_element_wise("data/2026/", numbers, ".bin", ""),
                "size_bytes": np.maximum(1, rng.lognormal(15.0, 2.0, count)).astype(np.int64),
                "node_id": pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, nodes, count, np.int32)), ids),
            }
        )
        writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _make(place: Path, nodes: int, objects: int) -> list[Path]:
    """Write the files."""
    rng = np.random.default_rng(1)
    roots = []
    for number in range(nodes):
        root = place / "nodes" / f"n{number:04}"
        sizes = np.maximum(1, rng.lognormal(11.0, 2.0, objects)).astype(np.int64).tolist()
        for folder in range(FOLDERS):
            (root / f"d{folder}").mkdir(parents=True)
            fd = os.open(root / f"d{folder}", os.O_RDONLY)
            for at, size in enumerate(sizes[folder::FOLDERS]):
                made = os.open(f"n{number:04}-{at:07}.dat", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
                os.ftruncate(made, size)
                os.close(made)
            os.close(fd)
        roots.append(root)
    return roots


class _World:
    """The fleet's configuration, by which its nodes are from 25 to 75 % full, and its server."""

    def __init__(self, place: Path, roots: list[Path], server: EmbeddedServer) -> None:
        self.place, self.roots, self.server = place, roots, server
        self.redis: redis.Redis = redis.Redis.from_url(server.url)
        config = place / "rebalance.toml"
        fleet = {"name": "large", "mode": "observe", "redis_url": server.url, "survey_dir": str(place / "seen")}
        fullness = np.linspace(0.25, 0.75, len(roots)).tolist()
        tables = ["[fleet]\n" + toml_table(fleet), "[options]\n" + toml_table({"min_object_age": "0s"})]
        for root, share in zip(roots, fullness, strict=True):
            capacity = int(sum(entry.stat().st_size for entry in _files(root)) / share)
            node: dict[str, Any] = {"node_id": root.name, "url": root.as_uri(), "capacity_bytes": capacity}
            tables.append("[[nodes]]\n" + toml_table({**node, "zone": "abc"[int(root.name[1:]) % 3]}))
        config.write_text("\n".join(tables), encoding="utf-8")
        os.environ["REBALANCE_CONFIG"] = str(config)
        self.client = Rebalancer()

    def check(self) -> tuple[float, float, str]:
        """Have the fleet checked; return seconds, processor seconds of worker and server, and the reason."""
        from celery import Celery  # after the configuration is there

        app = Celery("service", broker=self.server.url, backend=self.server.url, set_as_current=False)
        before = len(self.client.checks(200))
        begun, ticks = time.perf_counter(), self._ticks()
        app.send_task("rebalance.check", kwargs={}, queue="rebalance.control")
        wait_until(lambda: len(self.client.checks(200)) > before, 900, "the check has decided")
        return time.perf_counter() - begun, self._ticks() - ticks, str(self.client.checks(1)[0]["reason"])

    def _ticks(self) -> float:
        """Processor time of this process' children and theirs: the worker and the server."""
        times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
        return sum(found.user + found.system for found in times)


def _files(root: Path) -> Iterator[os.DirEntry[str]]:
    for folder in os.scandir(root):
        yield from os.scandir(folder.path)


def _measure(report: Report, world: _World, fleet: str) -> None:
    worker = CeleryWorker(
        broker_url=world.server.url,
        log_path=world.place / "worker.log",
        env=dict(os.environ),
        app="rebalance_tasks",
        concurrency=2,
    )
    try:
        worker.wait_ready()
        time.sleep(SETTLE_S)
        cache = "the kernel knew no file" if _forget_files() else "the kernel may have known the files"
        _add(report, f"{fleet}: a check that lists everything", [world.check()], COLD_S, cache)
        _add(report, f"{fleet}: nothing has changed", [world.check() for _ in range(RUNS)], UNCHANGED_S)
        for root in world.roots[:: max(1, len(world.roots) // CHANGED)]:
            (root / "d0" / "new").write_bytes(b"x")
        _add(report, f"{fleet}: a folder of {CHANGED} nodes has changed", [world.check()], None)
        memory = world.redis.info("memory")
        detail = f"{memory['used_memory_rss'] / 1e6:.0f} MB resident"
        peak = memory["used_memory_peak"] / 1e6
        report.add(Figure(f"{fleet}: Redis at its peak", peak, "MB", REDIS_MB, COMMAND, detail=detail))
    finally:
        worker.kill()


def _forget_files() -> bool:
    """Have the kernel forget names and inodes, so that a check is cold for the disk as well; False where it does not let us, or nobody named a disk."""
    if "SURVEY_PLACE" not in os.environ:
        return False
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    except OSError:
        return False
    return True


def _add(report: Report, name: str, runs: list[tuple[float, float, str]], limit: float | None, more: str = "") -> None:
    seconds, cpu = [found[0] for found in runs], [found[1] for found in runs]
    told = [f"{statistics.median(cpu):.1f} s of processor time", more, runs[-1][2][:120]]
    detail = "; ".join(filter(None, told))
    report.add(Figure(name, statistics.median(seconds), "s", limit, COMMAND, {"s": seconds, "cpu_s": cpu}, detail))
