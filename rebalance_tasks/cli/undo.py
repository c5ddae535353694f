"""``rebalance undo``: plan the way back of a job, and start it when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rebalance_tasks.cli import session
from rebalance_tasks.cli.output import busy, emit, jsonable
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.undo import WayBack


def undo(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job that has ended.")],
    start: Annotated[bool, typer.Option("--start", help="Start the plan at once.")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Start it and follow the job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Plan the way back of a job: what it moved, and nobody touched since, goes where it was. Moves nothing by itself."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    client = session.open_client()
    with busy("looking where the objects are now", quiet=as_json):
        back = client.undo(job)
    started = client.start(back.plan) if start or follow else None
    if started is not None and follow:
        session.follow_to_end(started.job_id, as_json=as_json)
        return
    data = {
        "undo_of": back.job_id,
        "completed_moves": back.completed,
        "left": jsonable(back.left),
        "plan": jsonable(back.plan),
        "started": jsonable(started),
    }
    if started is not None:
        job_line = tables.started_text(started)
        emit(data, as_json=as_json, render=lambda: job_line)
        return
    emit(data, as_json=as_json, render=lambda: _view(back, client.settings.options))


def _view(back: WayBack, options: RebalancerOptions) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import picture, tables  # noqa: PLC0415

    plan = back.plan.model_copy(update={"not_moved": {}})
    told = f"takes back {len(plan.moves):,} of the {back.completed:,} moves that {back.job_id} completed"
    parts: list[RenderableType] = [Text(told)]
    shown = picture.plan_picture(plan, back.nodes, options)
    if back.left:
        shown += [Text(), picture.left_alone(back.left)]
    return Group(*parts, tables.plan_view(plan, explain=False, picture=shown))
