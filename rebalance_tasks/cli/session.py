"""What commands share: the client of the configured fleet, the job that is meant, following it to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from rebalance_tasks.cli import output
from rebalance_tasks.core.states import RebalanceStatus

if TYPE_CHECKING:
    from datetime import datetime

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.core.models import RebalanceJob


def open_client() -> Rebalancer:
    """Return the client of the fleet that ``REBALANCE_CONFIG`` (or ``--config``) describes."""
    from rebalance_tasks.client import Rebalancer  # noqa: PLC0415  loads celery; `--help` must not wait for it

    return Rebalancer()


def chosen_job(client: Rebalancer, job_id: str | None) -> str:
    """Return the job that is meant: the one named, else the only active one.

    Raises:
        typer.BadParameter: none is named, and not exactly one is active.
    """
    if job_id is not None:
        return job_id
    active = [job.job_id for job in client.jobs() if not job.status.terminal]
    match active:
        case [only]:
            return only
        case []:
            msg = "no job is active, so name one; `rebalance jobs` lists them"
        case _:
            msg = f"several jobs are active ({', '.join(active)}), so name one"
    raise typer.BadParameter(msg, param_hint="JOB")


def refuse_mixture(job_id: str | None, *, everything: bool, node: str | None) -> None:
    """A verb is for a job, for a node, or for the whole fleet. Raises: typer.BadParameter."""
    if everything and node is not None:
        msg = f"--all is for the whole fleet and --node for {node!r}; leave out one of them"
        raise typer.BadParameter(msg, param_hint="--node")
    if job_id is not None and (everything or node is not None):
        which = "--all is for the whole fleet" if everything else "--node is for a node, in every job"
        msg = f"{which}; leave out {job_id!r}, or {'--all' if everything else '--node'}"
        raise typer.BadParameter(msg, param_hint="JOB")


def deadline_of(client: Rebalancer, job: RebalanceJob) -> datetime | None:
    """When the sweep will cancel the job; ``None`` when it has ended or there is no deadline."""
    deadline = client.settings.options.job_deadline
    return None if deadline is None or job.status.terminal else job.created_utc + deadline


def follow_to_end(job_id: str, *, as_json: bool) -> None:
    """Follow a job and let its end decide the exit code."""
    from rebalance_tasks.cli.watching import follow  # noqa: PLC0415

    ended = follow(open_client(), job_id, quiet=as_json)
    if as_json:
        output.print_json(ended)
    if not ended.status.terminal:
        return  # the viewer left; the job goes on
    if ended.status is not RebalanceStatus.COMPLETED:
        raise typer.Exit(output.EXIT_FAILED)
