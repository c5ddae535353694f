"""Candidates of a fleet whose list of objects does not fit into memory: rows stream past, what a plan could move is kept.

batches ─▶ **Keeper** ─▶ candidates, bytes and counts of the rest ─▶ batches once more ─▶ **Meetings** ─▶ candidates that lie elsewhere too

What is kept of a node is `core.keeping.candidates`; here it is kept of what was kept before and of the rows that have come since. The largest objects, and
those of lowest gravity in their size class, are found exactly that way; those that gravity per byte lets go first nearly so, since a mean size
goes into it that is not known before the end. Memory follows the rows kept, and a buffer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.errors import InvalidInventory
from rebalance_tasks.core.inventory import Inventory, Unlisted
from rebalance_tasks.core.keeping.candidates import Screen, chosen, unlisted_of
from rebalance_tasks.core.keeping.cuts import Cuts
from rebalance_tasks.core.keeping.sought import Sought
from rebalance_tasks.core.placement.hashing import hash_keys
from rebalance_tasks.core.planning.candidates import MOVABLE, node_rows

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from numpy.typing import NDArray

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: Rows that may come before it is decided again what to keep: half a second's work, some 100 MB.
BUFFER_ROWS: Final = 1_000_000


class Keeper:
    """Takes all rows of a fleet, in any order, and keeps the candidates of each node."""

    def __init__(
        self,
        nodes: Iterable[NodeDescriptor],
        *,
        most: int,
        options: RebalancerOptions,
        now: datetime,
        buffer_rows: int = BUFFER_ROWS,
    ) -> None:
        """Keep nothing yet.

        Args:
            nodes: the fleet.
            most: movable objects to keep of each node, > 0.
            options: what is left alone.
            now: aware; ages are measured from it.
            buffer_rows: rows that are held besides.
        """
        self._screen = Screen(nodes, options, now=now)
        self._most, self._options = most, options
        self._buffer_rows = buffer_rows
        count = len(self._screen.fleet.nodes)
        self._cuts = Cuts(count, most_bytes=options.max_egress_bytes_per_cycle)
        self._movable = np.zeros(count, np.int64)
        self._movable_bytes = np.zeros(count, np.int64)
        self._parts: list[Inventory] = []
        self._gravity: list[NDArray[np.float64]] = []
        self._waiting = 0
        self._unlisted = Unlisted()
        self._used: Counter[str] = Counter()
        #: rows taken
        self.objects = 0

    def add(self, rows: Inventory) -> None:
        """Take some rows.

        Raises:
            InvalidInventory: they belong to replica groups, whose other members may not be among the rows that are kept.
        """
        if rows.replica_group is not None and bool((rows.replica_group.codes >= 0).any()):
            msg = (
                "column replica_group: which hosts hold the other replicas is not known where only candidates are kept; "
                "hand in fewer rows (those that may move, and their replicas)"
            )
            raise InvalidInventory(msg)
        self._used.update(rows.used_bytes())
        self.objects += len(rows)
        why, gravity, node = self._screen.why(rows), self._screen.gravity(rows), node_rows(rows, self._screen.fleet)
        movable = np.flatnonzero(why == MOVABLE)
        np.add.at(self._movable, node[movable], 1)
        np.add.at(self._movable_bytes, node[movable], rows.size_bytes[movable])
        passing = movable[self._cuts.passing(node[movable], rows.size_bytes[movable], gravity[movable])]
        self._count_others(rows, why, passing)
        self._waiting += len(passing)
        self._parts.append(rows.take(passing))
        self._gravity.append(gravity[passing])
        if self._waiting >= self._buffer_rows:
            self._thin()

    def kept(self) -> tuple[Inventory, dict[str, int]]:
        """Return the candidates, with `Inventory.unlisted`, and node_id → bytes of all its objects."""
        self._thin()
        kept = self._parts[0] if self._parts else Inventory.from_listings({})
        return replace(kept, unlisted=self._unlisted), dict(self._used)

    def _count_others(self, rows: Inventory, why: NDArray[np.int8], kept: NDArray[np.int64]) -> None:
        others = np.ones(len(rows), np.bool_)
        others[kept] = False
        self._unlisted += unlisted_of(why[others], rows.size_bytes[others])

    def _thin(self) -> None:
        """Keep of what is here the candidates, and count the rest."""
        rows = Inventory.concat(self._parts)
        gravity = np.concatenate([np.empty(0), *self._gravity])
        node = node_rows(rows, self._screen.fleet)
        order = np.argsort(node, kind="stable")
        ends = np.cumsum(np.bincount(node, minlength=len(self._movable)))
        keep = [np.empty(0, np.int64)]
        for at, of_node in enumerate(np.split(order, ends[:-1])):
            if not len(of_node):
                continue
            mean = float(self._movable_bytes[at] / self._movable[at])
            found, cut = chosen(rows.size_bytes[of_node], gravity[of_node], self._most, self._options, mean_bytes=mean)
            keep.append(of_node[found])
            if cut is not None:
                self._cuts.set(at, cut)
        kept = np.sort(np.concatenate(keep))
        self._count_others(rows, np.full(len(rows), MOVABLE, np.int8), kept)
        self._parts, self._gravity, self._waiting = [rows.take(kept)], [gravity[kept]], 0


class Meetings:
    """Finds the candidates whose key another node holds as well, in a second reading of all rows."""

    def __init__(self, candidates: Inventory) -> None:
        """Look for these."""
        self._candidates = candidates
        self._sought = Sought(hash_keys(candidates.keys))
        self._met: list[pa.Table] = []

    def look(self, rows: pa.Table) -> None:
        """Look through some rows: columns ``object_key`` and ``node_id``."""
        if not len(self._sought):
            return
        found = self._sought.among(hash_keys(rows.column("object_key")))
        if len(found):
            self._met.append(
                rows.take(pa.array(found)).append_column("size_bytes", pa.array(np.zeros(len(found), np.int64)))
            )

    def apart(self) -> Inventory:
        """Return the candidates that lie on one node only; the others are counted.

        Raises:
            InvalidInventory: a candidate is listed twice on its node.
        """
        if not self._met:
            return self._candidates
        met = Inventory.from_arrow(pa.concat_tables(self._met, promote_options="permissive").unify_dictionaries())
        ambiguous = np.isin(hash_keys(self._candidates.keys), hash_keys(met.keys.filter(pa.array(met.ambiguous))))
        return without_ambiguous(self._candidates, ambiguous)


def without_ambiguous(inventory: Inventory, ambiguous: NDArray[np.bool_]) -> Inventory:
    """Return the other rows; those of the mask (n,) are counted as ambiguous beside what is no row already."""
    if not ambiguous.any():
        return inventory
    kept = inventory.take(np.flatnonzero(~ambiguous))
    found = Unlisted({"ambiguous": int(np.count_nonzero(ambiguous))})
    return replace(kept, unlisted=inventory.unlisted + found)
