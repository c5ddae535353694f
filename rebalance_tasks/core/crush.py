"""Placement: which nodes should hold an object, as a pure function of its key and the cluster map.

The planner asks here for targets that stay right when nodes come and go, `locate` for an object's home. Invariant: the
answer depends on the key and on the nodes' ids, zones, racks, hosts, weights and states only; never on their order, the
machine, or a library's version. Integers decide (`fixedlog`); the rule itself is described in `crush_tree`.

Rules worth knowing:

- Only active nodes of weight > 0 are eligible; draining and maintenance nodes get nothing new.
- A node's share is its `weight`. Capacity is *not* used, not even where all weights are 1.0: weights are policy, and a
  disk that is replaced by a larger one must not move data until somebody says so.
- Primaries are spread in proportion to the weights. With replicas in different domains the sum over all replicas cannot
  be, where few domains of unlike weight are forced to share evenly.
- Replicas go to different zones while there are unused ones, then to unused racks, then to unused hosts, and only when
  every host holds a replica to another node of one. More replicas than eligible nodes: as many as there are nodes.
  Still deterministic; `CompiledFleet.separation` tells how far apart they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias, overload

import numpy as np

from rebalance_tasks.core.crush_filter import (
    NodeFilter,
    check_nodes,
    effective_weight,
    eligible_nodes,
    preference_scores,
    target_filters,
)
from rebalance_tasks.core.crush_tree import Indices, Level, Tree, domain_path
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.hashing import KeyBatch, hash_key, hash_keys
from rebalance_tasks.core.models import NodeDescriptor, PlacementConstraint, PlacementDecision, PlacementTarget

#: The classic CRUSH descent; the only rule so far.
RULE_TREE: Final = "tree"
#: Keys placed at once; bounds the working memory to some 50 MB for three replicas.
_BLOCK_KEYS: Final = 1 << 18
#: Distinct sets of requirements for which a fleet keeps its tree.
_TREES_KEPT: Final = 64


class CompiledFleet(Sequence[NodeDescriptor]):
    """A cluster map prepared for repeated calls; taken wherever a cluster map is.

    Example:
        >>> fleet = CompiledFleet([NodeDescriptor(node_id="a"), NodeDescriptor(node_id="b")])
        >>> fleet.place("some/key", 2)
        (1, 0)
    """

    def __init__(self, cluster_map: Sequence[NodeDescriptor]) -> None:
        """Check the nodes; trees are built when first asked for.

        Raises:
            InvalidArgument: a node id occurs twice, or a weight is impossible.
        """
        self.nodes = tuple(cluster_map)
        check_nodes(self.nodes)
        self.positions = {str(node.node_id): i for i, node in enumerate(self.nodes)}
        self._trees: dict[tuple[NodeFilter, ...], Tree] = {}

    @overload
    def __getitem__(self, index: int) -> NodeDescriptor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[NodeDescriptor, ...]: ...
    def __getitem__(self, index: int | slice) -> NodeDescriptor | tuple[NodeDescriptor, ...]:
        """Return the node at a position."""
        return self.nodes[index]

    def __len__(self) -> int:
        """Return the number of nodes, eligible or not."""
        return len(self.nodes)

    def tree(self, filters: tuple[NodeFilter, ...] = ()) -> Tree:
        """Return the tree of the nodes that pass the filters (kept for the next call).

        Raises:
            EmptyClusterError: no node passes.
        """
        tree = self._trees.get(filters)
        if tree is None:
            eligible = eligible_nodes(self.nodes, filters)
            tree = Tree(self.nodes, eligible, preference_scores(self.nodes, eligible, filters))
            if len(self._trees) >= _TREES_KEPT:
                self._trees.pop(next(iter(self._trees)))
            self._trees[filters] = tree
        return tree

    def place(self, key: str, replica_count: int = 1) -> tuple[int, ...]:
        """Return positions of the key's nodes, primary first; fewer where there are fewer eligible nodes.

        Raises:
            EmptyClusterError: no node is eligible.
            InvalidArgument: `replica_count` < 1.
        """
        _check_replica_count(replica_count)
        return tuple(self.tree().place(hash_key(key), replica_count))

    def separation(self, node_ids: Iterable[str]) -> Level:
        """Return the widest domain that no two of these nodes share (NODE: two share a host).

        Raises:
            InvalidArgument: a node is not in this map.
        """
        paths = []
        for node_id in node_ids:
            if node_id not in self.positions:
                msg = f"node_ids: {node_id!r} is not in the cluster map"
                raise InvalidArgument(msg)
            paths.append(domain_path(self.nodes[self.positions[node_id]]))
        for level in (Level.ZONE, Level.RACK, Level.HOST):
            if len({path[level] for path in paths}) == len(paths):
                return level
        return Level.NODE


ClusterMap: TypeAlias = Sequence[NodeDescriptor]


def compiled(cluster_map: ClusterMap) -> CompiledFleet:
    """Return the map as a `CompiledFleet`, unchanged if it is one."""
    return cluster_map if isinstance(cluster_map, CompiledFleet) else CompiledFleet(cluster_map)


class CrushPlacementAlgorithm:
    """Controlled, scalable, decentralised placement (CRUSH) with straw2 buckets; stateless."""

    def compute_placement(
        self,
        target: PlacementTarget,
        cluster_map: ClusterMap,
        constraints: Sequence[PlacementConstraint] | None = None,
    ) -> PlacementDecision:
        """Place one object.

        A constraint that is not required ranks: at every step a domain with a node that fulfils more of them goes
        first, but replicas stay apart as always.

        Args:
            target: the object and what it needs.
            cluster_map: the nodes, or a `CompiledFleet` of them.
            constraints: further filters (required) and preferences (not required).

        Returns:
            Primary first; fewer nodes than `replica_count` where fewer are eligible.

        Raises:
            EmptyClusterError: no node is eligible; names the constraint that emptied the set.
            InvalidArgument: the map holds a node id twice or an impossible weight.
        """
        fleet = compiled(cluster_map)
        tree = fleet.tree(target_filters(target, constraints))
        return _decision(fleet, tree.place(hash_key(target.object_key), target.replica_count))

    def compute_placements(self, keys: KeyBatch, replica_count: int, cluster_map: ClusterMap) -> Indices:
        """Place many objects that need nothing in particular.

        Args:
            keys: a sequence of str, an Arrow string array, or uint64 hashes from `hash_keys`; n in all.
            replica_count: ≥ 1.
            cluster_map: the nodes, or a `CompiledFleet` of them.

        Returns:
            int32 (n, replica_count): positions in `cluster_map`, primary first, row for row what `compute_placement`
            says; −1 fills up where there are fewer eligible nodes than replicas.

        Raises:
            EmptyClusterError: no node is eligible.
            InvalidArgument: a key is not a string, `replica_count` < 1, or the map is impossible.
        """
        _check_replica_count(replica_count)
        tree = compiled(cluster_map).tree()
        hashes = hash_keys(keys)
        result = np.empty((len(hashes), replica_count), dtype=np.int32)
        for start in range(0, len(hashes), _BLOCK_KEYS):
            tree.place_many(hashes[start : start + _BLOCK_KEYS], out=result[start : start + _BLOCK_KEYS])
        return result

    def recompute_on_node_change(
        self,
        target: PlacementTarget,
        new_map: ClusterMap,
        previous: PlacementDecision,
        constraints: Sequence[PlacementConstraint] | None = None,
    ) -> PlacementDecision:
        """Place an object anew after the fleet changed, moving as little of it as possible.

        Every replica stays that is on an eligible node and does not waste a domain: with enough zones no two may share
        one, and so on down to hosts. Survivors keep their order, so a lost primary is followed by the first survivor
        (which has the data); replacements come last, in the order of the fresh placement.

        Raises:
            EmptyClusterError: no node is eligible.
            InvalidArgument: the map holds a node id twice or an impossible weight.
        """
        fleet = compiled(new_map)
        tree = fleet.tree(target_filters(target, constraints))
        survivors = [fleet.positions[name] for name in previous.target_nodes if name in fleet.positions]
        kept = _keep(fleet, tree, survivors, target.replica_count)
        missing = min(target.replica_count, len(tree.leaves)) - len(kept)
        if missing > 0:
            # All nodes in the key's order: the replacement is the first one that is as far apart as can be.
            order = tree.place(hash_key(target.object_key), len(tree.leaves))
            for _ in range(missing):
                kept.append(_first_farthest(fleet, order, kept))
        return _decision(fleet, kept)

    def estimate_movement_on_resize(self, current: ClusterMap, new: ClusterMap) -> float:
        """Estimate the share of the data that moves when one map becomes the other.

        ``(removed + added ÷ new total × current total) ÷ current total``, at most 1, in weights: *removed* is weight
        that nodes lose (gone, drained, made lighter), *added* weight that nodes gain (new, activated, made heavier).
        A node that is not active has weight 0 here. Nothing to move (no weight before) is 0.

        Raises:
            InvalidArgument: a map holds a node id twice or an impossible weight.
        """
        before = {node.node_id: effective_weight(node) for node in compiled(current)}
        after = {node.node_id: effective_weight(node) for node in compiled(new)}
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


def _check_replica_count(replica_count: int) -> None:
    if replica_count < 1:
        msg = f"replica_count: {replica_count} must be at least 1"
        raise InvalidArgument(msg)


def _decision(fleet: CompiledFleet, positions: Sequence[int]) -> PlacementDecision:
    names = tuple(fleet.nodes[i].node_id for i in positions)
    return PlacementDecision(
        target_nodes=names, primary_node=names[0], replica_nodes=names[1:], placement_rule_id=RULE_TREE
    )


def _keep(fleet: CompiledFleet, tree: Tree, survivors: Sequence[int], replica_count: int) -> list[int]:
    """Return those survivors, in order, beside which the others can still be as far apart as the fleet allows.

    Sharing is allowed only as often as the fleet forces it: replicas less the domains there are, at each level.
    """
    eligible = set(tree.leaves)
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


def _first_farthest(fleet: CompiledFleet, order: Sequence[int], kept: Sequence[int]) -> int:
    """Return the first node of `order` that shares the narrowest domain with those kept."""
    taken = [{domain_path(fleet.nodes[i])[level] for i in kept} for level in Level]
    candidates = (i for i in order if i not in kept)

    def shared(position: int) -> int:
        path = domain_path(fleet.nodes[position])
        return next((int(level) for level in Level if path[level] not in taken[level]), len(Level))

    return min(candidates, key=shared)
