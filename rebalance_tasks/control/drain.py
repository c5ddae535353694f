"""Node states set at run time: drain (after a look at what fits), maintenance, active. They win over the configuration.

operator ─▶ **drain** ── survey ▸ what fits elsewhere ▸ refuse, or set the state ──▶ the next check plans the node empty
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebalance_tasks.control.surveying.waited import all_seen
from rebalance_tasks.core.drain import DrainCheck, check_drain
from rebalance_tasks.core.errors import UnknownNode
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StateChange:
    """What became of a node's state.

    Attributes:
        before: its state until now.
        state: its state now.
        reason: why it was not changed although that was asked for; empty otherwise.
        check: what draining comes to; ``None`` where nobody looked.
    """

    node_id: str
    before: NodeState
    state: NodeState
    reason: str = ""
    check: DrainCheck | None = None


def drain(
    context: FleetContext, node_id: str, *, force: bool = False, dry_run: bool = False, by: str = ""
) -> StateChange:
    """Have a node emptied, if everything on it fits elsewhere.

    Args:
        context: the fleet.
        node_id: the node.
        force: also when something will not fit; it stays where it is.
        dry_run: only look.
        by: who asks.

    Returns:
        The change; with a ``reason`` when it was refused.

    Raises:
        UnknownNode: no such node is configured.
        NodeError: a node cannot be surveyed, so nobody can say what fits.
        ConfigurationError: nobody can say it of so many objects (unless ``force``).
        RetryableError: a check has the nodes looked at.
    """
    before = context.node(node_id).state
    seen = all_seen(context, whole=not force)
    prices = {(price.from_region, price.to_region): price.per_gb for price in context.settings.prices}
    check = check_drain(
        seen.nodes, seen.inventory, node_id, options=context.settings.options, now=context.now(), prices=prices
    )
    if dry_run:
        return StateChange(node_id, before, before, check=check)
    if not check.fits and not force:
        return StateChange(node_id, before, before, reason="does_not_fit", check=check)
    _set(context, node_id, NodeState.DRAINING, by=by)
    return StateChange(node_id, before, NodeState.DRAINING, check=check)


def set_state(context: FleetContext, node_id: str, state: NodeState, *, by: str = "") -> StateChange:
    """Set a node's state without a look. Raises: UnknownNode."""
    before = context.node(node_id).state
    _set(context, node_id, state, by=by)
    return StateChange(node_id, before, state)


def _set(context: FleetContext, node_id: str, state: NodeState, *, by: str) -> None:
    configured = {node.node_id: node.state for node in context.settings.nodes}
    if node_id not in configured:
        raise UnknownNode(node_id)
    if configured[node_id] is state:
        # What the file says anyway is not kept: a later change of the file must not be overruled by it.
        context.fleet.forget_node_state(node_id)
    else:
        context.fleet.set_node_state(node_id, state)
    context.events.note(EventKind.NODE_STATE, by=by, data={"node": node_id, "state": state.value})
    log.info("node.state", node_id=node_id, state=state.value)
