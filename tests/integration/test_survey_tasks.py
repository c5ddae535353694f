"""A check whose nodes are listed by tasks: the same verdict, whatever dies, doubles or never answers."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rebalance_tasks import NodeState, RebalancePlan
from rebalance_tasks.control import check
from rebalance_tasks.control import survey as surveys
from rebalance_tasks.control.check import conclude_check, run_check
from rebalance_tasks.control.drain import drain
from rebalance_tasks.control.surveying import parts, streams
from rebalance_tasks.control.surveying import round as survey_round
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS, redrive, survey_nodes
from rebalance_tasks.core.errors import ConfigurationError, NodeMissing
from rebalance_tasks.drivers.local import listing as local_listing
from rebalance_tasks.store.surveys import Finding, Found
from tests.support.arena import context_of, objects, rebalancer_of, wait_for
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import CheckResult
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

CAPACITY = 60_000
NODES = {
    "a": NodeSpec(objects(40, 1000), CAPACITY),
    "b": NodeSpec(objects(5, 1000, "p"), CAPACITY),
    "c": NodeSpec({}, CAPACITY),
}
BY_TASKS = {"surveys": "tasks", "mode": "observe"}


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    return fleet_config(NODES, fleet=BY_TASKS)


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    return Engine()


def begun(engine: Engine) -> int:
    """Begin a check; return its token."""
    result = run_check(engine.context, by="test", by_tasks=True)
    assert result.verdict == "surveying"
    assert len(engine.messages.surveys) == len(NODES)
    return engine.messages.surveys[0][0]


def surveyed(engine: Engine) -> None:
    """Let the tasks that were asked for run."""
    while engine.messages.surveys:
        token, node_ids, _ = engine.messages.surveys.pop(0)
        survey_nodes(engine.context, token, node_ids)


def concluded(engine: Engine) -> CheckResult:
    [token] = engine.messages.concludes
    result = conclude_check(engine.context, token)
    assert result is not None
    return result


def moves(plan: RebalancePlan) -> list[tuple[str, str, str]]:
    return sorted((move.object_key, move.source_node, move.target_node) for move in plan.moves)


def lock(context: FleetContext) -> Any:
    return context.connection.get(context.keys.check_lock)


def left_in_redis(context: FleetContext) -> list[str]:
    """What of a survey is there for good; what was found is kept for the next one, for a time."""
    client = context.connection.client
    return [key.decode() for key in client.scan_iter(f"{context.keys.prefix}survey*") if client.ttl(key) < 0]


def test_tasks_find_what_the_check_itself_would_find(engine: Engine) -> None:
    here = run_check(engine.context)
    begun(engine)
    surveyed(engine)
    assert engine.context.fleet.checks(10)[0].plan_id == here.plan_id, "nothing is decided yet"
    there = concluded(engine)
    assert (there.verdict, here.verdict) == ("planned", "planned")
    plans = [engine.context.plans.load(result.plan_id or "") for result in (here, there)]
    assert moves(plans[0]) == moves(plans[1])
    assert plans[0].not_moved == plans[1].not_moved
    assert engine.context.fleet.usage() == {"a": 40_000, "b": 5_000}
    assert engine.context.snapshots.newest(1)[0].objects == 45
    assert (lock(engine.context), left_in_redis(engine.context)) == (None, [])


def test_real_workers_carry_a_check_and_its_job_out(fleet_config: FleetFactory, processes: ProcessFactory) -> None:
    fleet = fleet_config(NODES, fleet={"surveys": "tasks"})
    content = fleet.all_objects()
    rebalancer = rebalancer_of(fleet)
    processes.worker(concurrency=2)
    context = context_of(rebalancer)
    answer = run_check(context, by="test", by_tasks=True)
    assert answer.verdict == "surveying"
    wait_until(rebalancer.checks, 60, "the check has decided")
    assert rebalancer.checks()[0]["verdict"] == "started"
    job_id = f"rebal-{rebalancer.checks()[0]['plan_id']}"
    wait_until(lambda: any(job.job_id == job_id for job in rebalancer.jobs()), 60, "the job is there")
    assert wait_for(rebalancer, job_id).failed_moves == 0
    assert fleet.all_objects() == content


def test_each_node_is_asked_for_on_the_queue_of_its_hosts(fleet_config: FleetFactory) -> None:
    far = NodeSpec({}, CAPACITY, settings={"queue": "far"})
    fleet_config({"a": NODES["a"], "b": NODES["b"], "far": far}, fleet={"mode": "observe"})
    engine = Engine()
    assert run_check(engine.context, by_tasks=True).verdict == "surveying", "a node that names a queue asks for tasks"
    assert {(nodes, queue) for _, nodes, queue in engine.messages.surveys} == {
        (("a",), "rebalance.data"),
        (("b",), "rebalance.data"),
        (("far",), "rebalance.data.far"),
    }


def test_few_nodes_are_listed_by_the_check_itself(fleet_config: FleetFactory) -> None:
    fleet_config(NODES, fleet={"mode": "observe"})
    assert run_check(Engine().context, by_tasks=True).verdict == "planned"


def test_while_tasks_survey_no_other_check_begins(engine: Engine) -> None:
    begun(engine)
    other = run_check(engine.context, by_tasks=True)
    assert other.reason.startswith("already_running")


def test_a_node_that_fails_is_left_out_whole_and_said_so(engine: Engine, fleet: Fleet) -> None:
    fleet.roots["c"].rmdir()
    begun(engine)
    surveyed(engine)
    result = concluded(engine)
    assert result.verdict == "planned"
    assert "left out: " in result.reason
    assert str(fleet.roots["c"]) in result.reason
    plan = engine.context.plans.load(result.plan_id or "")
    assert {move.target_node for move in plan.moves} == {"b"}
    assert list(engine.context.snapshots.newest(1)[0].left_out) == ["c"]


def test_with_fewer_than_two_nodes_nothing_is_planned(engine: Engine, fleet: Fleet) -> None:
    fleet.roots["c"].rmdir()
    fleet.roots["b"].rename(fleet.roots["b"].with_name("gone"))
    begun(engine)
    surveyed(engine)
    assert concluded(engine).reason.startswith("node_missing: ")
    assert lock(engine.context) is None


def test_doubled_messages_count_once(engine: Engine) -> None:
    token = begun(engine)
    again = list(engine.messages.surveys)
    surveyed(engine)
    assert [survey_nodes(engine.context, token, nodes) for _, nodes, _ in again] == [0, 0, 0]
    first = concluded(engine)
    assert conclude_check(engine.context, token) is None
    assert len(engine.context.fleet.checks(10)) == 1
    assert first.verdict == "planned"


def test_one_runner_at_a_time_looks_at_a_node(engine: Engine) -> None:
    token, surveys = begun(engine), engine.context.surveys
    assert surveys.claim(token, "a", owner="first", lock_ms=CHECK_LOCK_MS) == "go"
    assert surveys.claim(token, "a", owner="second", lock_ms=CHECK_LOCK_MS) == "taken"
    assert surveys.claim(token, "a", owner="first", lock_ms=CHECK_LOCK_MS) == "go", "a beat renews it"
    engine.context.connection.hset(engine.context.keys.survey_claims, {"a": "first 1"})
    assert surveys.claim(token, "a", owner="second", lock_ms=CHECK_LOCK_MS) == "go", "the first one died"


def test_what_comes_late_of_an_earlier_survey_is_refused(engine: Engine) -> None:
    stale = begun(engine)
    context = engine.context
    context.connection.client.delete(context.keys.check_lock)
    engine.messages.surveys.clear()
    token = begun(engine)
    assert token > stale
    assert context.surveys.report(stale, Finding(node_id="a"), Found(), lock_ms=CHECK_LOCK_MS) == -1
    assert survey_nodes(context, stale, ["a"]) == 0
    assert conclude_check(context, stale) is None
    surveyed(engine)
    assert concluded(engine).verdict == "planned"


def test_the_sweep_sends_lost_messages_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(engine)
    engine.messages.surveys.clear()
    assert redrive(engine.context) == 0, "too early"
    monkeypatch.setattr(survey_round, "IDLE_MS", -1)
    assert redrive(engine.context) == len(NODES)
    surveyed(engine)
    assert concluded(engine).verdict == "planned"
    assert redrive(engine.context) == 0


def test_the_sweep_goes_on_with_a_check_whose_last_message_was_lost(engine: Engine) -> None:
    token = begun(engine)
    surveyed(engine)
    engine.messages.concludes.clear()
    assert redrive(engine.context) == 1
    assert engine.messages.concludes == [token]
    assert concluded(engine).verdict == "planned"


def test_one_who_dies_while_he_concludes_is_succeeded(engine: Engine) -> None:
    token = begun(engine)
    surveyed(engine)
    context = engine.context
    assert context.surveys.conclude(token, lock_ms=CHECK_LOCK_MS)
    assert conclude_check(context, token) is None, "he may be alive"
    context.connection.hset(context.keys.survey, {"concluding": "he 1"})
    assert conclude_check(context, token) is not None


def test_a_node_that_never_answers_is_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    token = begun(engine)
    survey_nodes(engine.context, token, ["a", "b"])
    monkeypatch.setattr(survey_round, "LATEST_MS", -1)
    assert redrive(engine.context) == 1
    result = concluded(engine)
    assert result.verdict == "planned"
    assert "nobody surveyed it" in result.reason


def test_a_survey_whose_check_lost_its_lock_is_forgotten(engine: Engine) -> None:
    begun(engine)
    engine.context.connection.client.delete(engine.context.keys.check_lock)
    assert redrive(engine.context) == 0
    assert left_in_redis(engine.context) == []


def test_what_is_decided_meanwhile_stops_the_check(engine: Engine) -> None:
    begun(engine)
    surveyed(engine)
    engine.context.fleet.pause("test")
    assert concluded(engine).reason.startswith("paused")
    assert left_in_redis(engine.context) == []


def test_a_node_in_maintenance_is_not_looked_at(engine: Engine) -> None:
    engine.context.fleet.set_node_state("c", NodeState.MAINTENANCE)
    run_check(engine.context, by_tasks=True)
    assert {nodes for _, nodes, _ in engine.messages.surveys} == {("a",), ("b",)}
    surveyed(engine)
    assert concluded(engine).verdict == "planned"
    assert "c" not in engine.context.fleet.usage()


def test_a_task_that_lists_for_long_hands_the_rest_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    token = begun(engine)
    engine.messages.surveys.clear()
    monkeypatch.setattr(survey_round, "SLICE_S", -1.0)
    assert survey_nodes(engine.context, token, ["a", "b", "c"]) == 1
    assert [nodes for _, nodes, _ in engine.messages.surveys] == [("b",), ("c",)]


# -- more objects than are kept apart ---------------------------------------------------------------------------------
@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "LEAST_ROWS", 12)
    monkeypatch.setattr(surveys, "FLEET_ROWS", 12)


def test_of_a_node_that_holds_many_a_plan_is_made_of_its_candidates(engine: Engine, few_rows: None) -> None:
    begun(engine)
    surveyed(engine)
    result = concluded(engine)
    plan = engine.context.plans.load(result.plan_id or "")
    assert plan.imbalance_before == pytest.approx(40_000 / CAPACITY)
    assert 0 < len(plan.moves) <= 12
    assert plan.not_moved["not_a_candidate"] == 40 - 12
    assert len(plan.moves) + sum(plan.not_moved.values()) == 45


def test_an_object_that_another_node_holds_as_well_is_not_planned(fleet_config: FleetFactory, few_rows: None) -> None:
    """Also where neither is a candidate there, or only one of them."""
    twice = {f"o/{number:04d}.bin": 10 for number in range(0, 40, 2)}
    fleet_config({**NODES, "b": NodeSpec(twice, CAPACITY)}, fleet=BY_TASKS)
    engine = Engine()
    begun(engine)
    surveyed(engine)
    plan = engine.context.plans.load(concluded(engine).plan_id or "")
    assert plan.moves
    assert {move.object_key for move in plan.moves} & twice.keys() == set()
    assert plan.not_moved["ambiguous"] > 0


def test_what_wants_every_object_refuses_a_list_of_which_candidates_are_kept(
    fleet_config: FleetFactory, few_rows: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = {"object_key": [f"k{n}" for n in range(40)], "size_bytes": [1000] * 40, "node_id": ["a"] * 40}
    parquet.write_table(pa.table(rows), tmp_path / "list.parquet")
    monkeypatch.setattr(streams, "IN_MEMORY_ROWS", 39)
    fleet_config(NODES, fleet={"mode": "observe", "inventory": str(tmp_path / "list.parquet")})
    context = Engine().context
    assert run_check(context).verdict == "planned"
    assert context.fleet.usage() == {"a": 40_000}
    assert context.snapshots.newest(1)[0].objects == 40
    with pytest.raises(ConfigurationError, match="40 objects, too many"):
        drain(context, "c")
    assert drain(context, "c", force=True).state is NodeState.DRAINING


# -- a node that is too large for one task ----------------------------------------------------------------------------
FOLDERS = {f"{folder}/{number:04d}.bin": 1000 for folder in "abcdefgh" for number in range(5)}


@pytest.fixture
def large(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Node a holds more than one task lists."""
    monkeypatch.setattr(survey_round, "MOST_OBJECTS", 20)
    monkeypatch.setattr(survey_round, "FIRST_PARTS", 4)
    monkeypatch.setattr(parts, "PART_OBJECTS", 10)
    return fleet_config({**NODES, "a": NodeSpec(FOLDERS, CAPACITY)}, fleet=BY_TASKS)


def test_a_node_that_is_too_large_for_one_task_is_listed_in_parts(large: Fleet) -> None:
    engine = Engine()
    here = run_check(engine.context)
    begun(engine)
    surveyed(engine)
    there = concluded(engine)
    found = engine.context.connection.hgetall(engine.context.keys.survey_findings)
    assert sorted(found) == ["a@0of4", "a@1of4", "a@2of4", "a@3of4", "b", "c"]
    plans = [engine.context.plans.load(result.plan_id or "") for result in (here, there)]
    pairs = [Counter((move.source_node, move.target_node) for move in plan.moves) for plan in plans]
    assert pairs[0] == pairs[1], "objects of one size are as good as each other"
    assert plans[0].not_moved == plans[1].not_moved
    assert engine.context.fleet.usage() == {"a": 40_000, "b": 5_000}
    assert engine.context.snapshots.newest(1)[0].objects == 45

    run_check(engine.context, by_tasks=True)
    asked = [name for _, names, _ in engine.messages.surveys for name in names]
    assert asked == ["a@0of4", "a@1of4", "a@2of4", "a@3of4", "b", "c"], "now it is known how large it is"


def test_a_node_of_which_a_part_fails_is_left_out_whole(large: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    checked(engine)

    def failing(*args: Any, name: str, **more: Any) -> Any:
        if name == "a@2of4":
            raise NodeMissing(name, "the disk went away")
        return surveys.look(*args, name=name, **more)

    monkeypatch.setattr(survey_round, "look", failing)
    result = checked(engine)
    left_out = engine.context.snapshots.newest(1)[0].left_out
    assert left_out == {"a": "a, part 2of4: node 'a@2of4': the disk went away"}
    assert result.verdict == "skipped", "b and c are balanced"


def test_parts_whose_messages_are_lost_are_asked_for_again(large: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    begun(engine)
    with monkeypatch.context() as dying:
        dying.setattr(survey_round, "_publish", lambda *_: 0)
        surveyed(engine)
    monkeypatch.setattr(survey_round, "IDLE_MS", -1)
    assert redrive(engine.context) == 4
    surveyed(engine)
    assert concluded(engine).verdict == "planned"


def test_a_node_is_cut_once_and_only_for_the_check_that_asked(large: Fleet) -> None:
    engine = Engine()
    token, surveys = begun(engine), engine.context.surveys
    assert surveys.cut(token + 1, "a", ["a@0of2", "a@1of2"], lock_ms=CHECK_LOCK_MS) == -1
    assert surveys.cut(token, "a", ["a@0of2", "a@1of2"], lock_ms=CHECK_LOCK_MS) == 4
    assert surveys.cut(token, "a", ["a@0of2", "a@1of2"], lock_ms=CHECK_LOCK_MS) == -1
    assert surveys.report(token, Finding(node_id="a"), Found(), lock_ms=CHECK_LOCK_MS) == -1, "only its parts count now"


# -- what is remembered -----------------------------------------------------------------------------------------------
def test_a_node_that_did_not_change_is_not_listed_again(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(local_listing, "SETTLED_NS", -(10**19))
    fleet_config(NODES, fleet={**BY_TASKS, "survey_dir": str(tmp_path / "seen")})
    engine = Engine()
    read: list[str] = []
    folder = local_listing.LocalLister._read_folder

    def noted(lister: Any, fd: int, prefix: str, length: int) -> None:
        read.append(prefix)
        folder(lister, fd, prefix, length)

    monkeypatch.setattr(local_listing.LocalLister, "_read_folder", noted)
    plans = []
    for _ in range(2):
        begun(engine)
        surveyed(engine)
        plans.append(engine.context.plans.load(concluded(engine).plan_id or ""))
        engine.messages.concludes.clear()
        folders = read.copy()
        read.clear()
        (tmp_path / "seen" / "test" / "b.arrow").write_bytes(b"not Arrow")
    assert folders == ["", "p/"], "b's file was damaged, so b was listed in full; the others were not"
    assert moves(plans[0]) == moves(plans[1])


@pytest.fixture
def settled(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    """A fleet whose folders are believed at once."""
    monkeypatch.setattr(local_listing, "SETTLED_NS", -(10**19))
    return fleet_config(NODES, fleet={**BY_TASKS, "survey_dir": str(tmp_path / "seen")})


def checked(engine: Engine, *, force: bool = False) -> CheckResult:
    """One check from its beginning to its end."""
    run_check(engine.context, by="test", by_tasks=True, force=force)
    surveyed(engine)
    result = concluded(engine)
    engine.messages.concludes.clear()
    return result


def test_what_was_written_in_place_shows_when_everything_is_listed_anew(settled: Fleet, tmp_path: Path) -> None:
    engine = Engine()
    checked(engine)
    with (settled.roots["b"] / next(iter(NODES["b"].files))).open("ab") as file:
        file.write(b"x" * 500)
    checked(engine)
    assert engine.context.fleet.usage()["b"] == 5_000, "no folder has changed"
    shutil.rmtree(tmp_path / "seen")
    checked(engine)
    assert engine.context.fleet.usage()["b"] == 5_500


def test_a_fleet_in_which_nothing_changed_keeps_its_plan(settled: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    first = checked(engine)
    with monkeypatch.context() as patched:
        patched.setattr(check, "plan_rebalance", None)
        again = checked(engine)
    assert (again.verdict, again.plan_id) == ("planned", first.plan_id)
    assert "nothing has changed since" in again.reason
    before, now = reversed(engine.context.snapshots.newest(2))
    assert now.model_copy(update={"at": before.at, "reason": before.reason}) == before, "the audit is as full as ever"


@pytest.mark.parametrize("what", ["object", "state", "force", "job", "plan", "moved"])
def test_a_fleet_in_which_anything_changed_gets_a_new_plan(settled: Fleet, what: str) -> None:
    engine = Engine()
    context, first = engine.context, checked(engine)
    assert first.plan_id is not None
    match what:
        case "object":
            (settled.roots["b"] / "new").write_bytes(b"x")
        case "state":
            context.fleet.set_node_state("c", NodeState.DRAINING)
        case "job":
            engine.finish(engine.start([], job_id=f"rebal-{first.plan_id}"))
        case "plan":
            context.connection.client.delete(context.keys.plan(first.plan_id))
        case "moved":
            context.connection.client.zadd(context.keys.moved, {"o/0001.bin": context.connection.now_ms()})
        case _:
            assert what == "force"
    again = checked(engine, force=what == "force")
    assert (again.verdict, again.plan_id != first.plan_id) == ("planned", True)
    assert "nothing has changed" not in again.reason


def test_where_nothing_may_move_the_reason_stands_until_something_changes(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_listing, "SETTLED_NS", -(10**19))
    fleet_config(NODES, fleet={**BY_TASKS, "survey_dir": str(tmp_path / "seen")}, options={"min_object_size": "1GB"})
    engine = Engine()
    first = checked(engine)
    assert first.reason.startswith("nothing_to_move")
    monkeypatch.setattr(check, "plan_rebalance", None)
    assert checked(engine) == first
    before, now = reversed(engine.context.snapshots.newest(2))
    assert now.not_moved == before.not_moved != {}


def test_a_balanced_fleet_is_known_by_its_numbers_alone(settled: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in settled.roots.values():
        (root / "much").write_bytes(bytes(60_000 - sum(f.stat().st_size for f in root.rglob("*") if f.is_file())))
    engine = Engine()
    monkeypatch.setattr(engine.context.surveys.__class__, "rows", None)
    assert checked(engine).reason.startswith("under_threshold")
    assert engine.context.snapshots.newest(1)[0].objects == 48


def test_latency_is_measured_where_it_is_not_configured(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_config({**NODES, "b": NodeSpec({}, CAPACITY, settings={"latency_ms": 77})}, fleet={"mode": "observe"})
    context = Engine().context
    ticks = count()
    monkeypatch.setattr("rebalance_tasks.control.survey.time.perf_counter", lambda: next(ticks) * 0.012)

    def latencies() -> dict[str, float | None]:
        return {node.node_id: node.latency_ms for node in surveys.survey(context).nodes}

    assert latencies() == {"a": None, "b": 77, "c": None}, "there is nothing to read on a node that carries no node-id"
    surveys.adopt(context)
    monkeypatch.setattr(surveys, "SIDE_BY_SIDE", 1)
    assert latencies() == {"a": 12, "b": 77, "c": 12}
