"""How much moves when one cluster map becomes another: estimated from weights, or measured by placing keys on both.

For `rebalance simulate resize`, for whoever asks before adding a node, and for the benchmark of the rules. The measure is
against the least that any placement could move: what the nodes that changed gain or lose has to travel, nothing else must.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.placement.filter import effective_weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.core.placement.domains import Indices
    from rebalance_tasks.core.placement.fleet import CompiledFleet


@dataclass(frozen=True, slots=True)
class NodeMovement:
    """What a change means for one node, in replicas of the sample.

    Attributes:
        held_before/held_after: replicas on it; arriving/leaving: replicas that come and go.
    """

    held_before: int
    held_after: int
    arriving: int
    leaving: int


@dataclass(frozen=True, slots=True)
class Movement:
    """What a change of the cluster map moves, measured on a sample of keys.

    Attributes:
        keys: size of the sample.
        replicas: placed on the new map.
        moved: of these, how many lie on a node that did not hold their key before.
        least: the fewest that any placement could move, given what the changed nodes hold before and after.
        nodes: every node that is in one of the maps, by id.
    """

    keys: int
    replicas: int
    moved: int
    least: int
    nodes: Mapping[str, NodeMovement]

    @property
    def share(self) -> float:
        """Moved ÷ replicas; 0 for an empty sample."""
        return self.moved / self.replicas if self.replicas else 0.0

    @property
    def ratio(self) -> float | None:
        """Moved ÷ least; None where nothing has to move."""
        return self.moved / self.least if self.least else None


def estimate(current: CompiledFleet, new: CompiledFleet) -> float:
    """Return the share of the data that moves, from weights alone (`CrushPlacementAlgorithm.estimate_movement_on_resize`)."""
    before, after = _weights(current), _weights(new)
    # Sorted, so that the sums do not depend on the order of the nodes.
    ids = sorted(before.keys() | after.keys())
    removed = sum(max(0.0, before.get(name, 0.0) - after.get(name, 0.0)) for name in ids)
    added = sum(max(0.0, after.get(name, 0.0) - before.get(name, 0.0)) for name in ids)
    current_total = sum(before.get(name, 0.0) for name in ids)
    new_total = sum(after.get(name, 0.0) for name in ids)
    if current_total == 0:
        return 0.0
    arriving = added / new_total * current_total if new_total > 0 else 0.0
    return min(1.0, (removed + arriving) / current_total)


def compare(current: CompiledFleet, new: CompiledFleet, before: Indices, after: Indices) -> Movement:
    """Compare the placements of the same keys on two maps.

    Args:
        current: the map before.
        new: the map after.
        before: int32 (keys, replicas), positions in `current`, −1 where there is none.
        after: int32 (keys, replicas), positions in `new`.

    Raises:
        InvalidArgument: the two differ in shape.
    """
    if before.shape != after.shape:
        msg = f"before and after: placements of shape {before.shape} and {after.shape} are not of the same keys"
        raise InvalidArgument(msg)
    ids = sorted(current.positions.keys() | new.positions.keys())
    number = {name: i for i, name in enumerate(ids)}
    was, now = _renumbered(current, before, number), _renumbered(new, after, number)
    arrived = np.array([_missing_in(column, was) for column in now.T]).T.reshape(now.shape)
    left = np.array([_missing_in(column, now) for column in was.T]).T.reshape(was.shape)
    counts = [
        np.bincount(nodes[nodes >= 0], minlength=len(ids)).tolist() for nodes in (was, now, now[arrived], was[left])
    ]
    nodes = {name: NodeMovement(*values) for name, *values in zip(ids, *counts, strict=True)}
    old_weights, new_weights = _weights(current), _weights(new)
    grown = [
        nodes[name].held_after - nodes[name].held_before
        for name in ids
        if old_weights.get(name, 0.0) != new_weights.get(name, 0.0)
    ]
    return Movement(
        keys=len(before),
        replicas=int((now >= 0).sum()),
        moved=int(arrived.sum()),
        least=max(sum(max(0, by) for by in grown), sum(max(0, -by) for by in grown)),
        nodes=nodes,
    )


def _weights(fleet: CompiledFleet) -> dict[str, float]:
    return {node.node_id: effective_weight(node) for node in fleet}


def _renumbered(fleet: CompiledFleet, rows: Indices, number: Mapping[str, int]) -> Indices:
    """Return positions in a map as numbers that both maps share; −1 stays."""
    numbers = np.array([*(number[node.node_id] for node in fleet), -1], dtype=np.int32)
    return numbers[rows]


def _missing_in(column: Indices, rows: Indices) -> Indices:
    """Return whether each key's node is none of its nodes in the other placement: bool (keys,)."""
    missing: Indices = (column >= 0) & (rows != column[:, None]).all(axis=1)
    return missing
