"""What the moves of a plan cannot carry, and the fleet that refuses to lose it (`[fleet] must_carry`)."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.drivers.registry import lost_between

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.settings.model import Settings


def with_losses(plan: RebalancePlan, nodes: Iterable[NodeDescriptor]) -> RebalancePlan:
    """Return the plan with what each of its pairs of nodes loses, as ``"source > target"`` → attributes."""
    known = {node.node_id: node for node in nodes}
    pairs = sorted({(move.source_node, move.target_node) for move in plan.moves})
    found = {
        f"{source} > {target}": tuple(map(str, lost_between(known[source], known[target]))) for source, target in pairs
    }
    return plan.model_copy(update={"not_carried": {pair: lost for pair, lost in found.items() if lost}})


def require_carried(settings: Settings) -> None:
    """Refuse a pool in which an object could lose what the fleet must carry.

    Raises:
        ConfigurationError: names the field, the pair of nodes, what it loses and the ways out.
    """
    wanted = set(settings.must_carry)
    for source, target in permutations(settings.nodes, 2) if wanted else ():
        lost = [attribute for attribute in lost_between(source, target) if attribute in wanted]
        if source.pool == target.pool and lost:
            message = (
                f"[fleet] must_carry = {[str(attribute) for attribute in settings.must_carry]}: an object that moves from node "
                f"{source.node_id!r} to {target.node_id!r} (both in pool {source.pool!r}) loses {', '.join(lost)}; give one of them "
                f"another pool, or take {', '.join(lost)} off must_carry (docs/reference/drivers.md says what each kind of node keeps)"
            )
            raise ConfigurationError(message)
