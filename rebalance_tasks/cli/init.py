"""``rebalance init``: write a commented rebalance.toml from a few questions or flags, and test it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from rebalance_tasks.cli import output
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time

if TYPE_CHECKING:
    from rebalance_tasks.control.examining.findings import Finding

#: Findings that a fleet has before its first worker starts.
TESTED: Final = ("redis", "durability", "eviction", "node", "nodes", "settings")
#: What a node given as a flag may say besides its place.
NODE_FIELDS: Final = ("zone", "rack", "host", "pool", "region", "queue", "capacity_bytes")


@dataclass(slots=True)
class Answers:
    """What a configuration is written from; each node is its fields as TOML shows them."""

    name: str
    redis_url: str
    mode: str
    nodes: list[dict[str, str]] = field(default_factory=list)


def init(
    path: Annotated[Path, typer.Option("--path", metavar="FILE", help="Where to write.")] = Path("rebalance.toml"),
    name: Annotated[str | None, typer.Option("--name", help="The fleet's name.")] = None,
    redis_url: Annotated[str | None, typer.Option("--redis-url", metavar="URL", help="Where the state lives.")] = None,
    mode: Annotated[
        Literal["observe", "auto"], typer.Option("--mode", help="`observe` plans and touches nothing.")
    ] = "observe",
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="ID=PLACE[,zone=Z,…]",
            help="A node, as disk1=/srv/disk1,zone=a,capacity_bytes=4TB; once for each.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented rebalance.toml from a few questions (or flags), then test it. It asks only on a terminal."""
    if path.exists() and not force:
        msg = f"{str(path)!r} is there already; --force replaces it, --path writes elsewhere"
        raise typer.BadParameter(msg, param_hint="--path")
    answers = Answers(name or "", redis_url or "", mode, [_node(text) for text in node or ()])
    if sys.stdin.isatty() and not as_json:
        _ask(answers)
    answers.name = answers.name or "fleet"
    answers.redis_url = answers.redis_url or "redis://127.0.0.1:6379/0"
    write(path, answers)
    findings = _tested(path)
    output.emit(
        {"path": str(path.absolute()), "findings": findings},
        as_json=as_json,
        render=lambda: f"{path} is written",
    )
    if not as_json:
        from rebalance_tasks.cli.doctor import findings_table  # noqa: PLC0415

        output.console().print(findings_table(findings))
        typer.echo(f"next: export REBALANCE_CONFIG={path.absolute()}; rebalance plan")


def _ask(answers: Answers) -> None:
    """Ask for what no flag gave."""
    answers.name = answers.name or typer.prompt("Name of the fleet", default="fleet")
    answers.redis_url = answers.redis_url or typer.prompt("Redis", default="redis://127.0.0.1:6379/0")
    if answers.nodes:
        return
    typer.echo("Nodes, one at a time; an empty place ends.")
    while place := typer.prompt(
        f"Place of node {len(answers.nodes) + 1} (folder or URL)", default="", show_default=False
    ):
        suggested = Path(place).name or f"node{len(answers.nodes) + 1}"
        node = {"node_id": typer.prompt("  its id", default=suggested), "url": _url(place)}
        zone = typer.prompt("  its zone, if any", default="", show_default=False)
        answers.nodes.append(node | ({"zone": zone} if zone else {}))


def _node(text: str) -> dict[str, str]:
    """Read a node given as a flag. Raises: typer.BadParameter."""
    head, *more = text.split(",")
    node_id, _, place = head.partition("=")
    fields = dict(part.split("=", 1) for part in more if "=" in part)
    if not node_id or not place or len(fields) != len(more) or not set(fields) <= set(NODE_FIELDS):
        msg = f"{text!r} is no node: write ID=PLACE, then any of {', '.join(NODE_FIELDS)} as ,zone=a"
        raise typer.BadParameter(msg, param_hint="--node")
    return {"node_id": node_id, "url": _url(place), **fields}


def _url(place: str) -> str:
    return place if "://" in place else Path(place).expanduser().absolute().as_uri()


def write(path: Path, answers: Answers) -> None:
    """Write the file, if what it says can be read back; else nothing is left. Raises: ConfigurationError."""
    from rebalance_tasks.settings import load_settings  # noqa: PLC0415  as in the other commands

    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text_of(answers), encoding="utf-8")
        load_settings(draft, environ={})
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def text_of(answers: Answers) -> str:
    """Return the commented configuration."""
    nodes = "\n".join(
        "[[nodes]]\n" + "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in node.items())
        for node in answers.nodes
    )
    return f"""# What these settings mean, and all the others: docs/reference/settings.md
[fleet]
name = {json.dumps(answers.name, ensure_ascii=False)}
# "observe" plans and touches nothing until you start a plan; "auto" carries plans out.
mode = "{answers.mode}"
# How readers find an object: they look on all nodes (union), by placement (crush), or in Redis (catalogue).
locator = "union"
# A password: "redis://:${{REDIS_PASSWORD}}@host/0", or "${{file:/run/secrets/redis}}" in its place.
redis_url = {json.dumps(answers.redis_url, ensure_ascii=False)}

[options]
# default, aggressive or conservative; what stands below goes on top of it.
preset = "default"
# A check plans when the fullest and the emptiest node are so far apart.
# imbalance_threshold = 0.10
# Of each group, at once.
# throttle_bytes_per_sec = "50MiB/s"
# Nothing moves in these hours.
# quiet_hours = [8, 18]
# quiet_hours_timezone = "Europe/Berlin"

# Each node needs an id and a place. capacity_bytes may be left out where a node is a file system of its own.
{nodes}"""


def _tested(path: Path) -> list[Finding]:
    """What the doctor says of the parts that are there before the first worker is."""
    from rebalance_tasks.client import Rebalancer  # noqa: PLC0415
    from rebalance_tasks.settings import load_settings  # noqa: PLC0415

    findings = Rebalancer(load_settings(path)).doctor()
    return [finding for finding in findings if finding.name.partition(" ")[0] in TESTED]
