"""Both placement rules, compiled: key by key what `placement.tree` and `placement.flat` do with NumPy, bit for bit.

Integers only. **The constants of `hashing` and `fixedlog` are written out here again** (`compiled` says why); a test compares
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.placement.compiled import Kernel, inlined

if TYPE_CHECKING:
    import numpy.typing as npt

#: As `hashing.MIX_MUL_1` and so on. NumPy scalars, since numba makes float64 of uint64 and a Python integer.
MIX_MUL_1: Final = np.uint64(0xBF58476D1CE4E5B9)
MIX_MUL_2: Final = np.uint64(0x94D049BB133111EB)
MIX_SHIFT_1: Final = np.uint64(30)
MIX_SHIFT_2: Final = np.uint64(27)
#: As in `fixedlog`: where the cell and the fraction lie in a mixed hash.
CELL_SHIFT: Final = np.uint64(52)
FRACTION_SHIFT: Final = np.uint64(32)
FRACTION_MASK: Final = np.uint64((1 << 20) - 1)
#: Above every draw.
TAKEN: Final = np.uint64(2**64 - 1)


@inlined
def _mix(key: np.uint64, item: np.uint64) -> np.uint64:
    """Mix what `hashing.fold` has folded already."""
    mixed = (key ^ item) * MIX_MUL_1
    return (mixed ^ (mixed >> MIX_SHIFT_2)) * MIX_MUL_2


@inlined
def _negative_log(mixed: np.uint64, top: npt.NDArray[np.uint64], slope: npt.NDArray[np.uint64]) -> np.uint64:
    cell = mixed >> CELL_SHIFT
    log: np.uint64 = top[cell] - slope[cell] * ((mixed >> FRACTION_SHIFT) & FRACTION_MASK)
    return log


@inlined
def _child(  # noqa: PLR0913, PLR0917
    key: np.uint64,
    place: int,
    rank: int,
    top: npt.NDArray[np.uint64],
    slope: npt.NDArray[np.uint64],
    item_hashes: npt.NDArray[np.uint64],
    item_weights: npt.NDArray[np.uint64],
    first_child: npt.NDArray[np.int64],
) -> int:
    """Return the place's child of a rank: the smallest draw that is above those of the ranks before."""
    first: int = first_child[place]
    end: int = first_child[place + 1]
    if end - first == 1:
        return first
    best, chosen = TAKEN, first
    for i in range(first, end):
        draw = _negative_log(_mix(key, item_hashes[i]), top, slope) // item_weights[i]
        if draw < best:
            best, chosen = draw, i
    for _ in range(rank):
        above, before = best, chosen
        best = TAKEN
        for i in range(first, end):
            draw = _negative_log(_mix(key, item_hashes[i]), top, slope) // item_weights[i]
            if draw < best and (draw > above or (draw == above and i > before)):
                best, chosen = draw, i
    return chosen


@inlined
def _rank(  # noqa: PLR0913, PLR0917
    key: np.uint64,
    count: int,
    top: npt.NDArray[np.uint64],
    slope: npt.NDArray[np.uint64],
    hashes: npt.NDArray[np.uint64],
    weights: npt.NDArray[np.uint64],
    best: npt.NDArray[np.uint64],
    order: npt.NDArray[np.int64],
) -> None:
    """Write the first `count` children into `order`: the smallest draw, then the smallest further draws of the others."""
    least, first, found = TAKEN, 0, 0
    for i in range(hashes.shape[0]):
        log = _negative_log(_mix(key, hashes[i]), top, slope)
        draw = log // weights[0, i]
        if draw < least:
            least, first = draw, i
        draw = log // weights[1, i]
        if found == count and draw >= best[found - 1]:
            continue
        found = min(found + 1, count)
        j = found - 1
        while j > 0 and best[j - 1] > draw:  # of equals the first stays ahead
            best[j] = best[j - 1]
            order[j] = order[j - 1]
            j -= 1
        best[j] = draw
        order[j] = i
    j = 0
    while j < count - 1 and order[j] != first:
        j += 1
    while j > 0:
        order[j] = order[j - 1]
        j -= 1
    order[0] = first


def _place_tree(  # noqa: PLR0913, PLR0917  the arrays of `crush_tree._Program`
    hashes: npt.NDArray[np.uint64],
    out: npt.NDArray[np.int32],
    top: npt.NDArray[np.uint64],
    slope: npt.NDArray[np.uint64],
    item_hashes: npt.NDArray[np.uint64],
    item_weights: npt.NDArray[np.uint64],
    first_child: npt.NDArray[np.int64],
    leaves: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    picks: npt.NDArray[np.int64],
    ranks: npt.NDArray[np.int64],
    members: npt.NDArray[np.int64],
    member_hashes: npt.NDArray[np.uint64],
    member_weights: npt.NDArray[np.uint64],
) -> None:
    first_node = first_child.shape[0] - 1
    best = np.empty(out.shape[1], np.uint64)
    order = np.empty(out.shape[1], np.int64)
    for k in range(hashes.shape[0]):
        key = hashes[k] ^ (hashes[k] >> MIX_SHIFT_1)
        column = 0
        for turn in range(picks.shape[0]):
            window = slice(starts[turn], starts[turn + 1])
            _rank(key, picks[turn], top, slope, member_hashes[window], member_weights[:, window], best, order)
            for pick in range(picks[turn]):
                place = members[starts[turn] + order[pick]]
                item = _child(key, place, ranks[turn], top, slope, item_hashes, item_weights, first_child)
                while item < first_node:
                    item = _child(key, item, 0, top, slope, item_hashes, item_weights, first_child)
                out[k, column] = leaves[item - first_node]
                column += 1


@inlined
def _exclude(
    found: int, candidates: npt.NDArray[np.int32], left: npt.NDArray[np.uint64], domain: npt.NDArray[np.int32], row: int
) -> None:
    """Take out all candidates of the same domain."""
    for i in range(found):
        if domain[candidates[i]] == domain[candidates[row]]:
            left[i] = TAKEN


@inlined
def _choose(  # noqa: PLR0913, PLR0917
    found: int,
    candidates: npt.NDArray[np.int32],
    draws: npt.NDArray[np.uint64],
    left: npt.NDArray[np.uint64],
    chosen: npt.NDArray[np.int64],
    domains: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int64],
    count: int,
) -> bool:
    """Choose among the first `found` candidates, domain by domain; False when they do not suffice."""
    level = -1
    for pick in range(count):
        if pick == 0 or pick >= sizes[level]:
            level += 1
            while pick >= sizes[level]:
                level += 1
            left[:found] = draws[:found]
            for before in range(pick):
                _exclude(found, candidates, left, domains[level], chosen[before])
        best, row = TAKEN, -1
        for i in range(found):
            if left[i] < best:
                best, row = left[i], i
        if row < 0:
            return False
        chosen[pick] = row
        _exclude(found, candidates, left, domains[level], row)
    return True


def _place_flat(  # noqa: PLR0913, PLR0917  the arrays of `crush_flat._Program`
    hashes: npt.NDArray[np.uint64],
    out: npt.NDArray[np.int32],
    top: npt.NDArray[np.uint64],
    slope: npt.NDArray[np.uint64],
    item_hashes: npt.NDArray[np.uint64],
    mantissas: npt.NDArray[np.uint64],
    shifts: npt.NDArray[np.uint64],
    thresholds: npt.NDArray[np.uint64],
    domains: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int64],
    leaves: npt.NDArray[np.int32],
) -> None:
    n = leaves.shape[0]
    count = min(out.shape[1], n)
    likely = np.empty(n, np.uint8)
    candidates = np.empty(n, np.int32)
    draws = np.empty(n, np.uint64)
    left = np.empty(n, np.uint64)
    chosen = np.empty(count, np.int64)
    for k in range(hashes.shape[0]):
        key = hashes[k] ^ (hashes[k] >> MIX_SHIFT_1)
        for i in range(n):  # no branch and no store of the hash: the processor does eight nodes at once
            likely[i] = _mix(key, item_hashes[i]) >= thresholds[i]
        found = 0
        for i in range(n):
            candidates[found] = i
            found += likely[i]
        complete = False
        while not complete:
            for i in range(found):
                leaf = candidates[i]
                log = _negative_log(_mix(key, item_hashes[leaf]), top, slope)
                draws[i] = (log // mantissas[leaf]) << shifts[leaf]
            complete = _choose(found, candidates, draws, left, chosen, domains, sizes, count)
            if not complete:  # a key in a hundred: all nodes are candidates
                found = n
                for i in range(n):
                    candidates[i] = i
        for pick in range(count):
            out[k, pick] = leaves[candidates[chosen[pick]]]


#: Place keys by the tree rule: hashes uint64 (n,), out int32 (n, replicas), then the arrays of `crush_tree._Program`.
place_tree: Final = Kernel(_place_tree)
#: Place keys by the flat rule: hashes uint64 (n,), out int32 (n, replicas), then the arrays of `crush_flat._Program`.
place_flat: Final = Kernel(_place_flat)
