"""What adaptive throttling does for a node that somebody else needs: how far we back off, what they get, how soon we are back.

The disk is a model (one queue, first come first served, so many bytes a second), so that both runs meet the same disk; the rest is
real: two slices' controls, gauges, the controller, and its state and buckets in Redis.
"""

from __future__ import annotations

import shutil
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.context import StateContext
from rebalance_tasks.control.throttles import Throttles
from rebalance_tasks.embedded import start_server
from rebalance_tasks.migration.control import CHUNK_BYTES, SliceControl
from rebalance_tasks.migration.measured import Gauge
from rebalance_tasks.settings import load_settings
from rebalance_tasks.store.records import GroupRecord
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.fleets import NodeSpec, write_fleet

if TYPE_CHECKING:
    from tests.bench.report import Report

DISK_BYTES_PER_S: Final = 40_000_000
CHUNK: Final = min(CHUNK_BYTES, 256 * 1024)
#: Seconds of the run at which somebody else begins and ends to write.
BEGIN_S, END_S, RUN_S = 8.0, 22.0, 45.0
SETTLE_S: Final = 6.0
OUR_THREADS, THEIR_THREADS = 2, 4
#: While they write we keep at most this share of our own rate …
LEFT_LIMIT: Final = 0.4
#: … they get so much more than they would without (ratio of the two, ours below) …
THEIRS_LIMIT: Final = 0.85
#: … and afterwards we are as fast as before, within 15 %.
BACK_LIMIT: Final = 1.15
GROUP: Final = GroupRecord(
    group_id="g", source="a", target="b", offset=0, size=1, total_bytes=1, queue="rebalance.data"
)
COMMAND: Final = "python -m tests.bench adaptive"


class Disk:
    """One queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0

    def write(self, size_bytes: int) -> None:
        with self._lock:
            self._free_at = max(time.monotonic(), self._free_at) + size_bytes / DISK_BYTES_PER_S
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))


class Written:
    """What ended when."""

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.size_bytes: list[float] = []

    def add(self, at_s: float, size_bytes: int) -> None:
        self.at_s.append(at_s)
        self.size_bytes.append(size_bytes)

    def rate(self, begin: float, end: float) -> float:
        """Bytes a second between two moments."""
        pairs = zip(self.at_s, self.size_bytes, strict=True)
        return sum(size for at, size in pairs if begin <= at < end) / (end - begin)


def run(report: Report) -> None:
    """Once without and once with adaptive throttling."""
    plain_ours, plain_theirs = _run(adaptive=False)
    ours, theirs = _run(adaptive=True)
    before, shared, after = (BEGIN_S / 2, BEGIN_S), (BEGIN_S + SETTLE_S, END_S), (RUN_S - SETTLE_S, RUN_S)
    left = ours.rate(*shared) / ours.rate(*before)
    gain = plain_theirs.rate(*shared) / theirs.rate(*shared)
    back = ours.rate(*before) / ours.rate(*after)
    without = plain_ours.rate(*shared) / plain_ours.rate(*before)
    series = {"ours_s": ours.at_s, "ours_bytes": ours.size_bytes, "theirs_s": theirs.at_s}
    detail = f"{without:.2f} without adaptive throttling"
    report.add(Figure("adaptive: our rate while others write ÷ before", left, "×", LEFT_LIMIT, COMMAND, series, detail))
    report.add(Figure("adaptive: what others get without ÷ with it", gain, "×", THEIRS_LIMIT, COMMAND))
    report.add(Figure("adaptive: our rate before ÷ after they have gone", back, "×", BACK_LIMIT, COMMAND))


def _run(*, adaptive: bool) -> tuple[Written, Written]:
    """What we and what they wrote."""
    folder = scratch()
    try:
        (folder / "redis").mkdir()
        options = {"throttle_bytes_per_sec": "none", "adaptive_throttle": adaptive}
        nodes = {name: NodeSpec(files={}, capacity_bytes=10**9) for name in ("a", "b")}
        with start_server(folder / "redis") as server:
            fleet = write_fleet(folder, redis_url=server.url, nodes=nodes, options=options)
            return _share(StateContext.open(load_settings(fleet.config)), adaptive=adaptive)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _share(context: StateContext, *, adaptive: bool) -> tuple[Written, Written]:
    disk, begun, throttles = Disk(), time.monotonic(), Throttles(context)
    ours, theirs = Written(), Written()

    def elapsed() -> float:
        return time.monotonic() - begun

    def work() -> None:
        control = SliceControl(lambda: "ok", bucket=throttles.of("j", GROUP, now=context.now()), slice_s=RUN_S * 2)
        gauge = Gauge(context.paces, "b", "write")
        while elapsed() < RUN_S:
            chunk = min(CHUNK, control.chunk_bytes)
            control.spend(chunk)
            if adaptive:
                gauge.timed(partial(disk.write, chunk), size_of=lambda _, size=chunk: size)  # type: ignore[misc]
            else:
                disk.write(chunk)
            ours.add(elapsed(), chunk)

    def stranger() -> None:
        time.sleep(max(0.0, BEGIN_S - elapsed()))
        while elapsed() < END_S:
            disk.write(CHUNK)
            theirs.add(elapsed(), CHUNK)

    threads = [threading.Thread(target=act, daemon=True) for act in [work] * OUR_THREADS + [stranger] * THEIR_THREADS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ours, theirs
