"""A host's package answers the five dimensions of gravity, and what a worker's check plans goes by each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.check import run_check
from tests.support import measures
from tests.support.arena import JOB_TIMEOUT_S, context_of, rebalancer_of
from tests.support.fleets import NodeSpec
from tests.support.measures import DIMENSIONS
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks import RebalancePlan, Rebalancer
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

SIZE, EACH = 1000, 8
#: The fuller node gives seven objects, one fewer than a folder holds.
CAPACITY, OPTIONS = 200 * SIZE, {"imbalance_threshold": 0.15, "target_imbalance": 0.13}
FILES = {f"{dimension}/{number}": SIZE for dimension in DIMENSIONS for number in range(EACH)}


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return measures.install(tmp_path, monkeypatch)


@pytest.fixture
def fleet(switch: Path, fleet_config: FleetFactory) -> Fleet:
    nodes = {"a": NodeSpec(FILES, CAPACITY), "b": NodeSpec({}, CAPACITY)}
    made = fleet_config(nodes, options=OPTIONS, fleet={"mode": "observe", "surveys": "tasks"})
    measures.configure(made, **dict.fromkeys(DIMENSIONS, "provider:acme-measures"))
    return made


def planned(rebalancer: Rebalancer) -> RebalancePlan:
    """What the workers' next check plans."""
    before = len(rebalancer.checks(100))
    assert run_check(context_of(rebalancer), by_tasks=True).verdict == "surveying"
    wait_until(lambda: len(rebalancer.checks(100)) > before, JOB_TIMEOUT_S, "the check has decided")
    decided = rebalancer.checks(1)[0]
    assert decided["verdict"] == "planned", decided["reason"]
    return rebalancer.load_plan(decided["plan_id"])


def test_each_dimension_alone_decides_what_a_workers_check_plans(
    fleet: Fleet, switch: Path, processes: ProcessFactory
) -> None:
    processes.worker(concurrency=2)
    rebalancer = rebalancer_of(fleet)
    unknown = planned(rebalancer)
    assert len(unknown.moves) == EACH - 1
    assert len({move.gravity for move in unknown.moves}) == 1, "where nothing is known, every dimension has its default"
    for dimension in DIMENSIONS:
        switch.write_text(dimension)
        plan = planned(rebalancer)
        assert len(plan.moves) == EACH - 1
        assert {move.object_key.split("/")[0] for move in plan.moves} == {dimension}
        assert all(move.gravity < 0.5 for move in plan.moves)


def test_a_provider_that_fails_is_named_and_nothing_is_planned(
    fleet: Fleet, switch: Path, processes: ProcessFactory
) -> None:
    switch.unlink()
    result = rebalancer_of(fleet).check()
    assert result.verdict == "skipped"
    assert result.reason.startswith(
        "configuration: [gravity] access = 'provider:acme-measures': reads_and_writes_per_hour failed"
    )
