"""The few objects of a node that a plan could want to move, and what must be known of the others.

node's listing ─▶ **thinned** ─▶ rows of candidates, counts and bytes of the rest ─▶ (all nodes) ─▶ planner

A fleet of 10⁹ objects does not fit into one process, and a plan moves a thousand of them. Where a node holds no more movable
objects than are kept, the plan is the one that everything would give. Where it holds more, three kinds are kept: the largest that the
budgets of a cycle let go (`could_leave`; up to half of the number), of each size class those of lowest gravity (they close gaps
that the others leave), and for the rest those that gravity per byte lets go first. A plan moves no more than that many objects off a
node; what is left waits for the next check.

The bound: no plan of M moves and E bytes takes more bytes off a node with k objects than its k largest hold, up to E. As long as
these are all kept, the best that cut-up objects could do under both budgets, which bounds every plan, is the same for candidates
as for everything (docs/how-to/large-fleets.md).

Bytes stay exact: a node's usage is that of all its objects. Counts stay exact: each object that is no row is counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.keeping.cuts import CLASSES, Cut, score, size_classes
from rebalance_tasks.core.planning.candidates import CODE, MOVABLE, NOT_A_CANDIDATE, REASONS, gravity_of, screen
from rebalance_tasks.core.planning.state import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from numpy.typing import NDArray

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: Shares of what is kept: the largest at most, and by size class; the rest goes by gravity per byte.
_LARGEST, _BY_CLASS = 0.5, 0.25


def thinned(
    node: NodeDescriptor, inventory: Inventory, *, most: int, options: RebalancerOptions, now: datetime
) -> tuple[Inventory, NDArray[np.int64]]:
    """Keep of one node's objects what a plan could move.

    Args:
        node: with its state and patterns.
        inventory: everything that lies on it, with measures of use.
        most: movable objects to keep, > 0.
        options: what is left alone.
        now: aware; ages are measured from it.

    Returns:
        The rows kept, in their order, with `Inventory.unlisted`; and the rows that were not kept, int64.
    """
    screened = Screen([node], options, now=now)
    why, gravity = screened.why(inventory), screened.gravity(inventory)
    movable = np.flatnonzero(why == MOVABLE)
    sizes = inventory.size_bytes[movable]
    mean_bytes = float(sizes.mean()) if len(sizes) else 0.0
    kept = movable[chosen(sizes, gravity[movable], most, options, mean_bytes=mean_bytes)[0]]
    others = np.ones(len(inventory), np.bool_)
    others[kept] = False
    rest = np.flatnonzero(others)
    return replace(inventory.take(kept), unlisted=unlisted_of(why[rest], inventory.size_bytes[rest])), rest


class Screen:
    """Tells what may leave its node from what stays whatever a plan wants."""

    def __init__(self, nodes: Iterable[NodeDescriptor], options: RebalancerOptions, *, now: datetime) -> None:
        """Take the nodes with their states and patterns, what is left alone, and the moment (aware) that ages are measured from."""
        # With room everywhere a node has every role; how much it holds matters later.
        open_nodes = [node.model_copy(update={"capacity_bytes": 1}) for node in nodes]
        nothing = Inventory.from_listings({})
        self.fleet = Fleet(open_nodes, nothing, options, reserved_bytes={}, prices={})
        self._options, self._now = options, now
        # What gravity protects is for the planner to say, which knows what leaving the node costs.
        self._open_options = options.model_copy(update={"gravity_protection_threshold": 1.0})

    def why(self, inventory: Inventory) -> NDArray[np.int8]:
        """Return int8 (n,): `planner_candidates.MOVABLE`, or the code of the reason to stay.

        That another node holds a key as well is no reason here: which rows come together must not decide.
        """
        why = self._why(inventory)
        doubled = np.flatnonzero(why == CODE["ambiguous"])
        for node in np.unique(inventory.node_index[doubled]):
            of_node = doubled[inventory.node_index[doubled] == node]
            why[of_node] = self._why(inventory.take(of_node))
        return why

    def _why(self, inventory: Inventory) -> NDArray[np.int8]:
        unprotected = np.zeros(len(inventory), np.float64)
        return screen(inventory, self.fleet, unprotected, options=self._open_options, now=self._now, excluded_keys=())

    def gravity(self, inventory: Inventory) -> NDArray[np.float64]:
        """Return float64 (n,) in [0, 1]."""
        return gravity_of(inventory, self.fleet, self._options)


def unlisted_of(why: NDArray[np.int8], sizes: NDArray[np.int64]) -> Unlisted:
    """Count objects that are no rows: int8 (n,) as `Screen.why` has them, and their bytes, int64 (n,)."""
    counts = Counter({REASONS[code]: n for code, n in enumerate(np.bincount(why).tolist()) if n})
    if left := counts.pop(REASONS[MOVABLE], 0):
        counts[NOT_A_CANDIDATE] = left
    return Unlisted(dict(counts), int(sizes[why == MOVABLE].sum()))


def could_leave(sizes: NDArray[np.int64], options: RebalancerOptions) -> NDArray[np.int64]:
    """Return positions of a node's largest objects as far as a cycle's budgets of moves and bytes go, the largest first.

    What is larger than the whole budget of bytes never leaves. Those that follow the last one here could only take its place, for
    fewer bytes a move.

    Args:
        sizes: int64 (n,), of what may leave.
        options: the budgets.
    """
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] <= options.max_egress_bytes_per_cycle][: options.max_moves_per_cycle]
    filled = int(np.searchsorted(np.cumsum(sizes[order]), options.max_egress_bytes_per_cycle)) + 1
    return order[:filled]


def chosen(
    sizes: NDArray[np.int64],
    gravity: NDArray[np.float64],
    most: int,
    options: RebalancerOptions,
    *,
    mean_bytes: float,
) -> tuple[NDArray[np.int64], Cut | None]:
    """Choose which of a node's movable objects to keep.

    Args:
        sizes: int64 (n,), bytes.
        gravity: float64 (n,).
        most: to keep.
        options: the budgets.
        mean_bytes: mean size of all movable objects of the node, of which these may be the few that are left.

    Returns:
        Positions in rising order, at most ``most``; and what an object must be to be kept beside these, None while there is room.
    """
    if len(sizes) <= most:
        return np.arange(len(sizes)), None
    weight = 4 * mean_bytes
    scores = score(sizes, gravity, weight)
    order = np.argsort(scores, kind="stable")
    room = int(most * _LARGEST)
    leaving = could_leave(sizes, options)[:room]
    of_class, gravity_below = _of_each_class(sizes, gravity, int(most * _BY_CLASS))
    keep = np.zeros(len(sizes), np.bool_)
    keep[leaving] = True
    keep[of_class] = True
    # The kinds overlap: what is left over goes by gravity per byte.
    rest = order[~keep[order]][: most - int(np.count_nonzero(keep))]
    keep[rest] = True
    score_below = float(scores[rest[-1]]) if len(rest) else -np.inf
    return np.flatnonzero(keep), Cut(_larger_than(sizes[leaving], room, options), gravity_below, score_below, weight)


def _larger_than(leaving: NDArray[np.int64], room: int, options: RebalancerOptions) -> int:
    """Return the size above which an object would be among the largest that leave; −1 while their number or bytes are not reached."""
    full = len(leaving) >= min(room, options.max_moves_per_cycle)
    full |= int(leaving.sum()) >= options.max_egress_bytes_per_cycle
    if not full:
        return -1
    return int(leaving.min()) if len(leaving) else int(np.iinfo(np.int64).max)


def _of_each_class(
    sizes: NDArray[np.int64], gravity: NDArray[np.float64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return positions of the objects of lowest gravity of each size class, an even share of each; and `Cut.gravity_below`."""
    classes = size_classes(sizes)
    order = np.lexsort((gravity, classes))
    ordered = classes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    found = order[np.argsort(rank, kind="stable")[:most]]
    below = np.full(CLASSES, -np.inf)
    np.maximum.at(below, classes[found], gravity[found])
    # A class of which everything is kept takes more.
    below[np.bincount(classes, minlength=CLASSES) == np.bincount(classes[found], minlength=CLASSES)] = np.inf
    return found, below
