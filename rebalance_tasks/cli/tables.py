"""How jobs, plans and nodes look: pure functions from data to something rich can print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import humanize
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rebalance_tasks.cli.fitting import Fitting
from rebalance_tasks.core.states import RebalanceStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from rebalance_tasks.control.reindex_report import ReindexReport
    from rebalance_tasks.core.explain import Explained
    from rebalance_tasks.core.models import FailureGroup, RebalanceJob, RebalanceMove, RebalancePlan

#: Moves listed before "... and more": a screenful; ``--explain`` lists all.
MOVES_SHOWN: Final = 20
BAR_WIDTH: Final = 24
#: Of a bar where there is little room.
SHORT_BAR: Final = 8
#: A table of moves with its seven columns wants so much room.
MOVES_COLUMNS: Final = 110
#: From here on a node looks full; the planner's own limit is `max_utilisation`.
HIGH: Final = 0.85
WARM: Final = 0.70
FULL_BLOCK: Final = "█"
#: Eighths of a block, so that a bar moves smoothly.
PARTIAL_BLOCKS: Final = " ▏▎▍▌▋▊▉"
STATUS_STYLES: Final = {
    RebalanceStatus.PENDING: "cyan",
    RebalanceStatus.RUNNING: "bold blue",
    RebalanceStatus.PAUSED: "yellow",
    RebalanceStatus.COMPLETED: "green",
    RebalanceStatus.FAILED: "bold red",
    RebalanceStatus.CANCELLED: "magenta",
}


def size(value: float | None) -> str:
    """Bytes for people (``"1.5 MiB"``)."""
    return "-" if value is None else humanize.naturalsize(value, binary=True, format="%.1f")


def percent(share: float | None) -> str:
    """A share for people (``"42.0 %"``)."""
    return "-" if share is None else f"{share * 100:.1f} %"


def seconds(value: float | None) -> str:
    """A duration for people (``"1m 05s"``)."""
    if value is None:
        return "-"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def moment(value: datetime | None) -> str:
    """A time for people, in UTC to the second."""
    return "-" if value is None else value.strftime("%Y-%m-%d %H:%M:%S")


def bar(share: float | None, *, width: int = BAR_WIDTH) -> Text:
    """A bar of utilisation in [0, 1]; fuller nodes are warmer."""
    if share is None:
        return Text("·" * width, style="dim")
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    blocks = FULL_BLOCK * (eighths // 8) + (PARTIAL_BLOCKS[eighths % 8] if eighths % 8 else "")
    style = "red" if share >= HIGH else "yellow" if share >= WARM else "green"
    return Text.assemble((blocks, style), ("░" * (width - len(blocks)), "dim"))


def status_text(status: RebalanceStatus) -> Text:
    """A job's state in its colour."""
    return Text(status.value, style=STATUS_STYLES[status])


def table(*columns: str, right: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """A plain table; the columns named in ``right`` hold numbers, those in ``whole`` bars: neither is ever folded."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        number = name in right
        made.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number or name in whole)
    return made


# -- jobs ----------------------------------------------------------------------------------------------------------


def jobs_table(jobs: Sequence[RebalanceJob]) -> RenderableType:
    """All jobs, a line each."""
    if not jobs:
        return Text("no jobs yet; `rebalance plan` makes a plan, `rebalance start` carries it out")
    made = table(
        "JOB",
        "STATUS",
        "MOVED",
        "FAILED",
        "SKIPPED",
        "BYTES",
        "CREATED (UTC)",
        "MOSTLY BECAUSE",
        right=("MOVED", "FAILED", "SKIPPED", "BYTES"),
    )
    for job in jobs:
        made.add_row(
            job.job_id,
            status_text(job.status),
            f"{job.completed_moves}/{job.total_moves}",
            str(job.failed_moves),
            str(job.skipped_moves),
            size(job.bytes_moved),
            moment(job.created_utc),
            _main_cause(job),
        )
    return made


def _main_cause(job: RebalanceJob) -> str:
    """The most frequent cause of failed and skipped moves, or the error."""
    if not job.failures:
        return job.error or ""
    cause, count = max(job.failures.items(), key=lambda item: (item[1], item[0]))
    others = len(job.failures) - 1
    return f"{cause} {count}" + (f", {others} more" if others else "")


def job_page(job: RebalanceJob, groups: Sequence[FailureGroup], *, deadline: datetime | None = None) -> RenderableType:
    """Everything known of one job, and what to do about what failed."""
    parts: list[RenderableType] = [job_details(job, deadline=deadline, causes=not groups)]
    if groups:
        made = table("CAUSE", "MOVES", "FOR EXAMPLE", "WHAT TO DO", right=("MOVES",))
        for group in groups:
            made.add_row(group.cause, f"{group.moves:,}", Text(_example(group)), Text(group.hint))
        parts += [Text(), made]
    return Group(*parts)


def _example(group: FailureGroup) -> str:
    if not group.object_key:
        return group.detail or "-"
    return f"{printable(group.object_key)} ({group.source_node} → {group.target_node}): {printable(group.detail)}"


def job_details(job: RebalanceJob, *, deadline: datetime | None = None, causes: bool = True) -> RenderableType:
    """The facts of one job; ``causes`` lists how many moves failed or were skipped for which cause."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="fold")
    status = status_text(job.status)
    if job.paused_reasons:
        status.append(f" (held by: {', '.join(job.paused_reasons)})")
    if job.cancel_requested and not job.status.terminal:
        status.append(" (cancelling)")
    rows: list[tuple[str, str | Text]] = [
        ("job", job.job_id),
        ("plan", job.plan_id),
        ("status", status),
        (
            "moves",
            f"{job.completed_moves} completed, {job.failed_moves} failed, {job.skipped_moves} skipped of {job.total_moves}",
        ),
        ("groups", f"{job.groups_done} of {job.groups_total} done"),
        *((f"  held by {reason}", f"{count} groups") for reason, count in job.held_groups.items()),
        ("bytes", f"{size(job.bytes_moved)} of {size(job.total_bytes)} at {size(job.throughput)}/s"),
        ("imbalance", f"{percent(job.imbalance_before)} → {percent(job.imbalance_after)}"),
        ("created", moment(job.created_utc)),
        ("started", moment(job.started_utc)),
        ("completed", moment(job.completed_utc)),
    ]
    if job.eta is not None and not job.status.terminal:
        rows.append(("time left", seconds(job.eta)))
    if deadline is not None:
        rows.append(("deadline", moment(deadline)))
    if job.requested_by:
        rows.append(("requested by", job.requested_by))
    if job.cancelled_by:
        rows.append(("cancelled by", job.cancelled_by))
    if causes:
        rows.extend((f"  {cause}", str(count)) for cause, count in sorted(job.failures.items()))
    if job.error:
        rows.append(("error", Text(job.error, style="red")))
    for name, value in rows:
        lines.add_row(name, value)
    return lines


def job_line(job: RebalanceJob) -> str:
    """One job on one line, for logs and pipes."""
    done = job.completed_moves + job.failed_moves + job.skipped_moves
    line = f"{job.job_id} {job.status.value} {done}/{job.total_moves} moves {size(job.bytes_moved)} {size(job.throughput)}/s"
    return line + (f" eta {seconds(job.eta)}" if job.eta is not None and not job.status.terminal else "")


def started_text(job: RebalanceJob) -> str:
    """What a started job is, and how to follow it."""
    if job.status.terminal:
        return f"job {job.job_id} is {job.status.value}: {job.completed_moves} of {job.total_moves} moves"
    return f"job {job.job_id} is {job.status.value}: {job.total_moves} moves; `rebalance watch {job.job_id}` follows it"


# -- reindex -------------------------------------------------------------------------------------------------------


def reindex_page(report: ReindexReport) -> RenderableType:
    """What a reindex did, and what it leaves to an operator."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="fold")
    rows: list[tuple[str, str]] = [
        ("nodes read", ", ".join(report.nodes) or "none"),
        ("objects", f"{report.objects:,} ({size(report.bytes)})"),
        ("in manifests", f"{report.manifest_entries:,}"),
        ("locations written", f"{report.locations:,}"),
        ("forwardings written", f"{report.forwardings:,}"),
        ("sources still to be freed", f"{report.frees:,}"),
        ("trash put on record", f"{report.trash:,}"),
        ("half-made copies removed", f"{report.staged:,}"),
    ]
    for name, value in rows:
        lines.add_row(name, value)
    if report.catalogue_lacks:
        lines.add_row("not in the host's catalogue", f"{report.catalogue_lacks:,}")
    parts: list[RenderableType] = [lines]
    parts += _left_alone("ambiguous (on several nodes; keep one)", report.ambiguous, report.ambiguous_keys)
    parts += _left_alone(
        "trash that nothing explains (look at it)", report.unexplained_trash, report.unexplained_trash_names
    )
    parts += [
        Text(f"node {node} was left out: {why}; run `rebalance reindex` again when it is back", style="red")
        for node, why in report.missing.items()
    ]
    return Group(*parts)


def _left_alone(what: str, count: int, names: Sequence[str]) -> list[RenderableType]:
    if not count:
        return []
    shown = [Text(f"  {printable(name)}") for name in names[:MOVES_SHOWN]]
    more = [Text(f"  … and {count - len(shown)} more", style="dim")] if count > len(shown) else []
    return [Text(f"{count:,} {what}:", style="yellow"), *shown, *more]


# -- plans ---------------------------------------------------------------------------------------------------------


def plan_view(
    plan: RebalancePlan, *, explain: bool, picture: Sequence[RenderableType], left_out: Mapping[str, str] | None = None
) -> RenderableType:
    """A plan: its totals, the nodes it was made without and why, its picture, and its moves (all of them when explained)."""
    parts: list[RenderableType] = [_plan_totals(plan)]
    parts += [Text(printable(f"left out: {why}"), style="yellow") for why in (left_out or {}).values()]
    parts += picture
    if plan.moves:
        parts += [Text(), _moves(plan.moves if explain else plan.moves[:MOVES_SHOWN])]
        if not explain and len(plan.moves) > MOVES_SHOWN:
            parts.append(Text(f"… and {len(plan.moves) - MOVES_SHOWN} more (--explain lists all)", style="dim"))
        parts += [Text(), Text(f"nothing was moved; `rebalance start {plan.plan_id}` carries it out")]
    return Group(*parts)


def _plan_totals(plan: RebalancePlan) -> RenderableType:
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_row("plan", plan.plan_id)
    lines.add_row("moves", f"{len(plan.moves):,}" if plan.moves else "none")
    lines.add_row("imbalance", f"{percent(plan.imbalance_before)} → {percent(plan.imbalance_after)}")
    lines.add_row("bytes", size(plan.estimated_egress_bytes))
    lines.add_row("cost", f"{plan.estimated_cost:.2f}")
    lines.add_row("duration", f"about {seconds(plan.estimated_duration_seconds)}")
    if plan.limits_reached:
        lines.add_row("limited by", ", ".join(plan.limits_reached))
    for text in plan.cannot:
        lines.add_row("cannot", Text(printable(text)))
    for pair, attributes in plan.not_carried.items():
        lines.add_row("not carried", f"{', '.join(attributes)} ({pair})")
    return lines


def _moves(moves: Sequence[RebalanceMove]) -> RenderableType:
    return Fitting(lambda: _moves_in_rows(moves), lambda: _moves_in_lines(moves), columns=MOVES_COLUMNS)


def _moves_in_rows(moves: Iterable[RebalanceMove]) -> RenderableType:
    made = table("OBJECT", "FROM", "TO", "SIZE", "GRAVITY", "COST", "WHY", right=("SIZE", "GRAVITY", "COST"))
    for move in moves:
        made.add_row(
            Text(printable(move.object_key)),
            move.source_node,
            move.target_node,
            size(move.size_bytes),
            f"{move.gravity:.2f}",
            f"{move.cost:.4f}",
            Text(move.reason),
        )
    return made


def _moves_in_lines(moves: Iterable[RebalanceMove]) -> RenderableType:
    return Group(
        *(
            Text.assemble(
                (f"{printable(move.object_key)}\n", "bold"),
                f"  {size(move.size_bytes)}, gravity {move.gravity:.2f}, cost {move.cost:.4f}\n",
                f"  {move.source_node} → {move.target_node}\n",
                (f"  {printable(move.reason)}", "dim"),
            )
            for move in moves
        )
    )


def stay_explained(found: Explained) -> RenderableType:
    """Why one object stays."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="fold")
    lines.add_row("object", Text(printable(found.object_key)))
    lines.add_row("on", found.node_id)
    lines.add_row("stays", found.code)
    lines.add_row("why", Text(found.sentence))
    for name, value in sorted(found.details.items()):
        lines.add_row(str(name), Text(printable(str(value))))
    return lines


def move_explained(plan: RebalancePlan, move: RebalanceMove, *, why: str) -> RenderableType:
    """Why one object moves."""
    shown = (
        ("object", printable(move.object_key)),
        ("from", move.source_node),
        ("to", move.target_node),
        ("size", size(move.size_bytes)),
    )
    more = (
        ("gravity", f"{move.gravity:.3f}"),
        ("cost", f"{move.cost:.4f}"),
        ("why", why),
        ("plan", plan.plan_id),
    )
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    lines.add_column(overflow="fold")
    for name, value in shown + more:
        lines.add_row(name, Text(value))
    return lines


def printable(key: str) -> str:
    """A key on one line of a terminal: control characters and odd bytes escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in key)
