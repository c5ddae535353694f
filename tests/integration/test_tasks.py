"""The tasks as another program meets them: by name, keyword JSON in, JSON out, nothing trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TimeoutError as NoAnswer

from rebalance_tasks import RebalanceStatus
from tests.support.arena import JOB_TIMEOUT_S, QUEUES, Arena, arena_of, objects
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

FULL = {"a": objects(40, 1000)}
VERBS = ("pause", "resume", "cancel")


@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena")
    with arena_of(folder, nodes=("a", "b"), capacity_bytes=50_000) as made:
        yield made


def refused(arena: Arena, task: str, **arguments: Any) -> str:
    """Send a task that must fail, and return what its error says."""
    sent = arena.app.send_task(f"rebalance.{task}", kwargs=arguments, queue=QUEUES[0])
    with pytest.raises(Exception, match=r".") as caught:
        sent.get(timeout=JOB_TIMEOUT_S)
    assert not isinstance(caught.value, NoAnswer)
    assert sent.state == "FAILURE"
    return str(caught.value)


# -- what they answer -------------------------------------------------------------------------------------------------
def test_a_check_in_auto_mode_starts_its_plan_and_says_so(arena: Arena) -> None:
    arena.fill(FULL)
    answer = arena.send("check")
    assert sorted(answer) == ["plan_id", "reason", "verdict"]
    assert answer["verdict"] == "started"
    job_id = f"rebal-{answer['plan_id']}"
    wait_until(lambda: arena.context.jobs.exists(job_id), JOB_TIMEOUT_S, "the start has arrived")
    assert arena.wait(job_id).status is RebalanceStatus.COMPLETED
    assert arena.send("check", force=False, fleet="test")["reason"].startswith("under_threshold: ")
    arena.assert_whole()


def test_each_verb_answers_with_the_job_and_its_status(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    arena.context.fleet.pause("test")

    def send(verb: str, **arguments: str) -> tuple[str, str, str]:
        answer = arena.send(verb, job_id="rebal-x", **arguments)
        assert sorted(answer) == ["job_id", "reason", "status"]
        return answer["job_id"], answer["status"], answer["reason"]

    assert send("start", plan_id=plan.plan_id, fleet="test") == ("rebal-x", "pending", "")
    assert send("pause") == ("rebal-x", "paused", "")
    assert send("resume") == ("rebal-x", "paused", "still paused by test")
    arena.context.fleet.resume("test")
    assert send("pause") == ("rebal-x", "paused", "")
    assert send("resume") == ("rebal-x", "running", "")
    arena.wait("rebal-x")
    assert send("cancel") == ("rebal-x", "completed", "the job is completed already")


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_job_has_no_status_and_a_reason(arena: Arena, verb: str) -> None:
    arena.fill({})
    answer = arena.send(verb, job_id="rebal-nobody")
    assert (answer["job_id"], answer["status"]) == ("rebal-nobody", None)
    assert answer["reason"].startswith("job_not_found: ")
    assert "rebal-nobody" in answer["reason"]


def test_only_control_tasks_leave_a_result(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    answer = arena.app.send_task("rebalance.start", kwargs={"plan_id": plan.plan_id}, queue=QUEUES[0])
    job_id = answer.get(timeout=JOB_TIMEOUT_S)["job_id"]
    arena.wait(job_id)
    arena.wait_idle()
    kept = [key for key in arena.redis.scan_iter("celery-task-meta-*") if job_id in key]
    assert kept == []


# -- arguments are untrusted ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("job_id", ["", "../x", "a b", "x" * 129, "nul\0", None, 7, ["rebal"], {"job_id": "x"}])
def test_a_job_id_that_is_none_fails_and_is_named(arena: Arena, verb: str, job_id: Any) -> None:
    assert "job_id" in refused(arena, verb, job_id=job_id)


@pytest.mark.parametrize(
    ("task", "arguments", "field"),
    [
        ("check", {"force": "perhaps"}, "force"),
        ("check", {"force": [1]}, "force"),
        ("check", {"fleet": "../x"}, "fleet"),
        ("check", {"force": True, "url": "file:///etc"}, "url"),
        ("start", {}, "plan_id"),
        ("start", {"plan_id": "/etc/passwd"}, "plan_id"),
        ("start", {"plan_id": {"moves": []}}, "plan_id"),
        ("start", {"plan_id": "plan-1", "job_id": "../x"}, "job_id"),
        ("pause", {}, "job_id"),
        ("cancel", {"job_id": "rebal-x", "reason": "because"}, "reason"),
        ("check", {"fleet": "elsewhere"}, "elsewhere"),
    ],
)
def test_arguments_of_the_wrong_kind_fail_and_the_field_is_named(
    arena: Arena, task: str, arguments: dict[str, Any], field: str
) -> None:
    assert field in refused(arena, task, **arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_a_message_for_another_fleet_is_refused(arena: Arena, verb: str) -> None:
    answer = arena.send(verb, job_id="rebal-x", fleet="elsewhere")
    assert answer["status"] is None
    assert answer["reason"].startswith("unknown_fleet: ")
    assert "'elsewhere'" in answer["reason"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"job_id": "rebal-nobody", "group_id": "g0000"},
        {"job_id": "../x", "group_id": "g0000"},
        {"job_id": 7, "group_id": ["g"]},
        {"job_id": "rebal-x", "group_id": "../../etc"},
        {"job_id": "rebal-x", "group_id": "g0000", "fleet": "elsewhere"},
        {"job_id": "rebal-x", "group_id": "g0000", "fleet": {"redis_url": "redis://elsewhere"}},
        {"job_id": "rebal-x", "group_id": "g0000", "url": "file:///etc"},
        {"job_id": "rebal-x"},
        {},
    ],
)
@pytest.mark.parametrize("task", ["migrate", "monitor"])
def test_a_header_never_fails_whatever_its_arguments(arena: Arena, task: str, arguments: dict[str, Any]) -> None:
    """A header that raises would end its chord."""
    arena.fill({"a": objects(3, 100)})
    failures = arena.worker.log_path.read_text(encoding="utf-8").count("raised unexpected")
    arena.app.send_task(f"rebalance.{task}", kwargs=arguments, queue=QUEUES[0])
    # One slot, one queue: what is answered after it was taken after it.
    assert arena.send("check")["verdict"] == "skipped"
    assert arena.worker.log_path.read_text(encoding="utf-8").count("raised unexpected") == failures
    arena.assert_whole()
