"""``rebalance simulate scale``: how long a fleet of any size would take, by the model of `rebalance_tasks.core.scale`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rebalance_tasks.cli.output import emit, jsonable
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rebalance_tasks.core.scale import Farm, Forecast

#: Numbers of hosts shown besides the one asked for.
TIMES: Final = (1, 2, 4)


def scale(  # noqa: PLR0913, PLR0917  a flag each
    objects: Annotated[int, typer.Option("--objects", min=1, help="Objects to move.")] = 1_000_000,
    mean_size: Annotated[str, typer.Option("--mean-size", metavar="SIZE", help="Mean size of an object.")] = "1MiB",
    nodes: Annotated[int, typer.Option("--nodes", min=2, help="Nodes that give or take.")] = 100,
    groups: Annotated[
        int | None,
        typer.Option("--groups", min=1, help="Pairs of nodes (default: nodes − 1, the most that a plan needs)."),
    ] = None,
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="Hosts with workers.")] = 1,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Worker processes of each host.")] = 2,
    cores: Annotated[int, typer.Option("--cores", min=1, help="Processors of each host.")] = 2,
    limit: Annotated[int, typer.Option("--limit", min=1, help="max_concurrent_migrations.")] = 3,
    throttle: Annotated[
        str, typer.Option("--throttle", metavar="RATE", help="throttle_bytes_per_sec, of each group; or none.")
    ] = "50MiB/s",
    node_rate: Annotated[
        str, typer.Option("--node-rate", metavar="RATE", help="What one node reads or writes at most; or none.")
    ] = "none",
    costs: Annotated[
        str | None,
        typer.Option(
            "--costs", metavar="JSON", help="Costs of your machines, as `python -m tests.bench scale` prints them."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict time, throughput and load of Redis for a fleet of any size, and what keeps it from being faster. Touches nothing."""
    from rebalance_tasks.core.scale import Costs, Farm, Work, forecast  # noqa: PLC0415

    work = Work(objects=objects, mean_bytes=_read(mean_size, "--mean-size"), groups=groups or nodes - 1, nodes=nodes)
    farm = Farm(
        hosts=hosts,
        processes=processes,
        cores=cores,
        limit=limit,
        throttle=_rate(throttle, "--throttle"),
        node_rate=_rate(node_rate, "--node-rate"),
    )
    try:
        known = Costs() if costs is None else Costs.model_validate_json(costs)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--costs") from exc
    wanted = {times: farm.model_copy(update={"hosts": hosts * times}) for times in TIMES}
    told = {times: forecast(work, changed, known) for times, changed in wanted.items()}
    document: dict[str, Any] = {**jsonable(told[1]), "hosts": hosts, "groups": work.groups, "costs": jsonable(known)}
    emit(document, as_json=as_json, render=lambda: _view(wanted, told))


def _read(text: str, flag: str) -> float:
    from rebalance_tasks.core.units import parse_size  # noqa: PLC0415

    try:
        return float(parse_size(text))
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=flag) from exc


def _rate(text: str, flag: str) -> float | None:
    return None if text == "none" else _read(text.removesuffix("/s"), flag)


def _view(farms: dict[int, Farm], told: dict[int, Forecast]) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    right = ("HOSTS", "TIME", "OBJECTS/S", "BYTES/S", "REDIS BUSY", "REDIS MEMORY")
    made = tables.table(*right, "BOUND BY", right=right)
    for times, found in told.items():
        made.add_row(
            str(farms[times].hosts),
            tables.seconds(found.seconds),
            f"{found.objects_per_s:,.0f}",
            tables.size(found.bytes_per_s),
            tables.percent(found.redis_load),
            tables.size(found.redis_bytes),
            found.bound_by,
        )
    note = "one job, by the model of docs/scale.md; surveys, plans and pauses between cycles come on top"
    return Group(made, Text(), Text(note, style="dim"))
