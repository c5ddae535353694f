"""Which objects may move at all, and which of them may go to a given node: the hard constraints, in bulk.

Each object gets at most one reason to stay; the first that applies, in the order of `screen`, is the one counted.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.patterns import matching
from rebalance_tasks.core.requirements import NEEDS

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.planning.state import Fleet, Work

#: Why an object is not moved: stable words, code = position. MOVABLE is not a reason.
REASONS: Final = (
    "movable",
    "unknown_node",
    "ambiguous",
    "excluded",
    "invalid_key",
    "node_not_active",
    "no_capacity",
    "pinned",
    "protected_gravity",
    "too_young",
    "cooldown",
    "zero_bytes",
    "too_small",
    "no_target",
    "unreachable",
    "budget_moves",
    "budget_egress",
    "budget_cost",
    "not_needed",
    "not_a_candidate",
)
CODE: Final = {name: code for code, name in enumerate(REASONS)}
MOVABLE: Final = 0
#: Movable, but not one of the rows that are kept of a node that holds very many (`core.keeping.candidates`).
NOT_A_CANDIDATE: Final = "not_a_candidate"
#: The longest key a move can carry (S3's limit, which the models share).
_MAX_KEY_BYTES: Final = 1024
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(moment: datetime) -> int:
    """Return an aware time as nanoseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def as_of_ns(inventory: Inventory, now: datetime | None) -> int | None:
    """Return the moment at which ages are measured.

    Without ``now`` (core has no clock) it is the newest time the inventory itself knows, so that nothing is taken for
    older than it can be; ``None`` when the inventory knows no time at all.
    """
    if now is not None:
        return nanoseconds(now)
    known = [
        int(column.max())
        for column in (inventory.mtime_ns, inventory.last_moved_ns, inventory.last_access_ns)
        if column is not None and len(column)
    ]
    newest = max(known, default=UNKNOWN_TIME)
    return None if newest == UNKNOWN_TIME else newest


def screen(
    inventory: Inventory,
    fleet: Fleet,
    gravity: NDArray[np.float64],
    *,
    options: RebalancerOptions,
    now: datetime | None,
    excluded_keys: Collection[str],
) -> NDArray[np.int8]:
    """Return int8 (n,): `MOVABLE`, or the code of the first reason why the object stays."""
    why = np.zeros(len(inventory), np.int8)

    def stay(mask: NDArray[np.bool_], reason: str) -> None:
        why[mask & (why == MOVABLE)] = CODE[reason]

    node = node_rows(inventory, fleet)
    stay(node < 0, "unknown_node")
    stay(inventory.ambiguous, "ambiguous")
    if excluded_keys:
        listed = pa.array(sorted(excluded_keys), type=pa.large_string())
        stay(pc.is_in(inventory.keys, value_set=listed).to_numpy(zero_copy_only=False), "excluded")
    for i, descriptor in enumerate(fleet.nodes):
        if descriptor.include or descriptor.exclude:
            rows = np.flatnonzero(node == i)
            outside = np.zeros(len(why), np.bool_)
            outside[rows[~matches(descriptor, inventory.keys.take(pa.array(rows)))]] = True
            stay(outside, "excluded")
    stay(pc.greater(pc.binary_length(inventory.keys), _MAX_KEY_BYTES).to_numpy(zero_copy_only=False), "invalid_key")
    draining = np.array([*fleet.draining, False])
    resting = np.array([*(n.state is NodeState.MAINTENANCE for n in fleet.nodes), False])
    giving = np.array([*(a or d for a, d in zip(fleet.active, fleet.draining, strict=True)), False])
    stay(resting[node], "node_not_active")
    stay(~giving[node], "no_capacity")
    if inventory.pinned is not None:
        stay(inventory.pinned, "pinned")
    stay(gravity >= options.gravity_protection_threshold, "protected_gravity")
    moment = as_of_ns(inventory, now)
    for column, least, reason in (
        (inventory.mtime_ns, options.min_object_age, "too_young"),
        (inventory.last_moved_ns, options.object_cooldown, "cooldown"),
    ):
        if column is not None and moment is not None and least:
            edge = moment - least // timedelta(microseconds=1) * 1000
            stay((column != UNKNOWN_TIME) & (column > edge), reason)
    stay((inventory.size_bytes == 0) & ~draining[node], "zero_bytes")
    if options.min_object_size:
        stay((inventory.size_bytes < options.min_object_size) & ~draining[node], "too_small")
    return why


def node_rows(inventory: Inventory, fleet: Fleet) -> NDArray[np.int64]:
    """Return int64 (n,): the fleet's index of each row's node, −1 for a node the fleet does not have."""
    translate = np.array([fleet.index.get(node_id, -1) for node_id in inventory.node_ids] or [-1], np.int64)
    return translate[inventory.node_index]


def matches(node: NodeDescriptor, keys: pa.LargeStringArray) -> NDArray[np.bool_]:
    """Return bool (n,): the keys that a node's include and exclude patterns let through."""
    included = matching(keys, node.include) if node.include else np.ones(len(keys), np.bool_)
    return included & ~matching(keys, node.exclude)


class Eligibility:
    """Answers for many rows at once: may these objects go to that node?"""

    def __init__(self, work: Work) -> None:
        """Prepare the lookup tables."""
        self._work = work
        inventory, fleet = work.inventory, work.fleet
        groups = inventory.replica_group
        # For each kind of need the codes, and a table: a row a distinct value, the last one "no need" (code −1), a column a node.
        self._needs = [
            (
                needed.codes,
                np.array(
                    [[has(n, value) for n in fleet.nodes] for value in needed.values] + [[True] * len(fleet.nodes)]
                ),
            )
            for column, (_, has) in NEEDS.items()
            if (needed := getattr(inventory, column)) is not None
        ]
        self._hosts = max(fleet.host, default=0) + 1
        self._present: NDArray[np.int64] | None = None
        self._counts: NDArray[np.int64] | None = None
        if groups is not None:
            node = node_rows(inventory, fleet)
            known = (groups.codes >= 0) & (node >= 0)
            host = np.array([*fleet.host, -1])
            places = groups.codes[known].astype(np.int64) * self._hosts + host[node[known]]
            self._present, self._counts = np.unique(places, return_counts=True)

    def permitted(self, rows: NDArray[np.int64], j: int) -> NDArray[np.bool_]:
        """Return bool (rows,): storage class, regions, tags and patterns allow these objects on j."""
        inventory = self._work.inventory
        mask = np.ones(len(rows), np.bool_)
        for codes, table in self._needs:
            mask &= table[codes[rows], j]
        target = self._work.fleet.nodes[j]
        if target.include or target.exclude:
            mask &= matches(target, inventory.keys.take(pa.array(rows)))
        return mask

    def allowed_alone(self, rows: NDArray[np.int64], i: int, j: int) -> NDArray[np.bool_]:
        """Return bool (rows,): each of these objects by itself may go i → j; replicas elsewhere count, those among them do not."""
        if not self._work.fleet.linked(i, j):
            return np.zeros(len(rows), np.bool_)
        mask = self.permitted(rows, j)
        if (groups := self._work.inventory.replica_group) is not None:
            mask &= self._apart(groups.codes[rows].astype(np.int64), i, j)
        return mask

    def allowed(self, rows: NDArray[np.int64], i: int, j: int) -> NDArray[np.bool_]:
        """Return bool (rows,): as `allowed_alone`, and of one replica group only the first."""
        mask = self.allowed_alone(rows, i, j)
        if (replicas := self._work.inventory.replica_group) is not None:
            groups = replicas.codes[rows]
            contenders = np.flatnonzero(mask & (groups >= 0))
            _, first = np.unique(groups[contenders], return_index=True)
            alone = groups < 0
            alone[contenders[first]] = True
            mask &= alone
        return mask

    def _apart(self, groups: NDArray[np.int64], i: int, j: int) -> NDArray[np.bool_]:
        """No other object of the group is on j's host, nor about to be (what leaves in this plan still counts as there)."""
        fleet = self._work.fleet
        if self._present is None or self._counts is None or not len(self._present):
            return np.ones(len(groups), np.bool_)
        place = groups * self._hosts + fleet.host[j]
        at = np.minimum(np.searchsorted(self._present, place), len(self._present) - 1)
        there = np.where(self._present[at] == place, self._counts[at], 0)
        if fleet.host[i] == fleet.host[j]:
            there = there - 1  # the object itself
        free = there <= 0
        if arriving := self._work.held.get(fleet.host[j]):
            free &= ~np.isin(groups, np.concatenate(arriving))
        return free | (groups < 0)


def gravity_of(inventory: Inventory, fleet: Fleet, options: RebalancerOptions) -> NDArray[np.float64]:
    """Return float64 (n,) in [0, 1]: how strongly each object is held where it is.

    The ``gravity`` column when there is one. Else, when the inventory knows a measure of single objects, the composite
    of `gravity`, with the node's price and latency and the required regions for what it does not know. Else 0 for all: a
    plain listing says nothing of use, and a score made of the node's price and latency alone would be the same for every
    object of a node, so it could not rank them.
    """
    if inventory.gravity is not None:
        return inventory.gravity
    reads, writes, near = inventory.reads_per_hour, inventory.writes_per_hour, inventory.colocated_dependencies
    told = (inventory.egress_cost_per_gb, inventory.latency_ms, inventory.compliant)
    if all(column is None for column in (reads, writes, near, *told)):
        return np.zeros(len(inventory), np.float64)
    from rebalance_tasks.core import gravity  # noqa: PLC0415  a plain inventory needs none of it

    price = np.array([*map(fleet.mean_price, range(len(fleet.nodes))), 0.0])
    latency = np.array([*(np.nan if n.latency_ms is None else n.latency_ms for n in fleet.nodes), np.nan])
    inside = np.zeros((1, len(fleet.nodes) + 1), np.bool_)
    rules = inventory.required_regions
    if rules is not None:
        # An object without a rule (the last row) is not held by compliance anywhere.
        rows_of = [[n.region in regions for n in fleet.nodes] + [False] for regions in rules.values]
        inside = np.array([*rows_of, *inside.tolist()], np.bool_)
    node = node_rows(inventory, fleet)
    found = np.empty(len(inventory), np.float64)
    # A block's columns stay in the processor's cache, and memory does not grow with the inventory.
    for first in range(0, len(inventory), gravity.BLOCK_ROWS):
        rows = slice(first, first + gravity.BLOCK_ROWS)
        found[rows] = gravity.composite(
            sum((column[rows] for column in (reads, writes) if column is not None), np.zeros(len(found[rows]))),
            0.0 if near is None else near[rows],
            _told(inventory.egress_cost_per_gb, rows, price[node[rows]]),
            _told(inventory.latency_ms, rows, latency[node[rows]]),
            _told(inventory.compliant, rows, inside[-1 if rules is None else rules.codes[rows], node[rows]]),
            options.scoring_weights,
        )
    return np.clip(found, 0.0, 1.0, out=found)


def _told(column: NDArray[np.float64] | None, rows: slice, otherwise: NDArray[Any]) -> NDArray[Any]:
    """Return some rows of a column, and what holds otherwise where it is not known."""
    return otherwise if column is None else np.where(np.isnan(column[rows]), otherwise, column[rows])
