"""What the verifier examines, and what it is held against. Who looks at it: `verifying.moves`, `verifying.rules`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.move_columns import MoveColumns
    from rebalance_tasks.core.options import RebalancerOptions


@dataclass(eq=False)
class Case:
    """A plan under examination.

    Attributes:
        plan: what it promises; of its moves only ``moves`` are looked at.
        moves: all of them, or those that are left.
        nodes: by id.
        inventory: what the nodes hold.
        options: the rules of the fleet.
    """

    plan: RebalancePlan
    moves: MoveColumns
    nodes: Mapping[str, NodeDescriptor]
    inventory: Inventory
    options: RebalancerOptions
