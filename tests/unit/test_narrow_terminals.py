"""Pages on a terminal of sixty columns: nothing is cut, numbers and bars stay whole, and a move takes few lines."""

from __future__ import annotations

import re
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from rebalance_tasks.cli import node_tables, picture, tables
from rebalance_tasks.control.survey import NodeReport
from rebalance_tasks.core.models import NodeDescriptor, NodeState, RebalanceMove, RebalancePlan
from rebalance_tasks.core.options import RebalancerOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

LONG = "storage-node-with-a-rather-long-name-in-frankfurt"
DETAIL = "no node-id yet: written when the first job starts, or by `rebalance nodes --adopt`"
NODES = [
    NodeDescriptor(node_id=f"{LONG}-{at:02}", url=f"file:///srv/{LONG}/{at}", capacity_bytes=1000, used_bytes=at * 90)
    for at in range(10)
]
MOVES = tuple(
    RebalanceMove(
        object_key=f"photos/2024/a-folder/file{at:03}.jpg",
        source_node=NODES[9].node_id,
        target_node=NODES[0].node_id,
        size_bytes=10,
        gravity=0.1,
        cost=Decimal(0),
        reason=f"{LONG}-09 is 81.0 % full (fleet mean 40.0 %); lowest gravity per byte",
    )
    for at in range(20)
)
PLAN = RebalancePlan(plan_id="p", moves=MOVES, imbalance_before=0.81, imbalance_after=0.4)


def lines_of(page: RenderableType, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, highlight=False).print(page)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


@pytest.mark.parametrize("width", [60, 80, 120])
def test_each_node_has_its_bar_share_and_bytes_on_one_line(width: int) -> None:
    draining = NODES[3].model_copy(update={"state": NodeState.DRAINING})
    reports = [
        NodeReport(node, "ok", used_bytes=node.used_bytes or 0, capacity_bytes=1000, objects=7)
        for node in [*NODES, draining]
    ]
    reports[0] = NodeReport(NODES[0], "unadopted", DETAIL, used_bytes=0, capacity_bytes=1000, objects=0)
    lines = lines_of(node_tables.nodes_table(reports), width)
    assert sum(bool(re.search(r"[█▉▊▋▌▍▎▏░]{8,} +\d+\.\d %", line)) for line in lines) == len(reports)
    assert DETAIL.replace(" ", "") in "".join(lines).replace(" ", "")
    assert len(lines) <= 8 * len(reports)


@pytest.mark.parametrize("width", [60, 80])
def test_a_move_takes_a_few_lines(width: int) -> None:
    lines = lines_of(tables.plan_view(PLAN, explain=False, picture=[]), width)
    assert len(lines) <= 20 * 6 + 12
    assert all(any(move.object_key in line for line in lines) for move in MOVES)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_plan_s_bars_before_and_after_stay_whole(width: int) -> None:
    [_, bars, *_] = picture.plan_picture(PLAN, NODES, RebalancerOptions())
    lines = lines_of(bars, width)
    rows = [line for line in lines if re.search(r"[█▒·]{6,} +\d+\.\d % +[█▒·]{6,} +\d+\.\d %", line)]
    assert len(rows) == len(NODES)
