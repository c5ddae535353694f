"""Starting a plan: once, one at a time, and only what of it still holds."""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rebalance_tasks import (
    InvalidArgument,
    JobActive,
    NodeState,
    PlanInvariantError,
    PlanNotFound,
    RebalanceMove,
    RebalancePlan,
    RebalanceStatus,
)
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.move_columns import MoveColumns
from rebalance_tasks.store.accesses import READ, AccessStore
from rebalance_tasks.store.packed_moves import pack_moves
from tests.support.arena import Arena, arena_of, assert_counts_add_up, context_of, objects, rebalancer_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks import Rebalancer
    from rebalance_tasks.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

FULL = {"a": objects(40, 1000)}
ONLY_ACCESS = {"access_frequency": 1, "colocation": 0, "egress_cost": 0, "latency": 0, "compliance": 0}


@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena")
    with arena_of(folder, nodes=("a", "b", "c"), capacity_bytes=50_000) as made:
        yield made


def jobs_of(arena: Arena) -> list[str]:
    return [job.job_id for job in arena.rebalancer.jobs()]


def new_epoch(rebalancer: Rebalancer) -> None:
    """Let the fleet change, as a check would notice it: every older plan is to be looked at again."""
    context = context_of(rebalancer)
    before = context.fleet.epoch()
    assert context.fleet.note_map(f"changed after {before}") > before


# -- once -------------------------------------------------------------------------------------------------------------
def test_starting_twice_with_one_id_is_one_job(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    first = arena.rebalancer.start(plan, "rebal-mine")
    second = arena.rebalancer.start(plan.plan_id, "rebal-mine")
    assert (first.job_id, second.job_id) == ("rebal-mine", "rebal-mine")
    assert second.created_utc == first.created_utc
    job = arena.wait("rebal-mine")
    third = arena.rebalancer.start(plan, "rebal-mine")
    assert third == job
    assert jobs_of(arena) == ["rebal-mine"]
    arena.assert_whole()


def test_starting_twice_by_message_is_one_job(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    answers = [arena.send("start", plan_id=plan.plan_id, job_id="rebal-mine") for _ in range(2)]
    assert [answer["job_id"] for answer in answers] == ["rebal-mine", "rebal-mine"]
    assert answers[0] == {"job_id": "rebal-mine", "status": "running", "reason": ""}
    assert arena.send("start", plan_id=plan.plan_id, job_id="rebal-mine")["reason"] == ""
    job = arena.wait("rebal-mine")
    assert (job.completed_moves, job.total_moves) == (len(plan.moves), len(plan.moves))
    assert jobs_of(arena) == ["rebal-mine"]


def test_two_threads_that_start_one_job_at_once_both_get_it(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    clients = [rebalancer_of(arena.fleet) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda client: client.start(plan.plan_id, "rebal-raced"), clients))
    assert {job.job_id for job in jobs} == {"rebal-raced"}
    job = arena.wait("rebal-raced")
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(plan.moves))
    assert jobs_of(arena) == ["rebal-raced"]
    arena.assert_whole()


def test_the_id_follows_from_the_plan_when_none_is_given(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    assert arena.rebalancer.start(plan).job_id == f"rebal-{plan.plan_id}"
    assert arena.rebalancer.start(plan.plan_id).job_id == f"rebal-{plan.plan_id}"
    assert len(jobs_of(arena)) == 1


@pytest.mark.parametrize("job_id", ["../escape", "a b", "", "x" * 129, "new\nline", "-dash"])
def test_a_job_id_that_could_not_name_files_and_keys_is_refused(arena: Arena, job_id: str) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    with pytest.raises(InvalidArgument, match="job_id"):
        arena.rebalancer.start(plan, job_id)
    assert (jobs_of(arena), arena.context.jobs.active()) == ([], None)


# -- one at a time ----------------------------------------------------------------------------------------------------
def test_a_second_job_is_refused_while_one_is_active(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    arena.context.fleet.pause("test")
    arena.rebalancer.start(plan, "rebal-one")
    with pytest.raises(JobActive, match="rebal-one"):
        arena.rebalancer.start(plan, "rebal-two")
    answer = arena.send("start", plan_id=plan.plan_id, job_id="rebal-two")
    assert (answer["job_id"], answer["status"]) == ("rebal-two", None)
    assert answer["reason"].startswith("job_active: ")
    with pytest.raises(JobActive, match="rebal-one"):
        arena.rebalancer.plan()
    assert jobs_of(arena) == ["rebal-one"]
    arena.context.fleet.resume("test")


# -- plans ------------------------------------------------------------------------------------------------------------
def test_an_unknown_plan_is_refused(arena: Arena) -> None:
    arena.fill(FULL)
    with pytest.raises(PlanNotFound, match="no-such-plan") as caught:
        arena.rebalancer.start("no-such-plan")
    assert isinstance(caught.value, KeyError)
    answer = arena.send("start", plan_id="no-such-plan")
    assert (answer["job_id"], answer["status"]) == ("rebal-no-such-plan", None)
    assert answer["reason"].startswith("plan_not_found: ")


def test_a_plan_of_another_fleet_is_refused(arena: Arena) -> None:
    arena.fill(FULL)
    foreign = arena.rebalancer.plan().model_copy(update={"fleet": "elsewhere", "plan_id": "foreign"})
    with pytest.raises(InvalidArgument, match="elsewhere"):
        arena.rebalancer.start(foreign)
    assert jobs_of(arena) == []


def test_an_empty_plan_is_a_job_with_nothing_to_do(arena: Arena) -> None:
    arena.fill(FULL)
    job = arena.wait(arena.rebalancer.start(RebalancePlan(plan_id="empty", fleet="test")).job_id)
    assert (job.status, job.total_moves, job.error) == (RebalanceStatus.COMPLETED, 0, None)


# -- stale plans ------------------------------------------------------------------------------------------------------
def test_of_a_stale_plan_only_what_still_holds_is_moved(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    to_b = [move.object_key for move in plan.moves if move.target_node == "b"]
    to_c = [move.object_key for move in plan.moves if move.target_node == "c"]
    gone, changed, *rest = to_b
    root = arena.fleet.roots["a"]
    (root / gone).unlink()
    (root / changed).write_bytes(b"longer than it was" * 100)
    arena.context.fleet.set_node_state("c", NodeState.MAINTENANCE)
    new_epoch(arena.rebalancer)
    arena.content = arena.fleet.all_objects()
    job = arena.wait(arena.rebalancer.start(plan).job_id)
    assert job.status is RebalanceStatus.COMPLETED
    assert job.failures == {
        "stale_plan_source_gone": 1,
        "stale_plan_source_changed": 1,
        "stale_plan_node_state": len(to_c),
    }
    assert (job.completed_moves, job.failed_moves) == (len(rest), 0)
    assert_counts_add_up(job)
    assert sorted(arena.fleet.objects("b")) == sorted(rest)
    arena.assert_whole()


def test_what_changes_between_plan_and_copy_is_noticed_at_the_object(arena: Arena) -> None:
    """The plan is of this epoch, so its moves are not looked at one by one before they start."""
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    gone, changed = (move.object_key for move in plan.moves[:2])
    root = arena.fleet.roots["a"]
    (root / gone).unlink()
    (root / changed).write_bytes(b"longer than it was" * 100)
    arena.content = arena.fleet.all_objects()
    job = arena.wait(arena.rebalancer.start(plan).job_id)
    assert job.status is RebalanceStatus.COMPLETED
    assert job.failures == {"source_vanished": 1}
    assert_counts_add_up(job)
    moved = {move.object_key for move in plan.moves} - {gone}
    assert job.bytes_moved == sum(len(arena.content[key]) for key in moved)
    assert arena.context.fleet.usage()["b"] == arena.fleet.used_bytes("b")
    arena.assert_whole()


def test_a_plan_is_verified_again_by_the_rules_of_now(arena: Arena) -> None:
    """Also one of this epoch: rules and options are no part of the cluster map."""
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    strict = rebalancer_of(arena.fleet, min_object_size=2000)
    job = arena.wait(strict.start(plan).job_id)
    assert (job.status, job.failures) == (RebalanceStatus.FAILED, {"stale_plan_too_small": len(plan.moves)})
    assert_counts_add_up(job)
    arena.assert_whole()


def test_what_was_written_to_or_moved_since_the_plan_is_left_alone(arena: Arena) -> None:
    arena.fill(FULL)
    careful = rebalancer_of(arena.fleet, min_object_age="1h", object_cooldown="1h")
    context = context_of(careful)
    plan = arena.rebalancer.plan()
    written, moved, *rest = (move.object_key for move in plan.moves)
    for path in arena.fleet.roots["a"].rglob("*.bin"):
        os.utime(path, (1, 1))
    (arena.fleet.roots["a"] / written).touch()
    context.connection.client.zadd(context.keys.moved, {moved: context.connection.now_ms()})
    new_epoch(careful)
    job = arena.wait(careful.start(plan).job_id)
    assert job.failures == {"stale_plan_too_young": 1, "stale_plan_cooldown": 1}
    assert job.completed_moves == len(rest)
    arena.assert_whole()


def test_what_is_written_to_in_place_is_not_moved_although_its_folder_did_not_change(arena: Arena) -> None:
    """A remembered listing does not know it, so each object is looked at once more before the job starts."""
    arena.fill(FULL)
    careful = rebalancer_of(arena.fleet, min_object_age="1h")
    careful.settings = careful.settings.model_copy(update={"survey_dir": str(arena.directory / "seen")})
    for path in arena.fleet.roots["a"].rglob("*.bin"):
        os.utime(path, (1, 1))
    plan = careful.plan()
    (arena.fleet.roots["a"] / plan.moves[0].object_key).touch()
    job = arena.wait(careful.start(plan).job_id)
    assert job.failures == {"stale_plan_too_young": 1}
    assert job.completed_moves == len(plan.moves) - 1
    arena.assert_whole()


def test_a_plan_whose_rest_would_widen_the_spread_is_refused(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    # Since the plan was made somebody has put much on the nodes that were empty then.
    arena.context.fleet.set_usage({"a": 40_000, "b": 49_000, "c": 49_000})
    new_epoch(arena.rebalancer)
    with pytest.raises(PlanInvariantError, match="spread of pool 'default' is worsened"):
        arena.rebalancer.start(plan)
    answer = arena.send("start", plan_id=plan.plan_id)
    assert (answer["status"], answer["reason"].split(":")[0]) == (None, "plan_invariant")
    assert jobs_of(arena) == []


def test_a_plan_of_which_nothing_holds_fails_with_the_reason(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    for node_id in ("b", "c"):
        arena.context.fleet.set_node_state(node_id, NodeState.MAINTENANCE)
    job = arena.wait(arena.rebalancer.start(plan).job_id)
    assert (job.status, job.skipped_moves) == (RebalanceStatus.FAILED, len(plan.moves))
    assert "stale_plan_node_state" in (job.error or "")
    assert_counts_add_up(job)


def test_money_counts_at_the_price_of_now_where_the_plan_says_less(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    dear = rebalancer_of(arena.fleet)
    nodes = [node.model_copy(update={"egress_cost_per_gb": Decimal(1000)}) for node in dear.settings.nodes]
    dear.settings = dear.settings.model_copy(update={"nodes": tuple(nodes)})
    context = context_of(dear)
    context.fleet.pause("test")
    job = dear.start(plan)
    groups = context.jobs.groups(job.job_id)
    # An object of 1,000 bytes costs 0.001 now; the plan was made when it cost nothing.
    assert {Decimal(group.cost_per_gb) for group in groups.values()} == {Decimal(1000)}
    dear.cancel(job.job_id)
    context.fleet.resume("test")


def test_what_became_hot_since_the_plan_stays(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    hot, *rest = (move.object_key for move in plan.moves)
    watchful = rebalancer_of(arena.fleet, scoring_weights=ONLY_ACCESS, gravity_protection_threshold=0.5)
    gravity = watchful.settings.gravity.model_copy(update={"access": "fleet"})
    watchful.settings = watchful.settings.model_copy(update={"gravity": gravity})
    context = context_of(watchful)
    AccessStore(context.connection, context.keys).add({f"{READ}{hot}": 10_000, f"{READ}{rest[0]}": 1})
    job = arena.wait(watchful.start(plan).job_id)
    assert job.failures == {"stale_plan_protected": 1}
    assert job.completed_moves == len(rest)
    assert hot in arena.fleet.objects("a")


def test_a_hosts_inventory_is_read_again_with_all_that_it_says(arena: Arena, tmp_path: Path) -> None:
    """Replicas that have come together, objects that were pinned or listed elsewhere since: the second opinion is one of now."""
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    rows: dict[str, tuple[str, str | None, bool]] = {f"o/{number:04d}.bin": ("a", None, False) for number in range(40)}
    to_b = [move.object_key for move in plan.moves if move.target_node == "b"]
    met, pinned, elsewhere, unknown = to_b[:4]
    rows |= {
        met: ("a", "twins", False),
        "twin": ("b", "twins", False),
        pinned: ("a", None, True),
        elsewhere: ("c", None, False),
    }
    del rows[unknown]
    table = pa.table(
        {
            "object_key": list(rows),
            "size_bytes": [1000] * len(rows),
            "node_id": [node for node, _, _ in rows.values()],
            "replica_group": pa.array([group for _, group, _ in rows.values()], pa.string()),
            "pinned": [flag for _, _, flag in rows.values()],
        }
    )
    parquet.write_table(table, tmp_path / "list.parquet")
    hosted = rebalancer_of(arena.fleet)
    hosted.settings = hosted.settings.model_copy(update={"inventory": str(tmp_path / "list.parquet")})
    job = arena.wait(hosted.start(plan).job_id)
    assert job.failures == {
        "stale_plan_replicas_apart": 1,
        "stale_plan_pinned": 1,
        "stale_plan_source_gone": 2,
    }
    assert job.completed_moves == len(plan.moves) - 4
    arena.assert_whole()


# -- plans that somebody has written to -------------------------------------------------------------------------------
def evil(key: str, source: str = "a", target: str = "b", size: int = 1000) -> RebalanceMove:
    return RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=size)


def test_a_tampered_plan_does_no_harm(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    outside = arena.fleet.roots["a"].parent / "outside.bin"
    outside.write_bytes(b"not an object")
    good = plan.moves[0]
    moves = [
        evil("../outside.bin"),
        evil("/etc/hostname"),
        evil(".rebalance/node-id"),
        evil("nul\0"),
        evil("o/0001.bin", target="nowhere"),
        evil("o/0002.bin", source="nowhere"),
        evil("o/0003.bin", source="a", target="a"),
        good,
        good,
    ]
    arena.context.connection.hset(
        arena.context.keys.plan(plan.plan_id), {"moves:0": pack_moves(MoveColumns.of(moves))[0]}
    )
    before = outside.stat()
    job = arena.wait(arena.rebalancer.start(plan.plan_id).job_id)
    assert (job.status, job.completed_moves, job.total_moves) == (RebalanceStatus.COMPLETED, 1, len(moves))
    assert job.failures == {
        "stale_plan_invalid_key": 4,
        "stale_plan_unknown_node": 2,
        "stale_plan_invalid": 1,
        "stale_plan_duplicate": 1,
    }
    assert_counts_add_up(job)
    after = outside.stat()
    assert (after.st_ino, after.st_mtime_ns, outside.read_bytes()) == (
        before.st_ino,
        before.st_mtime_ns,
        b"not an object",
    )
    assert list(arena.fleet.objects("b")) == [good.object_key]
    arena.assert_whole()


def in_columns(*, sizes: str = "[1]", source: str = '[["a"],[]]') -> bytes:
    """A chunk of one move."""
    rest = '[["b"],[]],[[0],[]],[[0],[]],[["0"],[]],[[""],[]]'
    return zlib.compress(f'[["k"],{sizes},{source},{rest}]'.encode())


@pytest.mark.parametrize(
    "broken",
    [
        {"meta": "no JSON"},
        {"meta": json.dumps({"plan_id": "p", "epoch": -1})},
        {"moves:0": b"not compressed"},
        {"moves:0": zlib.compress(b"[1, 2]")},
        {"moves:0": zlib.compress(json.dumps([{"object_key": "k", "source_node": "../x"}]).encode())},
        {"moves:0": in_columns(sizes="[1,2]")},
        {"moves:0": in_columns(source='[["a"],[1]]')},
        {"moves:0": in_columns(source='[["a"],[0,0]]')},
        {"moves:0": in_columns(source="[[],[]]")},
        {"moves:0": in_columns(sizes="[9223372036854775807]")},
        {"chunks": "7"},
        {"chunks": "many"},
    ],
)
def test_a_plan_that_cannot_be_read_is_no_plan(arena: Arena, broken: dict[str, Any]) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    arena.context.connection.hset(arena.context.keys.plan(plan.plan_id), broken)
    with pytest.raises(PlanNotFound):
        arena.rebalancer.start(plan.plan_id)
    answer = arena.send("start", plan_id=plan.plan_id)
    assert (answer["status"], answer["reason"].split(":")[0]) == (None, "plan_not_found")
    assert jobs_of(arena) == []


def test_a_job_whose_keys_were_lost_does_not_block_the_fleet(arena: Arena) -> None:
    arena.fill(FULL)
    plan = arena.rebalancer.plan()
    arena.context.fleet.pause("test")
    job_id = arena.rebalancer.start(plan).job_id
    arena.redis.delete(arena.context.keys.job(job_id).base)
    arena.context.fleet.resume("test")
    run_sweep(arena.context)
    assert arena.context.jobs.active() is None
    assert arena.wait(arena.start("rebal-next").job_id).status is RebalanceStatus.COMPLETED
