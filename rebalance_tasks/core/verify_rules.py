"""The rules that a plan must keep, each by itself; `verify` says which of them are asked when.

Imports nothing from the planner or `imbalance` and does its own arithmetic (exact fractions, Decimal), so that a mistake has
to be made twice to pass.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from decimal import Decimal, localcontext
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from rebalance_tasks.core.errors import PlanInvariantError
from rebalance_tasks.core.inventory import UNKNOWN_TIME
from rebalance_tasks.core.models import NodeState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalanceMove, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions

#: Relative difference allowed between two ways of computing one float (imbalance, duration).
_TOLERANCE: Final = 1e-9
#: Digits that hold any sum of money exactly.
_DIGITS: Final = 100


def broken(move: RebalanceMove | None, rule: str, word: str = "invalid") -> NoReturn:
    """Refuse a plan, or a move of it: the rule in a sentence, and a stable word under which refusals are counted."""
    where = "" if move is None else f"move of {move.object_key!a} from {move.source_node!r} to {move.target_node!r}: "
    msg = f"{where}{rule}"
    raise PlanInvariantError(msg, word=word)


class PlanRules:
    """One plan under examination; each method is one family of rules, and raises PlanInvariantError for the first broken one."""

    def __init__(
        self,
        plan: RebalancePlan,
        nodes: dict[str, NodeDescriptor],
        inventory: Inventory,
        options: RebalancerOptions,
        prices: Mapping[tuple[str, str], Decimal],
        reserved_bytes: Mapping[str, int],
    ) -> None:
        self.plan, self.nodes, self.inventory, self.options = plan, nodes, inventory, options
        self.prices, self.reserved = prices, reserved_bytes
        self.moment_ns: int | None = None
        self.rows = self._find_rows()
        self.before = self._usage()
        self.after = Counter(self.before)
        for move in plan.moves:
            self.after[move.source_node] -= move.size_bytes
            self.after[move.target_node] += move.size_bytes

    def each(self, move: RebalanceMove) -> None:
        """Ask every rule that a move keeps or breaks by itself, but for being moved once."""
        self.ends(move)
        row = self.row(move)
        self.protections(move, row)
        self.requirements(move, row)

    # -- one move -------------------------------------------------------------------------------------------------
    def ends(self, move: RebalanceMove) -> None:
        """Both nodes exist, differ, share a pool and a way from one to the other, and may give and take."""
        for node_id in (move.source_node, move.target_node):
            if node_id not in self.nodes:
                broken(move, f"node {node_id!r} is unknown", "unknown_node")
        source, target = self.nodes[move.source_node], self.nodes[move.target_node]
        if source.node_id == target.node_id:
            broken(move, "source and target are the same node")
        if source.pool != target.pool:
            broken(move, f"pools differ ({source.pool!r}, {target.pool!r})")
        reaching = [set(node.queue.split(",")) for node in (source, target) if node.queue]
        if reaching and not target.remote_url and not set.intersection(*reaching):
            broken(move, f"no host reaches both nodes (queues {source.queue!r}, {target.queue!r})", "unreachable")
        if source.state not in {NodeState.ACTIVE, NodeState.DRAINING} or not source.capacity_bytes:
            broken(
                move,
                f"the source is {source.state} with capacity {source.capacity_bytes} and does not give",
                "node_state",
            )
        if target.state is not NodeState.ACTIVE or not target.capacity_bytes:
            broken(
                move,
                f"the target is {target.state} with capacity {target.capacity_bytes} and does not take",
                "node_state",
            )

    def row(self, move: RebalanceMove) -> int:
        """The object exists once, on the source, with this size; return its row."""
        rows = self.rows.get(move.object_key, [])
        if not rows:
            broken(move, "the object is not in the inventory", "source_gone")
        if len(rows) > 1:
            broken(move, "the key is ambiguous: it is on more than one node", "ambiguous")
        holder = self._node_id(rows[0])
        if holder != move.source_node:
            broken(move, f"the source does not hold the object, {holder!r} does", "source_gone")
        if (size := int(self.inventory.size_bytes[rows[0]])) != move.size_bytes:
            broken(move, f"size is {move.size_bytes}, the inventory says {size}", "source_changed")
        return rows[0]

    def protections(self, move: RebalanceMove, row: int) -> None:
        """Nothing protected, pinned, too young or cooling down moves; the stated gravity is the inventory's."""
        inventory, options = self.inventory, self.options
        gravity = move.gravity if inventory.gravity is None else float(inventory.gravity[row])
        if gravity != move.gravity:
            broken(move, f"gravity is {move.gravity}, the inventory says {gravity}")
        if gravity >= options.gravity_protection_threshold:
            broken(
                move,
                f"the object is protected: gravity {gravity} ≥ {options.gravity_protection_threshold}",
                "protected",
            )
        if inventory.pinned is not None and inventory.pinned[row]:
            broken(move, "the object is pinned", "pinned")
        draining = self.nodes[move.source_node].state is NodeState.DRAINING
        if move.size_bytes < options.min_object_size and not (draining or self.plan.undo_of):
            broken(
                move,
                f"the object has {move.size_bytes} bytes, fewer than min_object_size {options.min_object_size}",
                "too_small",
            )
        for column, least, rule, word in (
            (inventory.mtime_ns, options.min_object_age, "the object is younger than min_object_age", "too_young"),
            (
                inventory.last_moved_ns,
                options.object_cooldown,
                "the object was moved within object_cooldown",
                "cooldown",
            ),
        ):
            if column is None or self.moment_ns is None or not least or column[row] == UNKNOWN_TIME:
                continue
            if self.plan.undo_of and column is inventory.last_moved_ns:
                continue  # an undo moves back what has just been moved
            least_ns = (least.days * 86_400 + least.seconds) * 10**9 + least.microseconds * 1000
            if self.moment_ns - int(column[row]) < least_ns:
                broken(move, rule, word)

    def requirements(self, move: RebalanceMove, row: int) -> None:
        """The target offers the storage class, lies in a required region, and its patterns know the key."""
        source, target, inventory = self.nodes[move.source_node], self.nodes[move.target_node], self.inventory
        if (classes := inventory.required_storage_class) is not None and classes.codes[row] >= 0:
            wanted = classes.values[classes.codes[row]]
            if wanted not in target.storage_classes:
                broken(
                    move, f"the object needs storage class {wanted!r}, which the target does not offer", "requirements"
                )
        if (regions := inventory.required_regions) is not None and regions.codes[row] >= 0:
            allowed = regions.values[regions.codes[row]]
            if target.region not in allowed:
                broken(
                    move,
                    f"the target's region {target.region!r} is not among the required {', '.join(allowed)}",
                    "requirements",
                )
        if (tags := inventory.required_tags) is not None and tags.codes[row] >= 0:
            for wanted in tags.values[tags.codes[row]]:
                name, _, value = wanted.partition("=")
                if target.tags.get(name) != value:
                    broken(move, f"the object needs tag {wanted!r}, which the target does not carry", "requirements")
        for node in (source, target):
            included = not node.include or any(fnmatchcase(move.object_key, pattern) for pattern in node.include)
            if not included or any(fnmatchcase(move.object_key, pattern) for pattern in node.exclude):
                broken(move, f"node {node.node_id!r} excludes this key", "excluded")

    # -- all moves together ---------------------------------------------------------------------------------------
    def replicas_apart(self) -> None:
        """No target's host holds, before or by another move, an object of the same replica group."""
        groups = self.inventory.replica_group
        if groups is None:
            return
        moved = {}
        for move in self.plan.moves:
            if (code := int(groups.codes[self.rows[move.object_key][0]])) >= 0:
                moved[move.object_key] = code
        if not moved:
            return
        holding: dict[tuple[int, str], set[int]] = defaultdict(set)
        mask = pc.is_in(pa.array(groups.codes), value_set=pa.array(sorted(set(moved.values())), pa.int32()))
        for row in pc.indices_nonzero(mask).to_pylist():
            if self._node_id(row) in self.nodes:
                holding[int(groups.codes[row]), self._host(self._node_id(row))].add(row)
        for move in self.plan.moves:
            if move.object_key not in moved:
                continue
            there = holding[moved[move.object_key], self._host(move.target_node)]
            row = self.rows[move.object_key][0]
            if there - {row}:
                other = self.inventory.key(min(there - {row}))
                broken(move, f"replicas must stay apart: the target's host holds {other!a} of the same group")
            there.add(row)

    def room(self) -> None:
        """No target ends above max_utilisation of its capacity, less what is reserved."""
        highest = Fraction(str(self.options.max_utilisation))
        last = {move.target_node: move for move in self.plan.moves}
        for node_id, move in last.items():
            ceiling = highest * (self.nodes[node_id].capacity_bytes or 0) - self.reserved.get(node_id, 0)
            if self.after[node_id] > ceiling:
                broken(move, f"the target is overfilled: {self.after[node_id]} bytes where {int(ceiling)} are allowed")

    def sums(self) -> None:
        """Egress, cost, duration and the count of what stays add up."""
        plan = self.plan
        for move in plan.moves:
            if (cost := self._cost(move)) != move.cost:
                broken(move, f"cost is {move.cost}, size × price is {cost}")
        if plan.estimated_egress_bytes != sum(move.size_bytes for move in plan.moves):
            broken(None, f"estimated_egress_bytes {plan.estimated_egress_bytes} is not the sum of the moves")
        if plan.estimated_cost != self._total_cost():
            broken(None, f"estimated_cost {plan.estimated_cost} is not the sum of the moves, {self._total_cost()}")
        if not _close(plan.estimated_duration_seconds, self._duration()):
            broken(
                None, f"estimated_duration_seconds {plan.estimated_duration_seconds} does not follow from the throttle"
            )
        if any(count < 0 for count in plan.not_moved.values()):
            broken(None, "not_moved holds a negative count")
        stays = sum(plan.not_moved.values())
        if len(plan.moves) + stays != (there_are := len(self.inventory) + len(self.inventory.unlisted)):
            broken(None, f"{len(plan.moves)} moves and {stays} not moved are not the {there_are} objects there are")

    def budgets(self) -> None:
        """Moves, egress and money stay inside the cycle's budgets (and the day's)."""
        plan, options = self.plan, self.options
        if len(plan.moves) > options.max_moves_per_cycle:
            broken(None, f"{len(plan.moves)} moves exceed max_moves_per_cycle {options.max_moves_per_cycle}")
        if (egress := sum(move.size_bytes for move in plan.moves)) > options.max_egress_bytes_per_cycle:
            broken(None, f"{egress} bytes exceed max_egress_bytes_per_cycle {options.max_egress_bytes_per_cycle}")
        cost = self._total_cost()
        for name, limit in (("cycle", options.max_cost_per_cycle), ("day", options.max_cost_per_day)):
            if limit is not None and cost > limit:
                broken(None, f"cost {cost} exceeds max_cost_per_{name} {limit}")

    def no_wider(self) -> None:
        """No pool's spread grew unless a node of it is draining or a job is undone."""
        for pool in {node.pool for node in self.nodes.values()}:
            before, after = self._spread(pool, self.before), self._spread(pool, self.after)
            if after > before and not self._may_widen(pool):
                broken(None, f"the spread of pool {pool!r} is worsened from {float(before)} to {float(after)}")

    def spread(self) -> None:
        """The stated spreads are right, no pool's grew, and what is balanced is left alone."""
        self.no_wider()
        fleet_before = fleet_after = Fraction(0)
        touched = {self.nodes[move.source_node].pool for move in self.plan.moves}
        for pool in {node.pool for node in self.nodes.values()}:
            before, after = self._spread(pool, self.before), self._spread(pool, self.after)
            fleet_before, fleet_after = max(fleet_before, before), max(fleet_after, after)
            if pool in touched and float(before) < self.options.imbalance_threshold and not self._may_widen(pool):
                broken(None, f"pool {pool!r} is under the threshold ({float(before)}) and nothing in it is draining")
        for name, stated, found in (
            ("imbalance_before", self.plan.imbalance_before, fleet_before),
            ("imbalance_after", self.plan.imbalance_after, fleet_after),
        ):
            if not _close(stated, float(found)):
                broken(None, f"{name} is stated as {stated}, it is {float(found)}")

    # -- own arithmetic -------------------------------------------------------------------------------------------
    def _find_rows(self) -> dict[str, list[int]]:
        """Moved key → its rows, without touching the other keys one by one."""
        if not self.plan.moves:
            return {}
        wanted = pa.array([move.object_key for move in self.plan.moves], type=pa.large_string())
        rows = pc.indices_nonzero(pc.is_in(self.inventory.keys, value_set=wanted))
        found: dict[str, list[int]] = {}
        for key, row in zip(self.inventory.keys.take(rows).to_pylist(), rows.to_pylist(), strict=True):
            found.setdefault(key, []).append(row)
        return found

    def _usage(self) -> dict[str, int]:
        inventory = self.inventory
        table = pa.table({"node": pa.array(inventory.node_index), "size": pa.array(inventory.size_bytes)})
        totals = table.group_by("node").aggregate([("size", "sum")]).to_pydict()
        listed = {inventory.node_ids[i]: total for i, total in zip(totals["node"], totals["size_sum"], strict=True)}
        return {name: max(listed.get(name, 0), node.used_bytes or 0) for name, node in self.nodes.items()}

    def _may_widen(self, pool: str) -> bool:
        return bool(self.plan.undo_of) or any(
            node.state is NodeState.DRAINING for node in self.nodes.values() if node.pool == pool
        )

    def _spread(self, pool: str, used: Mapping[str, int]) -> Fraction:
        shares = [
            Fraction(used[node.node_id], node.capacity_bytes)
            for node in self.nodes.values()
            if node.pool == pool and node.state is NodeState.ACTIVE and node.capacity_bytes
        ]
        return max(shares) - min(shares) if shares else Fraction(0)

    def _cost(self, move: RebalanceMove) -> Decimal:
        source, target = self.nodes[move.source_node], self.nodes[move.target_node]
        zones, regions = (source.zone, target.zone), (source.region, target.region)
        price = self.prices.get(zones, self.prices.get(regions, source.egress_cost_per_gb))
        with localcontext() as context:
            context.prec = _DIGITS
            return move.size_bytes * price / Decimal(10**9)

    def _total_cost(self) -> Decimal:
        with localcontext() as context:
            context.prec = _DIGITS
            return sum((move.cost for move in self.plan.moves), Decimal(0))

    def _duration(self) -> float:
        rate = self.options.throttle_bytes_per_sec
        pairs: Counter[tuple[str, str]] = Counter()
        for move in self.plan.moves:
            pairs[move.source_node, move.target_node] += move.size_bytes
        if not rate or not pairs:
            return 0.0
        lanes = min(self.options.max_concurrent_migrations, len(pairs))
        return max(max(pairs.values()) / rate, sum(pairs.values()) / lanes / rate)

    def _node_id(self, row: int) -> str:
        return self.inventory.node_ids[int(self.inventory.node_index[row])]

    def _host(self, node_id: str) -> str:
        host = self.nodes[node_id].host
        return f"host:{host}" if host else f"node:{node_id}"


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= _TOLERANCE * max(1.0, abs(a), abs(b))
