"""A plan is cut into groups in one way only: what a job has forgotten of its moves is found again by cutting its plan once more."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.models import RebalanceMove
from rebalance_tasks.core.move_columns import MoveColumns
from rebalance_tasks.store.packed_moves import pack_moves, unpack
from rebalance_tasks.store.versions import VERSIONS

nodes = st.sampled_from(["n1", "n2", "n3"])


@st.composite
def moves(draw: st.DrawFn) -> list[RebalanceMove]:
    count = draw(st.integers(0, 12))
    return [
        RebalanceMove(
            object_key=f"o/{number}",
            source_node=draw(nodes),
            target_node=draw(nodes),
            size_bytes=number,
            priority=draw(st.integers(-2, 2)),
        )
        for number in range(count)
    ]


@given(moves())
def test_groups_hold_every_move_once_the_most_urgent_pair_first_and_keep_the_plans_order_within(
    plan: list[RebalanceMove],
) -> None:
    pairs, order, ends = MoveColumns.of(plan).in_groups()
    groups = [[plan[row] for row in rows] for rows in np.split(order, ends[:-1])] if pairs else []
    assert sorted(order.tolist()) == list(range(len(plan)))
    assert [{(move.source_node, move.target_node) for move in group} for group in groups] == [{pair} for pair in pairs]
    assert len(set(pairs)) == len(pairs)
    urgency = [max(move.priority for move in group) for group in groups]
    assert urgency == sorted(urgency, reverse=True)
    assert all(group == sorted(group, key=lambda move: move.size_bytes) for group in groups)


@given(moves())
def test_moves_that_were_kept_and_read_back_are_cut_as_they_were(plan: list[RebalanceMove]) -> None:
    pairs, order, ends = MoveColumns.of(plan).in_groups()
    again = unpack(pack_moves(MoveColumns.of(plan)), form=VERSIONS["plan"])
    assert (pairs, ends) == (again.in_groups()[0], again.in_groups()[2])
    assert order.tolist() == again.in_groups()[1].tolist()
