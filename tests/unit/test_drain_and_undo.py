"""The pure parts: what of a node fits elsewhere and what keeps the rest, and which moves of a job can be taken back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.drain import DrainCheck, check_drain
from rebalance_tasks.core.errors import PlanInvariantError
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.undo import Made, WayBack, plan_way_back
from rebalance_tasks.core.verify import verify_plan

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LAST_HOUR = NOW - timedelta(hours=1)


def node(node_id: str, capacity: int = 1000, **more: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, capacity_bytes=capacity, **more)


def objects(rows: list[tuple[str, int, str]], **columns: list[Any]) -> Inventory:
    keys, sizes, nodes = zip(*rows, strict=True)
    return Inventory.from_arrow(
        pa.table({"object_key": list(keys), "size_bytes": list(sizes), "node_id": list(nodes), **columns})
    )


# -- drain ---------------------------------------------------------------------------------------------------------------
def checked(nodes: list[NodeDescriptor], inventory: Inventory, **options: Any) -> DrainCheck:
    return check_drain(nodes, inventory, "a", options=RebalancerOptions(**options), now=NOW)


def blocked(check: DrainCheck) -> dict[str, tuple[int, int, str]]:
    return {held.reason: (held.objects, held.bytes, held.example) for held in check.blocked}


def test_what_fits_is_counted_whatever_the_budgets_and_they_say_how_long_it_takes() -> None:
    inventory = objects([(f"k{at}", 10, "a") for at in range(50)])
    check = checked([node("a", egress_cost_per_gb=Decimal(10**9)), node("b")], inventory, max_moves_per_cycle=7)
    assert (check.fits, check.fits_objects, check.fits_bytes, check.room_bytes) == (True, 50, 500, 950)
    assert (check.fewest_cycles, check.bound_by) == (8, "max_moves_per_cycle")
    assert check.cost == 500


@pytest.mark.parametrize(
    ("columns", "others", "reason"),
    [
        ({"pinned": [True, False]}, [node("b")], "pinned"),
        ({"gravity": [0.95, 0.0]}, [node("b")], "protected_gravity"),
        ({"required_storage_class": ["ssd", None]}, [node("b", storage_classes=("hdd",))], "storage_class"),
        ({"required_regions": [["eu"], None]}, [node("b", region="us")], "regions"),
        ({"required_tags": [["owner=media"], None]}, [node("b", tags={"owner": "web"})], "tags"),
        ({}, [node("b", exclude=("k0*",))], "excluded"),
        ({}, [node("b", capacity=40)], "too_large"),
        ({}, [node("b", capacity=60)], "no_room"),
        ({}, [node("b", pool="other")], "no_other_node"),
        ({}, [node("b", state=NodeState.MAINTENANCE)], "no_other_node"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_constraint_that_keeps_an_object_is_told(
    columns: dict[str, list[Any]], others: list[NodeDescriptor], reason: str
) -> None:
    inventory = objects([("k0", 50, "a"), ("k1", 50, "a")], **columns)
    check = checked([node("a"), *others], inventory)
    assert not check.fits
    assert reason in blocked(check)
    objects_held = sum(held.objects for held in check.blocked)
    assert check.fits_objects + objects_held == check.objects == 2
    assert check.fits_bytes + sum(held.bytes for held in check.blocked) == check.bytes


def test_replicas_that_would_meet_are_told() -> None:
    inventory = objects(
        [("r0", 10, "a"), ("r1", 10, "b"), ("r2", 10, "c"), ("x", 10, "a")], replica_group=["r", "r", "r", None]
    )
    check = checked([node("a"), node("b"), node("c")], inventory)
    assert blocked(check) == {"replicas_apart": (1, 10, "r0")}
    assert checked([node("a"), node("b"), node("c"), node("d")], inventory).fits


def test_what_only_waits_is_no_obstacle() -> None:
    inventory = objects(
        [("k0", 10, "a"), ("k1", 10, "a"), ("k2", 10, "a")],
        last_moved_utc=[LAST_HOUR, None, None],
        mtime_utc=[None, NOW - timedelta(seconds=5), LAST_HOUR],
    )
    check = checked([node("a"), node("b")], inventory)
    assert check.fits
    assert [(held.reason, held.objects, held.example) for held in check.waits] == [
        ("cooldown", 1, "k0"),
        ("too_young", 1, "k1"),
    ]


def test_nodes_that_drain_already_compete_for_the_room() -> None:
    inventory = objects([("k0", 500, "a"), ("k1", 500, "c")])
    alone = checked([node("a"), node("b"), node("c")], inventory)
    together = checked([node("a"), node("b"), node("c", state=NodeState.DRAINING)], inventory)
    assert alone.fits
    assert together.room_bytes == 950
    assert (
        not together.fits
        or not check_drain(
            [node("a", state=NodeState.DRAINING), node("b"), node("c")],
            inventory,
            "c",
            options=RebalancerOptions(),
            now=NOW,
        ).fits
    )


def test_other_pools_and_unlisted_bytes_are_respected() -> None:
    inventory = objects([("k0", 500, "a")])
    full = node("b", used_bytes=600)
    check = checked([node("a"), full, node("c", pool="other")], inventory)
    assert blocked(check) == {"too_large": (1, 500, "k0")}
    assert check.room_bytes == 350


def test_an_empty_node_drains_at_once() -> None:
    check = checked([node("a"), node("b")], objects([("k", 1, "b")]))
    assert (check.fits, check.objects, check.fewest_cycles, check.cost) == (True, 0, 0, Decimal(0))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), max_size=30),
    capacities=st.lists(st.integers(1, 2000), min_size=0, max_size=4),
    pins=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_what_fits_and_what_does_not_add_up_to_the_node(
    sizes: list[int], capacities: list[int], pins: list[bool]
) -> None:
    rows = [(f"k{at}", size, "a") for at, size in enumerate(sizes)]
    inventory = (
        objects(rows, pinned=pins[: len(rows)])
        if rows
        else Inventory.from_listings({"a": ([], np.empty(0, np.int64), None)})
    )
    nodes = [node("a", 10**6), *(node(f"t{at}", capacity) for at, capacity in enumerate(capacities))]
    check = checked(nodes, inventory)
    assert check.fits_objects + sum(held.objects for held in check.blocked) == len(sizes)
    assert check.fits_bytes + sum(held.bytes for held in check.blocked) == sum(sizes)
    assert check.fits_bytes <= check.room_bytes


# -- undo ----------------------------------------------------------------------------------------------------------------
PUBLISHED = 1_000_000_000
NODES = [node("a"), node("b")]


def taken_back(nodes: list[NodeDescriptor], inventory: Inventory, made: list[Made], **options: Any) -> WayBack:
    rules = RebalancerOptions(**options)
    back = plan_way_back(nodes, inventory, made, options=rules, job_id="j1", now=NOW)
    verify_plan(back.plan, nodes, inventory, rules, now=NOW)
    assert len(back.plan.moves) + sum(back.left.values()) == back.completed == len(made)
    return back


def moved(*keys: str, size: int = 50, source: str = "a", target: str = "b") -> list[Made]:
    return [Made(key, source, target, size, PUBLISHED) for key in keys]


def on_b(count: int = 3, /, **columns: list[Any]) -> Inventory:
    rows = [(f"k{at}", 50, "b") for at in range(count)]
    return objects(rows, mtime_ns=[PUBLISHED] * count, **columns)


def test_an_undo_raises_the_spread_and_moves_within_the_cooldown_and_verification_knows_it() -> None:
    inventory = on_b(4, last_moved_utc=[LAST_HOUR] * 4)
    nodes = [node("a"), node("b")]
    inventory = replace(inventory, node_index=np.array([0, 0, 1, 1], np.int32), node_ids=("a", "b"))
    back = taken_back(nodes, inventory, moved("k2", "k3"))
    assert (back.plan.imbalance_before, back.plan.imbalance_after) == (0.0, 0.2)
    assert back.plan.undo_of == "j1"
    rules = RebalancerOptions()
    plain = back.plan.model_copy(update={"undo_of": ""})
    with pytest.raises(PlanInvariantError, match="object_cooldown"):
        verify_plan(plain, nodes, inventory, rules, now=NOW)
    with pytest.raises(PlanInvariantError, match="worsened"):
        verify_plan(plain, nodes, replace(inventory, last_moved_ns=None), rules, now=NOW)


@pytest.mark.parametrize(
    ("columns", "nodes", "options", "reason"),
    [
        ({"pinned": [True, False, False]}, NODES, {}, "pinned"),
        ({"gravity": [0.9, 0.1, 0.1]}, NODES, {}, "protected_gravity"),
        ({"required_storage_class": ["ssd", None, None]}, NODES, {}, "storage_class"),
        ({"required_regions": [["eu"], None, None]}, NODES, {}, "regions"),
        ({"replica_group": ["r", None, "r"]}, NODES, {}, "replicas_apart"),
        ({}, [node("a", exclude=("k0",)), node("b")], {}, "excluded"),
        ({}, [node("a", capacity=106), node("b")], {}, "no_room"),
        ({}, NODES, {"max_moves_per_cycle": 2}, "budget_moves"),
        ({}, NODES, {"max_egress_bytes_per_cycle": 149}, "budget_egress"),
        ({}, [node("a"), node("b", egress_cost_per_gb=Decimal(10**9))], {"max_cost_per_cycle": 100}, "budget_cost"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_undo_keeps_every_other_rule(
    columns: dict[str, list[Any]], nodes: list[NodeDescriptor], options: dict[str, Any], reason: str
) -> None:
    back = taken_back(nodes, on_b(**columns), moved("k0", "k1", "k2"), **options)
    assert back.left == {reason: 1}
    assert len(back.plan.moves) == 2


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("b")], "unknown_node"),
        ([node("a", state=NodeState.DRAINING), node("b")], "node_not_active"),
        ([node("a"), node("b", state=NodeState.MAINTENANCE)], "node_not_active"),
        ([node("a", pool="other"), node("b")], "other_pool"),
        ([NodeDescriptor(node_id="a"), node("b")], "no_capacity"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_undo_needs_both_nodes(nodes: list[NodeDescriptor], reason: str) -> None:
    back = plan_way_back(nodes, on_b(), moved("k0"), options=RebalancerOptions(), job_id="j1", now=NOW)
    assert (back.plan.moves, back.left) == ((), {reason: 1})


def test_only_what_is_there_as_it_was_put_goes_back() -> None:
    inventory = objects(
        [
            ("same", 50, "b"),
            ("grown", 60, "b"),
            ("written", 50, "b"),
            ("away", 50, "c"),
            ("twice", 50, "a"),
            ("twice", 50, "b"),
        ],
        mtime_ns=[PUBLISHED, PUBLISHED, PUBLISHED + 1, PUBLISHED, PUBLISHED, PUBLISHED],
    )
    made = moved("same", "grown", "written", "away", "twice", "deleted")
    back = taken_back([node("a"), node("b"), node("c")], inventory, made)
    assert [move.object_key for move in back.plan.moves] == ["same"]
    assert back.left == {"ambiguous": 1, "changed": 2, "gone": 1, "moved_on": 1}


def test_what_was_written_to_a_moment_ago_is_too_young() -> None:
    second_ago = int((NOW - timedelta(seconds=1)).timestamp()) * 10**9
    inventory = objects([("k0", 50, "b")], mtime_ns=[second_ago])
    back = taken_back(NODES, inventory, [Made("k0", "a", "b", 50, second_ago)])
    assert back.left == {"too_young": 1}


def test_the_same_undo_has_the_same_plan_id_and_another_another() -> None:
    first, again = (taken_back(NODES, on_b(), moved("k0", "k1")).plan.plan_id for _ in range(2))
    assert first == again
    assert taken_back(NODES, on_b(), moved("k0")).plan.plan_id != first
