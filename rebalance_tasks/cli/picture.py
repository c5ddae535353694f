"""A plan as a picture in the terminal: how full each node is before and after, who gives to whom, what bound, what stays."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypeAlias

from rich.console import Group
from rich.text import Text

from rebalance_tasks.cli import tables
from rebalance_tasks.cli.fitting import Fitting
from rebalance_tasks.core.imbalance import is_eligible
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.planning.reasons import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from rebalance_tasks.core.models import NodeDescriptor, RebalanceMove, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions

    #: A node, its bytes before and after, and the band of its pool.
    Row: TypeAlias = tuple[NodeDescriptor, int, int, tuple[float, float]]

_FILLED: Final = "█"
_EMPTY: Final = "·"
_BAND: Final = "▒"
#: Nodes of a pool with a bar each; of more, only the ends.
NODES_SHOWN: Final = 40
_ENDS: Final = 8
#: Two bars of full length, beside names and states, want so much room.
BARS_COLUMNS: Final = 110
#: Pairs listed; the rest is summed up.
PAIRS_SHOWN: Final = 30
#: What the words of `not_moved`, and of those that drain and undo add, mean for people.
REASONS: Final = {
    **SENTENCES,
    "no_room": "no room is left",
    "not_of_the_job": "the job did not move it",
    "moved_on": "it was moved again since",
    "changed": "it was written to since",
    "gone": "it was deleted since",
    "storage_class": "no node that may take it offers its storage class",
    "tags": "no node that may take it carries its tags",
    "regions": "no node that may take it lies in its regions",
    "replicas_apart": "every node that may take it holds a replica",
    "too_large": "no node has room for an object of its size",
    "no_other_node": "no other node of the pool is active",
    "other_pool": "the nodes are in different pools now",
    "no_capacity": "the node's capacity is 0",
}


def plan_picture(
    plan: RebalancePlan, nodes: Sequence[NodeDescriptor], options: RebalancerOptions
) -> list[RenderableType]:
    """Bars, pairs, budgets and what stays.

    Args:
        plan: what is to be done.
        nodes: the fleet it was planned for, with ``capacity_bytes`` and ``used_bytes``.
        options: threshold and budgets.
    """
    parts: list[RenderableType] = []
    if nodes:
        parts += [Text(), _bars(plan, nodes, options)]
    if plan.moves:
        parts += [Text(), pairs(plan.moves), Text(), budgets(plan, options)]
    if plan.not_moved:
        parts += [Text(), left_alone(plan.not_moved)]
    return parts


def used_after(plan: RebalancePlan, nodes: Iterable[NodeDescriptor]) -> dict[str, int]:
    """Bytes on each node when the plan is carried out."""
    after = {node.node_id: node.used_bytes or 0 for node in nodes}
    for move in plan.moves:
        if move.source_node in after:
            after[move.source_node] -= move.size_bytes
        if move.target_node in after:
            after[move.target_node] += move.size_bytes
    return after


def _bars(plan: RebalancePlan, nodes: Sequence[NodeDescriptor], options: RebalancerOptions) -> RenderableType:
    """A row a node, by pool; the band is where the pool's nodes may lie without another plan."""
    after = used_after(plan, nodes)
    pools = sorted({node.pool for node in nodes})
    rows: list[Row] = []
    notes: list[RenderableType] = []
    for pool in pools:
        members = [node for node in nodes if node.pool == pool]
        low = min(
            (
                after[node.node_id] / node.capacity_bytes
                for node in members
                if is_eligible(node) and node.capacity_bytes
            ),
            default=0.0,
        )
        band = (low, low + options.imbalance_threshold)
        whose = f"pool {pool}: " if len(pools) > 1 else ""
        told = (
            f"{whose}band {tables.percent(band[0])} to {tables.percent(min(1.0, band[1]))} ({_BAND}): no further plan"
        )
        notes.append(Text(told, style="dim"))
        shown, hidden = _worth_showing(members, after)
        if hidden:
            notes.append(
                Text(f"{whose}{hidden:,} nodes between the fullest and the emptiest are not shown", style="dim")
            )
        for node in shown:
            before, then = node.used_bytes or 0, after[node.node_id]
            rows.append((node, before, then, band))
    wide, narrow = (lambda: _wide_bars(rows)), (lambda: _narrow_bars(rows))
    return Group(Fitting(wide, narrow, columns=BARS_COLUMNS), *notes)


def _wide_bars(rows: Iterable[Row]) -> RenderableType:
    made = tables.table(
        "NODE", "STATE", "BEFORE", "", "AFTER", "", "CHANGE", right=("", "CHANGE"), whole=("BEFORE", "AFTER")
    )
    for node, before, then, band in rows:
        bars = (cell for used in (before, then) for cell in _bar(used, node.capacity_bytes, band, tables.BAR_WIDTH))
        made.add_row(node.node_id, node.state.value, *bars, _change(then - before))
    return made


def _narrow_bars(rows: Iterable[Row]) -> RenderableType:
    """The state stands beside the name, where it is not the usual one."""
    made = tables.table("NODE", "BEFORE", "", "AFTER", "", "CHANGE", right=("", "CHANGE"), whole=("BEFORE", "AFTER"))
    for node, before, then, band in rows:
        bars = (cell for used in (before, then) for cell in _bar(used, node.capacity_bytes, band, tables.SHORT_BAR))
        name = node.node_id if node.state is NodeState.ACTIVE else f"{node.node_id} ({node.state.value})"
        made.add_row(name, *bars, _change(then - before))
    return made


def _worth_showing(members: Sequence[NodeDescriptor], after: Mapping[str, int]) -> tuple[list[NodeDescriptor], int]:
    """All nodes by id; of very many the fullest and the emptiest, before and after, and how many are left out."""
    if len(members) <= NODES_SHOWN:
        return sorted(members, key=lambda node: node.node_id), 0
    ends: set[str] = set()
    for used in ({node.node_id: node.used_bytes or 0 for node in members}, after):
        ranked = sorted((used[node.node_id] / (node.capacity_bytes or 1), node.node_id) for node in members)
        ends |= {node_id for _, node_id in (*ranked[:_ENDS], *ranked[-_ENDS:])}
    shown = sorted((node for node in members if node.node_id in ends), key=lambda node: node.node_id)
    return shown, len(members) - len(shown)


def _bar(used: int, capacity: int | None, band: tuple[float, float], width: int) -> tuple[Text, str]:
    """A bar and its percentage: what is filled above the band is red, the band's own empty cells are marked."""
    if not capacity:
        return Text(_EMPTY * width, style="dim"), "-"
    share = used / capacity
    filled = round(min(max(share, 0.0), 1.0) * width)
    first, last = round(band[0] * width), max(round(band[0] * width) + 1, round(min(band[1], 1.0) * width))
    bar = Text()
    for cell in range(width):
        if cell < filled:
            bar.append(_FILLED, style="red" if share > band[1] and cell >= last else "green")
        elif first <= cell < last:
            bar.append(_BAND, style="cyan")
        else:
            bar.append(_EMPTY, style="dim")
    return bar, tables.percent(share)


def _change(difference: int) -> str:
    return "-" if not difference else f"{'+' if difference > 0 else '-'}{tables.size(abs(difference))}"


def pairs(moves: Iterable[RebalanceMove]) -> RenderableType:
    """Who gives to whom: moves, bytes and money."""
    count: defaultdict[tuple[str, str], int] = defaultdict(int)
    volume: defaultdict[tuple[str, str], int] = defaultdict(int)
    cost: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for move in moves:
        pair = move.source_node, move.target_node
        count[pair] += 1
        volume[pair] += move.size_bytes
        cost[pair] += move.cost
    made = tables.table("FROM", "TO", "MOVES", "BYTES", "MONEY", right=("MOVES", "BYTES", "MONEY"))
    ranked = sorted(volume, key=lambda pair: (-volume[pair], pair))
    for pair in ranked[:PAIRS_SHOWN]:
        made.add_row(*pair, f"{count[pair]:,}", tables.size(volume[pair]), f"{cost[pair]:.2f}")
    if rest := ranked[PAIRS_SHOWN:]:
        size, money = sum(volume[pair] for pair in rest), sum((cost[pair] for pair in rest), Decimal(0))
        moved = f"{sum(count[pair] for pair in rest):,}"
        made.add_row(f"… {len(rest):,} more pairs", "", moved, tables.size(size), f"{money:.2f}")
    return made


def budgets(plan: RebalancePlan, options: RebalancerOptions) -> RenderableType:
    """What of each budget the plan takes, and which one bound."""
    made = tables.table("BUDGET", "USED", "OF", "", right=("USED", "OF"))
    rows = [
        ("max_moves_per_cycle", f"{len(plan.moves):,}", f"{options.max_moves_per_cycle:,}"),
        (
            "max_egress_bytes_per_cycle",
            tables.size(plan.estimated_egress_bytes),
            tables.size(options.max_egress_bytes_per_cycle),
        ),
        ("max_cost_per_cycle", f"{plan.estimated_cost:.2f}", f"{options.max_cost_per_cycle:.2f}"),
    ]
    if options.max_cost_per_day is not None:
        rows.append(("max_cost_per_day", f"{plan.estimated_cost:.2f}", f"{options.max_cost_per_day:.2f}"))
    rows += [(name, "", "") for name in plan.limits_reached if name not in {row[0] for row in rows}]
    for name, used, limit in rows:
        made.add_row(name, used, limit, Text("bound", style="yellow") if name in plan.limits_reached else "")
    return made


def left_alone(not_moved: Mapping[str, int]) -> RenderableType:
    """How many objects stay, by reason."""
    made = tables.table("LEFT WHERE IT IS BECAUSE", "OBJECTS", "", right=("OBJECTS",))
    for reason, count in sorted(not_moved.items(), key=lambda item: (-item[1], item[0])):
        made.add_row(reason, f"{count:,}", REASONS.get(reason, ""))
    return made
