"""What failed is tried again as a job of its own, once, and only when there is something to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.causes import failure_groups
from rebalance_tasks.control.retry import retry_failed, retry_job_id
from rebalance_tasks.core.errors import InvalidArgument, JobNotFound
from rebalance_tasks.core.states import RebalanceStatus
from tests.support import checker
from tests.support.engine import Engine, move, moves_between
from tests.support.hooks import DAY_MS, SIZES

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


def blocked_job(fleet: Fleet, engine: Engine) -> None:
    """A job of which two moves fail: a stranger's objects are at their keys on the target."""
    for key in ("a/one", "a/two"):
        place = fleet.roots["n2"] / key
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"a stranger's")
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.failed_moves, job.failures) == (2, {"target_exists": 2})


def unblock(fleet: Fleet) -> None:
    for key in ("a/one", "a/two"):
        (fleet.roots["n2"] / key).unlink()


def test_the_moves_that_failed_and_only_those_run_again(fleet: Fleet, engine: Engine) -> None:
    blocked_job(fleet, engine)
    unblock(fleet)
    written = checker.record(fleet.roots)
    retried = retry_failed(engine.context, "j1", requested_by="me")
    assert (retried.job_id, retried.total_moves, retried.requested_by) == ("j1-retry1", 2, "me")
    job = engine.finish("j1-retry1")
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, 2)
    checker.check(fleet.roots, written, job)
    assert engine.job("j1").failed_moves == 2, "the first job stays as it ended"


def test_asked_twice_it_is_one_retry_and_its_own_retry_counts_on(fleet: Fleet, engine: Engine) -> None:
    blocked_job(fleet, engine)
    first = retry_failed(engine.context, "j1")
    assert retry_failed(engine.context, "j1") == first
    assert engine.finish(first.job_id).failures == {"target_exists": 2}
    assert retry_failed(engine.context, "j1").failed_moves == 2, "still the one that ended"
    unblock(fleet)
    assert retry_failed(engine.context, first.job_id).job_id == "j1-retry2"
    assert engine.finish("j1-retry2").completed_moves == 2


def test_a_retry_is_refused_while_the_job_runs_and_when_nothing_failed(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    with pytest.raises(InvalidArgument, match="running: only what has ended"):
        retry_failed(engine.context, "j1")
    engine.finish()
    with pytest.raises(InvalidArgument, match="no move failed"):
        retry_failed(engine.context, "j1")
    with pytest.raises(JobNotFound):
        retry_failed(engine.context, "nobody")


def test_what_was_skipped_for_a_passing_cause_runs_again_when_asked(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={"max_egress_bytes_per_cycle": 9_000})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert job.failures == {"budget_egress": 1}
    with pytest.raises(InvalidArgument, match="--skipped"):
        retry_failed(engine.context, "j1")
    retried = retry_failed(engine.context, "j1", skipped=True)
    assert (retried.job_id, retried.total_moves) == ("j1-retry1-skipped", 1)
    assert engine.finish(retried.job_id).completed_moves == 1
    assert fleet.objects("n1") == {}


def test_a_cancelled_job_can_be_carried_out_after_all(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    assert engine.finish().failures == {"cancelled": len(SIZES)}
    retry_failed(engine.context, "j1", skipped=True)
    assert engine.finish("j1-retry1-skipped").completed_moves == len(SIZES)


def test_a_job_cancelled_before_its_groups_began_can_be_carried_out_too(fleet: Fleet, engine: Engine) -> None:
    engine.context.fleet.pause("test")
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    engine.context.fleet.resume("test")
    assert engine.job().failures == {"cancelled": len(SIZES)}
    retry_failed(engine.context, "j1", skipped=True)
    assert engine.finish("j1-retry1-skipped").completed_moves == len(SIZES)


def test_a_retry_needs_no_plan_and_takes_the_sizes_of_now(fleet: Fleet, engine: Engine) -> None:
    blocked_job(fleet, engine)
    unblock(fleet)
    engine.context.connection.client.delete(engine.context.keys.plan("p-j1"))
    with (fleet.roots["n1"] / "a/one").open("ab") as file:
        file.write(b"more")
    retried = retry_failed(engine.context, "j1")
    assert retried.total_bytes == 3004 + 5000
    assert engine.finish(retried.job_id).completed_moves == 2


def test_a_retry_of_which_nothing_is_left_says_so(fleet: Fleet, engine: Engine) -> None:
    blocked_job(fleet, engine)
    for key in ("a/one", "a/two"):
        (fleet.roots["n1"] / key).unlink()
    with pytest.raises(InvalidArgument, match="source_gone 2"):
        retry_failed(engine.context, "j1")
    assert not engine.context.jobs.exists("j1-retry1")


def test_every_outcome_has_its_move_also_where_a_group_begins_with_a_skipped_one(fleet: Fleet, engine: Engine) -> None:
    (fleet.roots["n2"] / "a").mkdir()
    (fleet.roots["n2"] / "a/two").write_bytes(b"a stranger's")
    engine.start([move("gone", "n1", "n2", 5), *moves_between("n1", "n2", SIZES)], epoch=0)
    job = engine.finish()
    failures = {group.cause: group for group in failure_groups(engine.context, job)}
    assert failures["target_exists"].object_key == "a/two"
    assert (failures["target_exists"].source_node, failures["target_exists"].target_node) == ("n1", "n2")
    assert "a/two" in failures["target_exists"].detail
    assert "retry-failed j1" in failures["target_exists"].hint


def test_a_retry_leaves_nothing_behind(fleet: Fleet, engine: Engine) -> None:
    blocked_job(fleet, engine)
    unblock(fleet)
    retry_failed(engine.context, "j1")
    engine.finish("j1-retry1")
    engine.cleanup(later_ms=DAY_MS)
    assert checker.leftover_violations(checker.look(fleet.roots), trash=True) == []


@pytest.mark.parametrize(
    ("job_id", "skipped", "expected"),
    [
        ("rebal-x", False, "rebal-x-retry1"),
        ("rebal-x", True, "rebal-x-retry1-skipped"),
        ("rebal-x-retry1", False, "rebal-x-retry2"),
        ("rebal-x-retry9-skipped", False, "rebal-x-retry10"),
        ("-retry1", False, "-retry1-retry1"),
    ],
)
def test_the_id_of_a_retry_follows_from_the_job(*, job_id: str, skipped: bool, expected: str) -> None:
    assert retry_job_id(job_id, skipped=skipped) == expected


def test_the_id_of_a_retry_of_a_long_id_is_short_and_its_own() -> None:
    first, second = (retry_job_id("x" * 120 + last) for last in "ab")
    assert first != second
    assert len(first) <= 128
    assert retry_job_id(first).endswith("-retry2")
