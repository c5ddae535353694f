"""Node states set at run time: drain and activate (after a look at what fits), maintenance. They win over the configuration.

operator ─▶ **drain** ── survey ▸ what fits elsewhere ▸ refuse, or set the state ──▶ the next check plans the node empty
operator ─▶ **activate** ── survey ▸ what the node can hold ▸ refuse, or set the state ──▶ the next check plans with the node
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rebalance_tasks.control.surveying.waited import all_seen, seen_alone
from rebalance_tasks.core.activation import ActivationCheck, check_activation
from rebalance_tasks.core.drain import DrainCheck, check_drain
from rebalance_tasks.core.errors import ConfigurationError, NodeError, RetryableError, UnknownNode
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)

Check = TypeVar("Check", DrainCheck, ActivationCheck)


@dataclass(frozen=True, slots=True)
class StateChange(Generic[Check]):
    """What became of a node's state.

    Attributes:
        before: its state until now.
        state: its state now.
        reason: why it was not changed although that was asked for; empty otherwise.
        check: what draining or activating comes to; ``None`` where nobody looked.
    """

    node_id: str
    before: NodeState
    state: NodeState
    reason: str = ""
    check: Check | None = None

    @property
    def fits(self) -> bool:
        """Whether nothing was found that will not fit."""
        return self.check is None or self.check.fits


def drain(
    context: FleetContext, node_id: str, *, force: bool = False, dry_run: bool = False, by: str = ""
) -> StateChange[DrainCheck]:
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
    settings = context.settings
    check = check_drain(
        seen.nodes,
        seen.inventory,
        node_id,
        options=settings.options,
        now=context.now(),
        prices=settings.price_matrix,
    )
    change = StateChange(node_id, before, NodeState.DRAINING, check=check)
    return _made(context, change, force=force, dry_run=dry_run, by=by)


def activate(
    context: FleetContext, node_id: str, *, force: bool = False, dry_run: bool = False, by: str = ""
) -> StateChange[ActivationCheck]:
    """Let a node give and take again, if it can hold what it has or others have room for the rest.

    Args:
        context: the fleet.
        node_id: the node.
        force: also when something will not fit, or nobody can look at the node now.
        dry_run: only look.
        by: who asks.

    Returns:
        The change; with a ``reason`` when it was refused, and without a ``check`` where others than this node keep anybody from looking.

    Raises:
        UnknownNode: no such node is configured.
        NodeError: the node cannot be surveyed (unless ``force``).
        ConfigurationError: its capacity must be stated (unless ``force``).
        RetryableError: a check has the nodes looked at (unless ``force``).
    """
    before = context.node(node_id).state
    try:
        check = _activation(context, node_id)
    except (NodeError, ConfigurationError, RetryableError) as exc:
        if not force and getattr(exc, "node_id", node_id) == node_id:
            raise
        log.info("node.not_looked_at", node_id=node_id, error=str(exc))
        check = None
    change = StateChange(node_id, before, NodeState.ACTIVE, check=check)
    return _made(context, change, force=force, dry_run=dry_run, by=by)


def _made(
    context: FleetContext, change: StateChange[Check], *, force: bool, dry_run: bool, by: str
) -> StateChange[Check]:
    """Make a change that was looked into, unless something will not fit or nothing is to be changed."""
    if dry_run:
        return replace(change, state=change.before)
    if not change.fits and not force:
        return replace(change, state=change.before, reason="does_not_fit")
    _set(context, change.node_id, change.state, by=by)
    return change


def _activation(context: FleetContext, node_id: str) -> ActivationCheck:
    seen = seen_alone(replace(context, assumed={node_id: NodeState.ACTIVE}))
    if (why := seen.left_out.get(node_id)) is not None:
        raise NodeError(node_id, f"it could not be surveyed: {why}")
    settings = context.settings
    return check_activation(
        seen.nodes,
        seen.inventory,
        node_id,
        options=settings.options,
        now=context.now(),
        prices=settings.price_matrix,
    )


def set_state(context: FleetContext, node_id: str, state: NodeState, *, by: str = "") -> StateChange[Any]:
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
