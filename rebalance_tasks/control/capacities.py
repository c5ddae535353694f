"""How large each node is: as stated, else as its file system says; and how much of that is not to be planned into."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.drivers.base import NodeHealth

#: What a file system lacks is rounded up to such a part of the capacity: what others write there must not make a new plan each time.
_PARTS: Final = 256


def capacities_of(nodes: Sequence[NodeDescriptor], healths: Mapping[str, NodeHealth]) -> dict[str, int]:
    """Stated capacities, else what the file system says; two nodes on one device must state theirs."""
    # Machines number their devices alike.
    by_device: defaultdict[tuple[int, str], list[NodeDescriptor]] = defaultdict(list)
    for node in nodes:
        if node.node_id in healths and healths[node.node_id].device:
            by_device[healths[node.node_id].device, node.queue].append(node)
    for sharing in by_device.values():
        unstated = [node.node_id for node in sharing if node.capacity_bytes is None]
        if len(sharing) > 1 and unstated:
            others = ", ".join(node.node_id for node in sharing)
            msg = (
                f"nodes {others} are on one device, so its size says nothing about each: "
                f"state capacity_bytes for {', '.join(unstated)} in rebalance.toml"
            )
            raise ConfigurationError(msg)
    result: dict[str, int] = {}
    for node in nodes:
        health = healths.get(node.node_id)
        capacity = node.capacity_bytes
        if capacity is None and health is not None:
            capacity = health.total_bytes
        if capacity is None and health is not None:
            msg = f"node {node.node_id} has no natural capacity: state capacity_bytes in rebalance.toml"
            raise ConfigurationError(msg)
        result[node.node_id] = capacity or 0
    return result


def reserved_of(
    node: NodeDescriptor, options: RebalancerOptions, *, capacity: int | None, used: int, free: int | None
) -> int:
    """Return the bytes of a node's capacity that nothing is to be planned into: as configured, or more where its file system has less room.

    Args:
        node: as configured.
        options: for `max_utilisation`.
        capacity: of the node.
        used: bytes of its objects.
        free: what an ordinary user could still write there; None where nobody says.
    """
    if free is None or not capacity:
        return node.reserved_bytes
    lacking = int(Fraction(str(options.max_utilisation)) * capacity) - used - free
    part = max(1, capacity // _PARTS)
    return max(node.reserved_bytes, -(-lacking // part) * part)
