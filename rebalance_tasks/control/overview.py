"""The fleet at a glance, for whoever shows it over and over: a probe of each node now and then, a few reads of Redis."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control import fleetwide
from rebalance_tasks.control.survey import NodeReport, probe
from rebalance_tasks.core.errors import NodeMissing, RebalanceError
from rebalance_tasks.core.imbalance import imbalance
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import NodeDescriptor


#: Probes wait for networks, not for the processor.
_PROBES_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class NodeOverview:
    """One node now.

    Attributes:
        node: with its capacity, where one is known, and the state set at run time.
        status, detail: as in `NodeReport`.
        awaiting_bytes: freed, and still in the trash.
        held_by: who holds it (``operator``, ``missing``).
    """

    node: NodeDescriptor
    status: str
    detail: str
    used_bytes: int
    awaiting_bytes: int
    held_by: tuple[str, ...]

    @property
    def utilisation(self) -> float | None:
        """Used ÷ capacity; ``None`` without a capacity."""
        return self.used_bytes / self.node.capacity_bytes if self.node.capacity_bytes else None


@dataclass(frozen=True, slots=True)
class Overview:
    """A fleet now.

    Attributes:
        active_job: id of the one active job, if any.
        surveyed: whether anybody has looked at what the nodes hold; without, every node seems empty.
        imbalance: ``None`` until then.
        limit: how many groups may transfer at once.
        throttle: bytes a second of each group, ``None`` for no limit.
    """

    active_job: str | None
    paused_reasons: tuple[str, ...]
    surveyed: bool
    imbalance: float | None
    limit: int
    throttle: int | None
    nodes: tuple[NodeOverview, ...]


def glances(context: FleetContext) -> list[NodeReport]:
    """Report on every node without listing its objects: what it holds is what Redis keeps of the last survey.

    Probes run side by side, since each may be a call over a network.
    """
    adopted = context.fleet.adopted()
    usage = context.fleet.usage()

    def glance(node: NodeDescriptor) -> NodeReport:
        used = usage.get(node.node_id, 0)
        if node.state is NodeState.MAINTENANCE:
            return NodeReport(node, "maintenance", "not looked at", used, node.capacity_bytes)
        try:
            health = probe(context, node, adopted=adopted)
        except RebalanceError as exc:
            status = "missing" if isinstance(exc, NodeMissing) else "not_writable"
            return NodeReport(node, status, str(exc), used, node.capacity_bytes)
        capacity = health.total_bytes if node.capacity_bytes is None else node.capacity_bytes
        if health.adopted:
            return NodeReport(node, "ok", "", used, capacity)
        return NodeReport(node, "unadopted", "no node-id yet: the first job writes it", used, capacity)

    with ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        return list(pool.map(glance, context.nodes()))


def overview(context: FleetContext, glances: Sequence[NodeReport]) -> Overview:
    """Join what Redis says now with what a look at the nodes said a while ago.

    Args:
        context: the fleet.
        glances: of every node; statuses and natural capacities are theirs.
    """
    usage, awaiting = context.fleet.usage(), context.fleet.awaiting()
    states = context.fleet.node_states()
    held: dict[str, list[str]] = {}
    for hold in context.holds.all():
        held.setdefault(hold.node_id, []).append(hold.owner)
    configured = {node.node_id: node.state for node in context.settings.nodes}
    nodes = tuple(
        NodeOverview(
            node=_as_seen(glance, states.get(node_id, configured[node_id])),
            status=glance.status,
            detail=glance.detail,
            used_bytes=usage.get(node_id, 0),
            awaiting_bytes=awaiting.get(node_id, 0),
            held_by=tuple(held.get(node_id, ())),
        )
        for glance in glances
        for node_id in [glance.node.node_id]
    )
    used = {entry.node.node_id: entry.used_bytes for entry in nodes}
    return Overview(
        active_job=context.jobs.active(),
        paused_reasons=tuple(sorted(context.fleet.paused_reasons())),
        surveyed=bool(usage),
        imbalance=imbalance((entry.node for entry in nodes), used) if usage else None,
        limit=fleetwide.limit_in_force(context),
        throttle=fleetwide.throttle_in_force(context),
        nodes=nodes,
    )


def _as_seen(glance: NodeReport, state: NodeState) -> NodeDescriptor:
    """The node with the capacity and the state of now; a copy only where they differ, since a fleet may have thousands."""
    node = glance.node
    if node.capacity_bytes == glance.capacity_bytes and node.state is state:
        return node
    return node.model_copy(update={"capacity_bytes": glance.capacity_bytes, "state": state})
