"""Before a node gives and takes again: what it can hold, and what of it would fit nowhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.activation import ActivationCheck, check_activation
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState
from rebalance_tasks.core.options import RebalancerOptions

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def node(node_id: str, capacity: int, **more: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, capacity_bytes=capacity, **more)


def objects(on_a: list[int], on_b: list[int], **columns: list[Any]) -> Inventory:
    rows = [(f"a{at}", size, "a") for at, size in enumerate(on_a)] + [
        (f"b{at}", size, "b") for at, size in enumerate(on_b)
    ]
    keys, sizes, nodes = ([row[at] for row in rows] for at in range(3))
    return Inventory.from_arrow(
        pa.table(
            {
                "object_key": pa.array(keys, pa.string()),
                "size_bytes": pa.array(sizes, pa.int64()),
                "node_id": pa.array(nodes, pa.string()),
                **columns,
            }
        )
    )


def checked(nodes: list[NodeDescriptor], inventory: Inventory, **options: Any) -> ActivationCheck:
    return check_activation(nodes, inventory, "a", options=RebalancerOptions(**options), now=NOW)


def test_an_empty_node_has_room_and_its_return_is_seen_in_the_spread() -> None:
    found = checked([node("a", 1000, state="maintenance"), node("b", 1000)], objects([], [500]))
    assert (found.fits, found.room_bytes, found.over_bytes) == (True, 950, 0)
    assert (found.spread_before, found.spread_after) == (0.0, 0.5)


@pytest.mark.parametrize("state", list(NodeState))
def test_the_answer_does_not_depend_on_the_state_that_it_leaves(state: NodeState) -> None:
    nodes = [node("a", 1000, state=state), node("b", 1000)]
    assert checked(nodes, objects([600, 500], [10])) == checked([node("a", 1000), nodes[1]], objects([600, 500], [10]))


def test_what_is_too_much_fits_where_others_have_room() -> None:
    found = checked([node("a", 1000), node("b", 1000)], objects([600, 500], [10]))
    assert (found.over_bytes, found.fits_bytes, found.blocked) == (150, 150, ())


def test_what_fits_nowhere_is_told_by_its_constraint() -> None:
    found = checked([node("a", 1000), node("b", 1000)], objects([600, 500], [900]))
    assert (found.fits, found.over_bytes, found.fits_bytes) == (False, 150, 0)
    assert {held.reason for held in found.blocked} == {"too_large"}
    pinned = objects([600, 500], [10], pinned=[True, True, False])
    assert [(held.reason, held.objects) for held in checked([node("a", 1000), node("b", 1000)], pinned).blocked] == [
        ("pinned", 2)
    ]


def test_a_node_without_capacity_can_hold_nothing() -> None:
    found = checked([node("a", 0), node("b", 1000)], objects([], []))
    assert [held.reason for held in found.blocked] == ["no_capacity"]


@given(
    st.lists(st.integers(0, 400), max_size=6),
    st.lists(st.integers(0, 400), max_size=6),
    st.integers(1, 2000),
    st.integers(0, 2000),
)
def test_what_it_holds_is_room_or_too_much_and_what_is_too_much_fits_or_is_named(
    on_a: list[int], on_b: list[int], own: int, other: int
) -> None:
    found = checked([node("a", own), node("b", other)], objects(on_a, on_b), max_utilisation=1.0)
    assert found.bytes == sum(on_a)
    assert found.bytes + found.room_bytes - found.over_bytes == own
    assert 0 <= found.fits_bytes <= found.over_bytes
    assert found.fits == (found.fits_bytes == found.over_bytes)
