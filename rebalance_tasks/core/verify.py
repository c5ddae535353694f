"""The second opinion: every plan is checked against fleet, inventory and options before a byte moves.

It imports nothing from the planner or `imbalance` and does its own arithmetic (exact fractions, Decimal), so that a mistake
has to be made twice to pass. The first broken rule raises and names the move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.move_columns import MoveColumns
from rebalance_tasks.core.verifying.moves import MoveRules
from rebalance_tasks.core.verifying.rules import PlanRules, broken

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.verifying.moves import Broken


class HasNodes(Protocol):
    """A cluster map: anything that knows its nodes."""

    @property
    def nodes(self) -> Iterable[NodeDescriptor]:
        """The nodes."""
        ...


ClusterLike: TypeAlias = "Iterable[NodeDescriptor] | Mapping[str, NodeDescriptor] | HasNodes"


def verify_plan(  # noqa: PLR0913  as many facts as the plan was made of
    plan: RebalancePlan,
    cluster_map: ClusterLike,
    inventory: Inventory,
    options: RebalancerOptions,
    *,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
    reserved_bytes: Mapping[str, int] | None = None,
    excluded_keys: Collection[str] = (),
    now: datetime | None = None,
) -> None:
    """Check that a plan keeps every rule.

    Args:
        plan: what is to be done.
        cluster_map: the nodes: an iterable or mapping of `NodeDescriptor`, or anything with ``nodes``.
        inventory: what the nodes hold.
        options: the rules of the fleet.
        prices: the price matrix the plan was made with; without it, the nodes' own egress prices.
        reserved_bytes: node_id → bytes already promised to running jobs.
        excluded_keys: objects that were to be left alone.
        now: when ages are measured; default the plan's own time, else the newest time in the inventory.

    Raises:
        PlanInvariantError: names the first broken rule, and the move that breaks it.
    """
    nodes, moves = _nodes(cluster_map), MoveColumns.of(plan.moves)
    rules = MoveRules(plan, moves, nodes, inventory, options, _moment_ns(plan, inventory, now), prices or {})
    rules.broken.note(moves.repeated(), "is moved twice")
    left_alone = pc.is_in(moves.keys, value_set=pa.array(list(excluded_keys), pa.large_string()))
    rules.broken.note(left_alone.to_numpy(zero_copy_only=False), "is excluded (pending in a job or forwarded)")
    rules.each()
    rules.replicas_apart()
    rules.broken.require_none()
    check = PlanRules(plan, moves, nodes, inventory, options)
    check.room(reserved_bytes or {})
    check.costs(prices or {})
    check.sums()
    check.budgets()
    check.spread()


def broken_moves(
    plan: RebalancePlan,
    moves: MoveColumns,
    cluster_map: ClusterLike,
    inventory: Inventory,
    options: RebalancerOptions,
    *,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
    now: datetime | None = None,
) -> Broken:
    """Look at a plan again, some time after it was made: which of its moves can no longer be made?

    Asks what each move keeps by itself, and that replicas stay apart. Room and budgets are counted again, to the byte, by whoever
    carries the moves out; what is left of the spread's promise is `require_no_wider_spread`.

    Args:
        plan: passed `verify_plan` when it was made; its own moves are not looked at.
        moves: of the plan.
        cluster_map: the nodes as they are now.
        inventory: the moved objects as they are now and the other members of their replica groups; no others need be in it.
        options: the rules of the fleet as they are now.
        prices: of now, of which an object's gravity may follow.
        now: when ages are measured.
    """
    nodes = _nodes(cluster_map)
    rules = MoveRules(plan, moves, nodes, inventory, options, _moment_ns(plan, inventory, now), prices or {})
    rules.each()
    rules.replicas_apart()
    return rules.broken


def require_no_wider_spread(
    plan: RebalancePlan,
    moves: MoveColumns,
    cluster_map: ClusterLike,
    inventory: Inventory,
    options: RebalancerOptions,
) -> None:
    """Check alone that some moves of a plan widen no pool's spread (those of drains and undos may).

    Args:
        plan: whose moves they are.
        moves: what is to be done.
        cluster_map: the nodes, with the bytes that each holds (``used_bytes``).
        inventory: adds to those of a node only where it lists more.
        options: the rules of the fleet.

    Raises:
        PlanInvariantError: names the pool.
    """
    PlanRules(plan, moves, _nodes(cluster_map), inventory, options).no_wider()


def _nodes(cluster_map: ClusterLike) -> dict[str, NodeDescriptor]:
    found: Any = getattr(cluster_map, "nodes", cluster_map)
    listed: list[NodeDescriptor] = list(found.values() if hasattr(found, "values") else found)
    nodes = {node.node_id: node for node in listed}
    if len(nodes) != len(listed):
        broken("the fleet has two nodes with one node_id")
    return nodes


def _moment_ns(plan: RebalancePlan, inventory: Inventory, now: datetime | None) -> int | None:
    if (moment := now or plan.created_utc) is not None:
        whole = int(moment.replace(microsecond=0).timestamp())
        return whole * 10**9 + moment.microsecond * 1000
    columns = (inventory.mtime_ns, inventory.last_moved_ns, inventory.last_access_ns)
    times = [int(column.max()) for column in columns if column is not None and len(column)]
    return max((time for time in times if time != UNKNOWN_TIME), default=None)
