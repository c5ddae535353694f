"""``[gravity] access = "atime"``: real files that nobody has read for a year move, those that were just read stay, and moving leaves no trace."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.check import conclude_check, plan_only, run_check
from rebalance_tasks.control.start import start_job
from rebalance_tasks.control.surveying import gathering, streams
from rebalance_tasks.control.surveying.round import survey_nodes
from rebalance_tasks.core.states import RebalanceStatus
from tests.support.access import last_read, require_access_times
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec
from tests.support.measures import configure

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks import RebalancePlan
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

HOT, COLD = 40, 240
CAPACITY = 1_000_000
HOUR_NS = 3_600 * 10**9
YEAR_NS = 24 * 365 * HOUR_NS
_RANDOM = random.Random(1)
#: The hot ones are a little larger: by size alone they would leave first. With so many sizes and places to go the fewest bytes that level
#: the nodes are not searched for object by object.
FILES = {f"hot/{number}": _RANDOM.randrange(1_000, 1_040) for number in range(HOT)}
FILES |= {f"cold/{number}": _RANDOM.randrange(970, 1_000) for number in range(COLD)}
EMPTY = [f"n{number}" for number in range(12)]


def made(fleet_config: FleetFactory, tmp_path: Path, access: str = "atime", **fleet: str) -> Fleet:
    """A full disk and empty ones; what is hot was read an hour ago, what is cold a year ago, and all was written two years ago."""
    require_access_times(tmp_path)
    nodes = {"a": NodeSpec(FILES, CAPACITY), **{name: NodeSpec({}, CAPACITY) for name in EMPTY}}
    written = fleet_config(nodes, fleet=fleet)
    configure(written, access=access)
    now = time.time_ns()
    for key in FILES:
        read_ns = now - (HOUR_NS if key.startswith("hot/") else YEAR_NS)
        os.utime(written.roots["a"] / key, ns=(read_ns, now - 2 * YEAR_NS))
    return written


def hot_ones(plan: RebalancePlan) -> int:
    """How many of the moves are of what was just read."""
    assert len(plan.moves) > HOT
    return sum(move.object_key.startswith("hot/") for move in plan.moves)


#: The last gap of a node is closed by an object that fits it.
GAPS = len(EMPTY)


def test_what_nobody_reads_moves_and_keeps_its_access_time(fleet_config: FleetFactory, tmp_path: Path) -> None:
    fleet = made(fleet_config, tmp_path)
    before = {key: last_read(fleet.roots["a"] / key) for key in FILES}
    engine = Engine()
    plan = plan_only(engine.context)
    assert hot_ones(plan) <= GAPS
    assert plan.imbalance_after <= engine.context.settings.options.effective_target
    start_job(engine.context, plan, job_id="j1", requested_by="test")
    assert engine.finish().status is RebalanceStatus.COMPLETED
    goes = {move.object_key: move.target_node for move in plan.moves}
    where = {key: fleet.roots[goes.get(key, "a")] / key for key in FILES}
    assert {key: last_read(path) for key, path in where.items()} == before


def test_without_access_times_the_largest_leave(fleet_config: FleetFactory, tmp_path: Path) -> None:
    made(fleet_config, tmp_path, "none")
    assert hot_ones(plan_only(Engine().context)) == HOT


def test_a_file_that_is_read_is_seen_by_the_next_check_although_nothing_changed(
    fleet_config: FleetFactory, tmp_path: Path
) -> None:
    fleet = made(fleet_config, tmp_path, mode="observe", survey_dir=str(tmp_path / "seen"))
    engine = Engine()
    first = engine.context.plans.load(run_check(engine.context).plan_id or "")
    reread = first.moves[0].object_key
    (fleet.roots["a"] / reread).read_bytes()
    second = engine.context.plans.load(run_check(engine.context).plan_id or "")
    assert reread not in {move.object_key for move in second.moves}


def test_tasks_ask_for_access_times(fleet_config: FleetFactory, tmp_path: Path) -> None:
    made(fleet_config, tmp_path, mode="observe", surveys="tasks")
    engine = Engine()
    assert run_check(engine.context, by_tasks=True).verdict == "surveying"
    for token, names, _ in engine.messages.surveys:
        survey_nodes(engine.context, token, names)
    result = conclude_check(engine.context, engine.messages.concludes[0])
    assert result is not None
    assert hot_ones(engine.context.plans.load(result.plan_id or "")) <= GAPS


def test_a_listing_that_does_not_fit_keeps_access_times(
    fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "IN_MEMORY_ROWS", 4)
    monkeypatch.setattr(streams, "BATCH_ROWS", 7)
    made(fleet_config, tmp_path, survey_dir=str(tmp_path / "seen"))
    assert hot_ones(plan_only(Engine().context)) <= GAPS
