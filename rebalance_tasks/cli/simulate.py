"""``rebalance simulate``: many cycles on paper, as a table, a PNG, an HTML page or JSON. Touches nothing.

Its subcommands: ``resize`` (in `placement`) measures what a change of nodes moves, ``scale`` predicts how long a job takes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rebalance_tasks.cli import placement, scale, session
from rebalance_tasks.cli.output import emit, jsonable
from rebalance_tasks.cli.parameters import Json
from rebalance_tasks.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rebalance_tasks.cli.simulation_inputs import Given
    from rebalance_tasks.core.simulating.events import Scenario
    from rebalance_tasks.core.simulation import Simulation

#: Recoveries listed before "… and more"; steady growth can make one of every cycle.
_SHOWN: Final = 20


group = typer.Typer()
group.command(epilog="Example: rebalance simulate resize --add 'node_id=disk9 zone=b' --replicas 3")(placement.resize)
group.command(epilog="Example: rebalance simulate scale --hosts 10 --nodes 1000 --objects 50000000 --limit 200")(
    scale.scale
)


@group.callback(invoke_without_command=True)
def simulate(  # noqa: PLR0913, PLR0917  a flag each
    context: typer.Context,
    scenario: Annotated[
        Path | None,
        typer.Option(
            "--scenario", metavar="TOML", help="cycles, every, seed and a table for each event; flags win over it."
        ),
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event",
            metavar="TEXT",
            help="'CYCLE KIND field=value …' with growth, add, lose, drain, activate or heat, e.g. '10 drain "
            "node_id=n2'; may be given again.",
        ),
    ] = None,
    inventory: Annotated[
        Path | None,
        typer.Option(
            "--inventory", metavar="FILE", help="Objects of the configured fleet (Parquet, Arrow, CSV), or a recording."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record", metavar="FILE", help="Also write the fleet and its objects as they are, to play again."
        ),
    ] = None,
    synthetic: Annotated[
        int | None, typer.Option("--synthetic", metavar="NODES", min=1, help="Play with a made-up fleet.")
    ] = None,
    objects: Annotated[int, typer.Option("--objects", min=0, help="Objects of a made-up fleet.")] = 10_000,
    fill: Annotated[float, typer.Option("--fill", help="Mean utilisation of a made-up fleet.")] = 0.5,
    spread: Annotated[float, typer.Option("--spread", help="Spread of a made-up fleet at the start.")] = 0.5,
    mean_size: Annotated[
        str, typer.Option("--mean-size", metavar="SIZE", help="Mean size of a made-up fleet's objects.")
    ] = "1MiB",
    cycles: Annotated[int | None, typer.Option("--cycles", min=1, help="Checks to play (default 20).")] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="DURATION", help="Between checks (default: check_interval).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of all that is drawn (default 1).")] = None,
    start: Annotated[
        str | None, typer.Option("--start", metavar="TIME", help="ISO time of the first check (default: now).")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Also draw it (needs the extra `plots`).")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write it as one HTML page.")] = None,
    as_json: Json = False,
) -> None:
    """Play many cycles on paper: growth, nodes that come, go or are drained, hot data that shifts. Moves nothing."""
    if context.invoked_subcommand is not None:
        return
    from rebalance_tasks.cli import plot_html, plot_png  # noqa: PLC0415
    from rebalance_tasks.cli.recording import write_recording  # noqa: PLC0415
    from rebalance_tasks.core.simulation import simulate as play  # noqa: PLC0415

    if png is not None:
        plot_png.require_matplotlib()
    told = _scenario(scenario, event or [], cycles=cycles, every=every, seed=seed)
    given = _given(inventory, synthetic, objects=objects, fill=fill, spread=spread, mean_size=mean_size, seed=told.seed)
    played = play(
        given.nodes,
        given.inventory,
        options=given.options,
        scenario=told,
        start=_moment(start),
        prices=given.prices,
    )
    if record is not None:
        write_recording(record, given.nodes, given.inventory)
    title = f"Simulation of {len(given.nodes)} nodes, {len(given.inventory):,} objects"
    if html is not None:
        html.write_text(plot_html.html_page(played, title=title), encoding="utf-8")
    if png is not None:
        plot_png.write_png(played, png, title=title)
    emit(_document(played), as_json=as_json, render=lambda: _view(played))


def _scenario(
    path: Path | None, lines: list[str], *, cycles: int | None, every: str | None, seed: int | None
) -> Scenario:
    """The file's scenario, with what flags say instead or besides."""
    from pydantic import ValidationError  # noqa: PLC0415

    from rebalance_tasks.core.simulating.events import Scenario, parse_event, parse_scenario  # noqa: PLC0415

    try:
        told = Scenario() if path is None else parse_scenario(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as exc:
        msg = f"--scenario {path}: cannot be read: {exc.strerror}"
        raise InvalidArgument(msg) from exc
    flags: dict[str, Any] = {"cycles": cycles, "every": every, "seed": seed}
    events = (*told.events, *(parse_event(line) for line in lines))
    given = {name: value for name, value in flags.items() if value is not None}
    fields = {name: getattr(told, name) for name in type(told).model_fields}
    try:
        return Scenario.model_validate({**fields, **given, "events": events})
    except ValidationError as exc:
        raise typer.BadParameter(exc.errors()[0]["msg"].removeprefix("Value error, "), param_hint="--every") from exc


def _given(
    inventory: Path | None,
    synthetic: int | None,
    *,
    objects: int,
    fill: float,
    spread: float,
    mean_size: str,
    seed: int,
) -> Given:
    from rebalance_tasks.cli import simulation_inputs as inputs  # noqa: PLC0415
    from rebalance_tasks.core.units import parse_size  # noqa: PLC0415

    if inventory is not None and synthetic is not None:
        msg = "a made-up fleet has objects of its own; leave out --inventory or --synthetic"
        raise typer.BadParameter(msg, param_hint="--synthetic")
    if inventory is not None:
        return inputs.from_file(inventory)
    if synthetic is not None:
        try:
            mean_bytes = parse_size(mean_size)
        except ValueError as exc:
            raise typer.BadParameter(str(exc), param_hint="--mean-size") from exc
        return inputs.made_up(
            nodes=synthetic, objects=objects, fill=fill, spread=spread, mean_bytes=int(mean_bytes), seed=seed
        )
    seen = session.open_client().survey()
    settings = session.open_client().settings
    prices = settings.price_matrix
    return inputs.Given(list(seen.nodes), seen.inventory, settings.options, prices)


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(tz=UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        msg = f"{text!r} is no ISO time, such as 2026-01-31T12:00:00+00:00"
        raise typer.BadParameter(msg, param_hint="--start") from exc
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _document(played: Simulation) -> dict[str, Any]:
    document: dict[str, Any] = jsonable(played)
    totals = {"moves": played.total_moves, "bytes": played.total_bytes, "cost": str(played.total_cost)}
    return {**document, "totals": totals}


def _view(played: Simulation) -> RenderableType:
    """A table of the cycles, how balance came back, and how the nodes ended."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import plot_html, tables  # noqa: PLC0415

    right = ("CYCLE", "BEFORE", "AFTER", "MOVES", "BYTES", "MONEY")
    made = tables.table(*right, "BOUND BY", "EVENT", right=right)
    for cycle in played.cycles:
        made.add_row(
            str(cycle.cycle),
            tables.percent(cycle.imbalance_before),
            tables.percent(cycle.imbalance_after),
            f"{cycle.moves:,}",
            tables.size(cycle.bytes),
            f"{cycle.cost:.2f}",
            ", ".join(cycle.limits),
            Text(", ".join(cycle.events)),
        )
    parts: list[RenderableType] = [made]
    if played.recoveries:
        back = tables.table("FROM", "AFTER", "FEWEST CYCLES", "BECAUSE OF", "IT TOOK", right=("FROM", "FEWEST CYCLES"))
        for found in played.recoveries[:_SHOWN]:
            fewest = "none suffices" if found.bound.cycles is None else str(found.bound.cycles)
            because = found.bound.by or "-"
            back.add_row(str(found.cycle), Text(found.cause), fewest, because, plot_html.recovered(found))
        parts += [Text(), back]
        if len(played.recoveries) > _SHOWN:
            parts.append(Text(f"… and {len(played.recoveries) - _SHOWN} more (--json lists all)", style="dim"))
    return Group(*parts, Text(), Text(plot_html.summary(played)), Text("on paper only: nothing was moved"))
