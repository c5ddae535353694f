"""Whether any plan of whole objects reaches a spread, moving at most so many bytes: node by node, every content that fits.

Written apart from the planner and from the searches of `exact` and `partition`: no solver, whole numbers of bytes. Where a node ends
with few objects there are only some thousands of *contents* that it may end with: sets of objects whose bytes lie in the
band that the spread allows, of which no more arrive than there is room for. The node with the fewest contents takes each of
them, then the next; what the objects that are left must still move, and what share they leave to the nodes that are left, says
which beginnings come to nothing. All beginnings that leave the same objects are gone on with at once, in arrays.

Source: Schreiber, Korf, Improved Bin Completion for Optimal Bin Packing and Number Partitioning (2013), for contents that are written out
first; the order by fewest contents is that of constraint programming.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tests.support.exact import Small

#: Contents of one node beyond which nobody writes them out.
MOST_CONTENTS: Final = 30_000
#: Steps of writing them out.
MOST_STEPS: Final = 2_000_000
#: Beginnings at a time.
MOST_BEGINNINGS: Final = 3_000_000
#: Bytes and shares by which doubles may be wrong: bands are that much wider, so that nothing is overlooked.
_CRUMB: Final = 1e-6
_ROUNDING: Final = 1e-9


class CutOffError(Exception):
    """There is too much to try."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """What one node may end with, as columns.

    Attributes:
        counts: int8 (n, kinds), objects of each kind.
        code: int64 (n,), one number for the counts.
        share: float64 (n,), bytes ÷ capacity.
        arriving: int64 (n,), bytes of objects that are not there yet.
        by_home: int64 (n, nodes), bytes by where the objects are now.
    """

    counts: NDArray[np.int8]
    code: NDArray[np.int64]
    share: NDArray[np.float64]
    arriving: NDArray[np.int64]
    by_home: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Begun:
    """Beginnings, as columns.

    Attributes:
        code: of the objects that have their node.
        last: of the content of the node before.
        top: highest share so far; bottom: lowest.
        moved: bytes so far.
    """

    code: NDArray[np.int64]
    last: NDArray[np.int64]
    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    moved: NDArray[np.int64]


class Covering:
    """Every way to share out the objects of a small fleet, a content for each node."""

    def __init__(self, fleet: Small, max_utilisation: str = "0.95") -> None:
        kinds = Counter(zip(fleet.sizes, fleet.at, strict=True))
        order = sorted(kinds, key=lambda kind: (-kind[0], kind[1]))
        self._sizes, self._home = np.array(order, np.int64).T
        self._counts = np.array([kinds[kind] for kind in order], np.int64)
        # As the digits of a number whose bases are the counts.
        self._digit = np.concatenate([[1], np.cumprod(self._counts + 1)[:-1]])
        self._capacity = np.array(fleet.capacity, np.float64)
        most = [int(Fraction(max_utilisation) * capacity) for capacity in fleet.capacity]
        self._rooms = [max(0, top - used) for top, used in zip(most, fleet.used, strict=True)]
        #: Empty nodes of one capacity may change places.
        self._alike = [
            capacity if not used else -j
            for j, (capacity, used) in enumerate(zip(fleet.capacity, fleet.used, strict=True), 1)
        ]

    def reaches(self, spread: float, size_bytes: float | None = None) -> bool | None:
        """Whether some plan reaches a spread, moving at most so many bytes; None when there is too much to try."""
        self._spread = spread * (1 + _ROUNDING)
        total = int(self._sizes @ self._counts)
        self._most = total if size_bytes is None else int(size_bytes)
        self._mean = total / float(self._capacity.sum())
        try:
            return self._search()
        except CutOffError:
            return None

    def _search(self) -> bool:
        contents = {j: self._contents(j) for j in range(len(self._capacity))}
        order = sorted(contents, key=lambda j: (len(contents[j].code), self._alike[j]))
        # Some node ends at the mean or above, and some at it or below.
        mean, none = np.array([self._mean]), np.zeros(1, np.int64)
        begun = _Begun(none, none, mean, mean, none)
        for at, j in enumerate(order):
            if at and self._alike[order[at - 1]] != self._alike[j]:
                begun = replace(begun, last=np.zeros(len(begun.code), np.int64))
            parts, count = [], 0
            for part in self._filled(begun, contents[j], order[at + 1 :]):
                parts.append(part)
                count += len(part.code)
                if count > MOST_BEGINNINGS:
                    raise CutOffError
            if not parts:
                return False
            begun = _distinct(_joined(parts))
        return True

    def _filled(self, begun: _Begun, contents: _Contents, rest: list[int]) -> Iterator[_Begun]:
        """Yield beginnings with one more node filled, those that leave the same objects together."""
        order = np.argsort(begun.code, kind="stable")
        codes, firsts = np.unique(begun.code[order], return_index=True)
        for taken, group in zip(codes.tolist(), np.split(order, firsts[1:]), strict=True):
            counts = self._counts - taken // self._digit % (self._counts + 1)
            free = np.flatnonzero((contents.counts <= counts).all(axis=1))
            held = np.bincount(self._home, self._sizes * counts, len(self._capacity)).astype(np.int64)
            top = np.maximum(begun.top[group][:, None], contents.share[free])
            bottom = np.minimum(begun.bottom[group][:, None], contents.share[free])
            moved = begun.moved[group][:, None] + contents.arriving[free]
            good = (top - bottom <= self._spread) & (moved <= self._most)
            good &= contents.code[free] >= begun.last[group][:, None]
            _, content = np.nonzero(good)
            top, bottom, moved, chosen = top[good], bottom[good], moved[good], free[content]
            least = self._least(held - contents.by_home[chosen], rest, top - self._spread, bottom + self._spread)
            alive = moved + least <= self._most
            if alive.any():
                chosen = contents.code[chosen[alive]]
                yield _Begun(taken + chosen, chosen, top[alive], bottom[alive], moved[alive])

    def _least(
        self, left: NDArray[np.int64], rest: list[int], low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the bytes that the nodes that are left must still take in; infinite where they cannot all end in the band."""
        total = left.sum(axis=1)
        if not rest:
            return np.where(total == 0, 0.0, np.inf)
        capacity, own = self._capacity[rest], left[:, rest]
        lacking = np.maximum(0.0, low[:, None] * capacity - own)
        leaving = total - own.sum(axis=1) + np.maximum(0.0, own - high[:, None] * capacity).sum(axis=1)
        least = np.maximum(leaving, lacking.sum(axis=1)) - _CRUMB
        fits = (total >= low * capacity.sum() - _CRUMB) & (total <= high * capacity.sum() + _CRUMB)
        fits &= (lacking <= np.array([self._rooms[j] for j in rest]) + _CRUMB).all(axis=1)
        return np.where(fits, least, np.inf)

    def _contents(self, j: int) -> _Contents:
        """Write out what a node may hold in the end."""
        least, most = ((self._mean + sign * self._spread) * self._capacity[j] + sign * _CRUMB for sign in (-1, 1))
        room, kinds = min(self._rooms[j], self._most), len(self._sizes)
        sizes, counts, homes = self._sizes.tolist(), self._counts.tolist(), self._home.tolist()
        after = np.append(np.cumsum((self._sizes * self._counts)[::-1])[::-1], 0).tolist()
        found: list[tuple[int, ...]] = []
        stack: list[tuple[tuple[int, ...], int, int]] = [((), 0, 0)]
        steps = 0
        while stack:
            chosen, size_bytes, arriving = stack.pop()
            at, steps = len(chosen), steps + 1
            if size_bytes + after[at] < least:
                continue
            if at == kinds:
                found.append(chosen)
            if len(found) > MOST_CONTENTS or steps > MOST_STEPS:
                raise CutOffError
            for count in range(counts[at] + 1 if at < kinds else 0):
                held = size_bytes + count * sizes[at]
                arrived = arriving + (count * sizes[at] if homes[at] != j else 0)
                if held <= most and arrived <= room:
                    stack.append(((*chosen, count), held, arrived))
        every = np.array(found, np.int64).reshape(-1, kinds)
        by_home = (every * self._sizes) @ np.eye(len(self._capacity), dtype=np.int64)[self._home]
        size_bytes = by_home.sum(axis=1)
        share, arriving = size_bytes / self._capacity[j], size_bytes - by_home[:, j]
        return _Contents(every.astype(np.int8), every @ self._digit, share, arriving, by_home)


def _joined(parts: list[_Begun]) -> _Begun:
    return _Begun(
        np.concatenate([part.code for part in parts]),
        np.concatenate([part.last for part in parts]),
        np.concatenate([part.top for part in parts]),
        np.concatenate([part.bottom for part in parts]),
        np.concatenate([part.moved for part in parts]),
    )


def _distinct(begun: _Begun) -> _Begun:
    """Of beginnings that differ in nothing but the bytes moved keep the one that moved the fewest."""
    order = np.lexsort((begun.moved, begun.code, begun.last, begun.top, begun.bottom))
    new = np.zeros(len(order), np.bool_)
    new[:1] = True
    for column in (begun.code, begun.last, begun.top, begun.bottom):
        new[1:] |= column[order[1:]] != column[order[:-1]]
    kept = order[new]
    return _Begun(begun.code[kept], begun.last[kept], begun.top[kept], begun.bottom[kept], begun.moved[kept])
