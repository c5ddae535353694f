"""Answers of Redis that are lost or late: whatever was sent may be sent again, and nothing is done twice."""

from __future__ import annotations

import random
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.store.connection import Connection
from tests.support.checker import check, record
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.hooks import DAY_MS, SIZES
from tests.support.servers import Line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rebalance_tasks.embedded import EmbeddedServer
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


@pytest.fixture
def make(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fleet]:
    """Make the fleet of most of these tests, reached by any URL."""

    def made(url: str = redis_url, sizes: dict[str, int] = SIZES) -> Fleet:
        fleet = write_fleet(
            tmp_path,
            redis_url=url,
            nodes={"n1": NodeSpec(sizes), "n2": NodeSpec({"resident": 10}), "n3": NodeSpec()},
            options={"throttle_bytes_per_sec": "none", "max_cost_per_day": "100"},
        )
        monkeypatch.setenv("REBALANCE_CONFIG", str(fleet.config))
        return fleet

    return made


def carry(engine: Engine) -> dict[str, Any]:
    """Carry a job with stale moves from its start to the purge; return all that was counted and kept on the way."""
    engine.context.fleet.set_usage({"n1": 15_001, "n2": 10, "n3": 0})
    moves = [
        *moves_between("n1", "n2", {key: SIZES[key] for key in ("a/one", "a/two", "b/three")}),
        *moves_between("n1", "n3", {"four": 0, "five": 1}),
        *moves_between("n2", "n2", {"resident": 10}),
    ]
    engine.start([move.model_copy(update={"cost": Decimal(1)}) for move in moves])
    # The sweep's question for an overdue header is answered once: each lost answer costs another turn.
    job = engine.finish(sweeps=40)
    spent = {
        name: engine.context.connection.hget(engine.context.keys.job("j1").base, name)
        for name in ("egress_bytes", "cost_nano")
    }
    awaiting = engine.context.fleet.awaiting()
    for _ in range(2):
        engine.cleanup(later_ms=DAY_MS)
    return {
        "counts": (job.completed_moves, job.failed_moves, job.skipped_moves, job.total_moves, job.bytes_moved),
        "causes": dict(job.failures),
        "groups": (job.groups_done, job.groups_total),
        "spent": spent,
        "awaiting": awaiting,
        "purged": {node: size for node, size in engine.context.fleet.awaiting().items() if size},
        "usage": engine.context.fleet.usage(),
        "permits": engine.context.connection.hgetall(engine.context.keys.permits),
        "reserved": {
            node: engine.context.connection.hgetall(engine.context.keys.reserved(node)) for node in ("n1", "n2", "n3")
        },
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_job_comes_out_the_same_when_half_of_the_answers_to_scripts_are_lost(
    make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What a reconnecting client does: it sends the same again and takes the second answer for the first."""
    fleet = make()
    written = record(fleet.roots)
    engine = Engine()
    dice = random.Random(seed)
    original = Connection.run_all

    def twice(self: Connection, calls: Any) -> Any:
        if dice.random() < 0.5:
            original(self, calls)
        return original(self, calls)

    monkeypatch.setattr(Connection, "run_all", twice)
    found = carry(engine)
    check(fleet.roots, written, engine.job(), trash=True)
    assert found == {
        "counts": (5, 0, 1, 6, 15_001),
        "causes": {"stale_plan_invalid": 1},
        "groups": (2, 2),
        "spent": {"egress_bytes": b"15001", "cost_nano": b"5000000000"},
        "awaiting": {"n1": 15_001},
        "purged": {},
        "usage": {"n1": 0, "n2": 15_010, "n3": 1},
        "permits": {},
        "reserved": {"n1": {}, "n2": {}, "n3": {}},
    }


def test_a_check_whose_answer_is_lost_still_is_the_one_check(
    make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its lock, which nobody holds, would keep all checks away for ten minutes."""
    make()
    engine = Engine()
    original = Connection.run_all

    def twice(self: Connection, calls: Any) -> Any:
        original(self, calls)
        return original(self, calls)

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "run_all", twice)
        token = engine.context.fleet.acquire_check(ttl_ms=60_000)
    assert token is not None
    assert engine.context.fleet.acquire_check(ttl_ms=60_000) is None
    engine.context.fleet.release_check(token)
    assert engine.context.fleet.acquire_check(ttl_ms=60_000) is not None


@pytest.mark.parametrize("seed", range(2))
def test_a_line_that_breaks_again_and_again_loses_no_object_and_no_count(
    make: Callable[..., Fleet], redis_server: EmbeddedServer, seed: int
) -> None:
    dice = random.Random(seed)
    with Line(redis_server.port) as line:
        fleet = make(f"redis://127.0.0.1:{line.port}/0")
        written = record(fleet.roots)
        engine = Engine()
        line.loses = lambda: dice.random() < 0.06
        engine.start(moves_between("n1", "n2", SIZES))
        job = engine.finish()
        for _ in range(2):
            engine.cleanup(later_ms=DAY_MS)
        line.loses = lambda: False
        assert line.lost > 2
        assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
        check(fleet.roots, written, job, trash=True)


def test_a_slow_line_costs_a_batch_a_few_answers_and_not_each_object_one(
    make: Callable[..., Fleet], redis_server: EmbeddedServer
) -> None:
    """50 ms there and back: 300 objects one by one would take 15 s for each thing that is written of them."""
    with Line(redis_server.port) as line:
        sizes = {f"o/{number:03d}": 100 for number in range(300)}
        fleet = make(f"redis://127.0.0.1:{line.port}/0", sizes)
        written = record(fleet.roots)
        engine = Engine()
        engine.start(moves_between("n1", "n2", sizes))
        line.delay_s = 0.05
        begun = time.monotonic()
        job = engine.finish()
        took = time.monotonic() - begun
        line.delay_s = 0.0
        assert job.completed_moves == 300
        assert took < 10.0
        check(fleet.roots, written, job)
