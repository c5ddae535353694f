"""``rebalance events``: what was decided, what happened, and who asked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from rebalance_tasks.cli import output, session
from rebalance_tasks.cli.output import emit

if TYPE_CHECKING:
    from rebalance_tasks.core.events import Event


def events(
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only this job: its audit log.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many of the newest.")] = 50,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Only what came after this event.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens, until interrupted.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow one line for each event.")
    ] = False,
) -> None:
    """Show the fleet's history: every check, transition and order, oldest first, and who asked for it."""
    client = session.open_client()
    found = (
        client.events(limit=limit, job_id=job) if after is None else client.events_after(after, limit=limit, job_id=job)
    )
    if not follow:
        emit(found, as_json=as_json, render=lambda: Text("\n".join(map(line, found)) or "nothing has happened yet"))
        return
    last = after
    for event in found:
        _say(event, as_json=as_json)
        last = event.event_id
    for event in client.follow_events(last):
        if job is None or event.job_id == job:
            _say(event, as_json=as_json)


def line(event: Event) -> str:
    """One event as a line: when, what, which job, what else, who."""
    told = " ".join(f"{name}={value}" for name, value in event.data.items() if value is not None)
    by = f"by {event.by}" if event.by else ""
    parts = [f"{event.at:%Y-%m-%d %H:%M:%S}", f"{event.kind:<20}", event.job_id, told, by]
    return "  ".join(part for part in parts if part)


def _say(event: Event, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(event.model_dump_json() + "\n")
        sys.stdout.flush()
    else:
        output.console().print(line(event), markup=False)
