"""What one object asks of one node, an object at a time: for drain and undo, which name the constraint that stands in the way.

The planner asks the same in bulk (and `verify` once more, by itself); here the answer is a word for people.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor


def refusal(node: NodeDescriptor, inventory: Inventory, row: int, key: str) -> str:
    """Return why a node may not hold an object, ``storage_class``, ``regions`` or ``excluded``; empty when it may."""
    classes, regions = inventory.required_storage_class, inventory.required_regions
    if (
        classes is not None
        and classes.codes[row] >= 0
        and classes.values[classes.codes[row]] not in node.storage_classes
    ):
        return "storage_class"
    if regions is not None and regions.codes[row] >= 0 and node.region not in regions.values[regions.codes[row]]:
        return "regions"
    return "" if knows(node, key) else "excluded"


def knows(node: NodeDescriptor, key: str) -> bool:
    """Whether a node's patterns let a key through."""
    included = not node.include or any(fnmatchcase(key, pattern) for pattern in node.include)
    return included and not any(fnmatchcase(key, pattern) for pattern in node.exclude)


def host_of(node: NodeDescriptor) -> str:
    """Where a node stands, as far as replicas care; one that names no host is its own."""
    return f"host:{node.host}" if node.host else f"node:{node.node_id}"
