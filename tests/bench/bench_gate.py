"""What a group costs: 200 one-object groups against a bare Celery chord of 200 chain(noop, noop), one worker, one run."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import uuid
from typing import TYPE_CHECKING, Final

import redis

from rebalance_tasks.celery import app as celery_app
from rebalance_tasks.client import Rebalancer
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from tests.bench import world as worlds
from tests.bench.report import Figure
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.bench.report import Report

GROUPS: Final = 200
#: 15 nodes make 210 pairs.
NODES: Final = 15
RUNS: Final = 9
OBJECT_BYTES: Final = 1000
LIMIT: Final = 1.6


def run(report: Report, *, runs: int = RUNS) -> None:
    """Measure at N = 3."""
    nodes = {f"n{i:02d}": NodeSpec(files={}, capacity_bytes=10**9) for i in range(NODES)}
    options = {"max_concurrent_migrations": 3, "throttle_bytes_per_sec": 50 * 2**20}
    ours: list[float] = []
    bare: list[float] = []
    with worlds.world(nodes, options=options, app="tests.bench.chord_app") as (fleet, server):
        from tests.bench import chord_app  # reads the configuration that `world` has just written

        rebalancer = Rebalancer()
        rebalancer.adopt()
        client = redis.Redis.from_url(server.url)
        celery_app.conf.update(broker_url=server.url, result_backend=server.url)
        for number in range(runs + 1):
            seconds = _chord(client, chord_app)
            plan = _plan(fleet.roots, f"bench-{number}-{uuid.uuid4().hex[:6]}")
            begun = time.perf_counter()
            job = rebalancer.start(plan)
            while not (job := rebalancer.status(job.job_id)).status.terminal:
                time.sleep(0.01)
            if job.completed_moves != GROUPS:
                sys.exit(f"only {job.completed_moves} of {GROUPS} objects moved: {job.failures}")
            if number:  # the first run warms up
                bare.append(seconds)
                ours.append(time.perf_counter() - begun)
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    report.add(
        Figure(
            name=f"{GROUPS} one-object groups at N = 3 ÷ bare chord of {GROUPS} chains",
            value=ratio,
            unit="×",
            limit=LIMIT,
            command="python -m tests.bench gate",
            samples={"ours_s": ours, "bare_chord_s": bare},
            detail=f"{statistics.median(ours):.2f} s against {statistics.median(bare):.2f} s",
        ),
    )


def _chord(client: redis.Redis, chord_app: object) -> float:
    token = uuid.uuid4().hex
    begun = time.perf_counter()
    chord_app.send(GROUPS, token)  # type: ignore[attr-defined]
    if client.blpop([chord_app.DONE], timeout=120) is None:  # type: ignore[attr-defined]
        sys.exit("the bare chord never called back")
    return time.perf_counter() - begun


def _plan(roots: Mapping[str, Path], plan_id: str) -> RebalancePlan:
    """One object for each of 200 pairs, freshly written."""
    pairs = list(itertools.islice(itertools.permutations(sorted(roots), 2), GROUPS))
    moves = []
    for source, target in pairs:
        key = f"{plan_id}/{source}-{target}.bin"
        path = roots[source] / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * OBJECT_BYTES)
        moves.append(RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=OBJECT_BYTES))
    return RebalancePlan(
        plan_id=plan_id, fleet="test", moves=tuple(moves), estimated_egress_bytes=OBJECT_BYTES * GROUPS
    )
