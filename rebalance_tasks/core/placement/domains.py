"""Failure domains: which zone, rack and host a node stands in, and how far apart two nodes are.

Both placement rules (`placement.tree`, `placement.flat`) rest on it. A domain is known by its path: host "h1" of rack "r1" and host
"h1" of rack "r2" are two hosts. Nodes without a zone share one nameless zone, nodes without a rack one nameless rack of
their zone (what is unknown may well be shared); a node without a host is a host of its own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.placement.hashing import U64

#: Positions of nodes in a cluster map, or of domains in their level.
Indices: TypeAlias = npt.NDArray[np.int32]
#: The identities of a node's zone, rack, host and of itself.
Path: TypeAlias = tuple[tuple[str, ...], ...]


class Level(IntEnum):
    """The levels below the root; also how far apart two replicas are."""

    ZONE = 0
    RACK = 1
    HOST = 2
    NODE = 3


class CompiledRule(Protocol):
    """The eligible nodes of a cluster map, prepared by one of the rules."""

    #: Positions in the cluster map of the nodes that may be chosen, in canonical order.
    leaves: tuple[int, ...]
    #: Whether some nodes are preferred to others; only `place` knows how.
    preferring: bool

    def place(self, key_hash: int, count: int) -> list[int]:
        """Return the key's first `count` nodes (fewer when there are fewer), as positions in the cluster map."""

    def place_many(self, key_hashes: U64, out: Indices) -> None:
        """Write the first nodes of every key, in NumPy: int32 (n, count), −1 where there are fewer nodes than columns."""

    def place_compiled(self, kernels: ModuleType, key_hashes: U64, out: Indices) -> None:
        """Do as `place_many` does, by compiled code."""


def domain_path(node: NodeDescriptor) -> Path:
    """Return the identity of the node's zone, rack, host and of itself; equal identities are one domain."""
    host = (node.host, "") if node.host else ("", node.node_id)
    return (node.zone,), (node.zone, node.rack), (node.zone, node.rack, *host), (node.node_id,)


def canonical(nodes: Sequence[NodeDescriptor], eligible: Sequence[int]) -> tuple[list[int], list[Path]]:
    """Return the eligible positions sorted by path, and the paths: every domain becomes a run of nodes."""
    ordered = sorted((domain_path(nodes[i]), i) for i in eligible)
    return [i for _, i in ordered], [path for path, _ in ordered]


def runs(names: Sequence[tuple[str, ...]]) -> list[int]:
    """Number consecutive runs of equal names: [a, a, b] → [0, 0, 1]."""
    numbers: list[int] = []
    for i, name in enumerate(names):
        numbers.append(0 if i == 0 else numbers[-1] + (name != names[i - 1]))
    return numbers
