"""Following a job: a full-screen view that takes keys on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rebalance_tasks.cli.keys import pressed_keys
from rebalance_tasks.cli.output import console
from rebalance_tasks.cli.tables import bar, job_line, job_page, percent, seconds, size, status_text, table
from rebalance_tasks.core.errors import RebalanceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.core.models import ControlResult, FailureGroup, RebalanceJob

#: A log wants to know that it goes on, not every object.
LINE_INTERVAL_S: Final = 1.0
#: The view looks at the job this often, and at once after a key.
LOOK_EVERY_S: Final = 0.25
#: Rates shown side by side; each covers `LOOK_EVERY_S` × 4.
RATES_KEPT: Final = 60
BAR_WIDTH: Final = 50
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
#: Key → what it does to the job. Each asks before it does it.
VERBS: Final = {"p": "pause", "r": "resume", "c": "cancel"}


def follow(client: Rebalancer, job_id: str, *, quiet: bool = False) -> RebalanceJob:
    """Follow a job and return it as it was last seen: as it ended, unless the viewer left with ``q``.

    Args:
        client: of the job's fleet.
        job_id: which one.
        quiet: print nothing (the caller prints JSON at the end).
    """
    out = console()
    if quiet:
        return _last(client, job_id)
    if out.is_terminal:
        latest = _full_screen(client, job_id)
        out.print(job_page(latest, client.failures(job_id)))
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


def _full_screen(client: Rebalancer, job_id: str) -> RebalanceJob:
    view = View()
    steering = Steering(job_id)
    with pressed_keys() as key, Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            job = client.status(job_id)
            view.look(job, lambda: client.failures(job_id))
            live.update(view.render(job, steering.line()), refresh=True)
            if job.status.terminal or steering.left:
                return job
            verb = steering.press(key(LOOK_EVERY_S))
            if verb:
                steering.told = _done(client, verb, job_id)


def _done(client: Rebalancer, verb: str, job_id: str) -> str:
    """Carry out a verb, and say what came of it."""
    verbs: dict[str, Callable[[str], ControlResult]] = {
        "pause": client.pause,
        "resume": client.resume,
        "cancel": client.cancel,
    }
    try:
        result = verbs[verb](job_id)
    except RebalanceError as exc:
        return str(exc)
    return result.reason or f"{verb}: done"


@dataclass(slots=True)
class Steering:
    """What the keys have asked for; a verb is carried out only after ``y``.

    Attributes:
        asked: the verb that waits for a yes, '' when none does.
        told: what came of the last one.
        left: whether the viewer wants to leave; the job goes on.
    """

    job_id: str
    asked: str = ""
    told: str = ""
    left: bool = False

    def press(self, key: str) -> str:
        """Take a key; return the verb that is to be carried out now, else ''."""
        if not key:
            return ""
        asked, self.asked = self.asked, ""
        if asked:
            self.told = "" if key == "y" else f"{asked}: not done"
            return asked if key == "y" else ""
        self.told = ""
        self.asked = VERBS.get(key, "")
        self.left = key == "q"
        return ""

    def line(self) -> Text:
        """The line at the foot of the view."""
        if self.asked:
            return Text(f"{self.asked} {self.job_id}? y does it, any other key does not", style="bold yellow")
        keys = "p pause   r resume   c cancel   q leave (the job goes on)"
        return Text.assemble((keys, "dim"), f"   {self.told}" if self.told else "")


@dataclass(slots=True)
class View:
    """What the full-screen view remembers between two looks."""

    failures: Sequence[FailureGroup] = ()
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))
    _looks: int = 0
    _failed: int = -1

    def look(self, job: RebalanceJob, failures: Callable[[], Sequence[FailureGroup]]) -> None:
        """Note the rate; ask for the failures only when there are others."""
        if self._looks % 4 == 0:
            self.rates.append(job.throughput)
        self._looks += 1
        failed = job.failed_moves + job.skipped_moves
        if failed != self._failed:
            self.failures, self._failed = failures(), failed

    def render(self, job: RebalanceJob, foot: Text) -> RenderableType:
        """The whole screen."""
        head = Text.assemble((job.job_id, "bold"), "  ", status_text(job.status))
        if job.paused_reasons:
            head.append(f"  held by {', '.join(job.paused_reasons)}", style="yellow")
        if job.cancel_requested and not job.status.terminal:
            head.append("  cancelling", style="yellow")
        parts: list[RenderableType] = [head, Text(), _bars(job), Text(), self._pace(job)]
        if self.failures:
            parts += [Text(), _failures(self.failures)]
        return Group(Panel(Group(*parts), title=f"fleet {job.fleet}" if job.fleet else "rebalance"), foot)

    def _pace(self, job: RebalanceJob) -> Text:
        left = "time left unknown" if job.eta is None else f"{seconds(job.eta)} left"
        return Text.assemble(f"{size(job.throughput)}/s  ", (sparkline(self.rates), "blue"), f"  {left}")


def _bars(job: RebalanceJob) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    ended = job.completed_moves + job.failed_moves + job.skipped_moves
    for name, done, total, told in (
        ("moves", ended, job.total_moves, f"{ended} of {job.total_moves}"),
        ("bytes", job.bytes_moved, job.total_bytes, f"{size(job.bytes_moved)} of {size(job.total_bytes)}"),
        ("groups", job.groups_done, job.groups_total, f"{job.groups_done} of {job.groups_total}"),
    ):
        share = done / total if total else 1.0
        # Progress is good news at any height: always the bar's calm colour.
        grid.add_row(name, Text(bar(share, width=BAR_WIDTH).plain, style="blue"), percent(share), told)
    counts = f"{job.completed_moves} completed, {job.failed_moves} failed, {job.skipped_moves} skipped"
    grid.add_row("", Text(counts, style="red" if job.failed_moves else ""), "", "")
    for reason, count in job.held_groups.items():
        grid.add_row("", Text(f"{count} groups wait for {reason}", style="yellow"), "", "")
    return grid


def _failures(groups: Sequence[FailureGroup]) -> RenderableType:
    made = table("CAUSE", "MOVES", "WHAT TO DO", right=["MOVES"])
    for group in groups:
        made.add_row(group.cause, str(group.moves), Text(group.hint))
    return made


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """Draw values from 0 to their highest as one line of blocks."""
    highest = max(values, default=0.0)
    if highest <= 0:
        return _BLOCKS[0] * len(values)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(max(0.0, value) / highest * top)] for value in values)
