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

**Zones after a key's first** are drawn with weights of their own, w · (1 + share of all weight). Drawn in proportion to
weight, a heavy zone would hold too little in the end: where it came first, it is not there to come second. The first pick
stays in exact proportion. `flat` cannot do the like: there no weight may depend on another's (docs/adr/0029).

Sources: Weil et al., "CRUSH" (SC 2006), §3; the straw2 bucket of Ceph; for the shares of draws without replacement Rosén
1997, "On sampling with probability proportional to size".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rebalance_tasks.core.placement.domains import Indices, Level, canonical, runs
from rebalance_tasks.core.placement.fixedlog import divide, draw, exact_weights, log_draws, log_table, normalize_weights
from rebalance_tasks.core.placement.hashing import U64, fold, hash_path, round_hashes
from rebalance_tasks.core.placement.minima import TAKEN, row_of_minimum, smallest_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.placement.domains import Path

#: Draws worked on at once; three such uint64 arrays stay in the second-level cache.
_BLOCK_ELEMENTS: Final = 1 << 15
#: Keys per pass at least, so that NumPy's cost per call does not show in wide buckets (no power of two: cache sets).
_BLOCK_KEYS: Final = 5_000
#: From here on a single key is faster through NumPy than through Python integers.
_SCALAR_CHILDREN: Final = 24


@dataclass(frozen=True)
class Bucket:
    """Children among which a key chooses, in canonical order (ties go to the first).

    Attributes:
        children: their positions in their level.
        hashes: their 64-bit hashes (round not added).
        weights: integers from `normalize_weights`, for the key's first child.
        further: the same for the children after it.
        scores: how many preferences each fulfils; None when there are none. A higher score beats any draw.
        round_number: makes the draws of one round independent of another's.
    """

    children: tuple[int, ...]
    hashes: tuple[int, ...]
    weights: tuple[int, ...]
    further: tuple[int, ...]
    scores: tuple[int, ...] | None = None
    round_number: int = 0

    @cached_property
    def round_hashes(self) -> U64:
        """The children's hashes with the round added: uint64 (m,)."""
        return round_hashes(self.hashes, self.round_number)

    @cached_property
    def _divisors(self) -> tuple[U64 | None, U64 | None]:
        """Weights of the first and of further children, uint64 (m,); None where all are alike."""
        return _divisors(self.weights), _divisors(self.further)

    @cached_property
    def _child_array(self) -> Indices:
        return np.array(self.children, dtype=np.int32)

    def rank(self, key_hash: int, count: int) -> list[int]:
        """Return the key's first `count` children, best first."""
        if len(self.children) == 1:
            return [self.children[0]]
        scores = self.scores or (0,) * len(self.children)
        logs = self._logs(key_hash)
        first = min(range(len(logs)), key=lambda i: (-scores[i], logs[i] // self.weights[i]))
        if count == 1:
            return [self.children[first]]
        order = sorted(range(len(logs)), key=lambda i: (-scores[i], logs[i] // self.further[i]))
        order.remove(first)
        return [self.children[i] for i in (first, *order[: count - 1])]

    def _logs(self, key_hash: int) -> list[int]:
        if len(self.children) < _SCALAR_CHILDREN:
            return [draw(key_hash, item, 1, self.round_number) for item in self.hashes]
        logs = np.empty((len(self.children), 1), dtype=np.uint64)
        self._log(np.array([key_hash], dtype=np.uint64), logs, np.empty((2, *logs.shape), dtype=np.uint64))
        return [int(log) for log in logs[:, 0]]

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
        first_values = np.empty_like(values) if count > 1 else values
        work = np.empty((2, rows, block), dtype=np.uint64)
        for start in range(0, n, block):
            keys = key_hashes[start : start + block]
            drawn = values[:, : len(keys)]
            self._log(keys, drawn, work[:, :, : len(keys)])
            smallest = self._smallest(drawn, first_values[:, : len(keys)], count)
            np.take(self._child_array, smallest, out=chosen[start : start + block], mode="clip")
        return chosen

    def _smallest(self, logs: U64, first_draws: U64, count: int) -> npt.NDArray[np.int64]:
        """Return the rows of the first `count` children of every column: int64 (n, count). Overwrites both arrays."""
        weights, further = self._divisors
        divide(logs, weights, first_draws)
        if count == 1:
            return smallest_rows(first_draws, 1)
        first = row_of_minimum(first_draws)
        divide(logs, further, logs)
        logs[first, np.arange(len(first))] = TAKEN
        return np.column_stack([first, smallest_rows(logs, count - 1)])

    def _log(self, keys: U64, out: U64, work: U64) -> None:
        """Fill `out` (m, n) with the draws' logarithms, as many rows at a time as `work` has: those stay in the cache."""
        rows = work.shape[1]
        for first in range(0, len(out), rows):
            part = slice(first, min(first + rows, len(out)))
            log_draws(keys, self.round_hashes[part], out[part], work[:, : part.stop - first])


def _divisors(weights: tuple[int, ...]) -> U64 | None:
    return None if set(weights) == {1} else np.array(weights, dtype=np.uint64)


@dataclass(frozen=True)
class _Items:
    """All places of one level, in canonical order."""

    hashes: tuple[int, ...]
    exact_weights: tuple[int, ...]
    scores: tuple[int, ...] | None

    def bucket(self, members: Sequence[int], round_number: int = 0, *, evened: bool = False) -> Bucket:
        exact = [*map(self.exact_weights.__getitem__, members)]
        total, weights = sum(exact), normalize_weights(exact)
        return Bucket(
            children=tuple(members),
            hashes=tuple(map(self.hashes.__getitem__, members)),
            weights=weights,
            further=normalize_weights([weight * (total + weight) for weight in exact]) if evened else weights,
            scores=None if self.scores is None else tuple(map(self.scores.__getitem__, members)),
            round_number=round_number,
        )


@dataclass(frozen=True)
class _Round:
    """One turn: `picks` places of `bucket`, each giving its child of rank `bucket.round_number`."""

    level: Level
    bucket: Bucket
    picks: int


class Tree:
    """Eligible nodes, compiled.

    Args:
        nodes: the cluster map.
        eligible: positions in it of the nodes that may be chosen, at least one, each of weight > 0.
        scores: preferences fulfilled by each of `eligible`; None when there are none.
    """

    def __init__(self, nodes: Sequence[NodeDescriptor], eligible: Sequence[int], scores: Sequence[int] | None) -> None:
        """Sort the nodes canonically and build every bucket."""
        order, paths = canonical(nodes, eligible)
        score_of = None if scores is None else dict(zip(eligible, scores, strict=True))
        self.leaves = tuple(order)
        self.preferring = scores is not None
        self._leaf_array = np.array(order, dtype=np.int32)
        self._items, self._members = _levels(
            paths,
            exact_weights([nodes[i].weight for i in order]),
            None if score_of is None else [score_of[i] for i in order],
        )
        self._buckets = {
            level: [self._items[Level(level + 1)].bucket(children) for children in self._members[level]]
            for level in (Level.ZONE, Level.RACK, Level.HOST)
        }
        self._round_buckets: dict[tuple[Level, int], Bucket | None] = {}
        self._programs: dict[int, _Program] = {}

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

    def place_compiled(self, kernels: ModuleType, key_hashes: U64, out: Indices) -> None:
        """Do as `place_many` does, by compiled code."""
        count = out.shape[1]
        program = self._programs.get(count)
        if program is None:
            program = self._programs[count] = self._program(count)
        if count > len(self.leaves):
            out[:, len(self.leaves) :] = -1
        kernels.place_tree(key_hashes, out, *program)

    def _program(self, count: int) -> _Program:
        ends = list(itertools.accumulate(len(self._items[level].hashes) for level in Level))
        base = dict(zip(Level, [0, *ends], strict=False))
        weights = [1] * ends[-1]
        first_child = []
        for level, buckets in self._buckets.items():
            for bucket in buckets:
                start = base[Level(level + 1)] + bucket.children[0]
                first_child.append(start)
                weights[start : start + len(bucket.children)] = bucket.weights
        turns = list(self._rounds(count))
        table = log_table()
        return _Program(
            top=table.top_array,
            slope=table.slope_array,
            item_hashes=fold(np.array([one for level in Level for one in self._items[level].hashes], dtype=np.uint64)),
            item_weights=np.array(weights, dtype=np.uint64),
            first_child=np.array([*first_child, ends[-1]], dtype=np.int64),
            leaves=self._leaf_array,
            starts=np.cumsum([0, *(len(turn.bucket.children) for turn in turns)]),
            picks=np.array([turn.picks for turn in turns]),
            ranks=np.array([turn.bucket.round_number for turn in turns]),
            members=np.array([base[turn.level] + child for turn in turns for child in turn.bucket.children]),
            member_hashes=fold(np.concatenate([turn.bucket.round_hashes for turn in turns])),
            member_weights=np.hstack(
                [np.array((turn.bucket.weights, turn.bucket.further), np.uint64) for turn in turns]
            ),
        )

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
            first = wanted == (Level.ZONE, 0)
            self._round_buckets[wanted] = (
                self._items[level].bucket(having, round_number, evened=first) if having else None
            )
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


class _Program(NamedTuple):
    """The tree for `kernels_numba.place_tree`, in its order of arguments; places are numbered level after level.

    Attributes:
        top/slope: uint64 (4096,), the table of `fixedlog`.
        item_hashes/item_weights: uint64 (places,), folded (`hashing.fold`); the weights normalised among the children of one parent.
        first_child: int64 (places above the nodes + 1,): the children of place g are ``first_child[g] : first_child[g + 1]``.
        leaves: int32 (nodes,), positions in the cluster map.
        starts: int64 (turns + 1,): where each turn's members begin.
        picks/ranks: int64 (turns,).
        members: int64, their numbers; member_hashes: uint64, folded, for the turn's round.
        member_weights: uint64 (2, members), for the turn's first pick and for further ones.
    """

    top: U64
    slope: U64
    item_hashes: U64
    item_weights: U64
    first_child: npt.NDArray[np.int64]
    leaves: Indices
    starts: npt.NDArray[np.int64]
    picks: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]
    member_hashes: U64
    member_weights: U64


def _levels(
    paths: Sequence[Path], weights: Sequence[int], scores: Sequence[int] | None
) -> tuple[dict[Level, _Items], dict[Level, list[list[int]]]]:
    """Return the places of each level, and for each place its children in the level below."""
    # Canonical order makes every domain a run of nodes, and its children a run of the level below.
    owner = {level: runs([path[level] for path in paths]) for level in Level}
    items, members = {}, {}
    for level in Level:
        bounds = [i for i in range(len(paths)) if i == 0 or owner[level][i] != owner[level][i - 1]]
        spans = list(itertools.pairwise([*bounds, len(paths)]))
        name, below = level.name.lower(), [] if level is Level.NODE else owner[Level(level + 1)]
        items[level] = _Items(
            hashes=tuple(hash_path(name, *paths[first][level]) for first in bounds),
            exact_weights=tuple(sum(weights[first:end]) for first, end in spans),
            scores=None if scores is None else tuple(max(scores[first:end]) for first, end in spans),
        )
        members[level] = [list(range(below[first], below[end - 1] + 1)) for first, end in spans if below]
    return items, members
