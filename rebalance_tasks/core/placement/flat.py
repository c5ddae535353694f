"""The flat rule: weighted rendezvous over all nodes, with failure domains kept apart; it moves the least.

Every key draws for every eligible node, ``−ln(u) ÷ weight`` as in straw2 (`fixedlog`), and takes the smallest draws in turn:

    fresh zones   the smallest draw in a zone that holds no replica yet, until every zone holds one
    fresh racks   then in a rack that holds none
    fresh hosts   then on a host that holds none
    fresh nodes   then on any other node

The draws of a node depend on nothing but the key, its id and its weight, so a node that comes takes replicas and sets none
of the others in motion, and one that goes gives up what it held and nothing else: for each key at most one replica changes
(each stage takes the best of every zone, rack, host; a newcomer pushes at most one of the chosen out). A tree cannot do
that: there a rack's weight changes with its nodes, and the draws of racks and zones with it.

How it is fast although it draws for every node: the replicas of nearly every key have draws below a bound that `_bound`
learns from sample keys. For each node that is a threshold on the mixed hash itself, so most nodes cost a hash and a
comparison; the few that pass are drawn for exactly. A key for which they do not suffice is done over all nodes. The
bound decides about speed only, never about the result.

Sources: Thaler & Ravishankar 1998 (rendezvous hashing); Efraimidis & Spirakis 2006 (weights).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rebalance_tasks.core.placement.domains import Indices, Level, canonical, runs
from rebalance_tasks.core.placement.fixedlog import floating_weights, log_table, negative_logs
from rebalance_tasks.core.placement.hashing import U64, fold, hash_path, mix_folded, mix_many, round_hashes
from rebalance_tasks.core.placement.minima import TAKEN, row_of_minimum

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from rebalance_tasks.core.models import NodeDescriptor

#: Keys × nodes mixed at once; the two uint64 arrays stay in the second-level cache.
_BLOCK_ELEMENTS: Final = 1 << 15
#: Keys whose candidates are compared at once, so that NumPy's cost per call does not show.
_BLOCK_KEYS: Final = 1 << 12
#: Keys from which the bound is learnt, and how many of them may lie above it: each costs a look at all nodes.
_SAMPLE_KEYS: Final = 128
_SAMPLE_ABOVE: Final = 1


class _Program(NamedTuple):
    """The nodes in canonical order, for `kernels_numba.place_flat`, in its order of arguments.

    Attributes:
        top/slope: uint64 (4096,), the table of `fixedlog`.
        item_hashes: uint64 (n,), folded (`hashing.fold`).
        mantissas/shifts: uint64 (n,), from `fixedlog.floating_weights`.
        thresholds: uint64 (n,), for a number of replicas: a mixed hash below it is above the bound.
        domains: int32 (4, n), the domain of each node in each level.
        sizes: int64 (4,), domains in each level.
        leaves: int32 (n,), positions in the cluster map.
    """

    top: U64
    slope: U64
    item_hashes: U64
    mantissas: U64
    shifts: U64
    thresholds: U64
    domains: Indices
    sizes: npt.NDArray[np.int64]
    leaves: Indices


class Flat:
    """Eligible nodes, compiled for the flat rule.

    Args:
        nodes: the cluster map.
        eligible: positions in it of the nodes that may be chosen, at least one, each of weight > 0.
        scores: preferences fulfilled by each of `eligible`; a higher score beats any draw. None when there are none.
    """

    def __init__(self, nodes: Sequence[NodeDescriptor], eligible: Sequence[int], scores: Sequence[int] | None) -> None:
        """Sort the nodes canonically and hash them."""
        order, paths = canonical(nodes, eligible)
        self.leaves = tuple(order)
        self.preferring = scores is not None
        score_of = dict.fromkeys(eligible, 0) if scores is None else dict(zip(eligible, scores, strict=True))
        self._disfavour = np.array([-score_of[i] for i in order])
        domains = np.array([runs([path[level] for path in paths]) for level in Level], dtype=np.int32)
        mantissas, shifts = floating_weights([nodes[i].weight for i in order])
        table = log_table()
        self._nodes = _Program(
            top=table.top_array,
            slope=table.slope_array,
            item_hashes=np.array([hash_path("node", *path[Level.NODE]) for path in paths], dtype=np.uint64),
            mantissas=mantissas,
            shifts=shifts,
            thresholds=np.zeros(len(order), dtype=np.uint64),
            domains=domains,
            sizes=domains.max(axis=1).astype(np.int64) + 1,
            leaves=np.array(order, dtype=np.int32),
        )
        self._programs: dict[int, _Program] = {}

    def place(self, key_hash: int, count: int) -> list[int]:
        """Return the key's first `count` nodes (fewer when there are fewer), as positions in the cluster map."""
        draws = self._all(np.array([key_hash], dtype=np.uint64))[0][:, 0]
        order = np.lexsort((draws, self._disfavour))
        chosen: list[int] = []
        for domain in self._nodes.domains:
            taken = {domain[i] for i in chosen}
            for i in order:
                if len(chosen) >= count:
                    break
                if domain[i] not in taken:
                    taken.add(domain[i])
                    chosen.append(i)
        return [self.leaves[i] for i in chosen]

    def place_many(self, key_hashes: U64, out: Indices) -> None:
        """Write the first nodes of every key, in NumPy (without preferences).

        Args:
            key_hashes: uint64 (n,).
            out: int32 (n, count), overwritten; −1 where there are fewer nodes than columns.
        """
        program = self._program(out.shape[1])
        count = min(out.shape[1], len(self.leaves))
        out[:, count:] = -1
        for start in range(0, len(key_hashes), _BLOCK_KEYS):
            keys = key_hashes[start : start + _BLOCK_KEYS]
            chosen, complete = self._choose(*self._candidates(keys, program), count)
            left = np.flatnonzero(~complete)
            for few in np.array_split(left, len(left) * len(self.leaves) // _BLOCK_ELEMENTS + 1):
                chosen[:, few], _ = self._choose(*self._all(keys[few]), count)
            out[start : start + len(keys), :count] = self._nodes.leaves[chosen].T

    def place_compiled(self, kernels: ModuleType, key_hashes: U64, out: Indices) -> None:
        """Do as `place_many` does, by compiled code."""
        if out.shape[1] > len(self.leaves):
            out[:, len(self.leaves) :] = -1
        kernels.place_flat(key_hashes, out, *self._program(out.shape[1]))

    def _program(self, count: int) -> _Program:
        program = self._programs.get(count)
        if program is None:
            program = self._programs[count] = self._nodes._replace(
                item_hashes=fold(self._nodes.item_hashes), thresholds=self._thresholds(count)
            )
        return program

    def _thresholds(self, count: int) -> U64:
        """Return the smallest mixed hash of each node whose draw is within the bound, found by halving: uint64 (n,)."""
        bound = self._bound(min(count, len(self.leaves)))
        low = np.zeros(len(self.leaves), dtype=np.uint64)  # draws fall as the upper 32 bits of a hash grow
        high = np.full(len(self.leaves), 2**32 - 1, dtype=np.uint64)
        for _ in range(32):
            middle = (low + high) >> np.uint64(1)
            within = _draws(middle << np.uint64(32), self._nodes.mantissas, self._nodes.shifts) <= bound
            high = np.where(within, middle, high)
            low = np.where(within, low, middle + np.uint64(1))
        return high << np.uint64(32)

    def _bound(self, count: int) -> np.uint64:
        """Return a draw that the last replica of 99 keys in 100 is within."""
        draws, nodes = self._all(round_hashes(range(_SAMPLE_KEYS), 1))
        chosen, _ = self._choose(draws, nodes, count)
        return np.uint64(np.sort(np.take_along_axis(draws, chosen, axis=0).max(axis=0))[-1 - _SAMPLE_ABOVE])

    def _all(self, keys: U64) -> tuple[U64, Indices]:
        """Return the draws of all nodes, uint64 (nodes, keys), and the nodes, int32 (nodes, 1)."""
        mixed = np.empty((2, len(self.leaves), len(keys)), dtype=np.uint64)
        mix_many(keys, self._nodes.item_hashes, *mixed)
        draws = _draws(mixed[0], self._nodes.mantissas[:, None], self._nodes.shifts[:, None])
        return draws, np.arange(len(self.leaves), dtype=np.int32)[:, None]

    def _candidates(self, keys: U64, program: _Program) -> tuple[U64, Indices]:
        """Return what lies within the bound: draws and nodes, (most candidates of a key, keys), `TAKEN` as filling."""
        m = len(self.leaves)
        rows = max(1, _BLOCK_ELEMENTS // m)
        work = np.empty((2, rows, m), dtype=np.uint64)
        positions, hashes = [], []
        folded = fold(keys)
        for start in range(0, len(keys), rows):
            part = folded[start : start + rows]
            mixed, scratch = work[:, : len(part)]
            mix_folded(program.item_hashes, part, mixed, scratch)
            (found,) = (mixed >= program.thresholds).reshape(-1).nonzero()
            positions.append(found + start * m)
            hashes.append(mixed.reshape(-1)[found])
        key, node = np.divmod(np.concatenate(positions), m)
        ends = np.cumsum(np.bincount(key, minlength=len(keys)))
        starts = np.concatenate(([0], ends[:-1]))
        row = np.arange(len(key)) - starts[key]
        draws = np.full((int((ends - starts).max(initial=1)), len(keys)), TAKEN)
        nodes = np.zeros(draws.shape, dtype=np.int32)
        draws[row, key] = _draws(np.concatenate(hashes), self._nodes.mantissas[node], self._nodes.shifts[node])
        nodes[row, key] = node
        return draws, nodes

    def _choose(self, draws: U64, nodes: Indices, count: int) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Choose in turn, each time the smallest draw in an unused domain.

        Returns:
            int32 (count, keys), nodes; bool (keys,), whether the candidates sufficed.
        """
        columns = np.arange(draws.shape[1])
        everywhere = np.broadcast_to(nodes, draws.shape)
        chosen = np.empty((count, len(columns)), dtype=np.int32)
        complete = np.ones(len(columns), dtype=np.bool_)
        level = -1
        for pick in range(count):
            if pick == 0 or pick >= self._nodes.sizes[level]:
                level = int(np.searchsorted(self._nodes.sizes, pick, side="right"))
                domain = self._nodes.domains[level]
                of_candidates = domain[nodes]
                left = draws.copy()
                for before in chosen[:pick]:
                    np.copyto(left, TAKEN, where=of_candidates == domain[before])
            row = row_of_minimum(left)
            complete &= left[row, columns] != TAKEN
            chosen[pick] = everywhere[row, columns]
            np.copyto(left, TAKEN, where=of_candidates == domain[chosen[pick]])
        return chosen, complete


def _draws(mixed: U64, mantissas: U64, shifts: U64) -> U64:
    """Return ``(−ln(u) ÷ mantissa) << shift``, elementwise."""
    logs = negative_logs(mixed)
    np.floor_divide(logs, mantissas, out=logs)
    return np.left_shift(logs, shifts, out=logs)
