"""Placement: which nodes should hold an object, as a pure function of its key and the cluster map.

The planner asks here for targets that stay right when nodes come and go, `locate` for an object's home. Invariant: the
answer depends on the key and on the nodes' ids, zones, racks, hosts, weights and states only; never on their order, the
machine, or a library's version. Integers decide (`fixedlog`); the rules are described in `placement.flat` (the default, moves the
least) and `placement.tree` (the classic descent).

Rules worth knowing:

- Only active nodes of weight > 0 are eligible; draining and maintenance nodes get nothing new.
- A node's share is its `weight`. Capacity is *not* used, not even where all weights are 1.0: weights are policy, and a
  disk that is replaced by a larger one must not move data until somebody says so.
- Primaries are spread in proportion to the weights. With replicas in different domains the sum over all replicas cannot
  be, where few domains of unlike weight are forced to share evenly.
- Replicas go to different zones while there are unused ones, then to unused racks, then to unused hosts, and only when
  every host holds a replica to another node of one. More replicas than eligible nodes: as many as there are nodes.
  Still deterministic; the decision's `separation` tells how far apart they are, `missing_replicas` how many are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import PlacementConstraint, PlacementDecision, PlacementTarget
from rebalance_tasks.core.placement import movement
from rebalance_tasks.core.placement.filter import target_filters
from rebalance_tasks.core.placement.fleet import ClusterMap, CompiledFleet, check_replica_count
from rebalance_tasks.core.placement.hashing import MIX_MUL_1, KeyBatch, hash_key, hash_keys, round_hashes
from rebalance_tasks.core.placement.kernels import (
    WORTH_LOADING_KEYS,
    KernelName,
    check_threads,
    compiled_kernels,
    in_threads,
)
from rebalance_tasks.core.placement.recompute import first_farthest, keep
from rebalance_tasks.core.placement.rules import DEFAULT_RULE, RULE_FLAT, RULE_TREE, RuleName

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from rebalance_tasks.core.placement.domains import Indices
    from rebalance_tasks.core.placement.movement import Movement

__all__ = [
    "DEFAULT_RULE",
    "RULE_FLAT",
    "RULE_TREE",
    "SAMPLE_KEYS",
    "ClusterMap",
    "CompiledFleet",
    "CrushPlacementAlgorithm",
    "KernelName",
    "RuleName",
]

#: Keys that NumPy places at once; bounds the working memory to some 50 MB for three replicas.
_BLOCK_KEYS: Final = 1 << 18
#: Made-up keys to measure movement with: what a hundredth of the weight holds is told to 2 % with three replicas.
SAMPLE_KEYS: Final = 100_000


class CrushPlacementAlgorithm:
    """Controlled, scalable, decentralised placement (CRUSH); stateless.

    Args:
        rule: ``flat`` or ``tree``, for maps that are not compiled yet (a `CompiledFleet` has its own).
        kernel: ``auto`` uses numba for large batches where it is installed, ``numpy`` never, ``numba`` always; same for those.
        threads: that numba's kernels run in; None is as many as there are processors.
    """

    def __init__(
        self, *, rule: RuleName = DEFAULT_RULE, kernel: KernelName = "auto", threads: int | None = None
    ) -> None:
        """Nothing is loaded before it is needed.

        Raises:
            InvalidArgument: `threads` < 1.
        """
        check_threads(threads)
        self.rule: RuleName = rule
        self.kernel: KernelName = kernel
        self.threads = threads

    def compile(self, cluster_map: ClusterMap) -> CompiledFleet:
        """Return the map as a `CompiledFleet`, unchanged if it is one.

        Raises:
            InvalidArgument: a node id occurs twice, a weight is impossible, or rule or kernel are unknown.
        """
        if isinstance(cluster_map, CompiledFleet):
            return cluster_map
        return CompiledFleet(cluster_map, rule=self.rule, kernel=self.kernel)

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
        fleet = self.compile(cluster_map)
        positions = fleet.place(target.object_key, target.replica_count, target_filters(target, constraints))
        return _decision(fleet, positions, target.replica_count)

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
        check_replica_count(replica_count)
        fleet = self.compile(cluster_map)
        rule = fleet.compiled()
        kernels = self._kernels(fleet, len(keys))
        hashes = hash_keys(keys, kernels)
        result = np.empty((len(hashes), replica_count), dtype=np.int32)
        if kernels is None:
            for start in range(0, len(hashes), _BLOCK_KEYS):
                rule.place_many(hashes[start : start + _BLOCK_KEYS], result[start : start + _BLOCK_KEYS])
            return result
        rule.place_compiled(kernels, hashes[:0], result[:0])  # what is prepared once is not prepared by each thread

        def place(part: slice) -> None:
            rule.place_compiled(kernels, hashes[part], result[part])

        in_threads(place, len(hashes), self.threads or kernels.DEFAULT_THREADS)
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
        fleet = self.compile(new_map)
        rule = fleet.compiled(target_filters(target, constraints))
        survivors = [fleet.positions[name] for name in previous.target_nodes if name in fleet.positions]
        kept = keep(fleet, rule, survivors, target.replica_count)
        missing = min(target.replica_count, len(rule.leaves)) - len(kept)
        if missing > 0:
            # All nodes in the key's order: the replacement is the first one that is as far apart as can be.
            order = rule.place(hash_key(target.object_key), len(rule.leaves))
            for _ in range(missing):
                kept.append(first_farthest(fleet, order, kept))
        return _decision(fleet, kept, target.replica_count)

    def estimate_movement_on_resize(self, current: ClusterMap, new: ClusterMap) -> float:
        """Estimate the share of the data that moves when one map becomes the other.

        ``(removed + added ÷ new total × current total) ÷ current total``, at most 1, in weights: *removed* is weight
        that nodes lose (gone, drained, made lighter), *added* weight that nodes gain (new, activated, made heavier).
        A node that is not active has weight 0 here. Nothing to move (no weight before) is 0.

        Raises:
            InvalidArgument: a map holds a node id twice or an impossible weight.
        """
        return movement.estimate(self.compile(current), self.compile(new))

    def measure_movement(
        self, current: ClusterMap, new: ClusterMap, keys: KeyBatch | int = SAMPLE_KEYS, replica_count: int = 1
    ) -> Movement:
        """Measure what moves when one map becomes the other, by placing the same keys on both.

        Args:
            current: the map before, or a `CompiledFleet` of it.
            new: the map after.
            keys: a sample of object keys (as `compute_placements` takes them), or how many made-up ones to place.
            replica_count: ≥ 1.

        Raises:
            EmptyClusterError: no node of one of the maps is eligible.
            InvalidArgument: as `compute_placements`, or a number of keys below 0.
        """
        before, after = self.compile(current), self.compile(new)
        if isinstance(keys, int):
            if keys < 0:
                msg = f"keys: {keys} must be at least 0"
                raise InvalidArgument(msg)
            keys = round_hashes(range(keys), 0) * np.uint64(MIX_MUL_1)
        hashes = hash_keys(keys, self._kernels(before, len(keys)))
        return movement.compare(
            before,
            after,
            self.compute_placements(hashes, replica_count, before),
            self.compute_placements(hashes, replica_count, after),
        )

    def _kernels(self, fleet: CompiledFleet, keys: int) -> ModuleType | None:
        return compiled_kernels(fleet.kernel, worth_loading=keys >= WORTH_LOADING_KEYS)


def _decision(fleet: CompiledFleet, positions: Sequence[int], wanted: int) -> PlacementDecision:
    names = tuple(fleet.nodes[i].node_id for i in positions)
    return PlacementDecision(
        target_nodes=names,
        primary_node=names[0],
        replica_nodes=names[1:],
        placement_rule_id=fleet.rule,
        separation=fleet.separation(names).name.lower(),
        missing_replicas=max(0, wanted - len(names)),
    )
