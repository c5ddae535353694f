"""A simulation as one HTML page: charts in SVG and the table of its cycles, with no script and nothing from outside."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from string import Template
from typing import TYPE_CHECKING, Final

import humanize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rebalance_tasks.core.simulation import Cycle, Recovery, Simulation

#: Lines that the eye can still tell apart; with more nodes all are drawn alike, and their titles say which is which.
MOST_COLOURS: Final = 8
_COLOURS: Final = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255")
_WIDTH: Final = 960
_HEIGHT: Final = 260
_LEFT: Final = 84
_RIGHT: Final = 16
_TOP: Final = 34
_BOTTOM: Final = 30
_TICKS: Final = 5

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d0d7de; --line: #4477aa; --event: #b35900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #30363d; --event: #f0a35e; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.8rem 0 .3rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 11px; }
.grid { stroke: var(--faint); stroke-width: 1; } .event { stroke: var(--event); stroke-dasharray: 3 3; }
svg text.event-name { fill: var(--event); stroke: none; } .node { fill: none; stroke-width: 1.6; } .many { stroke: var(--line); opacity: .35; }
.bar { fill: var(--line); } .wrap { overflow-x: auto; } .wrap svg { min-width: 40rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th, td { padding: .15rem .8rem .15rem 0; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; } th { border-bottom: 1px solid var(--faint); }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
<h2>Utilisation by node</h2>
<div class="wrap">$utilisation</div>
<p>$legend</p>
<h2>Imbalance before and after each cycle</h2>
<div class="wrap">$imbalance</div>
<h2>Bytes moved in each cycle</h2>
<div class="wrap">$bytes</div>
<h2>Money in each cycle</h2>
<div class="wrap">$money</div>
<h2>Back in balance</h2>
<div class="wrap">$recoveries</div>
<h2>Cycles</h2>
<div class="wrap">$cycles</div>
</body>
</html>
""")


def html_page(simulation: Simulation, *, title: str) -> str:
    """Return the page."""
    cycles = simulation.cycles
    events = [(cycle.cycle, ", ".join(cycle.events)) for cycle in cycles if cycle.events]
    most = len(cycles)
    nodes = sorted(simulation.utilisation.items())
    lines = [
        Line(name, _points(values), colour=_COLOURS[at % MOST_COLOURS] if len(nodes) <= MOST_COLOURS else "")
        for at, (name, values) in enumerate(nodes)
    ]
    spreads = [
        Line("before", [(cycle.cycle, cycle.imbalance_before) for cycle in cycles], colour=_COLOURS[1]),
        Line("after", [(cycle.cycle, cycle.imbalance_after) for cycle in cycles], colour=_COLOURS[0]),
        Line("threshold", [(0, simulation.threshold), (most, simulation.threshold)], colour=_COLOURS[3]),
    ]
    return _PAGE.substitute(
        title=escape(title),
        summary=escape(summary(simulation)),
        utilisation=line_chart(lines, events=events, most=most, label=_percent, high=1.0),
        legend=_legend(lines) if len(nodes) <= MOST_COLOURS else f"{len(nodes)} nodes, a line each",
        imbalance=line_chart(spreads, events=events, most=most, label=_percent) + f"<p>{_legend(spreads)}</p>",
        bytes=bar_chart(
            [(cycle.cycle, float(cycle.bytes)) for cycle in cycles], most=most, events=events, label=_decimal
        ),
        money=bar_chart([(cycle.cycle, float(cycle.cost)) for cycle in cycles], most=most, events=events, label=_money),
        recoveries=_recoveries(simulation.recoveries),
        cycles=_cycles(cycles),
    )


def summary(simulation: Simulation) -> str:
    """A simulation in two sentences."""
    over = f"{simulation.repeated_moves} objects moved twice within their cooldown"
    return (
        f"{len(simulation.cycles)} cycles, seed {simulation.seed}: {simulation.total_moves:,} moves, "
        f"{_size(simulation.total_bytes)}, money {simulation.total_cost:.2f}. Threshold {simulation.threshold:.1%}, "
        f"target {simulation.target:.1%}; {over}."
    ).replace("%", " %")


# -- charts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A series: points of (cycle, value); without a colour it is one of many."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = ""


def line_chart(
    lines: Sequence[Line],
    *,
    events: Iterable[tuple[int, str]],
    most: int,
    label: Callable[[float], str],
    high: float | None = None,
) -> str:
    """Return an SVG of lines over the cycles 0 to ``most``.

    Args:
        lines: the series.
        events: (cycle, what happened), drawn as dashed uprights.
        most: the last cycle.
        label: how a value is written.
        high: the top of the scale; default, just above the highest value.
    """
    top = high or _nice(max((value for line in lines for _, value in line.points), default=0.0))
    drawn = []
    for line in lines:
        points = " ".join(f"{_x(at, most):.1f},{_y(value, top):.1f}" for at, value in line.points)
        style = f'class="node" stroke="{line.colour}"' if line.colour else 'class="node many"'
        last = f" {label(line.points[-1][1])} at the end" if line.points else ""
        drawn.append(f'<polyline {style} points="{points}"><title>{escape(line.name + last)}</title></polyline>')
    return _frame("".join(drawn), events=events, most=most, top=top, label=label)


def bar_chart(
    bars: Sequence[tuple[int, float]],
    *,
    most: int,
    events: Iterable[tuple[int, str]],
    label: Callable[[float], str],
) -> str:
    """Return an SVG of a bar a cycle; see `line_chart`."""
    top = _nice(max((value for _, value in bars), default=0.0))
    width = max(1.0, (_WIDTH - _LEFT - _RIGHT) / (most + 1) * 0.7)
    drawn = "".join(
        f'<rect class="bar" x="{_x(at, most) - width / 2:.1f}" y="{_y(value, top):.1f}" width="{width:.1f}" '
        f'height="{_y(0, top) - _y(value, top):.1f}"><title>cycle {at}: {escape(label(value))}</title></rect>'
        for at, value in bars
        if value
    )
    return _frame(drawn, events=events, most=most, top=top, label=label)


def _frame(
    inside: str, *, events: Iterable[tuple[int, str]], most: int, top: float, label: Callable[[float], str]
) -> str:
    """Grid, scale and events around what a chart draws."""
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">']
    for tick in range(_TICKS + 1):
        value = top * tick / _TICKS
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label(value))}</text>')
    step = max(1, round(_nice(most / 10)))
    parts += [
        f'<text x="{_x(at, most):.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{at}</text>'
        for at in range(0, most + 1, step)
    ]
    for number, (at, name) in enumerate(events):
        x, y = _x(at, most), 12 + 11 * (number % 2)
        parts.append(f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{_y(0, 1):.1f}"/>')
        side = "end" if x > _WIDTH * 0.7 else "start"
        parts.append(f'<text class="event-name" x="{x:.1f}" y="{y}" text-anchor="{side}">{escape(name)}</text>')
    return "".join([*parts, inside, "</svg>"])


def _x(at: float, most: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (at + 0.5) / (most + 1)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(value / top, 1.0)


def _nice(value: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 × a power of ten."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value)


def _points(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(at, value) for at, value in enumerate(values) if value is not None]


def _legend(lines: Sequence[Line]) -> str:
    return " · ".join(f'<span style="color:{line.colour}">■</span> {escape(line.name)}' for line in lines)


# -- tables ----------------------------------------------------------------------------------------------------------


def _cycles(cycles: Sequence[Cycle]) -> str:
    rows = [
        (
            str(cycle.cycle),
            _percent(cycle.imbalance_before),
            _percent(cycle.imbalance_after),
            f"{cycle.moves:,}",
            _size(cycle.bytes),
            _money(float(cycle.cost)),
            ", ".join(cycle.limits),
            ", ".join(cycle.events),
        )
        for cycle in cycles
    ]
    return _table(("cycle", "before", "after", "moves", "bytes", "money", "bound by", "event"), rows, text=(6, 7))


def _recoveries(recoveries: Sequence[Recovery]) -> str:
    rows = [
        (
            str(found.cycle),
            found.cause,
            "no number" if found.bound.cycles is None else str(found.bound.cycles),
            found.bound.by,
            recovered(found),
        )
        for found in recoveries
    ]
    return _table(("from cycle", "after", "fewest cycles", "because of", "it took"), rows, text=(1, 3, 4))


def recovered(found: Recovery) -> str:
    """How many cycles a recovery took, in words."""
    if found.cycles is None:
        return "overtaken by the next" if found.overtaken else "not over at the end"
    held = f"; {_size(found.held_bytes)} may not leave" if found.held_bytes else ""
    return f"{found.cycles}{held}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if at in text else ''}>{escape(value)}</{tag}>" for at, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{body}</tbody></table>"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def _size(value: float) -> str:
    return humanize.naturalsize(value, binary=True, format="%.1f")


def _decimal(value: float) -> str:
    """Bytes on a scale, whose steps are decimal."""
    return humanize.naturalsize(value, format="%.4g")


def _money(value: float) -> str:
    return f"{value:.2f}"
