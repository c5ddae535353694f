"""Commands for when something went wrong or must change while it runs: retry-failed, limit, reindex."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rebalance_tasks.cli import output, session
from rebalance_tasks.cli.output import EXIT_FAILED, emit
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Words that lift a limit set at run time.
_NO_LIMIT = frozenset({"none", "off", "default"})


def retry_failed(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job that has ended.")],
    skipped: Annotated[
        bool,
        typer.Option("--skipped", help="Also what was skipped for a passing cause: a budget, a busy object, a cancel."),
    ] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the new job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Try the failed moves of an ended job again, as a job of their own (JOB-retry1). Asked twice, it is one retry."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    started = session.open_client().retry_failed(job, skipped=skipped)
    if follow:
        session.follow_to_end(started.job_id, as_json=as_json)
        return
    emit(started, as_json=as_json, render=lambda: tables.started_text(started))


def limit(
    groups: Annotated[
        str | None,
        typer.Argument(metavar="[N]", help="Groups that may transfer at once; `none` goes by rebalance.toml again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or change how many groups transfer at once; acts on the running job, and lasts until it is set again."""
    client = session.open_client()
    if groups is None:
        now = client.limit()
    elif groups.lower() in _NO_LIMIT:
        now = client.set_limit(None)
    elif groups.isdecimal() and int(groups) > 0:
        now = client.set_limit(int(groups))
    else:
        msg = f"{groups!r} is no limit: a whole number from 1, or `none`; `rebalance pause --all` holds everything"
        raise typer.BadParameter(msg, param_hint="N")
    configured = client.settings.options.max_concurrent_migrations
    data = {"limit": now, "configured": configured}
    emit(data, as_json=as_json, render=lambda: f"{now} groups at once (configured: {configured})")


def reindex(
    force: Annotated[
        bool, typer.Option("--force", help="Also while a job is active (its moves are left to it) or a check runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rebuild what Redis knew from the nodes and their manifests, after Redis was lost. Exit 1 if a node is missing."""
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    with _progress(quiet=as_json) as step:
        report = session.open_client().reindex(force=force, progress=step)
    emit(report, as_json=as_json, render=lambda: tables.reindex_page(report))
    if not report.complete:
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on stderr where that is a terminal."""
    out = output.console(stderr=True)
    if quiet or not out.is_terminal:
        yield None
        return
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=out, transient=True) as bar:
        task = bar.add_task("reindex", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
