"""``drain``, ``activate``, ``maintenance``: node states set at run time, the first two after a look at what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rebalance_tasks.cli import output, session
from rebalance_tasks.cli.output import EXIT_FAILED, emit, jsonable
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from rebalance_tasks.control.drain import StateChange
    from rebalance_tasks.core.activation import ActivationCheck
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
    done = f"node {node} is draining: the next checks empty it, `rebalance nodes` shows how far it is"
    _told(change, done=done, dry_run=dry_run, as_json=as_json)
    _refused(change, "not everything fits elsewhere; --force drains what does")


def activate(
    node: Node,
    force: Annotated[
        bool, typer.Option("--force", help="Also when something will not fit, or nobody can look at the node.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would come to.")] = False,
    as_json: Json = False,
) -> None:
    """Let a node give and take again (ends a drain or maintenance). Refused when what it holds fits neither there nor elsewhere."""
    with output.busy("surveying the nodes", quiet=as_json):
        change = session.open_client().activate(node, force=force, dry_run=dry_run)
    _told(change, done=_became(change), dry_run=dry_run, as_json=as_json)
    _refused(change, "what it holds fits neither there nor elsewhere; --force activates it all the same")


def maintenance(node: Node, as_json: Json = False) -> None:
    """Leave a node alone: it neither gives nor takes, and checks do not look at it."""
    _changed(session.open_client().maintenance(node), as_json=as_json)


def _changed(change: StateChange[Any], *, as_json: bool) -> None:
    emit(change, as_json=as_json, render=lambda: _became(change))


def _became(change: StateChange[Any]) -> str:
    was = "already " if change.before is change.state else f"{change.before.value}, is now "
    return f"node {change.node_id} was {was}{change.state.value}"


def _told(change: StateChange[Any], *, done: str, dry_run: bool, as_json: bool) -> None:
    emit(
        {**jsonable(change), "fits": change.fits},
        as_json=as_json,
        render=lambda: _view(change, "nothing was changed" if dry_run else "" if change.reason else done),
    )


def _refused(change: StateChange[Any], why: str) -> None:
    if change.reason:
        told = f"error: node {change.node_id} is left {change.state.value}: {why}"
        output.console(stderr=True).print(told, style="red", markup=False)
        raise typer.Exit(EXIT_FAILED)


def _view(change: StateChange[Any], last: str) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.core.activation import ActivationCheck  # noqa: PLC0415

    parts: list[RenderableType] = []
    match change.check:
        case ActivationCheck() as found:
            parts = [_holds(found), *_held("WILL NOT FIT BECAUSE", found.blocked)]
        case None:
            pass
        case check:
            parts = [_facts(check), *_held("WILL NOT FIT BECAUSE", check.blocked)]
            parts += _held("GOES LATER BECAUSE", check.waits)
    if last:
        parts.append(Text(f"\n{last}" if parts else last))
    return Group(*parts)


def _grid(node_id: str, pool: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="fold")
    lines.add_row("node", f"{node_id} (pool {pool})")
    return lines


def _holds(check: ActivationCheck) -> RenderableType:
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    lines = _grid(check.node_id, check.pool)
    lines.add_row("holds", f"{tables.size(check.bytes)} of {tables.size(check.capacity_bytes)}")
    lines.add_row("room", tables.size(check.room_bytes))
    if check.over_bytes:
        lines.add_row(
            "too much", f"{tables.size(check.over_bytes)}, of which {tables.size(check.fits_bytes)} fit elsewhere"
        )
    before, after = (tables.percent(spread) for spread in (check.spread_before, check.spread_after))
    lines.add_row("spread", f"{before} without it, {after} with it")
    return lines


def _facts(check: DrainCheck) -> RenderableType:
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    lines = _grid(check.node_id, check.pool)
    cycles = "no number: a budget is 0" if check.fewest_cycles is None else str(check.fewest_cycles)
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
