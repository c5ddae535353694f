"""What a group costs: 200 one-object groups against a bare Celery chord of 200 chain(noop, noop), one worker, one run.

Whoever waits costs neither side anything: the chord's end is a list's first entry, the job's an event; both block for it. The processor
time of worker and server is told besides, since it says more than the clock on a machine that does other things as well.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import uuid
from typing import TYPE_CHECKING, Final, NamedTuple

import redis

from rebalance_tasks.celery import make_app
from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.settings import load_settings
from tests.bench import chord_app
from tests.bench import world as worlds
from tests.bench.jobs import wait_for_end
from tests.bench.processor import processor_s
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from celery import Celery

    from tests.bench.report import Report

#: (groups, N, limit): what the gate costs, what a group costs without a gate, and whether the cost grows with the job.
CASES: Final = ((200, 3, 1.4), (200, 200, 1.15), (1000, 3, 1.4))
#: 33 nodes make 1,056 pairs.
NODES: Final = 33
RUNS: Final = 9
OBJECT_BYTES: Final = 1000


def run(report: Report, *, runs: int = RUNS) -> None:
    """Measure each case with a worker of its own."""
    figures: list[Figure] = []
    for groups, permits, limit in CASES:
        seconds, processor = _case(groups, permits, limit, runs=runs)
        figures.append(seconds)
        report.add(seconds)
        report.add(processor)
    report.add(_growth(figures[0], figures[2]))


def _case(groups: int, permits: int, limit: float, *, runs: int) -> tuple[Figure, Figure]:
    """Return the ratio by the clock, and that of processor time."""
    nodes = {f"n{i:02d}": NodeSpec(files={}, capacity_bytes=10**9) for i in range(NODES)}
    options = {"max_concurrent_migrations": permits, "throttle_bytes_per_sec": 50 * 2**20}
    ours: list[Spent] = []
    bare: list[Spent] = []
    with worlds.world(nodes, options=options, app="tests.bench.chord_app") as (fleet, server):
        client = redis.Redis.from_url(server.url, socket_timeout=None)
        sender = make_app(load_settings())
        rebalancer = Rebalancer()
        rebalancer.adopt()
        for number in range(runs + 1):
            chord = _timed(lambda: _chord(client, sender, groups))
            plan = _plan(fleet.roots, f"bench-{number}-{uuid.uuid4().hex[:6]}", groups)
            job = _timed(lambda plan=plan: _job(rebalancer, plan))  # type: ignore[misc]
            if number:  # the first run warms up
                bare.append(chord)
                ours.append(job)
    name = f"{groups} one-object groups at N = {permits} ÷ bare chord of {groups} chains"
    return _ratio(name, ours, bare, limit=limit), _ratio(f"processor time of {name}", ours, bare, processor=True)


class Spent(NamedTuple):
    """What a run took, in seconds: by the clock, and of processors."""

    clock: float
    processor: float


def _timed(run: Callable[[], None]) -> Spent:
    used, begun = processor_s(), time.perf_counter()
    run()
    return Spent(time.perf_counter() - begun, processor_s() - used)


def _ratio(
    name: str, ours: list[Spent], bare: list[Spent], *, limit: float | None = None, processor: bool = False
) -> Figure:
    """Median of the paired runs' ratios."""
    mine, theirs = ([run.processor if processor else run.clock for run in runs] for runs in (ours, bare))
    return Figure(
        name=name,
        value=statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        unit="×",
        limit=limit,
        command="python -m tests.bench gate",
        samples={"ours_s": mine, "bare_chord_s": theirs},
        detail=f"{statistics.median(mine):.2f} s against {statistics.median(theirs):.2f} s",
    )


def _job(rebalancer: Rebalancer, plan: RebalancePlan) -> None:
    """Start a plan and wait for its end."""
    seen = rebalancer._context.events.last_id()
    job = rebalancer.start(plan)
    wait_for_end(rebalancer, job.job_id, after=seen)
    job = rebalancer.status(job.job_id)
    if job.completed_moves != len(plan.moves):
        sys.exit(f"only {job.completed_moves} of {len(plan.moves)} objects moved: {job.failures}")


def _growth(small: Figure, large: Figure) -> Figure:
    """Whether a group costs more in a large job than in a small one; both at the same N."""
    each = [
        [seconds / groups for seconds in figure.samples["ours_s"]]
        for figure, (groups, _, _) in ((large, CASES[2]), (small, CASES[0]))
    ]
    of_large, of_small = map(statistics.median, each)
    return Figure(
        name=f"a group of a job of {CASES[2][0]} ÷ one of a job of {CASES[0][0]}, N = {CASES[0][1]}",
        value=of_large / of_small,
        unit="×",
        limit=1.0,
        command="python -m tests.bench gate",
        samples={"large_s": each[0], "small_s": each[1]},
        detail=f"{of_large * 1000:.2f} against {of_small * 1000:.2f} ms",
    )


def _chord(client: redis.Redis, sender: Celery, headers: int) -> None:
    token = uuid.uuid4().hex
    chord_app.send(sender, headers, token)
    if client.blpop([chord_app.DONE], timeout=120) is None:
        sys.exit("the bare chord never called back")


def _plan(roots: Mapping[str, Path], plan_id: str, groups: int) -> RebalancePlan:
    """One object for each pair, freshly written."""
    pairs = list(itertools.islice(itertools.permutations(sorted(roots), 2), groups))
    moves = []
    for source, target in pairs:
        key = f"{plan_id}/{source}-{target}.bin"
        path = roots[source] / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * OBJECT_BYTES)
        moves.append(RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=OBJECT_BYTES))
    return RebalancePlan(
        plan_id=plan_id, fleet="test", moves=tuple(moves), estimated_egress_bytes=OBJECT_BYTES * groups
    )
