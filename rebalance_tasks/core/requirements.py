"""What one object asks of one node, an object at a time: for drain and undo, which name the constraint that stands in the way.

The planner asks the same in bulk (and `verify` once more, by itself); here the answer is a word for people.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebalance_tasks.core.inventory import Coded, Inventory
    from rebalance_tasks.core.models import NodeDescriptor


#: column of the inventory -> (the word for it, whether a node has what a value of it asks).
NEEDS: Final[Mapping[str, tuple[str, Callable[[NodeDescriptor, Any], bool]]]] = {
    "required_storage_class": ("storage_class", lambda node, wanted: wanted in node.storage_classes),
    "required_regions": ("regions", lambda node, allowed: node.region in allowed),
    "required_tags": ("tags", lambda node, tags: {f"{key}={value}" for key, value in node.tags.items()} >= set(tags)),
}


def refusal(node: NodeDescriptor, inventory: Inventory, row: int, key: str) -> str:
    """Return why a node may not hold an object, a word of `NEEDS` or ``excluded``; empty when it may."""
    for column, (word, has) in NEEDS.items():
        needed: Coded[Any] | None = getattr(inventory, column)
        if needed is not None and needed.codes[row] >= 0 and not has(node, needed.values[needed.codes[row]]):
            return word
    return "" if knows(node, key) else "excluded"


def knows(node: NodeDescriptor, key: str) -> bool:
    """Whether a node's patterns let a key through."""
    included = not node.include or any(fnmatchcase(key, pattern) for pattern in node.include)
    return included and not any(fnmatchcase(key, pattern) for pattern in node.exclude)


def host_of(node: NodeDescriptor) -> str:
    """Where a node stands, as far as replicas care; one that names no host is its own."""
    return f"host:{node.host}" if node.host else f"node:{node.node_id}"
