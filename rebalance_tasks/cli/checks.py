"""``rebalance checks``: what the last checks saw and decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rebalance_tasks.cli import session
from rebalance_tasks.cli.output import emit
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rebalance_tasks.store.snapshots import Snapshot


def checks(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what the last checks saw and decided (with --json: every node as well)."""
    found = session.open_client().snapshots(limit)
    emit(found, as_json=as_json, render=lambda: checks_table(found))


def checks_table(snapshots: Sequence[Snapshot]) -> RenderableType:
    """One row a check."""
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    if not snapshots:
        return Text("no check yet; beat asks for one every check_interval, `rebalance check` makes one now")
    made = tables.table("WHEN", "VERDICT", "IMBALANCE", "MOVES", "BYTES", "WHY", right=("IMBALANCE", "MOVES", "BYTES"))
    for one in snapshots:
        made.add_row(
            f"{one.at:%Y-%m-%d %H:%M:%S}",
            one.verdict,
            tables.percent(one.imbalance_before),
            f"{one.moves:,}" if one.plan_id else "-",
            tables.size(one.bytes) if one.plan_id else "-",
            Text(tables.printable(one.reason)),
        )
    return made
