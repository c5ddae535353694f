"""On any fleet, with any options: the plan passes an independent check, is repeatable, and never makes things worse."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.imbalance import least_bytes
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState, RebalancePlan, StorageClass
from rebalance_tasks.core.move_columns import MoveColumns
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.planning.fill import smallest_needed, take_in_order
from rebalance_tasks.core.verify import broken_moves, verify_plan
from tests.support.exact import beaten_by, small_fleet

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
#: `make plans` asks for thousands.
THOROUGH = settings(
    max_examples=int(os.environ.get("PLAN_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

states = st.sampled_from([NodeState.ACTIVE] * 6 + [NodeState.DRAINING, NodeState.MAINTENANCE])
regions = st.sampled_from(["eu", "us"])
sizes = st.one_of(st.integers(0, 30), st.integers(0, 400), st.just(0), st.integers(900, 5000))


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeDescriptor]:
    count = draw(st.integers(1, 7))
    equal = draw(st.booleans())
    return [
        NodeDescriptor(
            node_id=f"n{i}",
            pool=draw(st.sampled_from(["default", "default", "b"])),
            zone=draw(st.sampled_from(["", "a", "b"])),
            host=draw(st.sampled_from(["", "", "h1"])),
            region=draw(regions),
            storage_classes=tuple(draw(st.sets(st.sampled_from([StorageClass.HOT, StorageClass.SSD])))),
            capacity_bytes=1000 if equal else draw(st.sampled_from([None, 0, 1, 500, 1000, 1000, 3000, 10**18])),
            used_bytes=draw(st.sampled_from([None, None, None, 0, 700, 2000])),
            egress_cost_per_gb=draw(st.sampled_from([Decimal(0), Decimal("0.09"), Decimal(7)])),
            latency_ms=draw(st.sampled_from([None, None, 0.0, 120.0])),
            state=NodeState.ACTIVE if equal and draw(st.booleans()) else draw(states),
            tags=draw(st.sampled_from([{}, {"o": "x"}, {"o": "x", "p": "y"}])),
            exclude=draw(st.sampled_from([(), (), (), ("k1*",)])),
        )
        for i in range(count)
    ]


@st.composite
def inventories(draw: st.DrawFn, nodes: list[NodeDescriptor]) -> Inventory:
    holders = [node.node_id for node in nodes] + ["stranger"] * draw(st.integers(0, 1))
    # A small range of keys makes some of them ambiguous; one heavy node makes a fleet worth balancing.
    heavy = draw(st.sampled_from(holders))
    found = draw(
        st.lists(
            st.tuples(st.integers(0, 60), sizes, st.one_of(st.just(heavy), st.sampled_from(holders))),
            unique_by=lambda row: (row[0], row[2]),
            max_size=45,
        ),
    )
    n = len(found)

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    moments = st.sampled_from(
        [None, NOW, NOW - timedelta(seconds=30), NOW - timedelta(hours=2), NOW - timedelta(days=9)]
    )
    columns: dict[str, Any] = {
        "object_key": pa.array([f"k{key}" for key, _, _ in found], pa.string()),
        "size_bytes": pa.array([size for _, size, _ in found], pa.int64()),
        "node_id": pa.array([holder for _, _, holder in found], pa.string()),
    }
    optional: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
        "gravity": (pa.float64(), st.sampled_from([0.0, 0.2, 0.5, 0.89, 0.9, 1.0])),
        "reads_per_hour": (pa.float64(), st.sampled_from([None, 0.0, 7.0, 900.0, 20_000.0])),
        "colocated_dependencies": (pa.int64(), st.sampled_from([None, 0, 4, 30])),
        "egress_cost_per_gb": (pa.float64(), st.sampled_from([None, 0.0, 0.05, 0.2])),
        "latency_ms": (pa.float64(), st.sampled_from([None, 0.0, 90.0, 400.0])),
        "compliant": (pa.float64(), st.sampled_from([None, 0.0, 1.0])),
        "pinned": (pa.bool_(), st.booleans()),
        "replica_group": (pa.string(), st.sampled_from([None, "g1", "g2", "g3"])),
        "required_regions": (pa.list_(pa.string()), st.sampled_from([None, [], ["eu"], ["eu", "us"], ["mars"]])),
        "required_tags": (pa.list_(pa.string()), st.sampled_from([None, ["o=x"], ["o=x", "p=y"]])),
        "required_storage_class": (pa.string(), st.sampled_from([None, None, "hot", "ssd"])),
        "last_moved_utc": (pa.timestamp("us", "UTC"), moments),
        "mtime_utc": (pa.timestamp("us", "UTC"), moments),
    }
    for name, (kind, values) in optional.items():
        if draw(st.integers(0, 3)) == 0:
            columns[name] = pa.array(column(values), kind)
    return Inventory.from_arrow(pa.table(columns))


option_sets = st.builds(
    RebalancerOptions,
    imbalance_threshold=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    max_moves_per_cycle=st.sampled_from([0, 1, 3, 10, 1000, 1000]),
    max_egress_bytes_per_cycle=st.sampled_from([0, 50, 700, 10**12, 10**12]),
    max_cost_per_cycle=st.sampled_from([Decimal(0), Decimal("0.000001"), Decimal(100), Decimal(100)]),
    max_cost_per_day=st.sampled_from([None, None, Decimal("0.0000004")]),
    gravity_protection_threshold=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    min_object_size=st.sampled_from([0, 0, 0, 25]),
    max_utilisation=st.sampled_from([0.3, 0.95, 1.0]),
    max_concurrent_migrations=st.integers(1, 3),
    throttle_bytes_per_sec=st.sampled_from([None, 7]),
)


@THOROUGH
@given(data=st.data(), nodes=fleets(), options=option_sets)
def test_every_plan_passes_the_independent_check_and_repeats(
    data: st.DataObject,
    nodes: list[NodeDescriptor],
    options: RebalancerOptions,
) -> None:
    inventory = data.draw(inventories(nodes))
    reserved = {node.node_id: data.draw(st.sampled_from([0, 0, 100])) for node in nodes}
    prices = data.draw(st.sampled_from([None, {("a", "b"): Decimal("0.5"), ("eu", "us"): Decimal(3)}]))
    excluded = data.draw(st.sampled_from([set(), {"k1", "k2", "k3"}]))
    now = data.draw(st.sampled_from([None, NOW]))

    def plan() -> RebalancePlan:
        return plan_rebalance(
            nodes, inventory, options=options, now=now, prices=prices, reserved_bytes=reserved, excluded_keys=excluded
        )

    made = plan()
    verify_plan(made, nodes, inventory, options, prices=prices, reserved_bytes=reserved, excluded_keys=excluded)
    assert broken_moves(made, MoveColumns.of(made.moves), nodes, inventory, options, now=now).words == []
    assert made == plan()
    assert RebalancePlan.model_validate_json(made.model_dump_json()) == made
    if not any(node.state is NodeState.DRAINING for node in nodes):
        assert made.imbalance_after <= made.imbalance_before
    if made.moves and not any(move.size_bytes == 0 for move in made.moves):
        assert made.estimated_egress_bytes > 0


@THOROUGH
@given(
    used=st.lists(st.integers(0, 95), min_size=2, max_size=6),
    capacities=st.lists(st.sampled_from([100, 200, 400]), min_size=6, max_size=6),
)
def test_fine_objects_reach_the_target_with_nearly_the_least_bytes(used: list[int], capacities: list[int]) -> None:
    """Objects of one byte are water: the plan must be as good as the bound, but for a byte a node."""
    nodes = [NodeDescriptor(node_id=f"n{i}", capacity_bytes=capacities[i]) for i in range(len(used))]
    listings = {
        f"n{i}": ([f"{i}/{k}" for k in range(count)], np.ones(count, np.int64), None) for i, count in enumerate(used)
    }
    options = RebalancerOptions(max_moves_per_cycle=10**6)
    made = plan_rebalance(nodes, Inventory.from_listings(listings), options=options)
    verify_plan(made, nodes, Inventory.from_listings(listings), options)
    if made.imbalance_before >= options.imbalance_threshold:
        least = least_bytes(used, capacities[: len(used)], options.effective_target)
        assert made.imbalance_after <= options.effective_target
        assert made.estimated_egress_bytes <= least + 2 * len(used)
    else:
        assert made.moves == ()


@settings(THOROUGH, max_examples=6)
@given(nodes=st.integers(2, 5), counts=st.lists(st.integers(0, 60), min_size=5, max_size=5), seed=st.integers(0, 9))
def test_a_plan_applied_and_planned_again_never_moves_an_object_back(nodes: int, counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    fleet = [NodeDescriptor(node_id=f"n{i}", capacity_bytes=3000) for i in range(nodes)]
    where = {f"{i}/{k}": f"n{i}" for i in range(nodes) for k in range(counts[i])}
    weight = dict(zip(where, rng.integers(1, 50, len(where)).tolist(), strict=True))
    options = RebalancerOptions(max_moves_per_cycle=7, imbalance_threshold=0.04)
    been: dict[str, set[str]] = {key: {holder} for key, holder in where.items()}
    for _ in range(40):
        inventory = Inventory.from_arrow(
            pa.table(
                {
                    "object_key": pa.array(list(where), pa.string()),
                    "size_bytes": pa.array(list(weight.values()), pa.int64()),
                    "node_id": pa.array(list(where.values()), pa.string()),
                },
            ),
        )
        made = plan_rebalance(fleet, inventory, options=options)
        if not made.moves:
            break
        for move in made.moves:
            assert move.target_node not in been[move.object_key]
            been[move.object_key].add(move.target_node)
            where[move.object_key] = move.target_node
    else:
        pytest.fail("planning did not settle")


@given(
    sizes=st.lists(st.integers(0, 100), max_size=40),
    quota=st.integers(0, 500),
    most=st.integers(0, 40),
)
def test_taking_in_order_is_first_fit(sizes: list[int], quota: int, most: int) -> None:
    expected: list[int] = []
    left = quota
    for i, size in enumerate(sizes):
        if size <= left and len(expected) < most:
            expected.append(i)
            left -= size
    assert take_in_order(np.array(sizes, np.int64), quota, most).tolist() == expected


# The last two have six and eight nodes and a target out of reach: one search over all of them moves several parts in a hundred more.
@pytest.mark.parametrize("seed", [1, 3, 9, 14, 16, 24, 30, 35, 44, 541, 90, 461])
def test_no_plan_of_a_small_fleet_is_better_by_two_parts_in_a_hundred(seed: int) -> None:
    """`make bench` tries a thousand of them."""
    fleet = small_fleet(seed)
    options = RebalancerOptions(max_moves_per_cycle=10**6, max_egress_bytes_per_cycle=10**15)
    made = plan_rebalance(fleet.nodes, fleet.inventory, options=options)
    verify_plan(made, fleet.nodes, fleet.inventory, options)
    if made.imbalance_before >= options.imbalance_threshold:
        assert beaten_by(fleet, made, options.effective_target) == ""


EXTREMES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "zero capacity": ([{"capacity_bytes": 0}, {"capacity_bytes": 0}], {}),
    "one node": ([{"capacity_bytes": 1000}], {}),
    "equal nodes": ([{"capacity_bytes": 1000}] * 4, {"even": True}),
    "all protected": ([{"capacity_bytes": 1000}] * 3, {"gravity": 1.0}),
    "all pinned": ([{"capacity_bytes": 1000}] * 3, {"pinned": True}),
    "one giant object": ([{"capacity_bytes": 10**15}] * 3, {"sizes": [9 * 10**14]}),
    "zero-byte objects": ([{"capacity_bytes": 1000}] * 3, {"sizes": [0] * 50}),
    "a million tiny ones": ([{"capacity_bytes": 2 * 10**6}] * 5, {"sizes": [1] * 10**6}),
    "ambiguous keys": ([{"capacity_bytes": 1000}] * 3, {"twice": True}),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("state", [NodeState.ACTIVE, NodeState.DRAINING])
def test_extremes_are_planned_soundly(name: str, state: NodeState) -> None:
    fleet, how = EXTREMES[name]
    nodes = [
        NodeDescriptor(node_id=f"n{i}", state=state if i == 0 else NodeState.ACTIVE, **node)
        for i, node in enumerate(fleet)
    ]
    sizes = np.array(how.get("sizes", [10] * 80), np.int64)
    keys = [f"k{i}" for i in range(len(sizes))]
    holders = [f"n{i % len(nodes)}" if how.get("even") else "n0" for i in range(len(sizes))]
    if how.get("twice"):
        keys, holders, sizes = keys * 2, holders + ["n1"] * len(keys), np.concatenate([sizes, sizes])
    columns: dict[str, Any] = {"object_key": keys, "size_bytes": sizes, "node_id": holders}
    columns |= {what: [how[what]] * len(keys) for what in ("gravity", "pinned") if what in how}
    inventory = Inventory.from_arrow(pa.table(columns))
    options = RebalancerOptions()
    made = plan_rebalance(nodes, inventory, options=options, now=NOW)
    verify_plan(made, nodes, inventory, options, now=NOW)
    assert len(made.moves) + sum(made.not_moved.values()) == len(inventory)


@given(sizes=st.lists(st.integers(1, 50), max_size=12), amount=st.integers(0, 200))
def test_the_smallest_object_needed_is_the_last_of_the_largest_that_reach_the_amount(
    sizes: list[int], amount: int
) -> None:
    fitting = [size for size in sorted(sizes, reverse=True) if size <= amount]
    expected = next((s for at, s in enumerate(fitting) if sum(fitting[: at + 1]) >= amount), min(fitting, default=0))
    assert smallest_needed(np.array(sorted(sizes, reverse=True), np.int64), amount) == expected
