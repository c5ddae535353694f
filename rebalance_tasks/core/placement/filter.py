"""Which nodes may hold an object at all: state, weight, and what the object or the caller requires.

Stands before the tree: `crush` keeps the eligible nodes only, so a hard constraint is never traded for anything. When
nothing is left, the error names the constraint that emptied the set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import EmptyClusterError, InvalidArgument
from rebalance_tasks.core.models import ConstraintType, NodeDescriptor, NodeState, PlacementConstraint, PlacementTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class NodeFilter:
    """A yes-or-no question about a node.

    Attributes:
        name: says all there is to know (``"required_zones=('a', 'b')"``); equal names are equal filters.
        accepts: the question.
        required: False only ranks the nodes that answer yes before the others.
    """

    name: str
    accepts: Callable[[NodeDescriptor], bool] = field(compare=False, repr=False)
    required: bool = True


def check_nodes(nodes: Sequence[object]) -> None:
    """Refuse a cluster map that no placement can be computed on.

    Raises:
        InvalidArgument: an element is not a node, an id occurs twice, or a weight is negative, infinite or NaN.
    """
    seen: set[str] = set()
    for position, node in enumerate(nodes):
        if not isinstance(node, NodeDescriptor):
            msg = f"cluster_map[{position}]: {type(node).__name__} is not a NodeDescriptor"
            raise InvalidArgument(msg)
        if node.node_id in seen:
            msg = f"cluster_map: node_id {node.node_id!r} occurs twice; give every node an id of its own"
            raise InvalidArgument(msg)
        if not (math.isfinite(node.weight) and node.weight >= 0):
            msg = f"cluster_map: weight {node.weight} of node {node.node_id!r} must be a finite number ≥ 0"
            raise InvalidArgument(msg)
        seen.add(node.node_id)


def effective_weight(node: NodeDescriptor) -> float:
    """Return the weight that new placement gives the node: 0 unless it is active."""
    return node.weight if node.state is NodeState.ACTIVE else 0.0


def target_filters(
    target: PlacementTarget | None, constraints: Sequence[PlacementConstraint] | None
) -> tuple[NodeFilter, ...]:
    """Return what the object and the caller ask of a node, in the order in which it is asked."""
    filters = [] if target is None else _object_filters(target)
    return (*filters, *(_constraint_filter(constraint) for constraint in constraints or ()))


def eligible_nodes(nodes: Sequence[NodeDescriptor], filters: Sequence[NodeFilter]) -> list[int]:
    """Return the positions of the nodes that are active, have weight and pass every required filter.

    Raises:
        EmptyClusterError: none is left; the message names the filter that emptied the set.
    """
    if not nodes:
        msg = "no eligible node: the cluster map is empty; add nodes to it"
        raise EmptyClusterError(msg)
    first = [
        NodeFilter("state=active", lambda node: node.state is NodeState.ACTIVE),
        NodeFilter("weight>0", lambda node: node.weight > 0),
    ]
    left = list(range(len(nodes)))
    for asked in (*first, *(one for one in filters if one.required)):
        before = len(left)
        left = [i for i in left if asked.accepts(nodes[i])]
        if not left:
            msg = (
                f"no eligible node: {asked.name} excludes all of the {before} nodes that were left of {len(nodes)}; "
                "relax it or add a node that fulfils it"
            )
            raise EmptyClusterError(msg)
    return left


def preference_scores(
    nodes: Sequence[NodeDescriptor], eligible: Sequence[int], filters: Sequence[NodeFilter]
) -> list[int] | None:
    """Return how many preferences each eligible node fulfils; None when nothing is preferred."""
    preferred = [one for one in filters if not one.required]
    if not preferred:
        return None
    return [sum(one.accepts(nodes[i]) for one in preferred) for i in eligible]


def _object_filters(target: PlacementTarget) -> list[NodeFilter]:
    filters = []
    if (wanted := target.required_storage_class) is not None:
        filters.append(
            NodeFilter(f"required_storage_class={wanted.value!r}", lambda node: wanted in node.storage_classes)
        )
    if zones := target.required_zones:
        filters.append(NodeFilter(f"required_zones={zones!r}", lambda node: node.zone in zones))
    if tags := dict(target.required_tags):
        filters.append(
            NodeFilter(
                f"required_tags={dict(sorted(tags.items()))!r}",
                lambda node: all(node.tags.get(key) == value for key, value in tags.items()),
            )
        )
    if regions := target.compliance_regions:
        filters.append(NodeFilter(f"compliance_regions={regions!r}", lambda node: node.region in regions))
    return filters


def _constraint_filter(constraint: PlacementConstraint) -> NodeFilter:
    kind, key, value = constraint.constraint_type, constraint.key, constraint.value
    questions: dict[ConstraintType, Callable[[NodeDescriptor], bool]] = {
        ConstraintType.ZONE: lambda node: node.zone == value,
        ConstraintType.RACK: lambda node: node.rack == value,
        ConstraintType.HOST: lambda node: node.host == value,
        ConstraintType.TAG: lambda node: node.tags.get(key) == value,
        ConstraintType.STORAGE_CLASS: lambda node: value in node.storage_classes,
        ConstraintType.COMPLIANCE: lambda node: node.region == value,
    }
    if kind is ConstraintType.TAG and not key:
        msg = f"constraint tag={value!r}: key is empty; name the tag to compare"
        raise InvalidArgument(msg)
    label = f"{kind.value}[{key!r}]" if kind is ConstraintType.TAG else kind.value
    role = "required" if constraint.required else "preferred"
    return NodeFilter(f"constraint {label}={value!r} ({role})", questions[kind], constraint.required)
