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
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.inventory import Unlisted
from rebalance_tasks.core.planner_candidates import MOVABLE, NOT_A_CANDIDATE, REASONS, gravity_of, screen
from rebalance_tasks.core.planner_state import Fleet

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: Shares of what is kept: the largest at most, and by size class; the rest goes by gravity per byte.
_LARGEST, _BY_CLASS = 0.5, 0.25
#: Size classes within a factor of two: how finely gaps can be closed.
_CLASSES: Final = 2.0


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
    # Alone in its fleet a node has every role but that of a target; how much it holds matters later.
    alone = Fleet([node.model_copy(update={"capacity_bytes": 1})], inventory, options, reserved_bytes={}, prices={})
    gravity = gravity_of(inventory, alone, options)
    # What gravity protects is for the planner to say, which knows what leaving the node costs.
    unprotected = np.zeros(len(inventory), np.float64)
    open_options = options.model_copy(update={"gravity_protection_threshold": 1.0})
    why = screen(inventory, alone, unprotected, options=open_options, now=now, excluded_keys=())
    movable = np.flatnonzero(why == MOVABLE)
    kept = movable[_chosen(inventory.size_bytes[movable], gravity[movable], most, options)]
    others = np.ones(len(inventory), np.bool_)
    others[kept] = False
    counts = Counter({REASONS[code]: n for code, n in enumerate(np.bincount(why[others]).tolist()) if n})
    if left := counts.pop(REASONS[MOVABLE], 0):
        counts[NOT_A_CANDIDATE] = left
    movable_bytes = int(inventory.size_bytes[movable].sum()) - int(inventory.size_bytes[kept].sum())
    rest = np.flatnonzero(others)
    return replace(inventory.take(kept), unlisted=Unlisted(dict(counts), movable_bytes)), rest


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


def _chosen(
    sizes: NDArray[np.int64], gravity: NDArray[np.float64], most: int, options: RebalancerOptions
) -> NDArray[np.int64]:
    """Return positions of the objects to keep, in rising order, at most ``most``."""
    if len(sizes) <= most:
        return np.arange(len(sizes))
    weight = 4 * float(sizes.mean())
    order = np.argsort(gravity + weight / np.maximum(sizes, 1), kind="stable")
    leaving = could_leave(sizes, options)[: int(most * _LARGEST)]
    keep = np.zeros(len(sizes), np.bool_)
    keep[leaving] = True
    keep[_of_each_class(sizes, gravity, int(most * _BY_CLASS))] = True
    # The kinds overlap: what is left over goes by gravity per byte.
    keep[order[~keep[order]][: most - int(np.count_nonzero(keep))]] = True
    return np.flatnonzero(keep)


def _of_each_class(sizes: NDArray[np.int64], gravity: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Return positions of the objects of lowest gravity of each size class, an even share of each."""
    classes = (np.log2(np.maximum(sizes, 1)) * _CLASSES).astype(np.int64)
    order = np.lexsort((gravity, classes))
    ordered = classes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return order[np.argsort(rank, kind="stable")[:most]]
