"""Why an object moves or stays, said for one object as the plan counts it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from rebalance_tasks.core.errors import InvalidArgument, ObjectNotFound
from rebalance_tasks.core.explain import Explained, explain_object
from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.models import NodeDescriptor, NodeState
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
NODES = [NodeDescriptor(node_id=f"n{i}", capacity_bytes=1000) for i in range(3)]


def inventory(objects: list[tuple[str, int, str]], **columns: Any) -> Inventory:
    keys, sizes, nodes = ([entry[i] for entry in objects] for i in range(3))
    return Inventory.from_arrow(pa.table({"object_key": keys, "size_bytes": sizes, "node_id": nodes} | columns))


def explain(key: str, nodes: list[NodeDescriptor], held: Inventory, options: RebalancerOptions) -> Explained:
    plan = plan_rebalance(nodes, held, options=options, now=NOW)
    return explain_object(plan, key, nodes, held, options=options, now=NOW)


def test_explanations_add_up_to_the_plan() -> None:
    many = [(f"a{i}", 10, "n0") for i in range(80)] + [(f"b{i}", 10, "n1") for i in range(30)] + [("z", 0, "n0")]
    held = inventory(
        [*many, ("a0", 10, "n2"), ("lost", 5, "gone")],
        gravity=[0.95] * 5 + [0.1] * 108,
        pinned=[False] * 5 + [True] * 5 + [False] * 103,
        last_moved_utc=[None] * 20 + [NOW - timedelta(hours=1)] * 5 + [None] * 88,
    )
    options = RebalancerOptions(max_moves_per_cycle=7)
    plan = plan_rebalance(NODES, held, options=options, now=NOW)
    told = Counter(
        explain_object(plan, key, NODES, held, options=options, now=NOW).code for key in held.keys.to_pylist()
    )
    assert told.pop("moves") == len(plan.moves)
    assert told == Counter(plan.not_moved)
    assert {"ambiguous", "protected_gravity", "pinned", "cooldown", "zero_bytes", "unknown_node"} <= set(told)


def test_what_fits_nowhere_names_each_target_and_why() -> None:
    nodes = [
        NodeDescriptor(node_id="full", capacity_bytes=1000, host="h1"),
        NodeDescriptor(node_id="twin", capacity_bytes=1000, host="h2"),
        NodeDescriptor(node_id="small", capacity_bytes=100),
        NodeDescriptor(node_id="shy", capacity_bytes=1000, exclude=("big*",)),
        NodeDescriptor(node_id="off", capacity_bytes=1000, state=NodeState.MAINTENANCE),
    ]
    held = inventory([("big", 800, "full"), ("copy", 10, "twin")], replica_group=["g", "g"])
    found = explain("big", nodes, held, RebalancerOptions())
    assert (found.moves, found.node_id, found.code) == (False, "full", "no_target")
    assert found.details["target twin"] == "its host holds a replica"
    assert found.details["target small"] == "has room for 95 bytes"
    assert found.details["target shy"] == "its patterns exclude the key"
    assert found.details["target off"].startswith("does not take objects")


def test_a_move_is_explained_by_the_plans_own_reason_and_an_unknown_key_is_refused() -> None:
    held = inventory([(f"a{i}", 10, "n0") for i in range(90)])
    options = RebalancerOptions()
    plan = plan_rebalance(NODES, held, options=options, now=NOW)
    found = explain_object(plan, plan.moves[0].object_key, NODES, held, options=options)
    assert (found.moves, found.target_node) == (True, plan.moves[0].target_node)
    assert found.sentence == plan.moves[0].reason
    with pytest.raises(ObjectNotFound):
        explain_object(plan, "nobody", NODES, held, options=options)


def test_of_an_object_that_is_known_only_as_a_number_nobody_says_that_it_is_not_there() -> None:
    held = replace(inventory([("a", 10, "n0")]), unlisted=Unlisted({"not_a_candidate": 5}))
    with pytest.raises(InvalidArgument, match="5 others are known only as numbers"):
        explain("b", NODES, held, RebalancerOptions())
