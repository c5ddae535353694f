"""The last lines of the demo: what was achieved, and how to look around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance_tasks.cli.tables import percent, size
from rebalance_tasks.demo import inspect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.demo.corpus import Corpus
    from rebalance_tasks.demo.inspect import Verification


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything the last lines tell.

    Attributes:
        start: utilisation by node before anything moved.
        paused: what was seen while the job was paused.
        throttle: how fast groups were allowed to write, and why.
        took_s: the whole demo.
    """

    corpus: Corpus
    start: Mapping[str, float]
    jobs: Sequence[RebalanceJob]
    verification: Verification
    paused: str
    throttle: str
    took_s: float


def summary_lines(outcome: Outcome) -> list[str]:
    """Say what was achieved."""
    nodes, jobs, verification = outcome.corpus.nodes, outcome.jobs, outcome.verification
    after = inspect.utilisations(nodes, inspect.survey(nodes))
    moved, moves = sum(job.bytes_moved for job in jobs), sum(job.completed_moves for job in jobs)
    busy = sum(
        (job.completed_utc - job.started_utc).total_seconds() for job in jobs if job.completed_utc and job.started_utc
    )
    waiting = sum(len(inspect.trash_files(node)) for node in nodes)
    verified = f"{verification.verified} of {verification.total} objects verified ({size(verification.verified_bytes)})"
    rounds = f", in {len(jobs)} jobs" if len(jobs) > 1 else ""
    lines = [
        f"spread    {percent(inspect.spread(outcome.start))} → {percent(inspect.spread(after))}",
        f"moved     {moves} moves, {size(moved)}{rounds}",
        f"rate      {size(moved / busy) if busy else '-'}/s over {busy:.1f} s, the pause included ({outcome.throttle})",
        f"paused    {outcome.paused}",
        f"verified  {verified}: each on exactly one node, byte for byte, none a link, nothing left over",
        f"took      {outcome.took_s:.0f} s",
    ]
    if waiting:
        lines.insert(4, f"grace     {waiting} freed originals still wait in the trash for their purge")
    return lines


def tour_lines(directory: Path) -> list[str]:
    """Say how to look around in a directory that was kept."""
    return [
        f"kept      {directory}",
        f"  ls {directory}/nodes/*              the nodes and their objects",
        f"  cat {directory}/rebalance.toml      the fleet's configuration",
        f"  less {directory}/manifest.json      the checksums they were verified against",
        f"  less {directory}/worker.log         what the worker said",
    ]
