"""``rebalance plan``: the dry run with its picture, and why one object moves or stays. Moves nothing."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  as below
from typing import TYPE_CHECKING, Annotated

import typer

from rebalance_tasks.cli import session
from rebalance_tasks.cli.output import busy, console, emit, jsonable
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.control.survey import Survey
    from rebalance_tasks.core.explain import Explained
    from rebalance_tasks.core.models import RebalancePlan


def plan(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help="With --explain: only this object.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="List every move with its reason; with KEY, explain that object.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Also write what was surveyed as Parquet, for simulate --inventory."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Survey the fleet and show what would be moved, and why. Moves nothing."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415
    from rebalance_tasks.cli.picture import plan_picture  # noqa: PLC0415

    if key is not None and not explain:
        msg = "a KEY is only taken together with --explain"
        raise typer.BadParameter(msg, param_hint="KEY")
    client = session.open_client()
    with busy("surveying the nodes and planning", quiet=as_json):
        made, seen = client.dry_run()
    if save is not None:
        from pyarrow import parquet  # noqa: PLC0415

        from rebalance_tasks.core.errors import InvalidArgument  # noqa: PLC0415

        if others := len(seen.inventory.unlisted):
            msg = (
                f"--save {save}: the fleet holds {seen.objects:,} objects, of which {others:,} are known only as numbers, so that file would not be the fleet; "
                "hand `simulate --inventory` a list of your own, as [fleet] inventory takes it"
            )
            raise InvalidArgument(msg)
        parquet.write_table(seen.inventory.to_arrow(), save)
    if key is not None:
        _explain(client, made, seen, key, as_json=as_json)
        return

    def view() -> RenderableType:
        picture = plan_picture(made, seen.nodes, client.settings.options)
        return tables.plan_view(made, explain=explain, picture=picture, left_out=seen.left_out)

    emit(made, as_json=as_json, render=view)
    if as_json:
        _say_left_out(seen)


def planned_now(client: Rebalancer) -> RebalancePlan:
    """Plan, and say on stderr which nodes the plan was made without."""
    made, seen = client.dry_run()
    _say_left_out(seen)
    return made


def _say_left_out(seen: Survey) -> None:
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    for why in seen.left_out.values():
        console(stderr=True).print(f"left out: {tables.printable(why)}", style="yellow", markup=False)


def _explain(client: Rebalancer, made: RebalancePlan, seen: Survey, key: str, *, as_json: bool) -> None:
    from rebalance_tasks.cli import tables  # noqa: PLC0415
    from rebalance_tasks.core.explain import explain_object  # noqa: PLC0415

    settings = client.settings
    prices = settings.price_matrix
    found = explain_object(
        made, key, seen.nodes, seen.inventory, options=settings.options, now=made.created_utc, prices=prices
    )
    move = next((move for move in made.moves if move.object_key == key), None)
    data = {**_facts(found), **({} if move is None else jsonable(move)), "plan_id": made.plan_id}
    if move is not None:
        emit(data, as_json=as_json, render=lambda: tables.move_explained(made, move, why=found.sentence))
        return
    emit({**data, "reason": found.sentence}, as_json=as_json, render=lambda: tables.stay_explained(found))


def _facts(found: Explained) -> dict[str, object]:
    names = ("object_key", "node_id", "moves", "target_node", "code", "sentence", "details")
    return {name: jsonable(getattr(found, name)) for name in names}
