"""Whether any plan of whole objects reaches a spread, moving at most so many bytes: every way to share them out is tried.

Written apart from the planner and from the integer program of `exact`: no solver, whole numbers of bytes. The largest object
that is left goes to some node together with everything else that the node is to hold in the end (bin completion), then the
next, and so on. What prunes: the utilisation that nodes filled so far leave to the others, the bytes that must still move,
equal objects on one node, equal nodes, and states from which nothing was found before.

Source: Korf, Schreiber, Moffitt, Optimal Sequential Multi-Way Number Partitioning (2014), for the search by whole nodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.exact import Small

#: Steps after which nobody knows: about a minute.
STEPS: Final = 20_000_000
#: Bytes by which doubles may be wrong: windows are that much wider, so that nothing is overlooked.
_CRUMB: Final = 1e-6
_ROUNDING: Final = 1e-9
#: No limit of bytes.
_ANY: Final = 1 << 62

#: How many objects of each kind.
Counts = tuple[int, ...]


class CutOffError(Exception):
    """The search took too many steps."""


@dataclass(frozen=True, slots=True)
class _State:
    """Objects and nodes that are left, the band of utilisation open to these nodes, and bytes moved so far."""

    counts: Counts
    nodes: tuple[int, ...]
    low: float
    high: float
    moved: int


class Partition:
    """All ways to share out the objects of a small fleet."""

    def __init__(self, fleet: Small, max_utilisation: str = "0.95", steps: int = STEPS) -> None:
        kinds = Counter(zip(fleet.sizes, fleet.at, strict=True))
        self._kinds = sorted(kinds, key=lambda kind: (-kind[0], kind[1]))
        self._counts = tuple(kinds[kind] for kind in self._kinds)
        self._capacity = fleet.capacity
        most = [int(Fraction(max_utilisation) * capacity) for capacity in fleet.capacity]
        self._rooms = [max(0, top - used) for top, used in zip(most, fleet.used, strict=True)]
        self._steps = steps

    def reaches(self, spread: float, size_bytes: float | None = None) -> bool | None:
        """Whether some plan reaches a spread, moving at most so many bytes; None when the search was cut off."""
        most = _ANY if size_bytes is None else int(size_bytes)
        try:
            # Where objects are now matters little to a spread: without it equal nodes are equal.
            if size_bytes is None and not self._begin(spread, most, at_home=False):
                return False
            return self._begin(spread, most, at_home=True)
        except CutOffError:
            return None

    def _begin(self, spread: float, most: int, *, at_home: bool) -> bool:
        self._spread, self._most, self._left = spread * (1 + _ROUNDING), most, self._steps
        self._at_home = at_home
        self._room = self._rooms if at_home else [_ANY] * len(self._rooms)
        self._failed: dict[tuple[object, ...], int] = {}
        total = sum(size * count for (size, _), count in zip(self._kinds, self._counts, strict=True))
        mean, nodes = total / sum(self._capacity), tuple(range(len(self._capacity)))
        return self._search(_State(self._counts, nodes, mean - self._spread, mean + self._spread, 0))

    def _search(self, state: _State) -> bool:
        own = self._own(state)
        if state.moved + self._least(state, own) > self._most:
            return False
        anchor = next((kind for kind, count in enumerate(state.counts) if count), None)
        if anchor is None or not state.nodes:
            return anchor is None and (not state.nodes or state.low <= 0)
        alike = {j: (self._capacity[j], self._room[j], j if own[j] and self._at_home else -1) for j in state.nodes}
        key = (state.counts, tuple(sorted(alike.values())), round(state.low, 9), round(state.high, 9))
        if state.moved >= self._failed.get(key, _ANY + 1):
            return False
        different = {kind: j for j, kind in alike.items()}
        if any(self._search(following) for j in different.values() for following in self._filled(state, anchor, j)):
            return True
        self._failed[key] = state.moved
        return False

    def _own(self, state: _State) -> dict[int, int]:
        """Bytes of the objects left: by node left on which they are now, and −1 for those whose node is filled already."""
        own = dict.fromkeys((*state.nodes, -1), 0)
        for (size, home), count in zip(self._kinds, state.counts, strict=True):
            own[home if home in own else -1] += size * count
        return own

    def _least(self, state: _State, own: dict[int, int]) -> float:
        """Bytes that the nodes left must still take in from elsewhere; infinite where they cannot all end in the band."""
        capacity = sum(self._capacity[j] for j in state.nodes)
        if not state.low * capacity - _CRUMB <= sum(own.values()) <= state.high * capacity + _CRUMB:
            return float("inf")
        if not self._at_home:
            return 0.0
        lacking = {j: max(0.0, state.low * self._capacity[j] - own[j]) for j in state.nodes}
        if any(lack > self._room[j] + _CRUMB for j, lack in lacking.items()):
            return float("inf")
        leaving = own[-1] + sum(max(0.0, own[j] - state.high * self._capacity[j]) for j in state.nodes)
        return max(leaving, sum(lacking.values())) - _CRUMB

    def _filled(self, state: _State, anchor: int, j: int) -> Iterator[_State]:
        """Yield what is left after each way to fill a node with the largest object left and others."""
        capacity = self._capacity[j]
        rest = tuple(i for i in state.nodes if i != j)
        for chosen, size_bytes, arriving in self._choices(state, anchor, j):
            share = size_bytes / capacity
            yield _State(
                tuple(have - gone for have, gone in zip(state.counts, chosen, strict=True)),
                rest,
                max(state.low, share - self._spread),
                min(state.high, share + self._spread),
                state.moved + arriving,
            )

    def _choices(self, state: _State, anchor: int, j: int) -> Iterator[tuple[Counts, int, int]]:
        """Yield (objects of each kind, bytes of them, bytes that arrive) for what a node may hold in the end."""
        least, most = (band * self._capacity[j] for band in (state.low - _CRUMB, state.high + _CRUMB))
        room = min(self._room[j], self._most - state.moved)
        following = [0] * (len(self._kinds) + 1)
        for kind in range(len(self._kinds) - 1, -1, -1):
            size = self._kinds[kind][0]
            following[kind] = following[kind + 1] + (size * state.counts[kind] if size <= most else 0)
        chosen = [0] * len(self._kinds)

        def choose(kind: int, size_bytes: int, arriving: int) -> Iterator[tuple[Counts, int, int]]:
            self._left -= 1
            if self._left < 0:
                raise CutOffError
            if size_bytes + following[kind] < least:
                return
            if kind == len(chosen):
                yield tuple(chosen), size_bytes, arriving
                return
            size, home = self._kinds[kind]
            for count in range(state.counts[kind], 0 if kind == anchor else -1, -1):
                held, arrived = size_bytes + count * size, arriving + (0 if home == j else count * size)
                if held <= most and arrived <= room:
                    chosen[kind] = count
                    yield from choose(kind + 1, held, arrived)
            chosen[kind] = 0

        yield from choose(anchor, 0, 0)
