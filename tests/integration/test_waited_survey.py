"""A check or a plan by hand asks the hosts that reach a node, waits for them, and says which nodes it did without."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import Rebalancer
from rebalance_tasks.cli.app import run
from rebalance_tasks.control import survey as surveys
from rebalance_tasks.control.check import conclude_check, run_check
from rebalance_tasks.control.surveying import round as survey_round
from rebalance_tasks.control.surveying import waited as survey_waited
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS, redrive, survey_nodes
from rebalance_tasks.core.errors import ConfigurationError, NodeError, RetryableError
from rebalance_tasks.store.presence import Presence
from tests.support.arena import JOB_TIMEOUT_S, context_of, objects, wait_for
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

Captured = pytest.CaptureFixture[str]
CAPACITY = 60_000
QUEUES = ("rebalance.control", "rebalance.data", "rebalance.data.h1")


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """A full disk and an empty one of host h1, one of h2, and one of anybody."""
    nodes = {
        "a": NodeSpec(objects(40, 1000), CAPACITY, {"queue": "h1"}),
        "b": NodeSpec({}, CAPACITY, {"queue": "h1"}),
        "far": NodeSpec({}, CAPACITY, {"queue": "h2"}),
        "x": NodeSpec(objects(9, 1000, "x"), CAPACITY),
    }
    return fleet_config(nodes, fleet={"mode": "observe"})


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process reaches no node at all."""

    def look(*_: Any, **__: Any) -> Any:
        pytest.fail("a node was looked at from here")

    monkeypatch.setattr(surveys, "look", look)


def test_check_plan_and_start_go_by_what_workers_see_and_say_who_is_missing(
    fleet: Fleet, blind: None, processes: ProcessFactory, capsys: Captured
) -> None:
    processes.worker(extra=["-Q", ",".join(QUEUES)])
    wait_until(Rebalancer().workers, JOB_TIMEOUT_S, "the worker has said what it serves")
    assert run(["plan", "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert captured.err.startswith("left out: far: nobody serves rebalance.data.h2")
    assert {move["target_node"] for move in made["moves"]} >= {"b"}
    assert {move["source_node"] for move in made["moves"]} == {"a"}
    assert run(["plan"]) == 0
    assert "left out: far: nobody serves rebalance.data.h2" in capsys.readouterr().out
    assert run(["check"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("planned: ")
    assert "left out: far: nobody serves rebalance.data.h2" in told
    context = context_of(Rebalancer())
    assert context.connection.get(context.keys.check_lock) is None
    assert context.surveys.current() is None
    assert run(["start", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["total_moves"] == len(made["moves"])
    assert captured.err.startswith("left out: far: nobody serves")


def test_nodes_doctor_undo_and_drain_go_by_what_workers_see(
    fleet: Fleet, blind: None, processes: ProcessFactory, capsys: Captured
) -> None:
    def told(*command: str, code: int = 0) -> Any:
        assert run([*command, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    processes.worker(extra=["-Q", ",".join(QUEUES)])
    wait_until(Rebalancer().workers, JOB_TIMEOUT_S, "the worker has said what it serves")
    nodes = {row["node_id"]: row for row in told("nodes")}
    assert {name: (row["status"], row["objects"]) for name, row in nodes.items()} == {
        "a": ("unadopted", 40),
        "b": ("unadopted", 0),
        "far": ("missing", None),
        "x": ("unadopted", 9),
    }
    assert "nobody serves rebalance.data.h2" in nodes["far"]["detail"]
    findings = {finding["name"]: finding for finding in told("doctor", code=1)}
    assert (findings["node a"]["verdict"], findings["node far"]["verdict"]) == ("warn", "fail")
    job = wait_for(Rebalancer(), told("start")["job_id"])
    assert job.completed_moves == job.total_moves > 0
    with pytest.raises(NodeError, match=r"far.*could not be surveyed"):
        Rebalancer().undo(job.job_id)
    told("maintenance", "far")
    back = told("undo", job.job_id)
    assert len(back["plan"]["moves"]) == job.completed_moves
    assert back["left"] == {}
    change = told("drain", "a", "--dry-run")
    assert change["check"]["objects"] == 40 - sum(move["target_node"] == "a" for move in back["plan"]["moves"])
    assert change["fits"]


# -- without workers, or with their part played -----------------------------------------------------------------------
def workers_say(engine: Engine, *queues: str) -> None:
    context = engine.context
    context.presence.publish(Presence("w", context.settings.digest(), context.connection.now_ms(), 0, queues))


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    return Engine()


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen whenever who waits looks again."""

    def arrange(happens: Callable[[], object]) -> None:
        monkeypatch.setattr(survey_waited, "time", SimpleNamespace(sleep=lambda _: happens()))

    return arrange


def answers(engine: Engine, *but: str) -> Callable[[], None]:
    """The workers, who do not come to some nodes."""

    def work() -> None:
        while engine.messages.surveys:
            token, names, _ = engine.messages.surveys.pop(0)
            if found := [name for name in names if name not in but]:
                survey_nodes(engine.context, token, found)

    return work


def test_without_workers_nodes_are_looked_at_from_here(engine: Engine) -> None:
    seen = survey_waited.seen_alone(engine.context)
    assert {node.node_id for node in seen.nodes} == {"a", "b", "far", "x"}
    assert engine.messages.surveys == []


def test_who_waits_sees_what_he_would_see_from_here(
    engine: Engine, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    here = survey_waited.seen_alone(engine.context)
    workers_say(engine, *QUEUES, "rebalance.data.h2")
    meanwhile(answers(engine))
    there = survey_waited.seen_alone(engine.context)
    assert there.left_out == {}
    assert there.used_bytes == here.used_bytes
    assert sorted(there.inventory.keys.to_pylist()) == sorted(here.inventory.keys.to_pylist())
    assert engine.context.connection.get(engine.context.keys.check_lock) is None


def test_a_node_that_does_not_answer_is_left_out(
    engine: Engine, meanwhile: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers_say(engine, *QUEUES, "rebalance.data.h2")
    monkeypatch.setattr(survey_waited, "PATIENCE_MS", -1)
    work = answers(engine, "x")
    # Who waits loses patience at his first look: what answers, answers before.
    monkeypatch.setattr(survey_waited, "_leave_out_unserved", lambda *_: work())
    meanwhile(lambda: None)
    seen = survey_waited.seen_alone(engine.context)
    assert list(seen.left_out) == ["x"]
    assert "no answer within" in seen.left_out["x"]
    assert {node.node_id for node in seen.nodes} == {"a", "b", "far"}


def test_workers_leave_the_rest_to_who_waits(engine: Engine, meanwhile: Callable[[Callable[[], object]], None]) -> None:
    workers_say(engine, *QUEUES, "rebalance.data.h2")
    work = answers(engine)
    concluded: list[object] = []

    def all_of_it() -> None:
        work()
        concluded.extend(conclude_check(engine.context, token) for token in engine.messages.concludes)

    meanwhile(all_of_it)
    result = run_check(engine.context, waits=True)
    assert result.verdict == "planned"
    assert concluded == [None]
    assert [record.verdict for record in engine.context.fleet.checks(10)] == ["planned"]


def test_while_a_check_runs_nobody_plans_by_hand(engine: Engine) -> None:
    workers_say(engine, *QUEUES)
    context = engine.context
    token = context.fleet.acquire_check(ttl_ms=CHECK_LOCK_MS)
    assert token is not None
    with pytest.raises(RetryableError, match="a check of this fleet is running"):
        survey_waited.seen_alone(context)
    context.fleet.release_check(token)


def test_who_lost_the_lock_meanwhile_plans_nothing(
    engine: Engine, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    workers_say(engine, *QUEUES)
    meanwhile(lambda: engine.context.connection.client.delete(engine.context.keys.check_lock))
    with pytest.raises(RetryableError, match="another check has taken over"):
        survey_waited.seen_alone(engine.context)
    assert redrive(engine.context) == 0
    assert engine.context.surveys.current() is None


def test_of_a_node_that_was_cut_every_part_is_left_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    workers_say(engine, *QUEUES)
    cut: Sequence[str] = ("far@0of2", "far@1of2")
    begin = survey_round.begin

    def begun(*args: Any, **options: Any) -> tuple[int, int]:
        found = begin(*args, **options)
        engine.context.surveys.cut(args[1], "far", cut, lock_ms=CHECK_LOCK_MS)
        return found

    monkeypatch.setattr(survey_waited, "begin", begun)
    meanwhile(answers(engine))
    assert list(survey_waited.seen_alone(engine.context).left_out) == ["far"]


def test_while_a_check_has_the_nodes_looked_at_they_are_reported_from_here(engine: Engine) -> None:
    workers_say(engine, *QUEUES)
    token = engine.context.fleet.acquire_check(ttl_ms=CHECK_LOCK_MS)
    assert token is not None
    assert all(report.from_here and report.status == "unadopted" for report in survey_waited.reported(engine.context))
    assert engine.messages.surveys == []


def test_a_node_that_holds_more_than_its_share_of_rows_cannot_be_looked_at_whole(
    engine: Engine, meanwhile: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers_say(engine, *QUEUES, "rebalance.data.h2")
    meanwhile(answers(engine))
    assert len(survey_waited.all_seen(engine.context).inventory) == 49
    monkeypatch.setattr(survey_round, "most_rows", lambda _: 39)
    with pytest.raises(ConfigurationError, match="49 objects, too many to be looked at one by one"):
        survey_waited.all_seen(engine.context)


def test_who_wants_every_object_sees_those_that_lie_on_two_nodes(
    engine: Engine, fleet: Fleet, meanwhile: Callable[[Callable[[], object]], None]
) -> None:
    (fleet.roots["b"] / "o").mkdir()
    (fleet.roots["b"] / "o/0001.bin").write_bytes(b"x")
    workers_say(engine, *QUEUES, "rebalance.data.h2")
    meanwhile(answers(engine))
    found = survey_waited.all_seen(engine.context)
    assert found.inventory.ambiguous_keys() == ["o/0001.bin"]
    assert len(found.inventory) == 50
