"""Finding and reading objects through the fleet: `locate` against a bare GET, ``fleet://`` against the backend's own read.

Everything is measured in turn, a stretch of each in every round, so that what else the machine does falls on both. The last part
shows what readers feel of a whole rebalance of disks, S3 and SFTP with killed workers, against the same readers before it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import fsspec

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.control.access.reading import stretch
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.options import KIB
from rebalance_tasks.drivers.base import ObjectMetadata
from rebalance_tasks.drivers.opened import Drivers
from rebalance_tasks.embedded import start_server
from rebalance_tasks.settings import load_settings
from tests.bench.report import Figure
from tests.bench.world import scratch, scratch_base
from tests.support.downtime import play
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.weed import weed_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.bench.report import Report
    from tests.support.history import Op

COMMAND: Final = "python -m tests.bench fleet"
ROUNDS: Final = 25
READ_BYTES: Final = 64 * KIB
KEY: Final = "bench/64k.bin"
#: Many times a bare GET, with room for a look at the node's own file system.
LOCATE_LIMIT: Final = 2.0
READ_LIMIT: Final = 1.3
PLENTY: Final = 10**12


def run(report: Report) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(dir=scratch_base()) as folder, weed_server(Path(folder)) as weed:
        bucket = {"url": f"s3://{weed.bucket()}/data", "storage_options": weed.options()}
        with _fleet({"disk": {}, "other": {}, "bucket": bucket}):
            rebalancer = Rebalancer()
            rebalancer.adopt()
            _locate(report, rebalancer)
            for node in ("disk", "bucket"):
                _read(report, rebalancer, node)
    _downtime(report)


@contextmanager
def _fleet(nodes: Mapping[str, Mapping[str, object]], **fleet: object) -> Iterator[Path]:
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        with start_server(folder / "redis") as server:
            described = {node: NodeSpec(capacity_bytes=PLENTY, settings=dict(more)) for node, more in nodes.items()}
            made = write_fleet(folder, redis_url=server.url, nodes=described, fleet=fleet)
            os.environ["REBALANCE_CONFIG"] = str(made.config)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_turn(calls: Mapping[str, Callable[[], object]], *, each: int, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Microseconds a call, by name, one sample a round; the first round only warms up."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(each):
                call()
            if number:
                samples[name].append((time.perf_counter() - begun) / each * 1e6)
    return samples


def _figure(name: str, samples: dict[str, list[float]], ours: str, rival: str, limit: float) -> Figure:
    ratios = [mine / theirs for mine, theirs in zip(samples[ours], samples[rival], strict=True)]
    medians = ", ".join(f"{name} {statistics.median(times):.0f} µs" for name, times in samples.items())
    return Figure(
        name=name,
        value=statistics.median(ratios),
        unit="×",
        limit=limit,
        command=COMMAND,
        samples=samples,
        detail=medians,
    )


def _locate(report: Report, rebalancer: Rebalancer) -> None:
    client, keys, locator = rebalancer._state.connection.client, rebalancer._state.keys, rebalancer._locator
    where = locator.where("k/0")
    # On a disk: what is measured is the look-up, not a request to a store.
    disk = Path(load_settings().node("disk").url.removeprefix("file://"))
    home = next(key for key in (f"k-{number}" for number in range(400)) if locator.home(key, where) == "disk")
    for key in (home, "forwarded"):
        (disk / key).write_bytes(b"x")
    client.hset(keys.forwarding, "forwarded", f"disk|{2**52}")
    client.set("bench", f"disk|{2**52}")
    samples = in_turn(
        {
            "GET": lambda: client.get("bench"),
            "locate, forwarded": lambda: rebalancer.locate("forwarded"),
            "locate, surveyed": lambda: rebalancer.locate(home),
        },
        each=200,
    )
    for ours in ("locate, forwarded", "locate, surveyed"):
        report.add(_figure(f"{ours} (on a disk) ÷ a bare Redis GET", samples, ours, "GET", LOCATE_LIMIT))


def _read(report: Report, rebalancer: Rebalancer, node: str) -> None:
    settings = rebalancer.settings
    fs = fsspec.filesystem("fleet")
    data = os.urandom(READ_BYTES)
    key = f"{node}/{KEY}"
    driver = Drivers(settings)(node)
    writer = driver.stage(MoveId("bench"))
    writer.write(memoryview(data))
    writer.finish(ObjectMetadata(mode=0o644, mtime_ns=1))
    driver.publish(MoveId("bench"), key)

    def own() -> bytes:
        with driver.open_source(key) as source:
            return stretch(source, key)

    calls: dict[str, Callable[[], object]] = {"own driver": own, "fleet://": lambda: fs.cat_file(f"test/{key}")}
    if node == "disk":
        path = f"{settings.node(node).url.removeprefix('file://')}/{key}"
        local = fsspec.filesystem("file")
        calls["fsspec's local"] = lambda: local.cat_file(path)
    assert fs.cat_file(f"test/{key}") == data == own()
    samples = in_turn(calls, each=200 if node == "disk" else 20)
    where = {"disk": "a disk", "bucket": "S3 (SeaweedFS)"}[node]
    for rival in calls:
        if rival != "fleet://":
            name = f"fleet:// read of 64 KiB from {where}, nothing moves ÷ {rival}"
            report.add(_figure(name, samples, "fleet://", rival, READ_LIMIT))


def _downtime(report: Report) -> None:
    outcome = play("union", keys=300, kills=3, idle_s=8.0)
    idle = _p99_ms([op for op in outcome.ops if op.ended < outcome.started])
    busy = _p99_ms([op for op in outcome.ops if op.begun >= outcome.started and op.ended < outcome.ended])
    report.add(
        Figure(
            name="reads through fleet:// during a rebalance with kills: p99 ÷ before it",
            value=busy / idle,
            unit="×",
            limit=None,
            command=COMMAND,
            samples={"idle_p99_ms": [idle], "moving_p99_ms": [busy]},
            detail=f"p99 {busy:.1f} ms against {idle:.1f} ms; {outcome.line()}",
        )
    )
    report.add(
        Figure(
            name="failed reads, wrong bytes, lost writes in it",
            value=float(len(outcome.problems)),
            unit="",
            limit=0.0,
            command=COMMAND,
            samples={},
            detail="; ".join(outcome.problems)[:2000],
        )
    )


def _p99_ms(ops: list[Op]) -> float:
    times = sorted(op.ended - op.begun for op in ops if op.kind == "read")
    return times[int(0.99 * (len(times) - 1))] * 1000
