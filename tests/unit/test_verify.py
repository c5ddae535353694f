"""The verifier is independent, and refuses each kind of broken plan by the rule it breaks."""

from __future__ import annotations

import ast
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rebalance_tasks.core import verify
from rebalance_tasks.core.errors import PlanInvariantError
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState, RebalanceMove, RebalancePlan, StorageClass
from rebalance_tasks.core.options import GravityScoringWeights, RebalancerOptions
from rebalance_tasks.core.verify import verify_plan
from rebalance_tasks.core.verifying import gravity as verify_gravity
from rebalance_tasks.core.verifying import moves as verify_moves
from rebalance_tasks.core.verifying import rules as verify_rules

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
OPTIONS = RebalancerOptions(throttle_bytes_per_sec=10)


def node(node_id: str, capacity: int | None = 1000, **fields: Any) -> NodeDescriptor:
    return NodeDescriptor.model_validate(
        {"node_id": node_id, "capacity_bytes": capacity, "egress_cost_per_gb": "0.5"} | fields,
    )


NODES = [node("n1"), node("n2"), node("n3")]
#: key, size, node: n1 holds 80 %, n2 20 %, n3 nothing.
OBJECTS = [("a", 200, "n1"), ("b", 200, "n1"), ("c", 400, "n1"), ("d", 200, "n2")]


def inventory(objects: list[tuple[str, int, str]] | None = None, **columns: Any) -> Inventory:
    keys, sizes, nodes = ([entry[i] for entry in objects or OBJECTS] for i in range(3))
    return Inventory.from_arrow(pa.table({"object_key": keys, "size_bytes": sizes, "node_id": nodes} | columns))


def move(key: str = "c", source: str = "n1", target: str = "n3", size: int = 400, **fields: Any) -> RebalanceMove:
    fields.setdefault("cost", Decimal(size) / 10**9 * Decimal("0.5"))
    return RebalanceMove(object_key=key, source_node=source, target_node=target, size_bytes=size, **fields)


def plan(*moves: RebalanceMove, **fields: Any) -> RebalancePlan:
    """A plan that is right for moving c from n1 to n3, but for what is changed."""
    size = sum(one.size_bytes for one in moves)
    return RebalancePlan(
        **{
            "plan_id": "p",
            "moves": moves,
            "estimated_duration_seconds": size / 10,
            "estimated_egress_bytes": size,
            "estimated_cost": sum((one.cost for one in moves), Decimal(0)),
            "imbalance_before": 0.8,
            "imbalance_after": 0.2,
            "not_moved": {"not_needed": 4 - len(moves)},
        }
        | fields,
    )


def refuse(rule: str, made: RebalancePlan, nodes: Any = NODES, held: Inventory | None = None, **facts: Any) -> None:
    with pytest.raises(PlanInvariantError, match=rule):
        verify_plan(made, nodes, held or inventory(), facts.pop("options", OPTIONS), **facts)


def test_the_plan_that_the_others_break_is_right() -> None:
    for shape in (NODES, tuple(NODES), iter(NODES), {n.node_id: n for n in NODES}, SimpleNamespace(nodes=NODES)):
        verify_plan(plan(move()), shape, inventory(), OPTIONS)


@pytest.mark.parametrize("module", [verify, verify_moves, verify_rules, verify_gravity])
def test_it_imports_nothing_from_the_planner(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    imported = {name.module or "" for name in ast.walk(tree) if isinstance(name, ast.ImportFrom)}
    imported |= {alias.name for name in ast.walk(tree) if isinstance(name, ast.Import) for alias in name.names}
    assert not [name for name in imported if "planner" in name or "imbalance" in name]


def test_an_unknown_node_is_refused() -> None:
    refuse("node 'nowhere' is unknown", plan(move(target="nowhere")))
    refuse("node 'nowhere' is unknown", plan(move(source="nowhere")))


def test_two_nodes_of_one_id_are_refused() -> None:
    refuse("two nodes with one node_id", plan(move()), [*NODES, NODES[0]])


def test_an_unknown_object_is_refused() -> None:
    refuse("move of 'x' from 'n1' to 'n3': the object is not in the inventory", plan(move("x")))


def test_a_source_that_does_not_hold_the_object_is_refused() -> None:
    refuse("does not hold the object, 'n1' does", plan(move(source="n2")))


def test_a_wrong_size_is_refused() -> None:
    refuse("size is 399, the inventory says 400", plan(move(size=399)))


def test_a_move_to_where_the_object_is_is_refused() -> None:
    refuse("the same node", plan(move(target="n1")))


def test_an_object_moved_twice_is_refused() -> None:
    refuse("is moved twice", plan(move(), move(target="n2")))


def test_an_ambiguous_object_is_refused() -> None:
    refuse("ambiguous", plan(move()), held=inventory([*OBJECTS, ("c", 400, "n2")]))


def test_an_excluded_object_is_refused() -> None:
    refuse("is excluded", plan(move()), excluded_keys=["c"])


def test_an_overfilled_target_is_refused() -> None:
    refuse("overfilled: 400 bytes where 379", plan(move()), [node("n1"), node("n2"), node("n3", 399)])
    refuse("overfilled", plan(move()), options=OPTIONS.model_copy(update={"max_utilisation": 0.39}))
    refuse("overfilled", plan(move()), reserved_bytes={"n3": 551})
    verify_plan(plan(move()), NODES, inventory(), OPTIONS, reserved_bytes={"n3": 550})


@pytest.mark.parametrize(
    ("limit", "rule"),
    [
        ({"max_moves_per_cycle": 0}, "exceed max_moves_per_cycle 0"),
        ({"max_egress_bytes_per_cycle": 399}, "400 bytes exceed max_egress_bytes_per_cycle"),
        ({"max_cost_per_cycle": Decimal("0.00000019")}, "exceeds max_cost_per_cycle"),
        ({"max_cost_per_day": Decimal("0.00000019")}, "exceeds max_cost_per_day"),
    ],
)
def test_an_exceeded_budget_is_refused(limit: dict[str, Any], rule: str) -> None:
    refuse(rule, plan(move()), options=OPTIONS.model_copy(update=limit))


def test_a_protected_object_is_refused() -> None:
    refuse("protected", plan(move(gravity=0.9)), held=inventory(gravity=[0.0, 0.0, 0.9, 0.0]))
    refuse("protected", plan(move(gravity=0.95)))


@pytest.mark.parametrize("stated", [0.0, 0.5, 0.8999])
def test_a_plan_hides_no_object_that_its_measures_protect(stated: float) -> None:
    held = inventory(reads_per_hour=[0.0, 0.0, 20_000.0, 0.0], latency_ms=[0.0] * 4, compliant=[1.0] * 4)
    held = replace(held, colocated_dependencies=np.full(4, 12))
    nodes = [node(name, egress_cost_per_gb="0.12") for name in ("n1", "n2", "n3")]
    right = move(gravity=stated, cost=Decimal(400) / 10**9 * Decimal("0.12"))
    refuse(r"its measures come to 1\.0000 ≥ 0\.9", plan(right), nodes, held)
    open_options = OPTIONS.model_copy(update={"gravity_protection_threshold": 0.99})
    refuse("its measures come to", plan(right), nodes, held, options=open_options)
    told = replace(held, reads_per_hour=np.zeros(4))
    verify_plan(plan(right), nodes, told, OPTIONS)


def test_gravity_by_measures_goes_by_the_price_matrix_where_there_is_one() -> None:
    zones = [node(name, zone=name, egress_cost_per_gb="0.12") for name in ("n1", "n2", "n3")]
    held = inventory(reads_per_hour=[0.0, 0.0, 20_000.0, 0.0])
    options = OPTIONS.model_copy(
        update={
            "scoring_weights": GravityScoringWeights(
                access_frequency=1, colocation=0, egress_cost=1, latency=0, compliance=0
            )
        }
    )
    dear = move(gravity=0.0, cost=Decimal(400) / 10**9 * Decimal("0.12"))
    refuse("its measures come to", plan(dear), zones, held, options=options)
    free = {(a, b): Decimal(0) for a in ("n1", "n2", "n3") for b in ("n1", "n2", "n3")}
    verify_plan(plan(move(gravity=0.0, cost=Decimal(0))), zones, held, options, prices=free)


def test_a_gravity_that_is_not_the_inventorys_is_refused() -> None:
    refuse(
        "gravity is 0.1, the inventory says 0.9", plan(move(gravity=0.1)), held=inventory(gravity=[0.0, 0.0, 0.9, 0.0])
    )


def test_a_pinned_object_is_refused() -> None:
    refuse("pinned", plan(move()), held=inventory(pinned=[False, False, True, False]))


def test_a_young_or_recently_moved_object_is_refused() -> None:
    just = pa.array([None, None, NOW - timedelta(seconds=59, microseconds=999_999), None], pa.timestamp("us", "UTC"))
    held = inventory(mtime_utc=just)
    refuse("younger than min_object_age", plan(move()), held=held, now=NOW)
    refuse("younger than min_object_age", plan(move(), created_utc=NOW), held=held)
    refuse("younger than min_object_age", plan(move()), held=held)
    verify_plan(plan(move()), NODES, held, OPTIONS, now=NOW + timedelta(microseconds=1))
    refuse("within object_cooldown", plan(move()), held=inventory(last_moved_utc=just), now=NOW)


def test_replicas_on_one_node_or_host_are_refused() -> None:
    twins = inventory(replica_group=[None, None, "g", "g"])
    refuse("replicas must stay apart", plan(move(target="n2")), held=twins)
    housed = [node("n1"), node("n2", host="h"), node("n3", host="h")]
    refuse("replicas must stay apart: the target's host holds 'd'", plan(move()), housed, twins)
    pair = plan(move("a", size=200), move("b", size=200))
    refuse("replicas must stay apart", pair, held=inventory(replica_group=["g", "g", None, None]))


def test_a_replica_that_stays_on_its_own_host_is_allowed() -> None:
    housed = [node("n1", host="h"), node("n2"), node("n3", host="h")]
    verify_plan(plan(move()), housed, inventory(replica_group=[None, None, "g", "g"]), OPTIONS)


def test_a_foreign_region_is_refused() -> None:
    regional = [node("n1", region="eu"), node("n2"), node("n3", region="us")]
    refuse("region 'us' is not among", plan(move()), regional, inventory(required_regions=[None, None, ["eu"], None]))


def test_a_missing_storage_class_is_refused() -> None:
    held = inventory(required_storage_class=[None, None, "ssd", None])
    refuse("storage class 'ssd'", plan(move()), held=held)
    offering = [node("n1"), node("n2"), node("n3", storage_classes=[StorageClass.SSD])]
    verify_plan(plan(move()), offering, held, OPTIONS)


def test_another_pool_is_refused() -> None:
    refuse("pools differ", plan(move()), [node("n1"), node("n2"), node("n3", pool="b")])


@pytest.mark.parametrize("change", [{"state": NodeState.MAINTENANCE}, {"capacity_bytes": 0}, {"capacity_bytes": None}])
def test_a_node_that_takes_no_part_is_refused(change: dict[str, Any]) -> None:
    refuse("does not take", plan(move()), [NODES[0], NODES[1], NODES[2].model_copy(update=change)])
    refuse("does not give", plan(move()), [NODES[0].model_copy(update=change), NODES[1], NODES[2]])


def test_a_draining_node_gives_and_does_not_take() -> None:
    draining = {"state": NodeState.DRAINING}
    refuse("does not take", plan(move()), [NODES[0], NODES[1], NODES[2].model_copy(update=draining)])
    emptying = [NODES[0].model_copy(update=draining), NODES[1], NODES[2]]
    verify_plan(plan(move(), imbalance_before=0.2, imbalance_after=0.2), emptying, inventory(), OPTIONS)


def test_a_key_that_a_node_excludes_is_refused() -> None:
    refuse("'n3' excludes this key", plan(move()), [NODES[0], NODES[1], node("n3", exclude=["c*"])])
    refuse("'n1' excludes this key", plan(move()), [node("n1", include=["a*"]), NODES[1], NODES[2]])


def test_a_worsened_spread_is_refused_unless_a_node_drains() -> None:
    worse = plan(move("d", "n2", "n1", 200), imbalance_after=1.0)
    open_wide = OPTIONS.model_copy(update={"max_utilisation": 1.0})
    refuse("spread of pool 'default' is worsened from 0.8 to 1.0", worse, options=open_wide)
    emptying = [NODES[0], NODES[1].model_copy(update={"state": NodeState.DRAINING}), NODES[2]]
    verify_plan(worse, emptying, inventory(), open_wide)


def test_a_plan_without_need_is_refused() -> None:
    refuse("under the threshold", plan(move()), options=OPTIONS.model_copy(update={"imbalance_threshold": 0.81}))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"estimated_egress_bytes": 401}, "estimated_egress_bytes 401"),
        ({"estimated_cost": Decimal("0.0000003")}, "estimated_cost"),
        ({"estimated_duration_seconds": 41.0}, "estimated_duration_seconds 41.0"),
        ({"imbalance_before": 0.81}, "imbalance_before is stated as 0.81, it is 0.8"),
        ({"imbalance_after": 0.1}, "imbalance_after is stated as 0.1, it is 0.2"),
        ({"not_moved": {"not_needed": 2}}, "1 moves and 2 not moved are not the 4 objects"),
        ({"not_moved": {"not_needed": 4, "pinned": -1}}, "negative"),
    ],
)
def test_figures_that_do_not_add_up_are_refused(wrong: dict[str, Any], rule: str) -> None:
    refuse(rule, plan(move(), **wrong))


def test_a_wrong_cost_of_a_move_is_refused() -> None:
    refuse("cost is 1, size × price is", plan(move(cost=Decimal(1))))
    zoned = [node("n1", zone="a"), node("n2"), node("n3", zone="b")]
    refuse("size × price", plan(move()), zoned, prices={("a", "b"): Decimal(9)})
    verify_plan(plan(move(cost=Decimal("0.0000036"))), zoned, inventory(), OPTIONS, prices={("a", "b"): Decimal(9)})
