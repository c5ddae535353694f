"""What every command starts from: the client of the configured fleet, and the job that is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rebalance_tasks.client import Rebalancer


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
