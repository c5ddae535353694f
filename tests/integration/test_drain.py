"""A node is drained, watched, found empty and activated again: real files, states that win over the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.cli import node_tables
from rebalance_tasks.control.check import plan_only, run_check
from rebalance_tasks.control.drain import activate, drain, set_state
from rebalance_tasks.control.start import start_job
from rebalance_tasks.control.survey import reports, survey
from rebalance_tasks.core.errors import NodeMissing, UnknownNode
from rebalance_tasks.core.models import NodeState
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

FILES = {f"k{number:02}": 5_000 for number in range(20)}


def state_of(engine: Engine, node_id: str) -> str:
    return next(node_tables.state_text(report) for report in reports(engine.context) if report.node.node_id == node_id)


def test_a_node_is_drained_shown_empty_and_filled_again_when_active(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({name: NodeSpec(FILES if name == "n1" else {}, 400_000) for name in ("n1", "n2", "n3")})
    engine = Engine()
    change = drain(engine.context, "n1")
    assert (change.before, change.state, change.reason) == (NodeState.ACTIVE, NodeState.DRAINING, "")
    assert change.check is not None
    assert (change.check.objects, change.check.fits_objects) == (20, 20)
    assert state_of(engine, "n1") == "draining: 20 objects left"
    plan = plan_only(engine.context)
    start_job(engine.context, plan, job_id="j1", requested_by="test")
    assert engine.finish().completed_moves == len(FILES)
    assert fleet.objects("n1") == {}
    assert state_of(engine, "n1") == "draining: empty, may be removed"
    set_state(engine.context, "n1", NodeState.ACTIVE)
    assert state_of(engine, "n1") == "active"
    assert engine.context.fleet.node_states() == {}, "what the file says anyway is not kept"


def test_a_drain_that_does_not_fit_is_refused_unless_forced(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": NodeSpec(FILES, 400_000), "n2": NodeSpec({}, 60_000)})
    engine = Engine()
    change = drain(engine.context, "n1")
    assert (change.state, change.reason) == (NodeState.ACTIVE, "does_not_fit")
    assert change.check is not None
    # 0.95 of 60,000 bytes hold eleven objects of 5,000.
    assert [(held.reason, held.objects, held.bytes) for held in change.check.blocked] == [("no_room", 9, 45_000)]
    assert (change.check.fits_objects, change.check.room_bytes) == (11, 57_000)
    assert engine.context.node("n1").state is NodeState.ACTIVE
    assert drain(engine.context, "n1", force=True).state is NodeState.DRAINING
    assert engine.context.node("n1").state is NodeState.DRAINING


def test_a_dry_run_changes_nothing(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": NodeSpec(FILES, 400_000), "n2": NodeSpec({}, 400_000)})
    engine = Engine()
    change = drain(engine.context, "n1", dry_run=True)
    assert change.check is not None
    assert change.check.fits
    assert engine.context.fleet.node_states() == {}


def test_the_run_time_state_wins_over_the_file(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": NodeSpec(FILES, 400_000, {"state": "draining"}), "n2": NodeSpec({}, 400_000)})
    engine = Engine()
    assert engine.context.node("n1").state is NodeState.DRAINING
    assert set_state(engine.context, "n1", NodeState.ACTIVE).before is NodeState.DRAINING
    assert engine.context.node("n1").state is NodeState.ACTIVE
    drain(engine.context, "n1")
    assert engine.context.fleet.node_states() == {}


def test_a_node_in_maintenance_is_not_looked_at_and_neither_gives_nor_takes(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({name: NodeSpec(FILES if name == "n1" else {}, 400_000) for name in ("n1", "n2", "n3")})
    engine = Engine()
    set_state(engine.context, "n3", NodeState.MAINTENANCE)
    fleet.roots["n3"].rmdir()
    plan = plan_only(engine.context)
    assert {move.target_node for move in plan.moves} == {"n2"}
    set_state(engine.context, "n3", NodeState.ACTIVE)
    with pytest.raises(NodeMissing):
        survey(engine.context)


# -- activate -----------------------------------------------------------------------------------------------------------
def test_what_became_too_much_for_a_node_in_maintenance_refuses_its_return_unless_others_take_it_or_it_is_forced(
    fleet_config: FleetFactory,
) -> None:
    fleet = fleet_config({"n1": NodeSpec({}, 40_000), "n2": NodeSpec(FILES, 120_000)})
    engine = Engine()
    set_state(engine.context, "n1", NodeState.MAINTENANCE)
    for number in range(9):
        (fleet.roots["n1"] / f"late{number}").write_bytes(b"x" * 5_000)
    looked = activate(engine.context, "n1", dry_run=True)
    assert (looked.state, looked.reason) == (NodeState.MAINTENANCE, "")
    assert looked.check is not None
    # 0.95 of 40,000 bytes are 38,000; n2 has room for 14,000 of the 7,000 that are too many.
    assert (looked.check.over_bytes, looked.check.fits_bytes, looked.fits) == (7_000, 7_000, True)
    (fleet.roots["n2"] / "more").write_bytes(b"x" * 9_000)
    refused = activate(engine.context, "n1")
    assert (refused.state, refused.reason, refused.fits) == (NodeState.MAINTENANCE, "does_not_fit", False)
    assert refused.check is not None
    assert [(held.reason, held.objects) for held in refused.check.blocked] == [("no_room", 8)]
    assert engine.context.node("n1").state is NodeState.MAINTENANCE
    assert activate(engine.context, "n1", force=True).state is NodeState.ACTIVE
    assert engine.context.node("n1").state is NodeState.ACTIVE


def test_a_node_that_is_not_there_is_not_activated_unless_forced_and_one_of_the_others_is_no_obstacle(
    fleet_config: FleetFactory,
) -> None:
    fleet = fleet_config({name: NodeSpec(FILES if name == "n1" else {}, 400_000) for name in ("n1", "n2")})
    engine = Engine()
    set_state(engine.context, "n2", NodeState.MAINTENANCE)
    fleet.roots["n2"].rename(fleet.roots["n2"].with_name("away"))
    with pytest.raises(NodeMissing):
        activate(engine.context, "n2")
    assert engine.context.node("n2").state is NodeState.MAINTENANCE
    assert activate(engine.context, "n2", force=True).check is None
    set_state(engine.context, "n1", NodeState.DRAINING)
    back = activate(engine.context, "n1")
    assert (back.before, back.state, back.check) == (NodeState.DRAINING, NodeState.ACTIVE, None)


def test_an_unknown_node_has_no_state(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": {}, "n2": {}})
    engine = Engine()
    with pytest.raises(UnknownNode):
        drain(engine.context, "n9")
    with pytest.raises(UnknownNode):
        activate(engine.context, "n9")
    with pytest.raises(UnknownNode):
        set_state(engine.context, "n9", NodeState.ACTIVE)
    assert engine.context.fleet.node_states() == {}


def test_a_check_empties_a_draining_node_of_a_balanced_fleet(fleet_config: FleetFactory) -> None:
    fleet_config({name: NodeSpec({f"{name}-{k}": v for k, v in FILES.items()}, 400_000) for name in ("n1", "n2", "n3")})
    engine = Engine()
    assert run_check(engine.context).reason.startswith("under_threshold")
    drain(engine.context, "n2")
    result = run_check(engine.context)
    assert result.verdict == "started"
    assert result.plan_id is not None
    assert {move.source_node for move in engine.context.plans.load(result.plan_id).moves} == {"n2"}
