"""A job is taken back: by real moves of real files, and only as far as it is still what the job left behind."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.cli.app import run
from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.check import plan_only, run_check
from rebalance_tasks.control.start import start_job
from rebalance_tasks.control.undo import plan_undo
from rebalance_tasks.core.errors import InvalidArgument, JobNotFound
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.states import RebalanceStatus
from tests.support import checker
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec
from tests.support.hooks import DAY_MS, SIZES

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration


def moved(engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    assert engine.finish().completed_moves == len(SIZES)


def test_a_finished_job_is_undone_and_every_object_is_back(fleet: Fleet, engine: Engine) -> None:
    before = fleet.objects("n1"), fleet.objects("n2")
    moved(engine)
    written = checker.record(fleet.roots)
    assert fleet.objects("n1") == {}
    back = plan_undo(engine.context, "j1")
    assert (back.completed, len(back.plan.moves), back.left) == (len(SIZES), len(SIZES), {})
    assert back.plan.undo_of == "j1"
    start_job(engine.context, back.plan.plan_id, job_id="j2", requested_by="test")
    job = engine.finish("j2")
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(SIZES))
    assert (fleet.objects("n1"), fleet.objects("n2")) == before
    checker.check(fleet.roots, written, job)
    engine.cleanup(later_ms=DAY_MS)
    assert checker.leftover_violations(checker.look(fleet.roots), trash=True) == []


def test_a_job_that_balanced_is_undone_although_that_unbalances_and_the_cooldown_runs(
    fleet_config: FleetFactory,
) -> None:
    files = {f"k{number:02}": 5_000 for number in range(40)}
    fleet = fleet_config({"n1": NodeSpec(files, 400_000), "n2": NodeSpec({}, 400_000)})
    engine = Engine()
    plan = plan_only(engine.context)
    start_job(engine.context, plan, job_id="j1", requested_by="test")
    assert engine.finish().completed_moves == len(plan.moves) > 0
    back = plan_undo(engine.context, "j1")
    assert back.plan.imbalance_after > back.plan.imbalance_before
    start_job(engine.context, back.plan, job_id="j2", requested_by="test")
    assert engine.finish("j2").completed_moves == len(plan.moves)
    assert set(fleet.objects("n1")) == set(files)


def test_what_was_changed_deleted_or_moved_on_since_stays(fleet: Fleet, engine: Engine) -> None:
    moved(engine)
    keys = sorted(SIZES)
    path = fleet.roots["n2"] / keys[0]
    path.write_bytes(b"x" * SIZES[keys[0]])
    (fleet.roots["n2"] / keys[1]).unlink()
    # Only an undo may take it back within the cooldown.
    engine.start(moves_between("n2", "n1", {keys[2]: SIZES[keys[2]]}), job_id="j2", undo_of="j1")
    engine.finish("j2")
    back = plan_undo(engine.context, "j1")
    assert back.left == {"changed": 1, "gone": 1, "moved_on": 1}
    assert {move.object_key for move in back.plan.moves} == set(keys[3:])
    assert path.read_bytes() == b"x" * SIZES[keys[0]]


def test_without_a_manifest_what_was_written_to_after_the_job_has_changed(fleet: Fleet, engine: Engine) -> None:
    moved(engine)
    for manifest in fleet.roots["n2"].glob(".rebalance/manifests/*"):
        manifest.unlink()
    key = min(SIZES)
    later = engine.job().completed_utc
    assert later is not None
    os.utime(fleet.roots["n2"] / key, (later.timestamp() + 60, later.timestamp() + 60))
    back = plan_undo(engine.context, "j1")
    assert back.left == {"changed": 1}


def test_only_what_a_cancelled_job_completed_is_taken_back(fleet: Fleet, engine: Engine) -> None:
    first = dict(list(SIZES.items())[:2])
    engine.start(moves_between("n1", "n2", first))
    engine.finish()
    engine.context.fleet.pause("test")
    engine.start(moves_between("n1", "n2", {k: v for k, v in SIZES.items() if k not in first}), job_id="j2")
    lifecycle.cancel(engine.context, "j2", requested_by="test")
    engine.context.fleet.resume("test")
    assert engine.job("j2").status is RebalanceStatus.CANCELLED
    with pytest.raises(InvalidArgument, match="completed no move"):
        plan_undo(engine.context, "j2")
    assert {move.object_key for move in plan_undo(engine.context, "j1").plan.moves} == set(first)


def test_an_undo_is_refused_while_a_job_runs_and_for_an_unknown_one(fleet: Fleet, engine: Engine) -> None:
    with pytest.raises(JobNotFound):
        plan_undo(engine.context, "nobody")
    engine.start(moves_between("n1", "n2", SIZES))
    with pytest.raises(InvalidArgument, match="only what has ended"):
        plan_undo(engine.context, "j1")


def test_undone_twice_the_second_time_says_that_all_has_moved_on(fleet: Fleet, engine: Engine) -> None:
    moved(engine)
    start_job(engine.context, plan_undo(engine.context, "j1").plan, job_id="j2", requested_by="test")
    engine.finish("j2")
    with pytest.raises(InvalidArgument, match=f"moved_on {len(SIZES)}"):
        plan_undo(engine.context, "j1")
    again = plan_undo(engine.context, "j2")
    assert {move.target_node for move in again.plan.moves} == {"n2"}, "the undo of an undo goes on again"


def test_the_budgets_bind_and_the_rest_follows_when_asked_again(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": SIZES, "n2": {}}, options={"throttle_bytes_per_sec": "none"})
    engine = Engine()
    moved(engine)
    tight = engine.context.settings.options.model_copy(update={"max_moves_per_cycle": 2})
    object.__setattr__(engine.context, "settings", engine.context.settings.model_copy(update={"options": tight}))
    for number in range(2, 5):
        back = plan_undo(engine.context, "j1")
        start_job(engine.context, back.plan, job_id=f"j{number}", requested_by="test")
        engine.finish(f"j{number}")
    assert len(back.plan.moves) == len(SIZES) - 4
    assert back.left == {"moved_on": 4}


def test_nothing_goes_back_to_a_node_that_is_being_drained(fleet: Fleet, engine: Engine) -> None:
    moved(engine)
    engine.context.fleet.set_node_state("n1", NodeState.DRAINING)
    with pytest.raises(InvalidArgument, match="node_not_active"):
        plan_undo(engine.context, "j1")


def test_a_check_after_an_undo_leaves_alone_what_was_just_moved(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": NodeSpec({f"k{n:02}": 5_000 for n in range(40)}, 400_000), "n2": NodeSpec({}, 400_000)})
    engine = Engine()
    start_job(engine.context, plan_only(engine.context), job_id="j1", requested_by="test")
    engine.finish()
    back = plan_undo(engine.context, "j1")
    start_job(engine.context, back.plan, job_id="j2", requested_by="test")
    engine.finish("j2")
    result = run_check(engine.context)
    assert result.verdict == "started"
    assert result.plan_id is not None
    planned = {move.object_key for move in engine.context.plans.load(result.plan_id).moves}
    assert planned
    assert not planned & {move.object_key for move in back.plan.moves}


def test_with_a_real_worker_the_command_line_starts_a_job_and_takes_it_back(
    fleet_config: FleetFactory, processes: ProcessFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"k{number:02}": 5_000 for number in range(40)}
    fleet = fleet_config({"n1": NodeSpec(files, 400_000), "n2": NodeSpec({}, 400_000)})
    before = fleet.objects("n1")
    processes.worker()
    assert run(["start", "--job-id", "rebal-1", "--watch"]) == 0
    assert fleet.objects("n2")
    capsys.readouterr()
    assert run(["undo", "rebal-1"]) == 0
    assert "nothing was moved" in capsys.readouterr().out
    assert run(["undo", "rebal-1", "--watch", "--json"]) == 0
    ended = json.loads(capsys.readouterr().out)
    assert (ended["status"], ended["failed_moves"], ended["skipped_moves"]) == ("completed", 0, 0)
    assert (fleet.objects("n1"), fleet.objects("n2")) == (before, {})
    assert run(["undo", "rebal-1"]) == 1
    assert "moved_on" in capsys.readouterr().err
