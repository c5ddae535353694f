"""Placing an object anew after its fleet changed: which replicas may stay, and where the others go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.placement.domains import Level, domain_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.core.placement.domains import CompiledRule
    from rebalance_tasks.core.placement.fleet import CompiledFleet


def keep(fleet: CompiledFleet, rule: CompiledRule, survivors: Sequence[int], replica_count: int) -> list[int]:
    """Return those survivors, in order, beside which the others can still be as far apart as the fleet allows.

    Sharing is allowed only as often as the fleet forces it: replicas less the domains there are, at each level.
    """
    eligible = set(rule.leaves)
    forced = {
        level: max(0, replica_count - len({domain_path(fleet.nodes[i])[level] for i in eligible})) for level in Level
    }
    kept: list[int] = []
    for position in survivors:
        if position not in eligible or position in kept or len(kept) == replica_count:
            continue
        together = [*kept, position]
        paths = [domain_path(fleet.nodes[i]) for i in together]
        if all(len(together) - len({path[level] for path in paths}) <= forced[level] for level in Level):
            kept = together
    return kept


def first_farthest(fleet: CompiledFleet, order: Sequence[int], kept: Sequence[int]) -> int:
    """Return the first node of `order` that shares the narrowest domain with those kept."""
    taken = [{domain_path(fleet.nodes[i])[level] for i in kept} for level in Level]
    candidates = (i for i in order if i not in kept)

    def shared(position: int) -> int:
        path = domain_path(fleet.nodes[position])
        return next((int(level) for level in Level if path[level] not in taken[level]), len(Level))

    return min(candidates, key=shared)
