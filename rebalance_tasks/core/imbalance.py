"""How unevenly a fleet is filled, and the fewest bytes that any plan must move to change that.

Pure arithmetic on byte counts. Utilisations are compared as exact fractions and rounded to a float once, at the end: the
same fleet gives the same verdict on every machine, and 60 % against 50 % is a spread of exactly 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor


@dataclass(frozen=True, slots=True)
class Utilisation:
    """One node's share in the picture; ``utilisation`` is ``None`` where no capacity is stated."""

    node_id: str
    pool: str
    used_bytes: int
    capacity_bytes: int
    utilisation: float | None
    eligible: bool


def is_eligible(node: NodeDescriptor) -> bool:
    """Tell whether a node counts in the spread: active, with a capacity above 0."""
    return node.state is NodeState.ACTIVE and bool(node.capacity_bytes)


def usage(nodes: Iterable[NodeDescriptor], inventory: Inventory) -> dict[str, int]:
    """Return node_id → bytes used: the larger of the inventory's sum and the node's own ``used_bytes``.

    The larger, because a node may hold more than its survey listed (excluded objects), and never less.
    """
    listed = inventory.used_bytes()
    return {node.node_id: max(listed.get(node.node_id, 0), node.used_bytes or 0) for node in nodes}


def utilisations(nodes: Iterable[NodeDescriptor], used: Mapping[str, int]) -> list[Utilisation]:
    """Return the picture of every node, in the order given."""
    return [
        Utilisation(
            node_id=node.node_id,
            pool=node.pool,
            used_bytes=used[node.node_id],
            capacity_bytes=node.capacity_bytes or 0,
            utilisation=used[node.node_id] / node.capacity_bytes if node.capacity_bytes else None,
            eligible=is_eligible(node),
        )
        for node in nodes
    ]


def spread(used: Sequence[int], capacity: Sequence[int]) -> float:
    """Return max − min of used ÷ capacity, correctly rounded; 0 for fewer than two nodes.

    Args:
        used: bytes, ≥ 0.
        capacity: bytes, > 0.
    """
    if len(used) < 2:  # noqa: PLR2004  one node has nothing to differ from
        return 0.0
    shares = [Fraction(u, c) for u, c in zip(used, capacity, strict=True)]
    return float(max(shares) - min(shares))


def pool_imbalances(nodes: Iterable[NodeDescriptor], used: Mapping[str, int]) -> dict[str, float]:
    """Return pool → spread over its eligible nodes (a pool without eligible nodes is absent)."""
    members: dict[str, list[NodeDescriptor]] = {}
    for node in nodes:
        if is_eligible(node):
            members.setdefault(node.pool, []).append(node)
    return {
        pool: spread([used[node.node_id] for node in group], [node.capacity_bytes or 0 for node in group])
        for pool, group in sorted(members.items())
    }


def imbalance(nodes: Iterable[NodeDescriptor], used: Mapping[str, int]) -> float:
    """Return the fleet's imbalance: the largest spread among its pools."""
    return max(pool_imbalances(nodes, used).values(), default=0.0)


def least_bytes(used: Sequence[int], capacity: Sequence[int], target_spread: float) -> int:
    """Return the fewest bytes any plan must move within one pool to bring its spread down to a target.

    With a band [a, a + T] every node above it must give, every node below it must take:
    min over a of max(Σ(uᵢ − (a+T)·cᵢ)⁺, Σ(a·cᵢ − uᵢ)⁺). The first sum falls with a, the second grows, both are linear
    between the points where a node enters the band, so the minimum is where they cross: found exactly.

    Args:
        used: bytes, ≥ 0.
        capacity: bytes; nodes with capacity 0 are left out.
        target_spread: T, ≥ 0.

    Raises:
        ValueError: ``target_spread`` is negative.

    Source: DESIGN, "Formulas". Divisible objects: real objects can only cost more.
    """
    if target_spread < 0:
        msg = f"target_spread is {target_spread}; it must be 0 or more"
        raise ValueError(msg)
    nodes = [(u, c) for u, c in zip(used, capacity, strict=True) if c > 0]
    if len(nodes) < 2:  # noqa: PLR2004  one node has nothing to differ from
        return 0
    target = Fraction(target_spread)
    knots = sorted({share for u, c in nodes for share in (Fraction(u, c), Fraction(u, c) - target)})

    def sums(a: Fraction) -> tuple[Fraction, Fraction]:
        give = sum((max(Fraction(0), u - (a + target) * c) for u, c in nodes), Fraction(0))
        take = sum((max(Fraction(0), a * c - u) for u, c in nodes), Fraction(0))
        return give, take

    # The last knot where giving still exceeds taking, or equals it; the crossing lies between it and the next.
    low, high = 0, len(knots) - 1
    while low < high:
        middle = (low + high + 1) // 2
        give, take = sums(knots[middle])
        low, high = (middle, high) if give >= take else (low, middle - 1)
    give, take = sums(knots[low])
    if give > take and low + 1 < len(knots):
        next_give, next_take = sums(knots[low + 1])
        # Both are linear on this segment: give(t) = take(t) for the share t of the way.
        share = (give - take) / ((give - take) + (next_take - next_give))
        give += (next_give - give) * share
    return -(-give.numerator // give.denominator)
