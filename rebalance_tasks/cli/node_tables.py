"""How nodes look: a table with bars, what is wrong with each below it, and a row of JSON data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from rebalance_tasks.cli.fitting import Fitting
from rebalance_tasks.cli.output import jsonable
from rebalance_tasks.cli.tables import SHORT_BAR, bar, percent, printable, size, table
from rebalance_tasks.core.masking import masked_url
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rebalance_tasks.control.survey import NodeReport

HEALTH_STYLES: Final = {"ok": "green", "unadopted": "yellow", "maintenance": "yellow"}
#: The table with all its columns wants so much room.
ALL_COLUMNS: Final = 110


def nodes_table(reports: Sequence[NodeReport]) -> RenderableType:
    """All nodes with their bars, the spread between the fullest and the emptiest, and what is wrong with whom."""
    parts: list[RenderableType] = [Fitting(lambda: _wide(reports), lambda: _narrow(reports), columns=ALL_COLUMNS)]
    known = [report.utilisation for report in reports if report.utilisation is not None]
    if len(known) > 1:
        parts.append(Text(f"\nspread between fullest and emptiest: {percent(max(known) - min(known))}"))
    told = ((report.node.node_id, printable(report.detail)) for report in reports if report.detail)
    return Group(*parts, *(Text.assemble((f"{node_id}: ", "bold"), detail) for node_id, detail in told))


def _wide(reports: Sequence[NodeReport]) -> RenderableType:
    columns = ("NODE", "ZONE", "POOL", "STATE", "UTILISATION", "", "USED", "CAPACITY", "OBJECTS", "HEALTH", "URL")
    made = table(*columns, right=("", "USED", "CAPACITY", "OBJECTS"), whole=("UTILISATION",))
    for report in reports:
        node = report.node
        made.add_row(
            node.node_id,
            node.zone or "-",
            node.pool,
            state_text(report),
            bar(report.utilisation),
            percent(report.utilisation),
            size(report.used_bytes),
            size(report.capacity_bytes),
            "-" if report.objects is None else f"{report.objects:,}",
            _health(report),
            Text(masked_url(node.url)),
        )
    return made


def _narrow(reports: Sequence[NodeReport]) -> RenderableType:
    made = table("NODE", "FULL", "", "USED", "STATE", right=("", "USED"), whole=("FULL",))
    for report in reports:
        state = Text(state_text(report)) if report.node.state is not NodeState.ACTIVE else Text()
        if report.status not in {"ok", report.node.state.value}:
            state.append(" " if state else "").append_text(_health(report))
        share = bar(report.utilisation, width=SHORT_BAR)
        made.add_row(report.node.node_id, share, percent(report.utilisation), size(report.used_bytes), state)
    return made


def _health(report: NodeReport) -> Text:
    return Text(report.status, style=HEALTH_STYLES.get(report.status, "bold red"))


def is_empty(report: NodeReport) -> bool:
    """Whether a draining node holds nothing any more, so that it may be taken away."""
    return report.node.state is NodeState.DRAINING and report.objects == 0 and not any((report.left_out or {}).values())


def state_text(report: NodeReport) -> str:
    """A node's state, and how far a drain is."""
    state = report.node.state.value
    if report.node.state is not NodeState.DRAINING or report.objects is None:
        return state
    if is_empty(report):
        return f"{state}: empty, may be removed"
    if report.objects == 0:
        things = ", ".join(f"{what} {count}" for what, count in (report.left_out or {}).items() if count)
        return f"{state}: no objects left, but {things}"
    return f"{state}: {report.objects:,} objects left"


def node_row(report: NodeReport) -> dict[str, Any]:
    """A node as JSON data; storage options (credentials) are left out."""
    node = report.node
    return {
        "node_id": node.node_id,
        "url": masked_url(node.url),
        "pool": node.pool,
        "zone": node.zone,
        "state": node.state.value,
        "used_bytes": report.used_bytes,
        "capacity_bytes": report.capacity_bytes,
        "utilisation": jsonable(report.utilisation),
        "objects": report.objects,
        "status": report.status,
        "detail": report.detail,
        "left_out": dict(report.left_out or {}),
        "may_be_removed": is_empty(report),
    }
