"""The fleet of a simulation: nodes and objects as columns, and what events and plans do to them.

Node codes stay the same throughout, so that a move is one number changed in one column; sums of bytes are Python ints
and follow every change.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.imbalance import usage
from rebalance_tasks.core.inventory import UNKNOWN_TIME, Coded, Inventory
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.simulating.events import Add

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.simulating.events import Heat, Scenario

#: New objects of one cycle at most; beyond, the sizes drawn are scaled up instead: a picture needs no more.
_MOST_NEW: Final = 100_000
#: Size of what is written to a fleet that holds nothing to draw from.
_SIZE_OF_NOTHING: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN: Final = ("gravity", "reads_per_hour", "writes_per_hour", "colocated_dependencies", "pinned")
_TIMES: Final = ("last_access_ns", "last_moved_ns", "mtime_ns")
_CODED: Final = ("replica_group", "required_regions", "required_storage_class", "required_tags")


class World:
    """Nodes, objects and their sums at one moment of a simulation."""

    def __init__(self, nodes: list[NodeDescriptor], inventory: Inventory, scenario: Scenario) -> None:
        """Take stock; node codes cover the nodes that are still to come."""
        coming = [event.node.node_id for event in scenario.events if isinstance(event, Add)]
        ids = tuple(sorted({*inventory.node_ids, *(node.node_id for node in nodes), *coming}))
        self._code = {node_id: code for code, node_id in enumerate(ids)}
        translate = np.array([self._code[node_id] for node_id in inventory.node_ids] or [0], np.int32)
        codes = translate[inventory.node_index] if len(inventory) else np.empty(0, np.int32)
        moved = inventory.last_moved_ns
        known = np.full(len(inventory), UNKNOWN_TIME, np.int64) if moved is None else moved
        self.inventory = replace(inventory, node_index=codes, node_ids=ids, last_moved_ns=known)
        listed = self.inventory.used_bytes()
        every = usage(nodes, self.inventory)
        #: bytes on a node that the inventory does not list
        self._unlisted = {node.node_id: every[node.node_id] - listed[node.node_id] for node in nodes}
        self.used = dict(every)
        self._nodes = {node.node_id: node for node in nodes}
        self._rng = np.random.Generator(np.random.PCG64(scenario.seed))
        self._cool = inventory.gravity
        #: how often something was written: names the objects
        self._grown = 0

    @property
    def nodes(self) -> list[NodeDescriptor]:
        """The nodes as they are now, with what they hold."""
        return [
            node.model_copy(update={"used_bytes": self.used[node_id]}) if self._unlisted[node_id] else node
            for node_id, node in self._nodes.items()
        ]

    def shares(self) -> dict[str, float]:
        """node_id → used ÷ capacity, for nodes that have one."""
        return {
            node_id: self.used[node_id] / node.capacity_bytes
            for node_id, node in self._nodes.items()
            if node.capacity_bytes
        }

    def leaving_bytes(self) -> int:
        """Bytes of objects on draining nodes."""
        return sum(
            self.used[node_id] - self._unlisted[node_id]
            for node_id, node in self._nodes.items()
            if node.state is NodeState.DRAINING
        )

    def held(self, options: RebalancerOptions, now: datetime) -> NDArray[np.bool_]:
        """Bool (n,): objects that no plan may touch now, whatever the budgets: pinned, protected, cooling down, ambiguous."""
        inventory, cooldown = self.inventory, options.object_cooldown
        held = inventory.ambiguous.copy()
        if inventory.pinned is not None:
            held |= inventory.pinned
        if inventory.gravity is not None:
            held |= inventory.gravity >= options.gravity_protection_threshold
        if inventory.last_moved_ns is not None and cooldown:
            held |= held_back(inventory.last_moved_ns, cooldown, now)
        return held

    def require(self, node_ids: Iterable[str]) -> None:
        """Refuse ids of nodes that are not there. Raises: InvalidArgument."""
        for node_id in node_ids:
            if node_id not in self._nodes:
                msg = f"event: node {node_id!r} is not there at that time; there are {', '.join(sorted(self._nodes))}"
                raise InvalidArgument(msg)

    # -- moves ----------------------------------------------------------------------------------------------------
    def apply(self, plan: RebalancePlan, now: datetime, *, cooldown: timedelta) -> int:
        """Make the moves of a plan; return how many of its objects had been moved within their cooldown."""
        if not plan.moves:
            return 0
        keys = pa.array([move.object_key for move in plan.moves], type=pa.large_string())
        found = pc.index_in(self.inventory.keys, value_set=keys)
        rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        order = found.take(pa.array(rows)).to_numpy(zero_copy_only=False)
        targets = np.array([self._code[move.target_node] for move in plan.moves], np.int32)
        moment = _nanoseconds(now)
        last = self.inventory.last_moved_ns
        assert last is not None  # noqa: S101  __init__ gave it
        again = int(held_back(last[rows], cooldown, now).sum()) if cooldown else 0
        node_index, last = self.inventory.node_index.copy(), last.copy()
        node_index[rows], last[rows] = targets[order], moment
        self._change(node_index=node_index, last_moved_ns=last)
        for move in plan.moves:
            self.used[move.source_node] -= move.size_bytes
            self.used[move.target_node] += move.size_bytes
        return again

    # -- events ---------------------------------------------------------------------------------------------------
    def add(self, node: NodeDescriptor) -> None:
        """A node joins, empty. Raises: InvalidArgument."""
        if node.node_id in self._nodes or not node.capacity_bytes:
            why = "is there already" if node.node_id in self._nodes else "needs a capacity_bytes above 0"
            msg = f"event add: node {node.node_id!r} {why}"
            raise InvalidArgument(msg)
        self._nodes[node.node_id] = node
        self.used[node.node_id] = self._unlisted[node.node_id] = 0

    def lose(self, node_id: str, *, restore: bool) -> None:
        """A node goes, with its objects or without them. Raises: InvalidArgument."""
        self.require([node_id])
        gone = self._nodes.pop(node_id)
        del self.used[node_id], self._unlisted[node_id]
        here = self.inventory.node_index == self._code[node_id]
        rows = np.flatnonzero(here)
        places = [node for node in self._nodes.values() if node.pool == gone.pool and _takes(node)]
        if restore and places and len(rows):
            codes = self._draw(places, len(rows))
            node_index = self.inventory.node_index.copy()
            node_index[rows] = codes
            self._count(codes, self.inventory.size_bytes[rows])
            self._change(node_index=node_index)
        elif len(rows):
            self.keep(np.flatnonzero(~here))

    def set_state(self, node_id: str, state: NodeState) -> None:
        """A node is drained or active. Raises: InvalidArgument."""
        self.require([node_id])
        self._nodes[node_id] = self._nodes[node_id].model_copy(update={"state": state})

    def grow(self, size_bytes: int, on: Collection[str], now: datetime) -> None:
        """Write so many bytes of new objects. Raises: InvalidArgument."""
        self.require(on)
        places = [node for name, node in self._nodes.items() if _takes(node) and (not on or name in on)]
        if not size_bytes or not places:
            return
        sizes = self._sizes(size_bytes)
        codes = self._draw(places, len(sizes))
        self._grown += 1
        keys = [f"simulated-growth/{self._grown:05}/{at:06}" for at in range(len(sizes))]
        self._append(keys, sizes, codes, _nanoseconds(now))
        self._count(codes, sizes)

    def heat(self, event: Heat) -> None:
        """Other objects are hot from now on. Raises: InvalidArgument."""
        self.require(event.nodes)
        gravity = np.zeros(len(self.inventory)) if self._cool is None else self._cool.copy()
        matching = np.ones(len(gravity), np.bool_)
        if event.nodes:
            matching &= np.isin(self.inventory.node_index, [self._code[node_id] for node_id in event.nodes])
        if event.prefix:
            starts = pc.starts_with(self.inventory.keys, pattern=event.prefix)
            matching &= starts.to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(matching)
        if len(rows):
            gravity[self._rng.choice(rows, size=round(event.share * len(rows)), replace=False)] = event.gravity
        self._change(gravity=gravity)

    # -- columns --------------------------------------------------------------------------------------------------
    def _draw(self, places: list[NodeDescriptor], count: int) -> NDArray[np.int32]:
        """Draw nodes in proportion to their capacity."""
        weights = np.array([node.capacity_bytes or 0 for node in places], np.float64)
        codes = np.array([self._code[node.node_id] for node in places], np.int32)
        return codes[self._rng.choice(len(places), size=count, p=weights / weights.sum())]

    def _sizes(self, total: int) -> NDArray[np.int64]:
        """Draw sizes from those there are until they add up to ``total`` exactly."""
        known = self.inventory.size_bytes[self.inventory.size_bytes > 0]
        if not len(known):
            known = np.array([_SIZE_OF_NOTHING])
        mean = float(known.mean())
        scale = max(1.0, total / mean / _MOST_NEW)
        parts: list[NDArray[np.int64]] = []
        left = total
        while left > 0:
            drawn = self._rng.choice(known, size=min(_MOST_NEW, int(left / mean / scale) + 1))
            drawn = (drawn * scale).astype(np.int64)
            sums = np.cumsum(drawn)
            count = int(np.searchsorted(sums, left)) + 1
            if count <= len(drawn):
                drawn = drawn[:count].copy()
                drawn[-1] -= int(sums[count - 1]) - left
            parts.append(drawn)
            left -= int(drawn.sum())
        return np.concatenate(parts)

    def _count(self, codes: NDArray[np.int32], sizes: NDArray[np.int64]) -> None:
        totals = np.zeros(len(self._code), np.int64)
        np.add.at(totals, codes, sizes)
        for node_id in self._nodes:
            self.used[node_id] += int(totals[self._code[node_id]])

    def _append(self, keys: list[str], sizes: NDArray[np.int64], codes: NDArray[np.int32], written_ns: int) -> None:
        old = self.inventory
        new = pa.array(keys, type=pa.large_string())
        update: dict[str, Any] = {
            "keys": pa.concat_arrays([old.keys, new]),
            "size_bytes": np.concatenate([old.size_bytes, sizes]),
            "node_index": np.concatenate([old.node_index, codes]),
        }
        for name in (*_PLAIN, *_TIMES):
            if (column := getattr(old, name)) is not None:
                value = 0 if name in _PLAIN else written_ns if name == "mtime_ns" else UNKNOWN_TIME
                update[name] = np.concatenate([column, np.full(len(sizes), value, column.dtype)])
        for name in _CODED:
            if (coded := getattr(old, name)) is not None:
                codes_of = np.concatenate([coded.codes, np.full(len(sizes), -1, coded.codes.dtype)])
                update[name] = Coded(codes_of, coded.values)
        if self._cool is not None:
            self._cool = np.concatenate([self._cool, np.zeros(len(sizes))])
        ambiguous = np.concatenate([old.ambiguous, np.zeros(len(sizes), np.bool_)])
        self.inventory = replace(old, **update)
        self._know(ambiguous)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Forget all other rows."""
        if self._cool is not None:
            self._cool = self._cool[rows]
        self.inventory = self.inventory.take(rows)

    def _change(self, **columns: Any) -> None:  # noqa: ANN401  columns of any type, by name
        """Replace columns that say nothing about keys."""
        ambiguous = self.inventory.ambiguous
        self.inventory = replace(self.inventory, **columns)
        self._know(ambiguous)

    def _know(self, ambiguous: NDArray[np.bool_]) -> None:
        """Keep what was found out about the keys: finding it out anew would cost more than a cycle's plan."""
        self.inventory.__dict__["ambiguous"] = ambiguous


def held_back(moments_ns: NDArray[np.int64], least: timedelta, now: datetime) -> NDArray[np.bool_]:
    """Bool (n,): known times that lie less than ``least`` before ``now``."""
    edge_ns = _nanoseconds(now - least)
    held: NDArray[np.bool_] = (moments_ns != UNKNOWN_TIME) & (moments_ns > edge_ns)
    return held


def _takes(node: NodeDescriptor) -> bool:
    return node.state is NodeState.ACTIVE and bool(node.capacity_bytes)


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
