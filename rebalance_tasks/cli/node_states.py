"""``drain``, ``activate``, ``maintenance``: node states set at run time, a drain after a look at what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rebalance_tasks.cli import output, session
from rebalance_tasks.cli.output import EXIT_FAILED, emit, jsonable
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rebalance_tasks.control.drain import StateChange
    from rebalance_tasks.core.drain import DrainCheck, Held

Node = Annotated[str, typer.Argument(metavar="NODE", help="Id of a configured node.")]


def drain(
    node: Node,
    force: Annotated[bool, typer.Option("--force", help="Also when something will not fit; that stays there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would come to.")] = False,
    as_json: Json = False,
) -> None:
    """Have a node emptied: the checks to come plan its objects away. Refused when something will not fit elsewhere."""
    with output.busy("surveying the nodes", quiet=as_json):
        change = session.open_client().drain(node, force=force, dry_run=dry_run)
    fits = change.check is None or change.check.fits
    emit({**jsonable(change), "fits": fits}, as_json=as_json, render=lambda: _view(change, dry_run=dry_run))
    if change.reason:
        told = f"node {node} is left {change.state.value}: not everything fits elsewhere; --force drains what does"
        output.console(stderr=True).print(f"error: {told}", style="red", markup=False)
        raise typer.Exit(EXIT_FAILED)


def activate(node: Node, as_json: Json = False) -> None:
    """Let a node give and take again (ends a drain or maintenance)."""
    _changed(session.open_client().activate(node), as_json=as_json)


def maintenance(node: Node, as_json: Json = False) -> None:
    """Leave a node alone: it neither gives nor takes, and checks do not look at it."""
    _changed(session.open_client().maintenance(node), as_json=as_json)


def _changed(change: StateChange, *, as_json: bool) -> None:
    was = "already " if change.before is change.state else f"{change.before.value}, is now "
    emit(change, as_json=as_json, render=lambda: f"node {change.node_id} was {was}{change.state.value}")


def _view(change: StateChange, *, dry_run: bool) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    parts: list[RenderableType] = [] if change.check is None else [_facts(change.check)]
    if change.check is not None:
        parts += _held("WILL NOT FIT BECAUSE", change.check.blocked) + _held("GOES LATER BECAUSE", change.check.waits)
    if dry_run:
        parts.append(Text("\nnothing was changed"))
    elif not change.reason:
        parts.append(
            Text(
                f"\nnode {change.node_id} is draining: the next checks empty it, `rebalance nodes` shows how far it is"
            )
        )
    return Group(*parts)


def _facts(check: DrainCheck) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="fold")
    cycles = "no number: a budget is 0" if check.fewest_cycles is None else str(check.fewest_cycles)
    lines.add_row("node", f"{check.node_id} (pool {check.pool})")
    lines.add_row("holds", f"{check.objects:,} objects, {tables.size(check.bytes)}")
    lines.add_row("fits elsewhere", f"{check.fits_objects:,} objects, {tables.size(check.fits_bytes)}")
    lines.add_row("room in the pool", tables.size(check.room_bytes))
    lines.add_row("money", f"{check.cost:.2f}")
    lines.add_row("fewest cycles", cycles + (f" ({check.bound_by})" if check.bound_by else ""))
    return lines


def _held(title: str, held: Sequence[Held]) -> list[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415
    from rebalance_tasks.cli.picture import REASONS  # noqa: PLC0415

    if not held:
        return []
    made = tables.table(title, "OBJECTS", "BYTES", "", "FOR EXAMPLE", right=("OBJECTS", "BYTES"))
    for entry in held:
        why, example = REASONS.get(entry.reason, ""), Text(tables.printable(entry.example))
        made.add_row(entry.reason, f"{entry.objects:,}", tables.size(entry.bytes), why, example)
    return [Text(), made]
