"""How much of a node's capacity is not to be planned into: what is configured, or what its file system lacks."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.control.capacities import reserved_of
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.options import RebalancerOptions

sizes = st.integers(0, 10**15)


@given(
    capacity=st.integers(1, 10**15),
    used=sizes,
    free=sizes,
    configured=sizes,
    highest=st.sampled_from([0.3, 0.95, 1.0]),
)
def test_no_more_is_planned_into_a_node_than_its_file_system_has_room_for(
    capacity: int, used: int, free: int, configured: int, highest: float
) -> None:
    node, options = NodeDescriptor(node_id="n", reserved_bytes=configured), RebalancerOptions(max_utilisation=highest)
    found = reserved_of(node, options, capacity=capacity, used=used, free=free)
    room = int(Fraction(str(highest)) * capacity) - used
    assert found >= configured
    assert room - found <= free
    if room <= free:
        assert found == configured
    else:
        assert found <= max(configured, room - free + capacity // 256)


def test_what_others_write_now_and_then_changes_nothing() -> None:
    node, options = NodeDescriptor(node_id="n"), RebalancerOptions(max_utilisation=1.0)
    seen = {reserved_of(node, options, capacity=256_000, used=0, free=free) for free in range(200_000, 200_900)}
    assert seen == {56_000}


@pytest.mark.parametrize(("capacity", "free"), [(None, 5), (0, 5), (100, None)])
def test_where_nobody_says_what_is_free_the_configuration_decides(capacity: int | None, free: int | None) -> None:
    node = NodeDescriptor(node_id="n", reserved_bytes=7)
    assert reserved_of(node, RebalancerOptions(), capacity=capacity, used=0, free=free) == 7
