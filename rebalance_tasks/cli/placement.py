"""``rebalance place`` and ``rebalance simulate resize``: where objects would live by CRUSH, and what a change of nodes moves.

Both only compute: no node is looked at, nothing is moved. States set at run time (drain) count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rebalance_tasks.cli import session
from rebalance_tasks.cli.output import emit, jsonable
from rebalance_tasks.cli.parameters import Json  # noqa: TC001  typer reads it at run time
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.placement.rules import RuleName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from rebalance_tasks.core.models import NodeDescriptor, PlacementDecision
    from rebalance_tasks.core.placement.movement import Movement

Replicas = Annotated[int, typer.Option("--replicas", metavar="N", min=1, max=64, help="Copies of each object.")]
Rule = Annotated[
    RuleName | None, typer.Option("--rule", help="Instead of the fleet's placement_rule.", show_default=False)
]


def place(
    keys: Annotated[list[str], typer.Argument(metavar="KEY…", help="Object keys.")],
    replicas: Replicas = 1,
    rule: Rule = None,
    as_json: Json = False,
) -> None:
    """Compute where objects should live (`locate` tells where one is)."""
    from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm  # noqa: PLC0415
    from rebalance_tasks.core.keys import validate_key  # noqa: PLC0415
    from rebalance_tasks.core.models import PlacementTarget  # noqa: PLC0415

    client = session.open_client()
    fleet = CompiledFleet(client.cluster_map(), rule=rule or client.settings.placement_rule)
    crush = CrushPlacementAlgorithm()
    decisions = {}
    for key in keys:
        validate_key(key)
        decisions[key] = crush.compute_placement(PlacementTarget(object_key=key, replica_count=replicas), fleet)
    rows = [{"object_key": key, **jsonable(decision)} for key, decision in decisions.items()]
    emit(rows, as_json=as_json, render=lambda: _places(decisions))


def _places(decisions: dict[str, PlacementDecision]) -> RenderableType:
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    made = tables.table("KEY", "PRIMARY", "REPLICAS", "APART BY", "MISSING", right=("MISSING",))
    for key, decision in decisions.items():
        missing = str(decision.missing_replicas or "-")
        made.add_row(
            Text(repr(key)[1:-1]),
            decision.primary_node,
            ", ".join(decision.replica_nodes),
            decision.separation,
            missing,
        )
    return made


def resize(
    add: Annotated[
        list[str] | None,
        typer.Option(
            "--add", metavar="TEXT", help="A node to add: 'node_id=n9 weight=2 zone=b …'; may be given again."
        ),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="NODE", help="A node to remove; may be given again.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NODE=W", help="A node's new weight; may be given again."),
    ] = None,
    replicas: Replicas = 1,
    rule: Rule = None,
    keys: Annotated[
        int | None, typer.Option("--keys", metavar="N", min=1, help="Size of the sample (default 100,000).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what moves when nodes are added, removed or weighted anew: in all, per node, and against the least possible."""
    from rebalance_tasks.core.crush import SAMPLE_KEYS, CrushPlacementAlgorithm  # noqa: PLC0415

    client = session.open_client()
    current = client.cluster_map()
    new = resized(current, add=add or [], remove=remove or [], weights=weight or [])
    crush = CrushPlacementAlgorithm(rule=rule or client.settings.placement_rule)
    before, after = crush.compile(current), crush.compile(new)
    measured = crush.measure_movement(before, after, keys or SAMPLE_KEYS, replicas)
    estimated = crush.estimate_movement_on_resize(before, after)
    document = {
        **jsonable(measured),
        "share": measured.share,
        "ratio": measured.ratio,
        "estimated_share": estimated,
        "rule": crush.rule,
    }
    emit(document, as_json=as_json, render=lambda: _view(measured, estimated=estimated, rule=crush.rule))


def resized(
    nodes: Sequence[NodeDescriptor], *, add: Sequence[str], remove: Sequence[str], weights: Sequence[str]
) -> list[NodeDescriptor]:
    """Return the cluster map after the changes.

    Raises:
        InvalidArgument: a change is unreadable, names an unknown node or one that is there already, or there is none.
    """
    from rebalance_tasks.core.simulating.events import parse_node  # noqa: PLC0415

    if not (add or remove or weights):
        msg = "nothing would change: give --add, --remove or --weight"
        raise InvalidArgument(msg)
    changed = {str(node.node_id): node for node in nodes}
    for text in weights:
        name, value = _weight(text)
        changed[name] = _known(changed, name, "--weight").model_copy(update={"weight": value})
    for name in remove:
        del changed[_known(changed, name, "--remove").node_id]
    for text in add:
        node = parse_node(text)
        if node.node_id in changed:
            msg = f"--add: node {node.node_id!r} is there already; --weight changes its share"
            raise InvalidArgument(msg)
        changed[node.node_id] = node
    return list(changed.values())


def _known(nodes: dict[str, NodeDescriptor], name: str, flag: str) -> NodeDescriptor:
    if name not in nodes:
        msg = f"{flag}: no node {name!r} in this fleet; there are {', '.join(sorted(nodes)) or 'none'}"
        raise InvalidArgument(msg)
    return nodes[name]


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not name or not 0 <= weight < float("inf"):
        msg = f"--weight {text!r}: write NODE=W with a number W ≥ 0, such as disk1=2.5"
        raise InvalidArgument(msg)
    return name, weight


def _view(measured: Movement, *, estimated: float, rule: str) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from rebalance_tasks.cli import tables  # noqa: PLC0415

    right = ("BEFORE", "AFTER", "COMES", "GOES")
    made = tables.table("NODE", *right, right=right)
    replicas = measured.replicas or 1
    for name, node in measured.nodes.items():
        shares = (node.held_before, node.held_after, node.arriving, node.leaving)
        made.add_row(name, *(tables.percent(count / replicas) for count in shares))
    least = tables.percent(measured.least / replicas)
    times = "nothing has to move" if measured.ratio is None else f"{measured.ratio:.2f} × the least, {least}"
    return Group(
        made,
        Text(),
        Text(f"{tables.percent(measured.share)} of the replicas move: {times}"),
        Text(f"from the weights alone: {tables.percent(estimated)}"),
        Text(f"measured on {measured.keys:,} made-up keys, rule {rule}; nothing was moved", style="dim"),
    )
