"""Who serves what: for each worker its queues and the nodes it reaches by them, and which nodes nobody reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from rebalance_tasks.cli.tables import table
from rebalance_tasks.core.routes import CONTROL_QUEUE, queues_reaching

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from rebalance_tasks.core.models import NodeDescriptor


def served_by(node: NodeDescriptor, workers: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the workers that take messages from a queue which reaches the node."""
    reaching = set(queues_reaching(node))
    return [worker for worker, queues in workers.items() if not reaching.isdisjoint(queues)]


def served_row(node: NodeDescriptor, workers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The same as JSON data."""
    return {"queues": list(queues_reaching(node)), "served_by": served_by(node, workers)}


def below(
    shown: RenderableType, nodes: Sequence[NodeDescriptor], workers: Mapping[str, Sequence[str]]
) -> RenderableType:
    """Put the workers below the nodes, and in red what nobody serves."""
    made = table("WORKER", "QUEUES", "REACHES")
    for worker, queues in workers.items():
        reached = [node.node_id for node in nodes if worker in served_by(node, {worker: queues})]
        made.add_row(Text(worker), Text(", ".join(queues) or "it does not say"), Text(", ".join(reached) or "-"))
    parts = [shown, Text(), made if workers else Text("no worker is there", style="bold red")]
    alone = [node for node in nodes if not served_by(node, workers)]
    if workers and alone:
        told = "; ".join(f"{node.node_id} ({', '.join(queues_reaching(node))})" for node in alone)
        parts.append(Text(f"nobody reaches {told}", style="bold red"))
    if workers and not any(CONTROL_QUEUE in queues for queues in workers.values()):
        parts.append(Text(f"nobody serves {CONTROL_QUEUE}: nothing is decided", style="bold red"))
    return Group(*parts)
