"""The tree rule: straw2 down root → zone → rack → host → node, for one key or millions.

`crush` compiles the eligible nodes of a cluster map into a `Tree` and asks it for places. The order in which a key
meets the nodes is fixed by integers alone (`fixedlog`), the same for the single and the batch way, whatever order they
came in: the invariant "placement is a pure function of (key, cluster map)".

The order has four stages; each takes its turn only when the one before has nothing left, so replicas fall back only when
domains run out::

    fresh zones   every zone once, by straw2 among the zones            → in it one rack, host, node
    fresh racks   round r = 1, 2, …: every zone with more than r racks  → its next rack, in it one host, node
    fresh hosts   round r = 1, 2, …: every rack with more than r hosts  → its next host, in it one node
    fresh nodes   round r = 1, 2, …: every host with more than r nodes  → its next node

A domain is known by its path: host "h1" of rack "r1" and host "h1" of rack "r2" are two hosts. Nodes without a zone share
one nameless zone, nodes without a rack one nameless rack of their zone (what is unknown may well be shared); a node
without a host is a host of its own.

Sources: Weil et al., "CRUSH" (SC 2006), §3; the straw2 bucket of Ceph.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from rebalance_tasks.core.fixedlog import draw, draws, exact_weight, normalize_weights
from rebalance_tasks.core.hashing import U64, hash_path, round_hashes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.core.models import NodeDescriptor

Indices = npt.NDArray[np.int32]

#: Draws worked on at once; three such uint64 arrays stay in the second-level cache.
_BLOCK_ELEMENTS: Final = 1 << 15
#: Keys per pass at least, so that NumPy's cost per call does not show in wide buckets (no power of two: cache sets).
_BLOCK_KEYS: Final = 5_000
#: From here on four branch-free passes a row beat NumPy's argmin along the slow axis.
_PASS_KEYS: Final = 1536
#: From here on a single key is faster through NumPy than through Python integers.
_SCALAR_CHILDREN: Final = 24
#: From here on one sort is cheaper than a pass over the children per rank.
_SORT_RANKS: Final = 8
#: Above every draw (at most 10.4 · 2⁶⁰): marks a child as taken.
_TAKEN: Final = np.uint64(2**64 - 1)


class Level(IntEnum):
    """The levels of the tree below the root; also how far apart two replicas are."""

    ZONE = 0
    RACK = 1
    HOST = 2
    NODE = 3


@dataclass(frozen=True)
class Bucket:
    """Children among which a key chooses, in canonical order (ties go to the first).

    Attributes:
        children: their positions in their level.
        hashes: their 64-bit hashes (round not added).
        weights: integers from `normalize_weights`.
        scores: how many preferences each fulfils; None when there are none. A higher score beats any draw.
        round_number: makes the draws of one round independent of another's.
    """

    children: tuple[int, ...]
    hashes: tuple[int, ...]
    weights: tuple[int, ...]
    scores: tuple[int, ...] | None = None
    round_number: int = 0

    @cached_property
    def _hash_array(self) -> U64:
        return round_hashes(self.hashes, self.round_number)

    @cached_property
    def _weight_array(self) -> U64 | None:
        return None if set(self.weights) == {1} else np.array(self.weights, dtype=np.uint64)

    @cached_property
    def _child_array(self) -> Indices:
        return np.array(self.children, dtype=np.int32)

    def rank(self, key_hash: int, count: int) -> list[int]:
        """Return the key's first `count` children, best first."""
        if len(self.children) == 1:
            return [self.children[0]]
        if len(self.children) < _SCALAR_CHILDREN:
            values = [
                draw(key_hash, item, weight, self.round_number)
                for item, weight in zip(self.hashes, self.weights, strict=True)
            ]
        else:
            column = np.empty((len(self.children), 1), dtype=np.uint64)
            work = np.empty((2, *column.shape), dtype=np.uint64)
            draws(np.array([key_hash], dtype=np.uint64), self._hash_array, self._weight_array, column, work)
            values = column[:, 0].tolist()
        if self.scores is not None:
            scored = list(zip((-score for score in self.scores), values, strict=True))
            order = sorted(range(len(values)), key=scored.__getitem__)
        elif count == 1:
            order = [values.index(min(values))]
        else:
            order = sorted(range(len(values)), key=values.__getitem__)
        return [self.children[i] for i in order[:count]]

    def rank_many(self, key_hashes: U64, count: int) -> Indices:
        """Return the first `count` children of every key: int32 (n, count)."""
        n, m = len(key_hashes), len(self.children)
        if m == 1:
            return np.full((n, 1), self.children[0], dtype=np.int32)
        if self.scores is not None:
            return np.array([self.rank(int(key), count) for key in key_hashes], dtype=np.int32).reshape(n, count)
        chosen = np.empty((n, count), dtype=np.int32)
        block = min(n, max(_BLOCK_KEYS, _BLOCK_ELEMENTS // m))
        rows = max(1, min(m, _BLOCK_ELEMENTS // block))
        values = np.empty((m, block), dtype=np.uint64)
        work = np.empty((2, rows, block), dtype=np.uint64)
        for start in range(0, n, block):
            keys = key_hashes[start : start + block]
            self._draw(keys, values[:, : len(keys)], work[:, :, : len(keys)])
            smallest = _smallest(values[:, : len(keys)], count)
            np.take(self._child_array, smallest, out=chosen[start : start + block], mode="clip")
        return chosen

    def _draw(self, keys: U64, values: U64, work: U64) -> None:
        """Fill `values` (m, n), as many rows at a time as `work` has: those stay in the cache."""
        rows = work.shape[1]
        for first in range(0, len(values), rows):
            part = slice(first, min(first + rows, len(values)))
            weights = None if self._weight_array is None else self._weight_array[part]
            draws(keys, self._hash_array[part], weights, values[part], work[:, : part.stop - first])


def _smallest(values: U64, count: int) -> npt.NDArray[np.int64]:
    """Return the rows of the `count` smallest values of every column: int64 (n, count). Overwrites `values`."""
    n = values.shape[1]
    if count > _SORT_RANKS:
        return np.argsort(values, axis=0, kind="stable")[:count].T
    rows = np.empty((n, count), dtype=np.int64)
    columns = np.arange(n)
    for rank in range(count):
        row = _row_of_minimum(values)
        rows[:, rank] = row
        if rank + 1 < count:
            values[row, columns] = _TAKEN
    return rows


def _row_of_minimum(values: U64) -> npt.NDArray[np.int64]:
    """Return argmin(axis=0), first of equals: int64 (n,)."""
    m, n = values.shape
    if n < _PASS_KEYS:
        return np.asarray(np.argmin(values, axis=0), dtype=np.int64)
    # Contiguous passes without a branch beat NumPy's reduction along the slow axis several times over.
    small = np.uint8 if m <= 1 << 8 else np.uint16 if m <= 1 << 16 else np.int64
    best = values[0].copy()
    row = np.zeros(n, dtype=small)
    less = np.empty(n, dtype=np.bool_)
    candidate = np.empty(n, dtype=small)
    for i in range(1, m):
        np.less(values[i], best, out=less)
        np.minimum(best, values[i], out=best)
        np.multiply(less, small(i), out=candidate)
        np.maximum(row, candidate, out=row)  # i grows, so the last improvement is the greatest
    return row.astype(np.int64)


@dataclass(frozen=True)
class _Items:
    """All places of one level, in canonical order."""

    hashes: tuple[int, ...]
    exact_weights: tuple[int, ...]
    scores: tuple[int, ...] | None

    def bucket(self, members: Sequence[int], round_number: int = 0) -> Bucket:
        return Bucket(
            children=tuple(members),
            hashes=tuple(self.hashes[i] for i in members),
            weights=normalize_weights([self.exact_weights[i] for i in members]),
            scores=None if self.scores is None else tuple(self.scores[i] for i in members),
            round_number=round_number,
        )


@dataclass(frozen=True)
class _Round:
    """One turn: `picks` places of `bucket`, each giving its child of rank `bucket.round_number`."""

    level: Level
    bucket: Bucket
    picks: int


def domain_path(node: NodeDescriptor) -> tuple[tuple[str, ...], ...]:
    """Return the identity of the node's zone, rack, host and of itself; equal identities are one domain."""
    host = (node.host, "") if node.host else ("", node.node_id)
    return (node.zone,), (node.zone, node.rack), (node.zone, node.rack, *host), (node.node_id,)


class Tree:
    """Eligible nodes, compiled.

    Args:
        nodes: the cluster map.
        eligible: positions in it of the nodes that may be chosen, at least one, each of weight > 0.
        scores: preferences fulfilled by each of `eligible`; None when there are none.
    """

    def __init__(self, nodes: Sequence[NodeDescriptor], eligible: Sequence[int], scores: Sequence[int] | None) -> None:
        """Sort the nodes canonically and build every bucket."""
        paths = {i: domain_path(nodes[i]) for i in eligible}
        order = sorted(eligible, key=paths.__getitem__)
        score_of = None if scores is None else dict(zip(eligible, scores, strict=True))
        self.leaves = tuple(order)
        self._leaf_array = np.array(order, dtype=np.int32)
        self._items, self._members = _levels(
            [paths[i] for i in order],
            [exact_weight(nodes[i].weight) for i in order],
            None if score_of is None else [score_of[i] for i in order],
        )
        self._buckets = {
            level: [self._items[Level(level + 1)].bucket(children) for children in self._members[level]]
            for level in (Level.ZONE, Level.RACK, Level.HOST)
        }
        self._round_buckets: dict[tuple[Level, int], Bucket | None] = {}

    def place(self, key_hash: int, count: int) -> list[int]:
        """Return the key's first `count` nodes (fewer when there are fewer), as positions in the cluster map."""
        chosen = []
        for turn in self._rounds(count):
            rank = turn.bucket.round_number
            for place in turn.bucket.rank(key_hash, turn.picks):
                item = self._buckets[turn.level][place].rank(key_hash, rank + 1)[rank]
                for level in range(turn.level + 1, Level.NODE):
                    item = self._buckets[Level(level)][item].rank(key_hash, 1)[0]
                chosen.append(self.leaves[item])
        return chosen

    def place_many(self, key_hashes: U64, out: Indices) -> None:
        """Write the first nodes of every key.

        Args:
            key_hashes: uint64 (n,).
            out: int32 (n, count), overwritten; −1 where there are fewer nodes than columns.
        """
        n, count = out.shape
        out[:, len(self.leaves) :] = -1
        column = 0
        for turn in self._rounds(count):
            places = turn.bucket.rank_many(key_hashes, turn.picks)
            # Place-major, so that the picks of one round share the groups of the way down.
            keys = np.tile(key_hashes, turn.picks) if turn.picks > 1 else key_hashes
            items = self._descend(turn.level, places.T.ravel(), keys, turn.bucket.round_number)
            for level in range(turn.level + 1, Level.NODE):
                items = self._descend(Level(level), items, keys, 0)
            out[:, column : column + turn.picks] = self._leaf_array[items].reshape(turn.picks, n).T
            column += turn.picks

    def _rounds(self, count: int) -> Iterator[_Round]:
        left = min(count, len(self.leaves))
        for level, first in ((Level.ZONE, 0), (Level.RACK, 1), (Level.HOST, 1)):
            for round_number in itertools.count(first):
                bucket = self._round_bucket(level, round_number)
                if bucket is None:
                    break
                picks = min(left, len(bucket.children))
                yield _Round(level, bucket, picks)
                left -= picks
                if not left:
                    return

    def _round_bucket(self, level: Level, round_number: int) -> Bucket | None:
        """Return the places of a level that have a child left for this round; None when none has."""
        wanted = (level, round_number)
        if wanted not in self._round_buckets:
            having = [i for i, children in enumerate(self._members[level]) if len(children) > round_number]
            self._round_buckets[wanted] = self._items[level].bucket(having, round_number) if having else None
        return self._round_buckets[wanted]

    def _descend(self, level: Level, places: Indices, keys: U64, rank: int) -> Indices:
        """Return the child of the given rank of each key's place: int32 (n,)."""
        buckets = self._buckets[level]
        if len(buckets) == 1:
            return buckets[0].rank_many(keys, rank + 1)[:, rank]
        chosen = np.array([bucket.children[0] for bucket in buckets], dtype=np.int32)[places]
        if all(len(bucket.children) == 1 for bucket in buckets):
            return chosen
        small = places.astype(np.uint16) if len(buckets) < 1 << 16 else places  # 16 bits: NumPy sorts by radix
        grouped = np.argsort(small, kind="stable")
        ends = np.cumsum(np.bincount(places, minlength=len(buckets)))
        start = 0
        for bucket, end in zip(buckets, ends.tolist(), strict=True):
            if end > start and len(bucket.children) > 1:
                members = grouped[start:end]
                chosen[members] = bucket.rank_many(keys[members], rank + 1)[:, rank]
            start = end
        return chosen


def _levels(
    paths: Sequence[tuple[tuple[str, ...], ...]], weights: Sequence[int], scores: Sequence[int] | None
) -> tuple[dict[Level, _Items], dict[Level, list[list[int]]]]:
    """Return the places of each level, and for each place its children in the level below."""
    # Canonical order makes every domain a run of nodes: `owner[level][i]` is the domain of the i-th node.
    owner = {level: _runs([path[level] for path in paths]) for level in Level}
    items, members = {}, {}
    for level in Level:
        first = {domain: i for i, domain in reversed(list(enumerate(owner[level])))}
        total = dict.fromkeys(sorted(first), 0)
        best = dict.fromkeys(total, 0)
        below: dict[int, list[int]] = {domain: [] for domain in total}
        for i, domain in enumerate(owner[level]):
            total[domain] += weights[i]
            best[domain] = max(best[domain], scores[i]) if scores is not None else 0
            if level < Level.NODE and owner[Level(level + 1)][i] not in below[domain][-1:]:
                below[domain].append(owner[Level(level + 1)][i])
        items[level] = _Items(
            hashes=tuple(hash_path(level.name.lower(), *paths[first[domain]][level]) for domain in total),
            exact_weights=tuple(total.values()),
            scores=None if scores is None else tuple(best.values()),
        )
        members[level] = list(below.values())
    return items, members


def _runs(names: Sequence[tuple[str, ...]]) -> list[int]:
    """Number consecutive runs of equal names: [a, a, b] → [0, 0, 1]."""
    numbers: list[int] = []
    for i, name in enumerate(names):
        numbers.append(0 if i == 0 else numbers[-1] + (name != names[i - 1]))
    return numbers
