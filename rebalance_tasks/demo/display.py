"""What the newcomer sees: a live picture of the nodes on a terminal, plain lines of progress anywhere else."""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rebalance_tasks.cli.tables import bar, percent, size, status_text
from rebalance_tasks.demo.inspect import spread, utilisations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.demo.corpus import DemoNode
    from rebalance_tasks.demo.inspect import NodeUsage

#: Plain lines go to logs: often enough to see that it lives.
LINE_INTERVAL_S: Final = 1.0
BAR_WIDTH: Final = 40
#: Events that stay on the screen under the bars.
EVENTS_SHOWN: Final = 9
PICTURE_WIDTH: Final = 100
FONT_FACE: Final = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
#: Less rounds to 0.0 %.
VISIBLE_CHANGE: Final = 0.0005


@dataclass(frozen=True, slots=True)
class Frame:
    """One instant of the demo.

    Attributes:
        start: utilisation by node before anything moved.
        usage: what is on disk now.
        rate: bytes a second lately.
    """

    nodes: tuple[DemoNode, ...]
    start: Mapping[str, float]
    usage: Mapping[str, NodeUsage]
    phase: str
    job: RebalanceJob | None = None
    rate: float = 0.0

    @property
    def staged_bytes(self) -> int:
        """Bytes of copies being made, not yet at their keys."""
        return sum(usage.staged_bytes for usage in self.usage.values())


class Display(Protocol):
    """Shows frames and tells events."""

    def event(self, text: str) -> None:
        """Tell that something happened."""
        ...

    def frame(self, frame: Frame) -> None:
        """Show the present."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class PlainDisplay:
    """Lines on stdout, for logs and pipes."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to ``console``."""
        self._console = console
        self._clock = clock
        self._last = float("-inf")
        self._started = clock()

    def event(self, text: str) -> None:
        """Print a line at once."""
        self._print(text)

    def frame(self, frame: Frame) -> None:
        """Print a line of progress, at most one a second."""
        now = self._clock()
        if now - self._last < LINE_INTERVAL_S:
            return
        self._last = now
        shares = utilisations(frame.nodes, frame.usage)
        shown = " ".join(f"{node}={share * 100:.0f}%" for node, share in shares.items())
        self._print(f"{progress_text(frame)} | {shown} | spread {percent(spread(shares))}")

    def close(self) -> None:
        """Nothing to leave."""

    def _print(self, text: str) -> None:
        self._console.print(f"[{self._clock() - self._started:5.1f}s] {text}", markup=False)
        self._console.file.flush()


class LiveDisplay:
    """Bars that move, with the latest events below them."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console``, a terminal."""
        self._events: list[str] = []
        self._frame: Frame | None = None
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=10, get_renderable=self._draw)
        self._live.start()

    def event(self, text: str) -> None:
        """Add to the list below the bars."""
        self._events.append(f"{time.monotonic() - self._started:5.1f}s  {text}")

    def frame(self, frame: Frame) -> None:
        """Show from the next refresh on."""
        self._frame = frame

    def close(self) -> None:
        """Draw once more and give the cursor back."""
        self._live.stop()

    def _draw(self) -> RenderableType:
        return picture(self._frame, self._events[-EVENTS_SHOWN:])


def progress_text(frame: Frame) -> str:
    """The job on one line."""
    if frame.job is None:
        return frame.phase
    job = frame.job
    done = job.completed_moves + job.failed_moves + job.skipped_moves
    moved = f"{size(job.bytes_moved)} of {size(job.total_bytes)}, {size(frame.staged_bytes)} in flight"
    return f"{frame.phase} | {done}/{job.total_moves} moves, {moved}, {size(frame.rate)}/s"


def picture(frame: Frame | None, events: Sequence[str]) -> RenderableType:
    """Bars of all nodes, the job, and what happened lately."""
    parts: list[RenderableType] = []
    if frame is not None:
        parts += [_bars(frame), Text(), _job(frame), Text()]
    parts += [Text(line, style="dim") for line in events]
    return Panel(Group(*parts), title="rebalance demo", title_align="left", border_style="blue", padding=(1, 2))


def _bars(frame: Frame) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "left", "right", "right", "right", "right"):
        grid.add_column(justify=justify)
    shares = utilisations(frame.nodes, frame.usage)
    for node in frame.nodes:
        used, share = frame.usage[node.node_id], shares[node.node_id]
        change = share - frame.start[node.node_id]
        arrow = (
            Text(f"{change * 100:+.1f}", style="green" if change < 0 else "cyan")
            if abs(change) >= VISIBLE_CHANGE
            else Text("")
        )
        grid.add_row(
            Text(node.node_id, style="bold"),
            Text(f"zone {node.zone}", style="dim"),
            bar(share, width=BAR_WIDTH),
            percent(share),
            arrow,
            Text(f"of {size(node.capacity_bytes)}", style="dim"),
            Text(f"{used.objects:,} objects", style="dim"),
        )
    now, before = spread(shares), spread(frame.start)
    line = Text.assemble(("spread ", "bold"), percent(now), (f"  (was {percent(before)})", "dim"))
    return Group(grid, Text(), line)


def _job(frame: Frame) -> RenderableType:
    if frame.job is None:
        return Text(frame.phase, style="cyan")
    job = frame.job
    share = job.bytes_moved / job.total_bytes if job.total_bytes else 1.0
    done = job.completed_moves + job.failed_moves + job.skipped_moves
    calm = Text(bar(share, width=BAR_WIDTH).plain, style="yellow" if job.paused_reasons else "blue")
    head = Text.assemble(("job ", "bold"), f"{job.job_id}  ", status_text(job.status), f"  {frame.phase}")
    moved = f"{done:,} of {job.total_moves:,} moves   {size(job.bytes_moved)} of {size(job.total_bytes)}, {size(frame.staged_bytes)} in flight"
    groups = f"{job.groups_done} of {job.groups_total} groups done"
    return Group(head, Text.assemble(calm, f" {percent(share)}"), Text(f"{moved}   {size(frame.rate)}/s   {groups}"))


def save_picture(path: Path, content: Sequence[RenderableType]) -> None:
    """Save what was shown as an SVG."""
    recorder = Console(record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True)
    for part in content:
        recorder.print(part)
    # A picture in a README must not fetch a font from somewhere.
    template = FONT_FACE.sub("", CONSOLE_SVG_FORMAT)
    path.write_text(recorder.export_svg(title="rebalance demo", code_format=template), encoding="utf-8")
