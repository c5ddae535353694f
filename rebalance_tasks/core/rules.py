"""Rules by key pattern: what objects need of a node, where the inventory itself does not say.

A survey knows keys and sizes; which of them must stay in a region, need a storage class or may not move at all is policy,
and stands in ``[[rules]]``. The first rule that matches a key and says something of a matter decides it; what the
inventory says of an object goes before any rule. Invariant 8: these are hard constraints.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rebalance_tasks.core.inventory import Coded
from rebalance_tasks.core.patterns import matching

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.rule import Rule

    T = TypeVar("T")


def with_rules(inventory: Inventory, rules: Sequence[Rule]) -> Inventory:
    """Return the inventory with what the rules say of it."""
    regions, classes, pinned = inventory.required_regions, inventory.required_storage_class, inventory.pinned
    tags = inventory.required_tags
    for rule in rules:
        matches = matching(inventory.keys, [rule.pattern])
        if rule.regions:
            regions = _given(regions, matches, tuple(sorted(set(rule.regions))))
        if rule.storage_class is not None:
            classes = _given(classes, matches, rule.storage_class.value)
        if rule.tags:
            tags = _given(tags, matches, tuple(sorted(f"{name}={value}" for name, value in rule.tags.items())))
        if rule.pinned:
            pinned = matches if pinned is None else pinned | matches
    if not rules:
        return inventory
    # The keys are the same, so what was found out about them still holds.
    ambiguous = inventory.ambiguous
    made = replace(
        inventory, required_regions=regions, required_storage_class=classes, required_tags=tags, pinned=pinned
    )
    made.__dict__["ambiguous"] = ambiguous
    return made


def _given(column: Coded[T] | None, matches: np.ndarray[tuple[int], np.dtype[np.bool_]], value: T) -> Coded[T]:
    """Give rows that have no value yet one."""
    codes = np.full(len(matches), -1, np.int32) if column is None else column.codes.copy()
    values = () if column is None else column.values
    if value not in values:
        values = (*values, value)
    codes[matches & (codes < 0)] = values.index(value)
    codes.flags.writeable = False
    return Coded(codes, values)
