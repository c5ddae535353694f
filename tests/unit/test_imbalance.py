"""The spread is exact, and the least bytes are the least."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.imbalance import imbalance, least_bytes, pool_imbalances, spread, usage, utilisations
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState


def node(node_id: str, capacity: int | None = 100, **fields: object) -> NodeDescriptor:
    return NodeDescriptor.model_validate({"node_id": node_id, "capacity_bytes": capacity} | fields)


def brute_force(used: list[int], capacity: list[int], target: float) -> float:
    """Try many bands; the sums are convex in the band's place, so a fine grid bounds the minimum from above."""
    u, c = np.array(used, float), np.array(capacity, float)
    a = np.linspace(-target, (u / c).max(), 20_001)[:, None]
    give = np.maximum(u - (a + target) * c, 0).sum(axis=1)
    take = np.maximum(a * c - u, 0).sum(axis=1)
    return float(np.maximum(give, take).min())


def test_sixty_against_fifty_percent_is_a_tenth_exactly() -> None:
    assert spread([60, 50], [100, 100]) == 0.1


def test_one_node_has_no_spread() -> None:
    assert spread([60], [100]) == 0.0
    assert spread([], []) == 0.0


def test_usage_is_the_larger_of_survey_and_statement() -> None:
    inventory = Inventory.from_columns("n1", ["a"], np.array([40]))
    nodes = [node("n1", used_bytes=30), node("n2", used_bytes=7), node("n3")]
    assert usage(nodes, inventory) == {"n1": 40, "n2": 7, "n3": 0}
    assert usage([node("n1", used_bytes=50)], inventory) == {"n1": 50}


def test_only_active_nodes_with_capacity_count_and_each_pool_for_itself() -> None:
    nodes = [
        node("a1"),
        node("a2"),
        node("drained", state=NodeState.DRAINING),
        node("resting", state=NodeState.MAINTENANCE),
        node("empty", capacity=0),
        node("unknown", capacity=None),
        node("b1", pool="b"),
        node("b2", pool="b"),
    ]
    used = {"a1": 50, "a2": 45, "drained": 100, "resting": 100, "empty": 9, "unknown": 9, "b1": 20, "b2": 0}
    assert pool_imbalances(nodes, used) == {"b": 0.2, "default": 0.05}
    assert imbalance(nodes, used) == 0.2
    assert imbalance([node("only")], {"only": 3}) == 0.0
    assert imbalance([], {}) == 0.0


def test_the_picture_names_every_node() -> None:
    shown = utilisations([node("n1"), node("n2", capacity=0)], {"n1": 25, "n2": 5})
    assert [(row.node_id, row.utilisation, row.eligible) for row in shown] == [("n1", 0.25, True), ("n2", None, False)]


@pytest.mark.parametrize(
    ("used", "capacity", "target", "expected"),
    [
        ([100, 0], [100, 100], 0.0, 50),
        ([100, 0], [100, 100], 0.5, 25),
        ([100, 0], [100, 100], 1.0, 0),
        ([90, 50, 50, 50], [100] * 4, 0.0, 30),
        ([90, 50, 50, 50], [100] * 4, 0.1, 23),
        ([50, 50], [100, 100], 0.0, 0),
        ([50], [100], 0.0, 0),
        ([50, 70], [100, 0], 0.0, 0),
        ([], [], 0.0, 0),
        ([2**60, 0], [2**61, 2**61], 0.0, 2**59),
    ],
)
def test_least_bytes_of_known_fleets(used: list[int], capacity: list[int], target: float, expected: int) -> None:
    assert least_bytes(used, capacity, target) == expected


def test_a_negative_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target_spread"):
        least_bytes([1], [2], -0.1)


@given(
    fleet=st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), min_size=2, max_size=7),
    target=st.floats(0, 0.6),
)
def test_least_bytes_is_what_brute_force_finds(fleet: list[tuple[int, int]], target: float) -> None:
    used, capacity = [min(u, c) for u, c in fleet], [c for _, c in fleet]
    found, tried = least_bytes(used, capacity, target), brute_force(used, capacity, target)
    grid_step = sum(capacity) * 1.7 / 20_000
    assert tried - grid_step <= found + 1e-6
    assert found <= math.ceil(tried - 1e-6)
