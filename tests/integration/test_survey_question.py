"""Hashes that do not fit into Redis stay with the hosts that listed them, which are asked: the same plan, whatever dies, doubles or is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rebalance_tasks.control import survey as surveys
from rebalance_tasks.control.check import conclude_check, run_check
from rebalance_tasks.control.surveying import other_keys, parts
from rebalance_tasks.control.surveying import question as survey_question
from rebalance_tasks.control.surveying import round as survey_round
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS, redrive, survey_nodes
from rebalance_tasks.core.errors import NodeMissing
from rebalance_tasks.drivers.local import listing as local_listing
from rebalance_tasks.store.surveys import Finding
from tests.support.arena import context_of, objects, rebalancer_of
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.core.models import CheckResult, RebalancePlan
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

CAPACITY = 60_000
#: Every second object of a lies on b as well, where it is much too small to be a candidate.
TWICE = {f"o/{number:04d}.bin": 10 for number in range(0, 40, 2)}
LARGE = {f"p/{number}": 100 for number in range(30)}
NODES = {
    "a": NodeSpec(objects(40, 1000), CAPACITY),
    "b": NodeSpec({**TWICE, **LARGE}, CAPACITY),
    "c": NodeSpec({}, CAPACITY),
}


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "LEAST_ROWS", 24)
    monkeypatch.setattr(surveys, "FLEET_ROWS", 24)


@pytest.fixture
def nothing_in_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_keys, "FLEET_HASHES", 0)


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    return tmp_path / "seen" / "test"


@pytest.fixture
def fleet(fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(local_listing, "SETTLED_NS", -(10**19))
    return fleet_config(NODES, fleet={"surveys": "tasks", "mode": "observe", "survey_dir": str(tmp_path / "seen")})


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    return Engine()


def begun(engine: Engine, *, force: bool = False) -> int:
    assert run_check(engine.context, by="test", by_tasks=True, force=force).verdict == "surveying"
    return engine.messages.surveys[0][0]


def surveyed(engine: Engine) -> list[str]:
    """Let the tasks that were asked for run; return what they were asked."""
    asked: list[str] = []
    while engine.messages.surveys:
        token, names, _ = engine.messages.surveys.pop(0)
        asked += names
        survey_nodes(engine.context, token, names)
    return sorted(asked)


def concluded(engine: Engine) -> CheckResult:
    [token] = engine.messages.concludes
    engine.messages.concludes.clear()
    result = conclude_check(engine.context, token)
    assert result is not None
    return result


def asked_again(engine: Engine) -> int:
    """Go as far as the second question; return the check's token."""
    token = begun(engine)
    surveyed(engine)
    assert concluded(engine).verdict == "surveying"
    return token


def checked(engine: Engine, *, force: bool = False) -> tuple[CheckResult, list[str]]:
    """One check from its beginning to its end; return what its tasks were asked, too."""
    begun(engine, force=force)
    asked = surveyed(engine)
    result = concluded(engine)
    if result.verdict == "surveying":
        asked += surveyed(engine)
        result = concluded(engine)
    return result, asked


def plan_of(engine: Engine, result: CheckResult) -> RebalancePlan:
    return engine.context.plans.load(result.plan_id or "")


def moves(plan: RebalancePlan) -> list[tuple[str, str, str]]:
    return sorted((move.object_key, move.source_node, move.target_node) for move in plan.moves)


def left_in_redis(engine: Engine) -> list[str]:
    client = engine.context.connection.client
    return [key.decode() for key in client.scan_iter(f"{engine.context.keys.prefix}survey*") if client.ttl(key) < 0]


QUESTIONS = ["a?", "b?"]


def test_the_plan_is_the_one_that_redis_with_all_hashes_gives(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with_all, asked = checked(engine, force=True)
    assert asked == ["a", "b", "c"], "few hashes are in Redis, and nobody is asked twice"
    plans = [plan_of(engine, with_all)]
    monkeypatch.setattr(other_keys, "FLEET_HASHES", 0)
    engine.context.connection.client.flushdb()
    apart, asked = checked(engine, force=True)
    assert asked == ["a", "b", "c", *QUESTIONS], "c is empty"
    plans.append(plan_of(engine, apart))
    assert moves(plans[0]) == moves(plans[1]) != []
    assert plans[0].not_moved == plans[1].not_moved
    assert plans[1].not_moved["ambiguous"] > 0
    assert {move.object_key for move in plans[1].moves} & TWICE.keys() == set()
    assert left_in_redis(engine) == []
    assert engine.context.connection.get(engine.context.keys.check_lock) is None


def test_redis_holds_no_hash_of_a_node_that_keeps_them_apart(
    engine: Engine, nothing_in_redis: None, seen: Path
) -> None:
    asked_again(engine)
    client, keys = engine.context.connection.client, engine.context.keys
    assert client.hlen(keys.survey_others) == 0
    assert client.strlen(keys.survey_sought) == 8 * (24 + 24)
    assert sorted(path.name for path in seen.glob("*.parquet")) == ["a.others.parquet", "b.others.parquet"]


def test_a_host_that_does_not_have_the_file_lists_the_node_once_more(
    engine: Engine, nothing_in_redis: None, seen: Path
) -> None:
    with_files = plan_of(engine, checked(engine, force=True)[0])
    engine.context.connection.client.flushdb()
    asked_again(engine)
    for path in seen.glob("*.parquet"):
        path.unlink()
    surveyed(engine)
    plan = plan_of(engine, concluded(engine))
    assert (moves(plan), plan.not_moved) == (moves(with_files), with_files.not_moved)


def test_without_a_directory_of_its_own_a_host_uses_a_temporary_one(
    fleet_config: FleetFactory, nothing_in_redis: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fleet_config(NODES, fleet={"surveys": "tasks", "mode": "observe", "survey_dir": "none"})
    result, asked = checked(Engine())
    assert (result.verdict, asked) == ("planned", ["a", "b", "c", *QUESTIONS])
    assert len(list(tmp_path.glob("rebalance-tasks-*-test/*.others.parquet"))) == 2


def test_a_fleet_that_is_balanced_or_in_which_nothing_changed_is_asked_nothing(
    fleet: Fleet, engine: Engine, nothing_in_redis: None
) -> None:
    first, _ = checked(engine)
    again, asked = checked(engine)
    assert (again.plan_id, asked) == (first.plan_id, ["a", "b", "c"]), "its plan stands"
    for root in fleet.roots.values():
        (root / "much").write_bytes(bytes(50_000 - sum(f.stat().st_size for f in root.rglob("*") if f.is_file())))
    balanced, asked = checked(engine)
    assert balanced.reason.startswith("under_threshold")
    assert asked == ["a", "b", "c"]


def test_a_large_node_is_asked_part_by_part(
    fleet_config: FleetFactory, nothing_in_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_round, "MOST_OBJECTS", 20)
    monkeypatch.setattr(survey_round, "FIRST_PARTS", 4)
    monkeypatch.setattr(parts, "PART_OBJECTS", 10)
    many = {f"{folder}/{number:04d}.bin": 1000 for folder in "abcdefgh" for number in range(5)}
    twice = dict.fromkeys(many, 10)
    fleet_config(
        {**NODES, "a": NodeSpec(many, CAPACITY), "b": NodeSpec(twice, CAPACITY)},
        fleet={"surveys": "tasks", "mode": "observe"},
    )
    engine = Engine()
    result, asked = checked(engine)
    assert [name for name in asked if name.startswith("b@") and name.endswith("?")]
    assert result.reason.startswith("nothing_to_move"), "each object lies on both"
    assert engine.context.fleet.usage() == {"a": 40_000, "b": 400}


# -- what goes wrong on the way ---------------------------------------------------------------------------------------
def test_questions_that_are_lost_are_asked_again_by_the_sweep(
    engine: Engine, nothing_in_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_again(engine)
    engine.messages.surveys.clear()
    assert redrive(engine.context) == 0, "too early"
    monkeypatch.setattr(survey_round, "IDLE_MS", -1)
    assert redrive(engine.context) == 2
    assert surveyed(engine) == QUESTIONS
    assert concluded(engine).verdict == "planned"


def test_an_answer_counts_once_and_only_for_the_survey_that_asked(engine: Engine, nothing_in_redis: None) -> None:
    token = asked_again(engine)
    store = engine.context.surveys
    assert store.answer(token - 1, "a?", "a", b"", lock_ms=CHECK_LOCK_MS) == -1
    assert survey_nodes(engine.context, token, ["a?"]) == 1
    assert survey_nodes(engine.context, token, ["a?"]) == 0
    assert store.answer(token, "a?", "a", b"\0" * 8, lock_ms=CHECK_LOCK_MS) == -1
    assert conclude_check(engine.context, token) is None, "b is awaited"
    assert survey_nodes(engine.context, token, ["b?"]) == 1
    assert concluded(engine).verdict == "planned"
    assert store.answer(token, "b?", "b", b"", lock_ms=CHECK_LOCK_MS) == -1, "the survey is over"


def test_one_who_dies_while_he_answers_is_succeeded(
    engine: Engine, nothing_in_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = asked_again(engine)

    class Killed(BaseException):
        pass

    def dying(*_: Any) -> bytes:
        raise Killed

    with monkeypatch.context() as struck:
        struck.setattr(survey_question.Answers, "about", dying)
        with pytest.raises(Killed):
            survey_nodes(engine.context, token, ["a?"])
    assert survey_nodes(engine.context, token, ["a?"]) == 0, "he may be alive"
    engine.context.connection.client.hdel(engine.context.keys.survey_claims, "a?")
    assert survey_nodes(engine.context, token, ["a?", "b?"]) == 2
    assert concluded(engine).verdict == "planned"


def test_one_who_dies_before_he_asks_is_succeeded_and_two_ask_once(engine: Engine, nothing_in_redis: None) -> None:
    token = begun(engine)
    surveyed(engine)
    context = engine.context
    assert context.surveys.conclude(token, lock_ms=CHECK_LOCK_MS), "he dies here"
    context.connection.hset(context.keys.survey, {"concluding": "he 1"})
    assert concluded(engine).verdict == "surveying"
    assert not context.surveys.ask(token, ["a?"], b"", lock_ms=CHECK_LOCK_MS), "he was slow, and alive"
    assert surveyed(engine) == QUESTIONS
    assert concluded(engine).verdict == "planned"


def test_a_node_that_is_away_when_it_is_asked_is_left_out(
    engine: Engine, nothing_in_redis: None, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_again(engine)
    (seen / "b.others.parquet").unlink()

    def away(*args: Any, name: str, **more: Any) -> Any:
        if name == "b":
            raise NodeMissing(name, "the disk went away")
        return surveys.look(*args, name=name, **more)

    monkeypatch.setattr(survey_round, "look", away)
    surveyed(engine)
    result = concluded(engine)
    assert result.verdict == "planned"
    assert "the disk went away" in engine.context.snapshots.newest(1)[0].left_out["b"]
    assert not any("b" in {move.source_node, move.target_node} for move in plan_of(engine, result).moves)


def test_a_node_that_never_answers_is_given_up(
    engine: Engine, nothing_in_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = asked_again(engine)
    survey_nodes(engine.context, token, ["a?"])
    monkeypatch.setattr(survey_round, "LATEST_MS", -1)
    assert redrive(engine.context) == 1
    result = concluded(engine)
    assert result.verdict == "planned"
    assert "b: nobody surveyed it" in result.reason
    assert left_in_redis(engine) == []


def test_answers_that_redis_forgot_end_the_check_instead_of_going_round(engine: Engine, nothing_in_redis: None) -> None:
    asked_again(engine)
    surveyed(engine)
    engine.context.connection.client.delete(engine.context.keys.survey_met)
    result = concluded(engine)
    assert result.verdict == "skipped"
    assert "the next check asks again" in result.reason
    assert checked(engine)[0].verdict == "planned"


def test_a_check_that_lost_its_lock_asks_nothing(engine: Engine, nothing_in_redis: None) -> None:
    token = begun(engine)
    surveyed(engine)
    assert engine.context.surveys.conclude(token, lock_ms=CHECK_LOCK_MS)
    engine.context.connection.client.delete(engine.context.keys.check_lock)
    assert not engine.context.surveys.ask(token, QUESTIONS, b"", lock_ms=CHECK_LOCK_MS)


def test_a_message_may_carry_a_question_and_nothing_that_only_looks_like_one() -> None:
    names = TypeAdapter(parts.PlaceName)
    for right in ("a?", "a@3of16?", "a~3of16"):
        assert names.validate_python(right) == right
    for wrong in ("a??", "?", "a?b", "../a?", "a~3of16~1of2"):
        with pytest.raises(ValidationError):
            names.validate_python(wrong)


def test_a_finding_without_hashes_apart_is_read_by_the_release_before() -> None:
    """It refuses fields that it does not know: then its check ends, and the next one is a newer worker's."""
    assert "others_apart" not in Finding(node_id="a", objects=1).model_dump_json(exclude_defaults=True)


# -- real workers -----------------------------------------------------------------------------------------------------
def test_two_hosts_that_remember_apart_answer_for_each_other(
    fleet_config: FleetFactory, processes: ProcessFactory, tmp_path: Path
) -> None:
    """Who is asked may not be the one who listed; the plan is the same, and no object that lies twice is in it."""
    fleet = fleet_config(NODES, fleet={"surveys": "tasks", "mode": "observe", "survey_dir": "auto"})
    rebalancer = rebalancer_of(fleet)
    for host in ("one", "two"):
        processes.worker(concurrency=1, app="tests.support.apart", env={"XDG_CACHE_HOME": str(tmp_path / host)})
    context = context_of(rebalancer)
    assert run_check(context, by="test", by_tasks=True).verdict == "surveying"
    wait_until(rebalancer.checks, 60, "the check has decided")
    plan = context.plans.load(str(rebalancer.checks()[0]["plan_id"]))
    assert plan.not_moved["ambiguous"] > 0
    assert {move.object_key for move in plan.moves} & TWICE.keys() == set()
    assert {path.name for path in tmp_path.rglob("*.parquet")} == {"a.others.parquet", "b.others.parquet"}


def test_one_who_waits_for_a_plan_gets_the_answers_too(fleet: Fleet, processes: ProcessFactory) -> None:
    rebalancer = rebalancer_of(fleet)
    processes.worker(concurrency=1, app="tests.support.apart")
    plan = rebalancer.plan()
    assert plan.not_moved["ambiguous"] > 0
    assert {move.object_key for move in plan.moves} & TWICE.keys() == set()
    context = context_of(rebalancer)
    assert context.connection.get(context.keys.check_lock) is None
