"""Where the number of moves binds: chosen moves are exchanged for others, one at a time, as long as that lowers the spread.

Flows of water give each pair its bytes, and an object that is larger than one flow stays behind although it could go whole. With a
few moves a pair that costs much of what they could do. So each move is compared with every other one that would touch
the fullest or the emptiest node, in one array, and the best exchange is made, until none helps. What is compared is a
smooth spread (`planning.smooth`), whose sharpness grows from round to round.

Source: Kernighan, Lin, An Efficient Heuristic Procedure for Partitioning Graphs (1970).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planning.smooth import Without, smooth_spread

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.candidates import Eligibility
    from rebalance_tasks.core.planning.solver import Values
    from rebalance_tasks.core.planning.state import Work

    Rows = NDArray[np.int64]

#: β × the spread at the start of a round: nodes that are a tenth, then a fortieth … of the spread from its ends count as ends.
_SHARPNESS: Final = (10.0, 40.0, 160.0)
#: Exchanges compared in all, and fullest nodes that may give to the emptiest: a plan takes seconds, not minutes.
_MOST_COMPARED: Final = 6_000_000
_GIVERS: Final = 8
#: Moves in all, and a node, from which on flows of water are as good a beginning as any: others take ten times as long there, and end no lower.
_MANY_MOVES: Final = 100
_MANY_OF_A_NODE: Final = 4
#: An exchange must lower the smooth spread by this share of the spread; less would go on for ever without being of use.
_STEP: Final = 1e-5
#: Exchanges of a step that are tried before the next round: the constraints of single objects are asked only then.
_TRIED: Final = 32


def exchange(work: Work, eligibility: Eligibility, members: list[int], *, goal: float) -> None:
    """Exchange moves of one pool for others until its spread is at the goal, or no single exchange lowers it.

    Args:
        work: with the moves chosen so far; those that drain a node, and those of replicas, stay as they are.
        eligibility: the hard constraints.
        members: taking nodes of the pool.
        goal: spread.
    """
    before = best = work.snapshot()
    reached, compared = _worth(work, members, goal), 0
    for begins in _beginnings(work, members):
        if reached[0] <= goal or compared >= _MOST_COMPARED:
            break
        work.restore(before)
        pool = _Pool(work, eligibility, members, goal, most=_MOST_COMPARED - compared)
        if begins is not None:
            pool.begin_with(begins)
        for sharpness in _SHARPNESS:
            pool.round(sharpness)
        pool.book()
        compared += pool.compared
        if (found := _worth(work, members, goal)) < reached:
            best, reached = work.snapshot(), found
    work.restore(best)


def _beginnings(work: Work, members: list[int]) -> list[tuple[int, ...] | None]:
    """Return from which moves to begin: nodes whose largest object goes first, which flows of water cannot see as a whole; None, what is chosen."""
    moves = sum(len(chosen.rows) for chosen in work.chosen if chosen.source in members) + work.ledger.moves_left
    if moves >= _MANY_MOVES and moves > _MANY_OF_A_NODE * len(members):
        return [None]
    return [(), *((i,) for i in _by_largest(work, members)), None]


def _by_largest(work: Work, members: list[int]) -> list[int]:
    """Return some nodes, that which holds the largest candidate for its capacity first."""
    sizes, fleet = work.inventory.size_bytes, work.fleet
    largest = {i: int(sizes[rows].max()) for i in members if len(rows := work.candidates.get(i, ()))}
    return sorted(largest, key=lambda i: (-largest[i] / fleet.capacity[i], i))[:_GIVERS]


def _worth(work: Work, members: list[int], goal: float) -> tuple[float, int]:
    """The spread as far as it is over the goal, and the bytes that are spent: the less, the better."""
    return max(goal, work.fleet.spread(members)), -work.ledger.bytes_left


@dataclass(slots=True)
class _Moves:
    """Moves that may be exchanged, as columns; nodes as positions among the members."""

    rows: Rows
    source: Rows
    target: Rows
    sizes: Rows


@dataclass(frozen=True, slots=True)
class _Compared:
    """Exchanges, as columns of equal length, and the smooth spread after each.

    Attributes:
        move: that is given up; the number of moves where none is.
        source, target: of the move that is made instead; positions among the members.
        size: of its object, bytes.
    """

    move: Rows
    source: Rows
    target: Rows
    size: Rows
    smooth: Values


class _Pool:
    """The nodes of one pool, the moves between them and what could move instead."""

    def __init__(self, work: Work, eligibility: Eligibility, members: list[int], goal: float, *, most: int) -> None:
        self._most = most
        self._work, self._eligibility, self._members, self._goal = work, eligibility, members, goal
        fleet, n = work.fleet, len(members)
        self._capacity = np.array([fleet.capacity[i] for i in members], np.float64)
        self._price = np.array([[float(fleet.per_gb(i, j)) / 1e9 for j in members] for i in members])
        self._open = np.array([[i != j and fleet.linked(i, j) for j in members] for i in members])
        self.compared = 0
        groups = work.inventory.replica_group
        self._alone = np.ones(len(work.inventory), np.bool_) if groups is None else groups.codes < 0
        self._moves = self._taken_out()
        self._rows: list[Rows] = []
        self._sizes: list[Rows] = []
        for i in members:
            rows = work.candidates.get(i, np.empty(0, np.int64))
            # The repair leaves what it chose among the candidates.
            rows = rows[self._alone[rows] & ~np.isin(rows, self._moves.rows)]
            rows = rows[np.argsort(work.inventory.size_bytes[rows], kind="stable")]
            first = int(np.searchsorted(work.inventory.size_bytes[rows], 1))
            self._rows.append(rows[first:])
            self._sizes.append(work.inventory.size_bytes[rows[first:]])
        self._every = np.arange(n)

    # -- taking moves out of the plan and putting them back ---------------------------------------------------------
    def _taken_out(self) -> _Moves:
        """Take the moves that may be exchanged out of what is chosen; on paper their bytes stay where they went."""
        work, place = self._work, {i: at for at, i in enumerate(self._members)}
        rows: list[Rows] = [np.empty(0, np.int64)]
        ends: list[tuple[int, int]] = []
        kept = []
        for chosen in work.chosen:
            if chosen.step == "drain" or chosen.source not in place:
                kept.append(chosen)
                continue
            mine = self._alone[chosen.rows]
            rows.append(chosen.rows[mine])
            ends += [(place[chosen.source], place[chosen.target])] * int(mine.sum())
            if not mine.all():
                kept.append(replace(chosen, rows=chosen.rows[~mine]))
        work.chosen[:] = kept
        found = np.concatenate(rows)
        source, target = np.array(ends, np.int64).reshape(-1, 2).T.copy()
        return _Moves(found, source, target, work.inventory.size_bytes[found].copy())

    def book(self) -> None:
        """Choose the moves that are left at the end, and spend the budgets for them; what is not chosen is a candidate again."""
        work, moves = self._work, self._moves
        for at, i in enumerate(self._members):
            rows = work.candidates.get(i, np.empty(0, np.int64))
            work.candidates[i] = np.concatenate([rows[~self._alone[rows]], self._rows[at]])
        pairs = moves.source * len(self._members) + moves.target
        for pair in np.unique(pairs).tolist():
            here = np.flatnonzero(pairs == pair)
            i, j = (self._members[at] for at in divmod(pair, len(self._members)))
            order = np.argsort(-moves.sizes[here], kind="stable")
            # Choosing them spends the budgets for them once more.
            self._spend(-len(here), -int(moves.sizes[here].sum()), i, j)
            work.book(moves.rows[here[order]], i, j, "balance")

    def begin_with(self, nodes: Collection[int]) -> None:
        """Take every move back, and send the largest object of some nodes to the emptiest node that may take it."""
        moves, self._moves = self._moves, _Moves(*(np.empty(0, np.int64) for _ in range(4)))
        for at in range(len(moves.rows)):
            source, target = int(moves.source[at]), int(moves.target[at])
            self._spend(-1, -int(moves.sizes[at]), self._members[source], self._members[target])
            self._put_back(source, int(moves.rows[at]))
        for source in map(self._members.index, nodes):
            if len(sizes := self._sizes[source]):
                ends = np.flatnonzero(self._open[source])
                emptiest = ends[np.argsort(self._shares()[ends], kind="stable")]
                none = np.full(len(ends), len(self._moves.rows))
                wanted = _Compared(none, np.full(len(ends), source), emptiest, np.full(len(ends), sizes[-1]), none)
                any(self._make(wanted, at) for at in range(len(ends)))

    def _spend(self, moves: int, size_bytes: int, i: int, j: int) -> None:
        fleet = self._work.fleet
        self._work.ledger.spend(moves, size_bytes, fleet.per_gb(i, j))
        fleet.used[i] -= size_bytes
        fleet.used[j] += size_bytes

    # -- exchanging -------------------------------------------------------------------------------------------------
    def round(self, sharpness: float) -> None:
        """Make the best exchange, again and again, until none lowers the smooth spread."""
        fleet = self._work.fleet
        spread = fleet.spread(self._members)
        beta = sharpness / spread
        while fleet.spread(self._members) > self._goal and self.compared < self._most:
            # As long as there are moves to spare, none need be given up.
            if not (self._work.ledger.moves_left > 0 and self._step(beta, spread, spare=True)) and not self._step(
                beta, spread, spare=False
            ):
                return

    def _step(self, beta: float, spread: float, *, spare: bool) -> bool:
        """Make the best move that gives up another one, or none; tell whether one was made."""
        now = smooth_spread(self._shares(), beta)
        compared = self._compare(beta, spare=spare)
        better = np.flatnonzero(compared.smooth < now - _STEP * spread)
        best = better[np.argsort(compared.smooth[better], kind="stable")][:_TRIED]
        return any(self._make(compared, int(at)) for at in best)

    def _shares(self) -> Values:
        return np.array([self._work.fleet.used[i] for i in self._members], np.float64) / self._capacity

    def _compare(self, beta: float, *, spare: bool) -> _Compared:
        """Compare what touches the fullest or the emptiest node: moves that take none back, or that each take another one back."""
        shares, moves = self._shares(), self._moves
        fullest, emptiest = int(np.argmax(shares)), int(np.argmin(shares))
        without = Without(shares, self._capacity, (moves.source, moves.target, moves.sizes), beta)
        every = np.array([len(moves.rows)]) if spare else np.arange(len(moves.rows))
        fuller = np.argsort(-shares, kind="stable")[:_GIVERS].tolist()
        found = []
        for i in fuller:
            targets = self._every if i == fullest else np.array([emptiest])
            found += self._instead(without, every, i, targets)
        back = np.flatnonzero((moves.target == fullest) | (moves.source == emptiest))
        for i in [] if spare else sorted({*fuller, *moves.source[back].tolist()}):
            found += self._instead(without, back, i, self._every)
        columns = zip(*found, strict=True) if found else [[np.empty(0, np.int64)]] * 4
        move, source, target, size = map(np.concatenate, columns)
        good = self._fits(without, move, source, target, size)
        move, source, target, size = move[good], source[good], target[good], size[good]
        return _Compared(move, source, target, size, without.smooth(move, source, target, size))

    def _instead(self, without: Without, given_up: Rows, i: int, targets: Rows) -> list[tuple[Rows, Rows, Rows, Rows]]:
        """Return (move, source, target, size): to give up each of some moves for what would level i and each target best."""
        targets = targets[self._open[i, targets]]
        if not len(targets) or not len(given_up):
            return []
        shares = without.shares[given_up]
        level = (shares[:, [i]] - shares[:, targets]) / (1 / self._capacity[i] + 1 / self._capacity[targets])
        move, target = (column.ravel() for column in np.broadcast_arrays(given_up[:, None], targets[None, :]))
        ideal, sizes = level.ravel(), self._sizes[i]
        self.compared += len(ideal)
        useful = ideal > 0
        move, target, ideal = move[useful], target[useful], ideal[useful]
        above = np.searchsorted(sizes, ideal)
        # The object of the move that is given up may go elsewhere.
        own = np.append(self._moves.source, -1)[move] == i
        found = [(move[own], target[own], self._moves.sizes[move[own]])]
        for at in (above - 1, above):
            there = (at >= 0) & (at < len(sizes))
            found.append((move[there], target[there], sizes[at[there]]))
        return [(move, np.full(len(move), i), target, size) for move, target, size in found]

    def _fits(self, without: Without, move: Rows, source: Rows, target: Rows, size: Rows) -> NDArray[np.bool_]:
        """Tell what room and budgets allow, as far as doubles tell, and makes no node fuller than the fullest is, or emptier than the emptiest."""
        ledger, fleet = self._work.ledger, self._work.fleet
        ceiling = np.array([fleet.used[i] + fleet.room(i) for i in self._members], np.float64)
        given = np.append(self._moves.sizes, 0)[move]
        paid = np.append(self._price[self._moves.source, self._moves.target] * self._moves.sizes, 0.0)[move]
        fits = without.shares[move, target] * self._capacity[target] + size <= ceiling[target]
        fits &= size - given <= ledger.bytes_left
        fits &= self._price[source, target] * size - paid <= float(ledger.cost_left)
        return fits & without.inside(move, source, target, size)

    def _make(self, compared: _Compared, at: int) -> bool:
        """Make an exchange if exact counts and the object's own constraints allow it."""
        work, fleet = self._work, self._work.fleet
        move, source, target = int(compared.move[at]), int(compared.source[at]), int(compared.target[at])
        i, j = self._members[source], self._members[target]
        before = work.snapshot()
        gives_up = move < len(self._moves.rows)
        if gives_up:
            ends = self._members[int(self._moves.source[move])], self._members[int(self._moves.target[move])]
            self._spend(-1, -int(self._moves.sizes[move]), *ends)
        row = self._object(move if gives_up else None, source, j, int(compared.size[at]))
        if row is not None:
            size = int(work.inventory.size_bytes[row])
            self._spend(1, size, i, j)
        if row is None or fleet.room(j) < 0 or not self._holds(ends[0] if gives_up else j):
            fleet.used[:] = before.used
            work.ledger = before.ledger
            return False
        self._exchange(move if gives_up else None, row, source, target)
        return True

    def _holds(self, j: int) -> bool:
        """Whether the budgets hold, and the room of a node if anything goes there."""
        ledger, fleet = self._work.ledger, self._work.fleet
        if min(ledger.moves_left, ledger.bytes_left) < 0 or ledger.cost_left < 0:
            return False
        return fleet.room(j) >= 0 or not self._takes(j)

    def _takes(self, j: int) -> bool:
        there = self._members.index(j)
        return bool((self._moves.target == there).any()) or any(chosen.target == j for chosen in self._work.chosen)

    def _object(self, move: int | None, source: int, j: int, size: int) -> int | None:
        """Return a row of this size on a node that may go to another, the lightest first."""
        rows = self._rows[source][slice(*np.searchsorted(self._sizes[source], [size, size + 1]))]
        if move is not None and self._moves.source[move] == source and self._moves.sizes[move] == size:
            rows = np.append(rows, self._moves.rows[move])
        rows = rows[self._eligibility.allowed_alone(rows, self._members[source], j)]
        return int(rows[np.argmin(self._work.gravity[rows])]) if len(rows) else None

    def _exchange(self, move: int | None, row: int, source: int, target: int) -> None:
        """Write an exchange down."""
        moves, sizes = self._moves, self._work.inventory.size_bytes
        if move is not None:
            self._put_back(int(moves.source[move]), int(moves.rows[move]))
        at = int(np.flatnonzero(self._rows[source] == row)[0])
        self._rows[source], self._sizes[source] = np.delete(self._rows[source], at), np.delete(self._sizes[source], at)
        made = row, source, target, int(sizes[row])
        columns = moves.rows, moves.source, moves.target, moves.sizes
        if move is None:
            self._moves = _Moves(*(np.append(column, value) for column, value in zip(columns, made, strict=True)))
            return
        for column, value in zip(columns, made, strict=True):
            column[move] = value

    def _put_back(self, source: int, row: int) -> None:
        size = self._work.inventory.size_bytes[row]
        at = int(np.searchsorted(self._sizes[source], size))
        self._rows[source] = np.insert(self._rows[source], at, row)
        self._sizes[source] = np.insert(self._sizes[source], at, size)
