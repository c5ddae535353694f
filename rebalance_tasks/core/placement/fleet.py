"""A cluster map prepared for placement: its nodes checked, its rule compiled for each set of requirements.

`crush` compiles a map for one call; whoever calls repeatedly keeps a `CompiledFleet` and hands it over instead. The rule
belongs to the fleet, since two readers who place by different rules look in different places (invariant 10).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, get_args, overload

import numpy as np

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.core.placement.domains import CompiledRule, Level, domain_path
from rebalance_tasks.core.placement.filter import NodeFilter, check_nodes, eligible_nodes, preference_scores
from rebalance_tasks.core.placement.flat import Flat
from rebalance_tasks.core.placement.hashing import hash_key
from rebalance_tasks.core.placement.kernels import WORTH_LOADING_CALLS, KernelName, check_kernel, compiled_kernels
from rebalance_tasks.core.placement.rules import DEFAULT_RULE, RULE_FLAT, RuleName
from rebalance_tasks.core.placement.tree import Tree

if TYPE_CHECKING:
    from types import ModuleType

#: Distinct sets of requirements for which a fleet keeps its compiled rule.
_RULES_KEPT: Final = 64
#: Single calls before compiled code is worth preparing for (the flat rule then learns its bound, some milliseconds).
_FEW_CALLS: Final = 16


class CompiledFleet(Sequence[NodeDescriptor]):
    """A cluster map prepared for repeated calls; taken wherever a cluster map is.

    Args:
        cluster_map: the nodes.
        rule: ``flat`` or ``tree``.
        kernel: ``auto``, ``numpy`` or ``numba``.

    Example:
        >>> fleet = CompiledFleet([NodeDescriptor(node_id="a"), NodeDescriptor(node_id="b")])
        >>> fleet.place("some/key", 2)
        (1, 0)
    """

    def __init__(
        self,
        cluster_map: Sequence[NodeDescriptor],
        *,
        rule: RuleName = DEFAULT_RULE,
        kernel: KernelName = "auto",
    ) -> None:
        """Check the nodes; the rule is compiled when first asked for.

        Raises:
            InvalidArgument: a node id occurs twice, a weight is impossible, or rule or kernel are unknown.
        """
        if rule not in get_args(RuleName):
            msg = f"rule: {rule!r} is none of {', '.join(get_args(RuleName))}"
            raise InvalidArgument(msg)
        check_kernel(kernel)
        self.nodes = tuple(cluster_map)
        check_nodes(self.nodes)
        self.rule: RuleName = rule
        self.kernel: KernelName = kernel
        self.positions = {str(node.node_id): i for i, node in enumerate(self.nodes)}
        self._rules: dict[tuple[NodeFilter, ...], CompiledRule] = {}
        self._calls = 0
        self._kernels: ModuleType | None = None

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

    def compiled(self, filters: tuple[NodeFilter, ...] = ()) -> CompiledRule:
        """Return the rule over the nodes that pass the filters (kept for the next call).

        Raises:
            EmptyClusterError: no node passes.
        """
        rule = self._rules.get(filters)
        if rule is None:
            eligible = eligible_nodes(self.nodes, filters)
            scores = preference_scores(self.nodes, eligible, filters)
            rule = Flat(self.nodes, eligible, scores) if self.rule == RULE_FLAT else Tree(self.nodes, eligible, scores)
            if len(self._rules) >= _RULES_KEPT:
                self._rules.pop(next(iter(self._rules)))
            self._rules[filters] = rule
        return rule

    def place(self, key: str, replica_count: int = 1, filters: tuple[NodeFilter, ...] = ()) -> tuple[int, ...]:
        """Return positions of the key's nodes, primary first; fewer where there are fewer eligible nodes.

        Raises:
            EmptyClusterError: no node is eligible.
            InvalidArgument: `replica_count` < 1.
        """
        check_replica_count(replica_count)
        rule = self.compiled(filters)
        kernels = None if rule.preferring else self._kernels_for_one()
        if kernels is None:
            return tuple(rule.place(hash_key(key), replica_count))
        out = np.empty((1, replica_count), dtype=np.int32)
        rule.place_compiled(kernels, np.array((hash_key(key),), dtype=np.uint64), out)
        return tuple(out[0, : len(rule.leaves)].tolist())

    def _kernels_for_one(self) -> ModuleType | None:
        """Return what places a single key: compiled code where it is asked for, or after enough calls."""
        if self._kernels is None:
            self._calls += 1
            if self.kernel == "numba" or self._calls > _FEW_CALLS:
                self._kernels = compiled_kernels(self.kernel, worth_loading=self._calls > WORTH_LOADING_CALLS)
        return self._kernels

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


def check_replica_count(replica_count: int) -> None:
    """Refuse to place nothing. Raises: InvalidArgument."""
    if replica_count < 1:
        msg = f"replica_count: {replica_count} must be at least 1"
        raise InvalidArgument(msg)
