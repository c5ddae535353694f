"""A pair goes over a queue whose hosts reach both nodes, and a plan never pairs nodes that no host reaches together."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rebalance_tasks.core.drain import check_drain
from rebalance_tasks.core.errors import ConfigurationError, PlanInvariantError
from rebalance_tasks.core.explain import explain_object
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.routes import (
    are_linked,
    data_queue,
    every_queue,
    first_served,
    seen_from,
    share_a_host,
    shared_queues,
)
from rebalance_tasks.core.verify import verify_plan
from rebalance_tasks.drivers.registry import validate_roots
from rebalance_tasks.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = RebalancerOptions(object_cooldown=0, min_object_age=0)
QUEUES = st.lists(st.sampled_from(["a", "b", "c", "lan"]), max_size=3, unique=True).map(",".join)


def node(node_id: str, queue: str = "", **more: object) -> NodeDescriptor:
    return NodeDescriptor.model_validate({"node_id": node_id, "queue": queue, "capacity_bytes": 1000, **more})


def filled(**used: int) -> Inventory:
    """Objects of 10 bytes: so many bytes on each node."""
    return Inventory.from_listings(
        {
            name: ([f"{name}/{n}" for n in range(size // 10)], np.full(size // 10, 10, np.int64), None)
            for name, size in used.items()
        }
    )


def planned(nodes: list[NodeDescriptor], inventory: Inventory) -> RebalancePlan:
    made = plan_rebalance(nodes, inventory, options=OPTIONS)
    verify_plan(made, nodes, inventory, OPTIONS)
    return made


# -- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("written", ["h1,lan", " h1 , lan ,", ["h1", "lan"], ["h1", "lan", "h1"]])
def test_queues_may_be_written_with_commas_or_as_a_list(written: object) -> None:
    found = NodeDescriptor.model_validate({"node_id": "n", "queue": written})
    assert (found.queue, found.queues) == ("h1,lan", ("h1", "lan"))


@pytest.mark.parametrize("written", ["a b", "-x", "a,b/c", ["a", 3], 7, "x" * 200])
def test_a_name_that_no_queue_can_have_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="queue"):
        NodeDescriptor.model_validate({"node_id": "n", "queue": written})


def test_every_queue_of_a_fleet_is_listed_once() -> None:
    nodes = [node("a", "h2,lan"), node("b", "h1,lan"), node("c")]
    assert every_queue(nodes) == [
        *("rebalance.control", "rebalance.data"),
        *("rebalance.data.h1", "rebalance.data.h2", "rebalance.data.lan"),
    ]


# -- pairs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "target", "queues"),
    [
        ("", "", ["rebalance.data"]),
        ("h1", "", ["rebalance.data.h1"]),
        ("", "h1,lan", ["rebalance.data.h1", "rebalance.data.lan"]),
        ("h1,lan", "lan,h1", ["rebalance.data.h1", "rebalance.data.lan"]),
        ("h1,lan", "h2,lan", ["rebalance.data.lan"]),
        ("h1", "h2", []),
    ],
)
def test_a_pair_goes_over_the_queues_that_reach_both(source: str, target: str, queues: list[str]) -> None:
    assert list(shared_queues(node("s", source), node("t", target))) == queues


@given(QUEUES, QUEUES)
def test_whether_a_host_reaches_both_does_not_depend_on_the_direction(one: str, other: str) -> None:
    a, b = node("a", one), node("b", other)
    assert share_a_host(a, b) == share_a_host(b, a)
    assert set(shared_queues(a, b)) == set(shared_queues(b, a))
    assert share_a_host(a, a)


def test_hosts_push_to_a_remote_url_and_never_pull_from_one() -> None:
    here, there = node("a", "h1,lan"), node("b", "h2", remote_url="sftp://h2/srv")
    assert shared_queues(here, there) == tuple(map(data_queue, ("h1", "lan")))
    assert not are_linked(there, here)
    # Where a host reaches both, nothing changes: the node is itself there.
    assert shared_queues(node("c", "h2"), there) == (data_queue("h2"),)


def test_a_node_is_seen_at_its_own_url_from_its_own_hosts_alone() -> None:
    one = node("b", "h2,lan", url="file:///srv", remote_url="sftp://h2/srv")
    assert seen_from(one, data_queue("lan")) is one
    assert seen_from(one, data_queue("h1")).url == "sftp://h2/srv"
    plain = node("c", "h2", url="file:///srv")
    assert seen_from(plain, data_queue("h1")) is plain


def test_of_several_queues_the_first_that_is_served_is_taken() -> None:
    both = (data_queue("h1"), data_queue("lan"))
    assert first_served(both, {data_queue("lan")}) == data_queue("lan")
    assert first_served(both, set()) is None
    assert first_served(both, None) == data_queue("h1")


# -- plans ------------------------------------------------------------------------------------------------------------
def test_a_plan_goes_round_pairs_that_no_host_reaches() -> None:
    nodes = [node("a1", "h1"), node("a2", "h1"), node("b1", "h2"), node("b2", "h2")]
    made = planned(nodes, filled(a1=900, a2=100, b1=500, b2=100))
    assert {(move.source_node[0], move.target_node[0]) for move in made.moves} <= {("a", "a"), ("b", "b")}
    assert made.imbalance_after < made.imbalance_before


def test_objects_that_nobody_can_carry_away_are_counted_and_told() -> None:
    nodes = [node("a", "h1"), node("b", "h2"), node("c", "h2")]
    inventory = filled(a=900, b=100, c=100)
    made = planned(nodes, inventory)
    assert (made.moves, made.not_moved) == ((), {"unreachable": 90, "not_needed": 20})
    assert any("no host reaches both a and b, c" in told for told in made.cannot)
    told = explain_object(made, "a/1", nodes, inventory, options=OPTIONS)
    assert (told.code, told.details["target b"]) == ("unreachable", "no host reaches both")


def test_a_gateway_carries_what_hosts_cannot() -> None:
    nodes = [node("a", "h1,gate"), node("b", "h2,gate")]
    made = planned(nodes, filled(a=900, b=100))
    assert made.imbalance_after <= OPTIONS.imbalance_threshold


def test_a_node_that_cannot_be_drained_for_want_of_a_host_says_so() -> None:
    nodes = [node("a", "h1", state="draining"), node("b", "h2")]
    inventory = filled(a=100, b=100)
    found = check_drain(nodes, inventory, "a", options=OPTIONS, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert [(held.reason, held.objects) for held in found.blocked] == [("unreachable", 10)]


def test_the_verifier_refuses_a_move_between_nodes_that_no_host_reaches() -> None:
    apart, together = [node("a", "h1"), node("b", "h2")], [node("a"), node("b")]
    inventory = filled(a=900, b=100)
    made = planned(together, inventory)
    with pytest.raises(PlanInvariantError, match="no host reaches both"):
        verify_plan(made, apart, inventory, OPTIONS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(QUEUES, st.integers(0, 95), st.booleans()), min_size=2, max_size=5))
def test_no_plan_pairs_nodes_that_no_host_reaches(fleet: list[tuple[str, int, bool]]) -> None:
    nodes = [
        node(f"n{number}", queue, remote_url=f"sftp://h/{number}" if remote else "")
        for number, (queue, _, remote) in enumerate(fleet)
    ]
    inventory = filled(**{f"n{number}": used * 10 for number, (_, used, _) in enumerate(fleet)})
    by_id = {one.node_id: one for one in nodes}
    for move in planned(nodes, inventory).moves:  # and the verifier, with words of its own, agrees
        assert are_linked(by_id[move.source_node], by_id[move.target_node])


def test_a_remote_url_lets_a_plan_fill_a_node_of_another_host() -> None:
    nodes = [node("a", "h1"), node("b", "h2", remote_url="sftp://h2/srv")]
    assert planned(nodes, filled(a=900, b=100)).imbalance_after <= OPTIONS.imbalance_threshold
    # The other way round there is none: b's hosts reach a nowhere.
    other = planned(nodes, filled(a=100, b=900))
    assert (other.moves, other.not_moved["unreachable"]) == ((), 90)


# -- the same path on two machines --------------------------------------------------------------------------------------
def test_nodes_of_two_hosts_may_have_the_same_path_and_those_of_one_may_not(tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    validate_roots([node("a", "h1", url=url), node("b", "h2", url=url)])
    for first, second in (("h1", "h1,lan"), ("h1", "")):
        with pytest.raises(ConfigurationError, match="are the same place"):
            validate_roots([node("a", first, url=url), node("b", second, url=url)])
    nested = [node("a", "h1", url=url), node("b", "h2", url=url), node("c", "h1", url=f"{url}/in")]
    with pytest.raises(ConfigurationError, match=r"'a'.*'c'.*are nested"):
        validate_roots(nested)


def test_a_file_says_so_too(tmp_path: Path) -> None:
    config = tmp_path / "rebalance.toml"
    line = '[[nodes]]\nnode_id = {}\nurl = "file:///srv/disk"\nqueue = {}\n'
    config.write_text(line.format('"a"', json.dumps(["h1", "lan"])) + line.format('"b"', '"h2"'), encoding="utf-8")
    assert [found.queues for found in load_settings(config, environ={}).nodes] == [("h1", "lan"), ("h2",)]
    config.write_text(line.format('"a"', '"h1"') + line.format('"b"', '"h1"'), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="one place can be one node only"):
        load_settings(config, environ={})


def test_a_remote_url_is_a_place_like_any_other(tmp_path: Path) -> None:
    far = {"queue": "h2", "url": tmp_path.as_uri(), "remote_url": "sftp://h2/srv/disk"}
    validate_roots([node("a", "h1", url=tmp_path.as_uri()), node("b", **far)])
    with pytest.raises(ConfigurationError, match="are nested"):
        validate_roots([node("b", **far), node("c", url="sftp://h2/srv/disk/in")])


@pytest.mark.parametrize(
    ("queue", "remote_url", "told"),
    [
        ("", "sftp://h2/srv", "every host reaches it"),
        ("h2", "file:///srv", "another place on each host"),
        ("h2", "sftp://me:hunter2@h2/srv", "must not hold credentials"),
        ("h2", "sftp://${HOST}/srv", "does not expand"),
    ],
)
def test_a_remote_url_that_cannot_be_is_refused_with_the_way_out(
    tmp_path: Path, queue: str, remote_url: str, told: str
) -> None:
    config = tmp_path / "rebalance.toml"
    queued = f'queue = "{queue}"\n' if queue else ""
    config.write_text(f'[[nodes]]\nnode_id = "a"\nurl = "file:///srv"\nremote_url = "{remote_url}"\n{queued}')
    with pytest.raises(ConfigurationError, match=told) as refused:
        load_settings(config, environ={})
    assert "remote_url" in str(refused.value)
    assert "hunter2" not in str(refused.value)
