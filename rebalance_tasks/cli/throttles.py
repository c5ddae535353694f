"""``rebalance throttle``: how fast groups may write and nodes be worked, shown and changed while jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rebalance_tasks.cli import session
from rebalance_tasks.cli.output import emit
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time
from rebalance_tasks.core.units import parse_rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from rebalance_tasks.client import Rebalancer
    from rebalance_tasks.control.throttles import Direction, NodeThrottle

#: Words for no throttle at all.
_UNTHROTTLED = frozenset({"none", "off", "unlimited"})
_DEFAULT: Literal["default"] = "default"


def throttle(
    rate: Annotated[
        str | None,
        typer.Argument(
            metavar="[RATE]",
            help="Bytes a second, as 20MiB/s (with --of requests a number); `none` lifts it, `default` goes by rebalance.toml again.",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NODE", help="Of this node, of all workers together; else of each group."),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            "--of", metavar="WHAT", help="With --node: read, write, or requests (copies that its server makes)."
        ),
    ] = "write",
    as_json: Json = False,
) -> None:
    """Show or change how fast groups may write and nodes be worked; acts on running groups at once, and lasts until it is set again."""
    client = session.open_client()
    if node is None:
        _of_groups(client, rate, as_json=as_json)
        return
    what = _direction(direction)
    if rate is not None:
        client.set_node_throttle(node, what, _wanted(rate, counts=what == "requests"))
    client.settings.node(node)
    found = [entry for entry in client.node_throttles() if entry.node_id == node]
    data = [throttle_data(entry) for entry in found]
    emit(data, as_json=as_json, render=lambda: throttle_lines(found) if found else f"no limit for {node}")


def _of_groups(client: Rebalancer, rate: str | None, *, as_json: bool) -> None:
    if rate is None:
        now = client.throttle()
    else:
        wanted = _wanted(rate, counts=False)
        now = client.reset_throttle() if wanted == _DEFAULT else client.set_throttle(wanted)
    configured = client.settings.options.throttle_bytes_per_sec
    nodes = client.node_throttles()
    data = {
        "throttle_bytes_per_sec": now,
        "configured": configured,
        "node_throttles": [throttle_data(entry) for entry in nodes],
    }

    def view() -> RenderableType:
        line = f"{_rate_text(now)} for each group (configured: {_rate_text(configured)})"
        return below(line, nodes, {})

    emit(data, as_json=as_json, render=view)


def _direction(text: str) -> Direction:
    match text:
        case "read" | "write" | "requests":
            return text
        case _:
            msg = f"{text!r} is no direction of a node: read, write or requests"
            raise typer.BadParameter(msg, param_hint="--of")


def _wanted(text: str, *, counts: bool) -> int | Literal["default"] | None:
    word = text.lower()
    if word == _DEFAULT:
        return _DEFAULT
    if word in _UNTHROTTLED:
        return None
    try:
        rate = int(text) if counts else parse_rate(text)
    except ValueError as exc:
        msg = f"{exc}, or `none`, or `default`"
        raise typer.BadParameter(msg, param_hint="RATE") from exc
    if rate < 1:
        msg = f"{text!r} is no rate: at least 1 a second; `rebalance pause` holds everything"
        raise typer.BadParameter(msg, param_hint="RATE")
    return rate


def _rate_text(rate: int | None, *, counts: bool = False) -> str:
    from rebalance_tasks.cli import tables  # noqa: PLC0415

    if rate is None:
        return "no limit"
    return f"{rate}/s" if counts else f"{tables.size(rate)}/s"


def throttle_data(entry: NodeThrottle) -> dict[str, Any]:
    """One node's limit in one direction, as plain data."""
    pace = entry.pace
    return {
        "node_id": entry.node_id,
        "direction": entry.direction,
        "rate": entry.rate,
        "held_to": (pace.rate_bytes_per_s or None) if pace else None,
        "latency_ms": round(pace.smoothed_ms, 3) if pace else None,
        "usual_latency_ms": round(pace.usual_ms, 3) if pace else None,
        "reason": entry.reason,
    }


def below(
    page: RenderableType, entries: Sequence[NodeThrottle], fewer: Mapping[tuple[str, str], str]
) -> RenderableType:
    """A page, and below it the limits of nodes, and the pairs of nodes between which fewer objects are in flight than usual."""
    from rich.console import Group  # noqa: PLC0415  as everything of rich, loaded by what prints

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    parts = [page, *(["", throttle_lines(entries)] if entries else [])]
    if fewer:
        made = tables.table("FROM", "TO", "FEWER IN FLIGHT")
        for (source, target), why in fewer.items():
            made.add_row(source, target, tables.printable(why))
        parts += ["", made]
    return Group(*parts)


def throttle_lines(entries: Sequence[NodeThrottle]) -> RenderableType:
    """Limits of nodes, and what holds them back, a line each."""
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    made = tables.table("NODE", "OF", "LIMIT", "HELD TO", "WHY", right=("LIMIT", "HELD TO"))
    for entry in entries:
        held = entry.pace.rate_bytes_per_s if entry.pace else 0
        counts = entry.direction == "requests"
        made.add_row(
            entry.node_id,
            entry.direction,
            _rate_text(entry.rate, counts=counts),
            _rate_text(held) if held else "-",
            Text(entry.reason or "-"),
        )
    return made
