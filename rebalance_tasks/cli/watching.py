"""Following a job: a live view on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.live import Live
from rich.text import Text

from rebalance_tasks.cli.output import console
from rebalance_tasks.cli.tables import bar, job_details, job_line, job_page, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.core.models import RebalanceJob

#: A log wants to know that it goes on, not every object.
LINE_INTERVAL_S: Final = 1.0


def follow(client: Rebalancer, job_id: str, *, quiet: bool = False) -> RebalanceJob:
    """Follow a job to its end and return it as it ended.

    Args:
        client: of the job's fleet.
        job_id: which one.
        quiet: print nothing (the caller prints JSON at the end).
    """
    out = console()
    if quiet:
        return _last(client, job_id)
    if out.is_terminal:
        with Live(console=out, refresh_per_second=8) as live:
            for job in client.watch(job_id):
                latest = job
                live.update(_view(job))
            live.update(job_page(latest, client.failures(job_id)))
        return latest
    printed: tuple[float, object] = (0.0, None)
    for job in client.watch(job_id):
        latest = job
        now = time.monotonic()
        if job.status is not printed[1] or now - printed[0] >= LINE_INTERVAL_S:
            out.print(job_line(job), markup=False)
            printed = (now, job.status)
    out.print(job_page(latest, client.failures(job_id)))
    return latest


def _last(client: Rebalancer, job_id: str) -> RebalanceJob:
    latest = client.status(job_id)
    for job in client.watch(job_id):
        latest = job
    return latest


def _view(job: RebalanceJob) -> RenderableType:
    done = job.completed_moves + job.failed_moves + job.skipped_moves
    share = done / job.total_moves if job.total_moves else 1.0
    # Progress is good news at any height: always the bar's calm colour.
    progress = Text.assemble(Text(bar(share, width=40).plain, style="blue"), f" {percent(share)}")
    return Group(progress, job_details(job))
