"""Two fleets, one worker process, default slices: how long the urgent one waits for it, and what share of the bytes it gets."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import MIB
from rebalance_tasks.embedded import start_server
from rebalance_tasks.migration.control import SLICE_S
from rebalance_tasks.settings import load_settings
from tests.bench.report import Figure
from tests.bench.world import scratch
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.report import Report
    from tests.support.fleets import Fleet

COMMAND: Final = "python -m tests.bench turns"
PRIORITIES: Final = {"patient": 1, "urgent": 4}
OBJECT_BYTES: Final = MIB // 4
#: Such that neither is done while both are watched.
OBJECTS: Final = 500
RATE: Final = MIB // 2
#: Twice round: eight turns and two.
TURNS: Final = 2 * sum(PRIORITIES.values())
#: The slice under way, and a busy machine.
WAIT_LIMIT_S: Final = SLICE_S + 3
READY_S: Final = 120.0


def run(report: Report) -> None:
    """Let the patient fleet begin, then the urgent one."""
    with ExitStack() as stack:
        folder = scratch()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = start_server(folder / "redis")
        stack.callback(server.kill)
        fleets = {name: _fleet(folder / name, server.url) for name in PRIORITIES}
        factory = ProcessFactory(folder, server.url)
        stack.callback(factory.stop_all)
        config = os.pathsep.join(str(fleet.config) for fleet in fleets.values())
        factory.worker(concurrency=1, env={"REBALANCE_CONFIG": config})
        _start(fleets["patient"])
        wait_until(lambda: _written(fleets["patient"]), READY_S, "the patient fleet moves")
        _start(fleets["urgent"])
        asked = time.perf_counter()
        wait_until(lambda: _written(fleets["urgent"]), READY_S, "the urgent fleet moves", interval_s=0.05)
        waited_s = time.perf_counter() - asked
        # Rounds are counted from a turn of the patient fleet: the turn that the urgent one came in on was nobody's.
        had = _written(fleets["patient"])
        wait_until(
            lambda: _written(fleets["patient"]) > had, READY_S * 2, "the patient fleet moves on", interval_s=0.05
        )
        before = {name: _written(fleet) for name, fleet in fleets.items()}
        time.sleep(TURNS * SLICE_S)
        moved = {name: _written(fleet) - before[name] for name, fleet in fleets.items()}
    report.add(
        Figure("urgent fleet: wait for the process", waited_s, "s", WAIT_LIMIT_S, COMMAND, detail="the slice under way")
    )
    share = moved["urgent"] / sum(moved.values())
    due = PRIORITIES["urgent"] / sum(PRIORITIES.values())
    detail = f"{share:.2f} of the bytes, the patient fleet the rest"
    report.add(
        Figure(
            "share due to the urgent fleet ÷ its share", due / share, "×", 1.15, COMMAND, moved_samples(moved), detail
        )
    )
    report.add(
        Figure("share due to the patient fleet ÷ its share", (1 - due) / max(1 - share, 1e-9), "×", 1.3, COMMAND)
    )


def moved_samples(moved: dict[str, int]) -> dict[str, list[float]]:
    """Bytes that each fleet moved, as samples."""
    return {name: [float(size_bytes)] for name, size_bytes in moved.items()}


def _fleet(folder: Path, url: str) -> Fleet:
    folder.mkdir()
    files = {f"o/{number:03}": OBJECT_BYTES for number in range(OBJECTS)}
    nodes = {"a": NodeSpec(files, 10**10), "b": NodeSpec({}, 10**10)}
    table = {"name": folder.name, "priority": PRIORITIES[folder.name]}
    return write_fleet(folder, redis_url=url, nodes=nodes, fleet=table, options={"throttle_bytes_per_sec": RATE})


def _start(fleet: Fleet) -> None:
    rebalancer = Rebalancer(load_settings(fleet.config, environ={}))
    moves = tuple(
        RebalanceMove(object_key=f"o/{number:03}", source_node="a", target_node="b", size_bytes=OBJECT_BYTES)
        for number in range(OBJECTS)
    )
    rebalancer.start(RebalancePlan(plan_id="bench", fleet=rebalancer.settings.fleet, moves=moves), "bench")


def _written(fleet: Fleet) -> int:
    """Bytes of copies, published or on their way."""
    found = 0
    for place in ("o/*", ".rebalance/tmp/*"):
        for path in fleet.roots["b"].glob(place):
            try:
                found += path.stat().st_size
            except FileNotFoundError:  # published meanwhile
                continue
    return found
