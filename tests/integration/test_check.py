"""The check: why it runs, why it skips, what it leaves alone. No worker is needed: a check is one call."""

from __future__ import annotations

import os
import shutil
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import ConfigurationError, NodeMissing, NodeState, RebalanceStatus
from rebalance_tasks.control.survey import survey
from rebalance_tasks.control.surveying import waited as survey_waited
from rebalance_tasks.core.errors import NodeNotWritable
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.store.presence import Presence
from tests.support.arena import context_of, objects, rebalancer_of, tree, wait_for
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.drivers.base import NodeHealth
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

CAPACITY = 40_000
FULL = NodeSpec(objects(30, 1000), CAPACITY)
EMPTY = NodeSpec({}, CAPACITY)


def hours_around_now(rebalancer: Rebalancer) -> tuple[int, int]:
    """Quiet hours that hold now and, whatever minute it is, a good hour longer."""
    hour = context_of(rebalancer).now().hour
    return (hour - 1) % 24, (hour + 2) % 24


def assert_skipped(rebalancer: Rebalancer, word: str, *hints: str, force: bool = False) -> None:
    """A check skips for this reason, says so, plans nothing, and leaves a record that says the same."""
    plans = rebalancer.plans()
    result = rebalancer.check(force=force)
    assert result.verdict == "skipped"
    assert result.reason.startswith(f"{word}: ")
    for hint in hints:
        assert hint in result.reason
    assert (result.plan_id, rebalancer.plans()) == (None, plans)
    record = rebalancer.checks()[0]
    assert (record["verdict"], record["reason"], record["plan_id"]) == ("skipped", result.reason, None)
    assert record["forced"] is force


# -- what a check does ------------------------------------------------------------------------------------------------
def test_a_check_that_plans_says_what_it_found_and_keeps_a_record(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"}))
    result = rebalancer.check()
    assert result.verdict == "planned"
    assert result.plan_id is not None
    plan = rebalancer.load_plan(result.plan_id)
    assert len(plan.moves) > 0
    assert f"rebalance start {result.plan_id}" in result.reason
    [record] = rebalancer.checks()
    assert (record["verdict"], record["plan_id"]) == ("planned", result.plan_id)
    assert record["imbalance"] == pytest.approx(plan.imbalance_before)


def test_observe_mode_moves_nothing_and_leaves_no_trace_on_the_nodes(
    fleet_config: FleetFactory, processes: ProcessFactory
) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"})
    before = tree(fleet)
    rebalancer = rebalancer_of(fleet)
    processes.worker(concurrency=1)
    assert rebalancer.check().verdict == "planned"
    plan = rebalancer.plan()
    assert rebalancer.check(force=True).verdict == "planned"
    assert rebalancer.jobs() == []
    assert tree(fleet) == before, "not even .rebalance/ may appear"
    # Until an operator starts a plan.
    job = wait_for(rebalancer, rebalancer.start(plan).job_id)
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(plan.moves))
    assert fleet.used_bytes("b") == plan.estimated_egress_bytes


def test_auto_mode_carries_its_plan_out(fleet_config: FleetFactory, processes: ProcessFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    content = fleet.all_objects()
    rebalancer = rebalancer_of(fleet)
    processes.worker(concurrency=1)
    result = rebalancer.check()
    assert result.verdict == "started"
    job = wait_for_known(rebalancer, f"rebal-{result.plan_id}")
    assert job.status is RebalanceStatus.COMPLETED
    assert job.requested_by.startswith("task:")
    assert fleet.all_objects() == content
    assert_skipped(rebalancer, "under_threshold", "0.100")


def wait_for_known(rebalancer: Rebalancer, job_id: str) -> Any:
    """Wait for a job that a message has yet to create."""
    from tests.support.wait import wait_until

    wait_until(lambda: any(job.job_id == job_id for job in rebalancer.jobs()), 30, f"job {job_id} is there")
    return wait_for(rebalancer, job_id)


def test_force_plans_under_the_threshold(fleet_config: FleetFactory) -> None:
    fleet = fleet_config(
        {"a": NodeSpec(objects(10, 1000), 100_000), "b": NodeSpec({}, 100_000)},
        fleet={"mode": "observe"},
        options={"imbalance_threshold": 0.5, "target_imbalance": 0.02},
    )
    rebalancer = rebalancer_of(fleet)
    assert_skipped(rebalancer, "under_threshold", "0.100", "0.500")
    assert rebalancer.check(force=True).verdict == "planned"
    assert rebalancer.checks()[0]["forced"] is True


# -- one at a time ----------------------------------------------------------------------------------------------------
def test_of_two_checks_at_once_one_runs_and_the_other_records_why_it_did_not(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"})
    first, second = rebalancer_of(fleet), rebalancer_of(fleet)
    surveying, go_on = threading.Event(), threading.Event()

    def held(context: Any, **how: Any) -> Any:
        surveying.set()
        assert go_on.wait(30)
        return survey(context, **how)

    monkeypatch.setattr(survey_waited, "survey", held)
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.append(first.check().verdict))
    thread.start()
    assert surveying.wait(30)
    try:
        assert_skipped(second, "already_running")
    finally:
        go_on.set()
        thread.join()
    assert verdicts == ["planned"]
    assert [record["verdict"] for record in first.checks()] == ["planned", "skipped"]
    # The lock went with the check that held it.
    assert second.check().verdict == "planned"


def test_a_check_that_lost_its_lock_keeps_no_plan(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"}))
    context = context_of(rebalancer)

    def overtaken(given: Any, **how: Any) -> Any:
        # As if this one had slept past its lock and another check had begun.
        context.connection.client.delete(context.keys.check_lock)
        assert context.fleet.acquire_check(ttl_ms=60_000) is not None
        return survey(given, **how)

    monkeypatch.setattr(survey_waited, "survey", overtaken)
    assert_skipped(rebalancer, "already_running", "another check has taken over")


# -- reasons to skip --------------------------------------------------------------------------------------------------
def test_quiet_hours_stop_a_check(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    start, end = hours_around_now(rebalancer_of(fleet))
    rebalancer = rebalancer_of(fleet, quiet_hours=(start, end))
    assert_skipped(rebalancer, "quiet_hours", f"{start}:00", f"{end}:00", "UTC")
    assert rebalancer_of(fleet, quiet_hours=(end, start)).check().verdict == "started"


def test_a_paused_fleet_is_not_checked(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}))
    context_of(rebalancer).fleet.pause("operator")
    assert_skipped(rebalancer, "paused", "operator")
    context_of(rebalancer).fleet.resume("operator")
    assert rebalancer.check().verdict == "started"


def test_a_fleet_with_an_active_job_is_not_checked(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}))
    job = rebalancer.start(rebalancer.plan())
    assert_skipped(rebalancer, "job_active", job.job_id, force=True)


def test_workers_with_another_configuration_stop_a_check(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}))
    context = context_of(rebalancer)
    now = context.connection.now_ms()
    context.presence.publish(Presence("good@host", rebalancer.settings.digest(), now))
    context.presence.publish(Presence("odd@host", "0123456789abcdef", now))
    context.presence.publish(Presence("gone@host", "fedcba9876543210", now - 31_000))
    assert_skipped(rebalancer, "digests_differ", "odd@host", "rebalance.toml")
    assert "good@host" not in rebalancer.checks()[0]["reason"]
    assert "gone@host" not in rebalancer.checks()[0]["reason"]


def test_a_real_worker_says_with_which_configuration_it_runs(
    fleet_config: FleetFactory, processes: ProcessFactory
) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    processes.worker(concurrency=1, env={"REBALANCE_IMBALANCE_THRESHOLD": "0.2"})
    assert_skipped(rebalancer_of(fleet), "digests_differ")
    assert rebalancer_of(fleet, imbalance_threshold=0.2).check().verdict == "started"


def test_fewer_than_two_eligible_nodes_have_nothing_to_balance(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY, "c": NodeSpec({}, 0)}))
    context_of(rebalancer).fleet.set_node_state("b", NodeState.MAINTENANCE)
    assert_skipped(rebalancer, "too_few_nodes", "1 eligible", force=True)


def test_a_fleet_without_capacity_is_not_planned(fleet_config: FleetFactory) -> None:
    assert_skipped(rebalancer_of(fleet_config({"a": NodeSpec({}, 0), "b": NodeSpec({}, 0)})), "no_capacity")


def test_a_missing_root_stops_a_check_and_says_which(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    fleet.roots["b"].rmdir()
    rebalancer = rebalancer_of(fleet)
    assert_skipped(rebalancer, "node_missing", "'b'", str(fleet.roots["b"]))
    with pytest.raises(NodeMissing):
        rebalancer.plan()


def test_a_root_whose_node_id_vanished_is_unmounted_not_empty(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    rebalancer = rebalancer_of(fleet)
    plan = rebalancer.plan()
    assert rebalancer.adopt() == ["a", "b"]
    # What is left of a mount point when its disk is gone: an empty folder.
    mounted = fleet.roots["a"].rename(fleet.roots["a"].with_name("elsewhere"))
    fleet.roots["a"].mkdir()
    assert_skipped(rebalancer, "node_missing", "'a'", "unmounted", "rebalance nodes --adopt")
    with pytest.raises(NodeMissing, match="unmounted"):
        rebalancer.start(plan)
    assert rebalancer.jobs() == []
    fleet.roots["a"].rmdir()
    mounted.rename(fleet.roots["a"])
    assert rebalancer.check().verdict == "started"


def test_a_root_that_belongs_to_another_node_is_refused(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    rebalancer = rebalancer_of(fleet)
    rebalancer.adopt()
    swapped = fleet.roots["a"].with_name("swapped")
    fleet.roots["a"].rename(swapped)
    fleet.roots["b"].rename(fleet.roots["a"])
    swapped.rename(fleet.roots["b"])
    assert_skipped(rebalancer, "node_missing", "belongs to node 'b'")


def test_a_root_that_cannot_be_written_to_stops_check_and_start(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    rebalancer = rebalancer_of(fleet)
    plan = rebalancer.plan()
    if os.geteuid() != 0:
        fleet.roots["b"].chmod(0o500)
    else:
        # Modes do not bind root; what the driver says of a read-only root is its own suite's to test.
        probe = LocalDriver.probe

        def read_only(driver: LocalDriver) -> NodeHealth:
            if driver.node_id == "b":
                raise NodeNotWritable(driver.node_id, f"{driver.root} is read-only; remount it, or correct its mode")
            return probe(driver)

        monkeypatch.setattr(LocalDriver, "probe", read_only)
    assert_skipped(rebalancer, "node_not_writable", "'b'", str(fleet.roots["b"]))
    with pytest.raises(NodeNotWritable):
        rebalancer.start(plan)
    assert rebalancer.jobs() == []


def test_a_balanced_fleet_is_left_alone(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": NodeSpec(objects(30, 1000, "p"), CAPACITY)}))
    assert_skipped(rebalancer, "under_threshold", "0.000", "0.100")
    assert rebalancer.checks()[0]["imbalance"] == pytest.approx(0.0)


def test_where_no_object_may_move_a_check_says_what_holds_them(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY}, options={"min_object_age": "1h"})
    assert_skipped(rebalancer_of(fleet), "nothing_to_move", "30")
    assert_skipped(rebalancer_of(fleet, min_object_age="0s", max_moves_per_cycle=0), "nothing_to_move", "max_moves")


def test_a_draining_node_is_planned_under_the_threshold(fleet_config: FleetFactory) -> None:
    fleet = fleet_config(
        {
            "a": NodeSpec(objects(10, 1000), CAPACITY),
            "b": NodeSpec(objects(10, 1000, "p"), CAPACITY),
            "c": NodeSpec(objects(10, 1000, "q"), CAPACITY),
        },
        fleet={"mode": "observe"},
    )
    rebalancer = rebalancer_of(fleet)
    assert_skipped(rebalancer, "under_threshold")
    context_of(rebalancer).fleet.set_node_state("c", NodeState.DRAINING)
    result = rebalancer.check()
    assert result.verdict == "planned"
    plan = rebalancer.load_plan(result.plan_id or "")
    assert sorted(move.object_key for move in plan.moves) == sorted(fleet.objects("c"))
    assert {move.source_node for move in plan.moves} == {"c"}


# -- fleets that cannot be right --------------------------------------------------------------------------------------
def test_two_nodes_with_one_url_are_refused(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    text = fleet.config.read_text(encoding="utf-8")
    fleet.config.write_text(text.replace("nodes/b", "nodes/a"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="'a' and 'b' have the same url"):
        rebalancer_of(fleet)


@pytest.mark.parametrize("how", ["symbolic link", "nested"])
def test_two_nodes_that_share_a_place_are_refused_by_check_plan_and_start(fleet_config: FleetFactory, how: str) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY})
    rebalancer = rebalancer_of(fleet)
    plan = rebalancer.plan()
    share(fleet, how)
    words = {"symbolic link": "are the same place", "nested": "are nested"}[how]
    shared = rebalancer_of(fleet)
    assert_skipped(shared, "configuration", "'a'", "'b'", words, "a folder of its own")
    with pytest.raises(ConfigurationError, match=words):
        shared.plan()
    with pytest.raises(ConfigurationError, match=words):
        shared.start(plan)
    assert shared.jobs() == []
    assert sorted(fleet.objects("a")) == sorted(objects(30, 1000))


def share(fleet: Fleet, how: str) -> None:
    """Make b's root lie where a's is, or in it."""
    fleet.roots["b"].rmdir()
    if how == "symbolic link":
        fleet.roots["b"].symlink_to(fleet.roots["a"])
        return
    text = fleet.config.read_text(encoding="utf-8")
    fleet.config.write_text(text.replace("nodes/b", "nodes/a/b"), encoding="utf-8")
    (fleet.roots["a"] / "b").mkdir()


def test_nodes_on_one_device_must_state_their_capacities(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": NodeSpec({}, None)})
    rebalancer = rebalancer_of(fleet)
    assert_skipped(rebalancer, "configuration", "a, b are on one device", "state capacity_bytes for b")
    with pytest.raises(ConfigurationError, match="capacity_bytes"):
        rebalancer.plan()


def test_an_object_on_two_nodes_is_never_planned(fleet_config: FleetFactory) -> None:
    """Nobody said which copy is the right one: it is reported, and the rest is planned."""
    twins = {"twin": b"x" * 10_000}
    fleet = fleet_config(
        {"a": NodeSpec({**objects(20, 1000), **twins}, CAPACITY), "b": NodeSpec(twins, CAPACITY), "c": EMPTY},
        fleet={"mode": "observe"},
    )
    plan = rebalancer_of(fleet).plan()
    assert "twin" not in {move.object_key for move in plan.moves}
    assert plan.moves
    assert any("ambiguous" in reason for reason in plan.not_moved)


def test_a_replaced_disk_counts_again_once_an_operator_adopts_it(fleet_config: FleetFactory, tmp_path: Path) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"})
    rebalancer = rebalancer_of(fleet)
    rebalancer.adopt()
    shutil.rmtree(fleet.roots["b"])
    fleet.roots["b"].mkdir()
    assert_skipped(rebalancer, "node_missing", "'b'")
    assert rebalancer.adopt() == ["b"]
    assert rebalancer.check().verdict == "planned"


def test_a_node_that_is_away_is_left_out_and_said_as_long_as_two_are_there(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"a": FULL, "b": EMPTY, "c": NodeSpec(objects(3, 1000), CAPACITY)}, fleet={"mode": "observe"})
    rebalancer = rebalancer_of(fleet)
    rebalancer.adopt()
    away = fleet.roots["c"].rename(fleet.roots["c"].with_name("away"))
    result = rebalancer.check()
    assert result.verdict == "planned"
    assert "left out: node 'c'" in result.reason
    plan, seen = rebalancer.dry_run()
    assert list(seen.left_out) == ["c"]
    assert {name for move in plan.moves for name in (move.source_node, move.target_node)} == {"a", "b"}
    # What operators ask about the whole fleet still wants the whole fleet.
    with pytest.raises(NodeMissing):
        rebalancer.survey()
    # Its usage is as it was, and a job of the others starts without it.
    job = rebalancer.start(plan)
    assert job.total_moves == len(plan.moves)
    away.rename(fleet.roots["c"])


def test_each_check_leaves_a_snapshot_of_what_it_saw(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"}))
    result = rebalancer.check()
    context_of(rebalancer).fleet.pause("operator")
    rebalancer.check()
    skipped, planned = rebalancer.snapshots()
    assert (planned.verdict, planned.plan_id, planned.objects) == ("planned", result.plan_id, 30)
    assert {node.node_id: node.used_bytes for node in planned.nodes} == {"a": 30_000, "b": 0}
    assert planned.moves > 0
    assert planned.imbalance_after is not None
    assert (skipped.verdict, skipped.nodes, skipped.moves) == ("skipped", (), 0)
    assert skipped.reason.startswith("paused")


def test_snapshots_are_forgotten_after_their_retention(fleet_config: FleetFactory) -> None:
    rebalancer = rebalancer_of(fleet_config({"a": FULL, "b": EMPTY}, fleet={"mode": "observe"}))
    rebalancer.check()
    [snapshot] = rebalancer.snapshots()
    store = context_of(rebalancer).snapshots
    store.save(snapshot.model_copy(update={"at": snapshot.at + timedelta(hours=2)}), retention=timedelta(hours=1))
    assert [kept.at for kept in rebalancer.snapshots()] == [snapshot.at + timedelta(hours=2)]
