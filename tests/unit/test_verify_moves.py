"""The rules of single moves, asked as columns, find what a look at one move after the other finds, word for word."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, RebalanceMove, RebalancePlan
from rebalance_tasks.core.move_columns import MoveColumns
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.verify import broken_moves
from tests.support.move_rules import OneByOne

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9
KEYS = [f"{folder}/{number}" for folder in "ab" for number in range(4)]

sizes = st.sampled_from([0, 10, 10, 20])
gravities = st.sampled_from([0.0, 0.0, 0.5, 0.9])


@st.composite
def nodes(draw: st.DrawFn) -> list[NodeDescriptor]:
    return [
        NodeDescriptor.model_validate(
            {
                "node_id": f"n{number}",
                "capacity_bytes": draw(st.sampled_from([1000, 1000, 1000, 0, None])),
                "pool": draw(st.sampled_from(["p", "p", "p", "q"])),
                "state": draw(st.sampled_from(["active", "active", "draining", "maintenance"])),
                "region": draw(st.sampled_from(["eu", "us"])),
                "egress_cost_per_gb": draw(st.sampled_from(["0", "0.09"])),
                "latency_ms": draw(st.sampled_from([None, 10])),
                "tags": draw(st.sampled_from([{}, {"o": "x"}, {"o": "x", "p": "y"}])),
                "storage_classes": draw(st.sampled_from([[], ["ssd"], ["ssd", "hot"]])),
                "queue": draw(st.sampled_from(["", "", "h1", "h1,h2", "h3"])),
                "remote_url": draw(st.sampled_from(["", "", "sftp://host/path"])),
                "include": draw(st.sampled_from([[], [], ["a*"]])),
                "exclude": draw(st.sampled_from([[], [], ["*/3"]])),
            }
        )
        for number in range(4)
    ]


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Objects of which some are on two nodes; a column of each kind, sometimes."""
    places = draw(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 3)), unique=True, max_size=12))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=len(places), max_size=len(places)))

    moments = st.sampled_from(
        [None, NOW, NOW - timedelta(seconds=60), NOW - timedelta(days=1), NOW - timedelta(days=9)]
    )
    columns: dict[str, Any] = {
        "object_key": pa.array([key for key, _ in places], pa.string()),
        "size_bytes": pa.array(column(sizes), pa.int64()),
        "node_id": pa.array([f"n{number}" for _, number in places], pa.string()),
    }
    optional: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
        "gravity": (pa.float64(), gravities),
        "reads_per_hour": (pa.float64(), st.sampled_from([None, 0.0, 50.0, 20_000.0])),
        "colocated_dependencies": (pa.int64(), st.sampled_from([None, 0, 3, 30])),
        "latency_ms": (pa.float64(), st.sampled_from([None, 0.0, 90.0, 400.0])),
        "pinned": (pa.bool_(), st.booleans()),
        "required_regions": (pa.list_(pa.string()), st.sampled_from([None, ["eu"], ["eu", "us"]])),
        "required_tags": (pa.list_(pa.string()), st.sampled_from([None, ["o=x"], ["o=x", "p=y"]])),
        "required_storage_class": (pa.string(), st.sampled_from([None, "hot", "ssd"])),
        "last_moved_utc": (pa.timestamp("us", "UTC"), moments),
        "mtime_utc": (pa.timestamp("us", "UTC"), moments),
    }
    for name, (kind, values) in optional.items():
        if draw(st.booleans()):
            columns[name] = pa.array(column(values), kind)
    return Inventory.from_arrow(pa.table(columns))


moves = st.builds(
    RebalanceMove,
    object_key=st.sampled_from([*KEYS, "elsewhere"]),
    source_node=st.sampled_from(["n0", "n1", "n2", "n3", "nowhere"]),
    target_node=st.sampled_from(["n0", "n1", "n2", "n3", "nowhere"]),
    size_bytes=sizes,
    priority=st.integers(-3, 3),
    gravity=gravities,
    cost=st.sampled_from([Decimal(0), Decimal("0.10"), Decimal("0.1")]),
    reason=st.sampled_from(["", "levels n0", "leert n1 – ganz"]),
)


@settings(max_examples=2 * int(os.environ.get("PLAN_EXAMPLES", "150")), deadline=None)
@given(
    fleet=nodes(),
    held=inventories(),
    planned=st.lists(moves, max_size=8),
    undo_of=st.sampled_from(["", "", "rebal-1"]),
    least=st.sampled_from([0, 0, 15]),
    most=st.sampled_from([0.9, 0.9, 0.5]),
)
def test_columns_break_the_rules_that_single_moves_break(
    fleet: list[NodeDescriptor], held: Inventory, planned: list[RebalanceMove], undo_of: str, least: int, most: float
) -> None:
    options = RebalancerOptions(min_object_size=least, gravity_protection_threshold=most)
    plan = RebalancePlan(plan_id="p", moves=tuple(planned), undo_of=undo_of)
    found = broken_moves(plan, MoveColumns.of(planned), fleet, held, options, now=NOW)
    expected = OneByOne(plan, {node.node_id: node for node in fleet}, held, options, NOW_NS).refused()
    refused = {at: found.error(at) for at in np.flatnonzero(found.codes >= 0).tolist()}
    assert {at: (str(error), error.word) for at, error in refused.items()} == {
        at: (str(error), error.word) for at, error in expected.items()
    }


@given(planned=st.lists(moves, max_size=12))
def test_moves_become_columns_and_come_back_the_same(planned: list[RebalanceMove]) -> None:
    columns = MoveColumns.of(planned)
    assert columns.to_moves() == tuple(planned)
    order = np.arange(len(planned))[::-1]
    assert columns.take(order).to_moves() == tuple(planned[::-1])
    seen = [move.object_key for move in planned]
    assert columns.repeated().tolist() == [key in seen[:at] for at, key in enumerate(seen)]
    pairs, place = columns.pairs()
    assert [pairs[number] for number in place.tolist()] == [(move.source_node, move.target_node) for move in planned]
    assert columns.nodes() == {name for move in planned for name in (move.source_node, move.target_node)}


@pytest.mark.parametrize("field", ["size_bytes", "priority"])
def test_a_number_that_fits_no_column_is_refused_with_its_field_and_value(field: str) -> None:
    made = RebalanceMove(object_key="k", source_node="a", target_node="b", **{"size_bytes": 1, field: 1 << 70})
    with pytest.raises(InvalidArgument, match=f"{field} is {1 << 70}"):
        MoveColumns.of([made])


def test_sizes_whose_sum_no_fleet_holds_are_refused() -> None:
    made = RebalanceMove(object_key="k", source_node="a", target_node="b", size_bytes=1 << 61)
    with pytest.raises(InvalidArgument, match="size_bytes add up to"):
        MoveColumns.of([made, made])
