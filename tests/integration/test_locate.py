"""Readers find every object before, while and after it moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import InvalidKey, NodeState, ObjectNotFound, RebalanceStatus
from rebalance_tasks.core.errors import UnknownNode
from tests.support.arena import Arena, arena_of, objects, rebalancer_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.embedded import EmbeddedServer

pytestmark = pytest.mark.integration

#: Half of them move, in two batches of more than half a second each.
SLOW = {"a": objects(800, 1000)}
DAY_MS = 24 * 3600 * 1000


@pytest.fixture(scope="module")
def arena(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with arena_of(
        tmp_path_factory.mktemp("arena"),
        nodes=("a", "b"),
        capacity_bytes=1_000_000,
        options={"throttle_bytes_per_sec": 400_000, "imbalance_threshold": 0.01, "target_imbalance": 0.0},
    ) as made:
        yield made


def assert_located(arena: Arena) -> dict[str, str]:
    """Every object is where `locate` says; returns key -> how it was found."""
    found = {key: arena.rebalancer.locate(key) for key in arena.content}
    for key, place in found.items():
        assert (arena.fleet.roots[place] / key).read_bytes() == arena.content[key]
        assert place.url == arena.fleet.roots[place].as_uri()
    return {key: place.via for key, place in found.items()}


def test_locate_follows_every_object_before_during_and_after_a_job(arena: Arena) -> None:
    arena.fill(SLOW)
    assert set(assert_located(arena).values()) == {"survey"}
    job_id = arena.start().job_id
    arena.wait_moved(job_id)
    arena.rebalancer.pause(job_id)
    arena.wait_idle()
    on_the_way = assert_located(arena)
    moved = {key for key, node_id in arena.where().items() if node_id == "b"}
    assert 0 < len(moved) < arena.rebalancer.status(job_id).total_moves
    assert {key for key, via in on_the_way.items() if via == "forwarding"} == moved
    arena.rebalancer.resume(job_id)
    assert arena.wait(job_id).status is RebalanceStatus.COMPLETED
    after = assert_located(arena)
    moved = {key for key, node_id in arena.where().items() if node_id == "b"}
    assert {key for key, via in after.items() if via == "forwarding"} == moved
    arena.assert_whole()


def test_a_forwarding_lives_as_long_as_it_should_and_is_missed_by_nobody_afterwards(arena: Arena) -> None:
    arena.fill({"a": objects(40, 1000)})
    before_ms = arena.context.connection.now_ms()
    job = arena.wait(arena.start().job_id)
    after_ms = arena.context.connection.now_ms()
    entries = arena.hash(arena.context.keys.forwarding)
    assert len(entries) == job.completed_moves
    for key, entry in entries.items():
        target, _, expires = entry.rpartition("|")
        assert arena.where()[key] == target
        assert before_ms + DAY_MS <= int(expires) <= after_ms + DAY_MS
    key = next(iter(entries))
    # Its time is over: no reader follows it, and whoever looks on all nodes finds the object all the same.
    arena.redis.hset(arena.context.keys.forwarding, key, f"b|{before_ms}")
    place = arena.rebalancer.locate(key)
    assert (place, place.node_id, place.via) == ("b", "b", "survey")


def test_a_forwarding_that_leads_nowhere_misleads_nobody(arena: Arena) -> None:
    arena.fill({"a": {"k": 10}})
    far = arena.context.connection.now_ms() + DAY_MS
    for target in ("b", "nowhere", "../x", ""):
        arena.redis.hset(arena.context.keys.forwarding, "k", f"{target}|{far}")
        assert arena.rebalancer.locate("k") == "a"


def test_an_unknown_key_is_not_found(arena: Arena) -> None:
    arena.fill({"a": {"k": 10}})
    with pytest.raises(ObjectNotFound, match="no/such") as caught:
        arena.rebalancer.locate("no/such")
    assert isinstance(caught.value, KeyError)
    arena.fleet.roots["a"].joinpath("k").unlink()
    with pytest.raises(ObjectNotFound):
        arena.rebalancer.locate("k")


@pytest.mark.parametrize("key", ["../a/k", "/etc/hostname", "", "x/../k", ".rebalance/node-id", "nul\0"])
def test_a_key_that_is_none_is_refused(arena: Arena, key: str) -> None:
    with pytest.raises(InvalidKey):
        arena.rebalancer.locate(key)


def test_a_node_that_is_out_of_reach_does_not_hide_the_others(arena: Arena) -> None:
    arena.fill({"a": {"k": 10}, "b": {"l": 10}})
    elsewhere = arena.fleet.roots["a"].rename(arena.fleet.roots["a"].with_name("elsewhere"))
    try:
        # (Not the arena's own client: it holds the root open, and so follows the disk wherever it goes.)
        reader = rebalancer_of(arena.fleet)
        assert reader.locate("l") == "b"
        with pytest.raises(ObjectNotFound):
            reader.locate("k")
    finally:
        elsewhere.rename(arena.fleet.roots["a"])
    arena.context.fleet.set_node_state("b", NodeState.MAINTENANCE)
    with pytest.raises(ObjectNotFound):
        arena.rebalancer.locate("l")


def test_a_chain_of_moves_is_one_hop(arena: Arena) -> None:
    arena.fill({"a": {"k": 10}, "b": {}})
    far = arena.context.connection.now_ms() + DAY_MS
    arena.redis.hset(arena.context.keys.forwarding, "k", f"a|{far}")
    assert arena.rebalancer.locate("k").hops == 1
    assert arena.redis.hlen(arena.context.keys.forwarding) == 1
    arena.redis.delete(arena.context.keys.forwarding)
    assert arena.rebalancer.locate("k").hops == 0


def test_all_that_leads_to_a_node_is_forgotten_at_once(arena: Arena) -> None:
    arena.fill({"a": {"k": 10, "l": 10}})
    far = arena.context.connection.now_ms() + DAY_MS
    keys = arena.context.keys
    arena.redis.hset(keys.forwarding, mapping={"k": f"b|{far}", "l": f"a|{far}"})
    arena.context.locations.place({f"x{number}": "b" for number in range(1500)} | {"l": "a"})
    assert arena.rebalancer.forget_node("b") == 1501
    assert (arena.hash(keys.forwarding), arena.hash(keys.locations)) == ({"l": f"a|{far}"}, {"l": "a"})
    assert arena.rebalancer.locate("k") == "a"
    with pytest.raises(UnknownNode):
        arena.rebalancer.forget_node("nowhere")


def test_a_node_that_has_still_to_free_its_copy_is_not_where_the_object_is(arena: Arena) -> None:
    arena.fill({"a": {"k": b"old"}})
    (arena.fleet.roots["b"] / "k").write_bytes(b"new")
    arena.redis.hset(arena.context.keys.frees, "a\0k", "j1.0")
    assert arena.rebalancer.locate("k") == "b"
