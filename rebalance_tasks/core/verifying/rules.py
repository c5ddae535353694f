"""The rules that the moves of a plan keep together; `verify` says which of them are asked when.

Imports nothing from the planner or `imbalance` and does its own arithmetic (exact fractions, Decimal), so that a mistake has
to be made twice to pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
import pyarrow as pa

from rebalance_tasks.core.errors import PlanInvariantError
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.verifying.case import Case
from rebalance_tasks.core.verifying.moves import Broken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Coded

#: Relative difference allowed between two ways of computing one float (imbalance, duration).
_TOLERANCE: Final = 1e-9
#: Digits that hold any sum of money exactly.
_DIGITS: Final = 100


def broken(rule: str) -> NoReturn:
    """Refuse a plan as a whole. Raises: PlanInvariantError."""
    raise PlanInvariantError(rule)


@dataclass(eq=False)
class PlanRules(Case):
    """One plan under examination; each method is one family of rules, and raises PlanInvariantError for the first broken one."""

    def __post_init__(self) -> None:
        """Sum up what each node holds before and after."""
        self.before = self._usage()
        self.after = Counter(self.before)
        self.after.subtract(_sums(self.moves.source, self.moves.size_bytes))
        self.after.update(_sums(self.moves.target, self.moves.size_bytes))

    def room(self, reserved: Mapping[str, int]) -> None:
        """No target ends above max_utilisation of its capacity, less what is reserved (node_id → bytes)."""
        highest = Fraction(str(self.options.max_utilisation))
        target = self.moves.target
        last = np.full(len(target.values), -1, np.int64)
        last[target.codes] = np.arange(len(self.moves))
        for node_id, at in zip(target.values, last.tolist(), strict=True):
            if at < 0:
                continue
            node = self.nodes[node_id]
            ceiling = highest * (node.capacity_bytes or 0) - node.reserved_bytes - reserved.get(node_id, 0)
            if self.after[node_id] > ceiling:
                self._refuse(
                    at, f"the target is overfilled: {self.after[node_id]} bytes where {int(ceiling)} are allowed"
                )

    def costs(self, prices: Mapping[tuple[str, str], Decimal]) -> None:
        """Each move's cost is its size times the price."""
        moves = self.moves
        pairs, place = moves.pairs()
        per_gb = [self._price(*pair, prices) for pair in pairs]
        # The common fleet: nothing costs anything.
        if not any(per_gb) and not any(moves.cost.values):
            return
        with localcontext() as context:
            context.prec = _DIGITS
            for at, (number, size, code) in enumerate(
                zip(place.tolist(), moves.size_bytes.tolist(), moves.cost.codes.tolist(), strict=True)
            ):
                stated, found = moves.cost.values[code], size * per_gb[number] / Decimal(10**9)
                if stated != found:
                    self._refuse(at, f"cost is {stated}, size × price is {found}")

    def sums(self) -> None:
        """Egress, cost, duration and the count of what stays add up."""
        plan, egress, cost = self.plan, int(self.moves.size_bytes.sum()), self._total_cost()
        if plan.estimated_egress_bytes != egress:
            broken(f"estimated_egress_bytes {plan.estimated_egress_bytes} is not the sum of the moves")
        if plan.estimated_cost != cost:
            broken(f"estimated_cost {plan.estimated_cost} is not the sum of the moves, {cost}")
        if not _close(plan.estimated_duration_seconds, self._duration()):
            broken(f"estimated_duration_seconds {plan.estimated_duration_seconds} does not follow from the throttle")
        if any(count < 0 for count in plan.not_moved.values()):
            broken("not_moved holds a negative count")
        stays = sum(plan.not_moved.values())
        if len(self.moves) + stays != (there_are := len(self.inventory) + len(self.inventory.unlisted)):
            broken(f"{len(self.moves)} moves and {stays} not moved are not the {there_are} objects there are")

    def budgets(self) -> None:
        """Moves, egress and money stay inside the cycle's budgets (and the day's)."""
        moves, options = self.moves, self.options
        if len(moves) > options.max_moves_per_cycle:
            broken(f"{len(moves)} moves exceed max_moves_per_cycle {options.max_moves_per_cycle}")
        if (egress := int(moves.size_bytes.sum())) > options.max_egress_bytes_per_cycle:
            broken(f"{egress} bytes exceed max_egress_bytes_per_cycle {options.max_egress_bytes_per_cycle}")
        cost = self._total_cost()
        for name, limit in (("cycle", options.max_cost_per_cycle), ("day", options.max_cost_per_day)):
            if limit is not None and cost > limit:
                broken(f"cost {cost} exceeds max_cost_per_{name} {limit}")

    def no_wider(self) -> None:
        """No pool's spread grew unless a node of it is draining or a job is undone."""
        for pool in {node.pool for node in self.nodes.values()}:
            before, after = self._spread(pool, self.before), self._spread(pool, self.after)
            if after > before and not self._may_widen(pool):
                broken(f"the spread of pool {pool!r} is worsened from {float(before)} to {float(after)}")

    def spread(self) -> None:
        """The stated spreads are right, no pool's grew, and what is balanced is left alone."""
        self.no_wider()
        fleet_before = fleet_after = Fraction(0)
        touched = {self.nodes[name].pool for name in _sums(self.moves.source, self.moves.size_bytes)}
        for pool in {node.pool for node in self.nodes.values()}:
            before, after = self._spread(pool, self.before), self._spread(pool, self.after)
            fleet_before, fleet_after = max(fleet_before, before), max(fleet_after, after)
            if pool in touched and float(before) < self.options.imbalance_threshold and not self._may_widen(pool):
                broken(f"pool {pool!r} is under the threshold ({float(before)}) and nothing in it is draining")
        for name, stated, found in (
            ("imbalance_before", self.plan.imbalance_before, fleet_before),
            ("imbalance_after", self.plan.imbalance_after, fleet_after),
        ):
            if not _close(stated, float(found)):
                broken(f"{name} is stated as {stated}, it is {float(found)}")

    # -- own arithmetic -------------------------------------------------------------------------------------------
    def _refuse(self, at: int, rule: str) -> NoReturn:
        found = Broken(self.moves)
        found.note(np.arange(len(self.moves)) == at, rule)
        raise found.error(at)

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

    def _price(self, source_id: str, target_id: str, prices: Mapping[tuple[str, str], Decimal]) -> Decimal:
        source, target = self.nodes[source_id], self.nodes[target_id]
        zones, regions = (source.zone, target.zone), (source.region, target.region)
        return prices.get(zones, prices.get(regions, source.egress_cost_per_gb))

    def _total_cost(self) -> Decimal:
        times = np.bincount(self.moves.cost.codes, minlength=len(self.moves.cost.values)).tolist()
        with localcontext() as context:
            context.prec = _DIGITS
            return sum((cost * count for cost, count in zip(self.moves.cost.values, times, strict=True)), Decimal(0))

    def _duration(self) -> float:
        rate = self.options.throttle_bytes_per_sec
        pairs, place = self.moves.pairs()
        if not rate or not pairs:
            return 0.0
        sizes = np.zeros(len(pairs), np.int64)
        np.add.at(sizes, place, self.moves.size_bytes)
        lanes = min(self.options.max_concurrent_migrations, len(pairs))
        return max(int(sizes.max()) / rate, int(sizes.sum()) / lanes / rate)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= _TOLERANCE * max(1.0, abs(a), abs(b))


def _sums(column: Coded[str], size_bytes: NDArray[np.int64]) -> dict[str, int]:
    """Return the bytes of each node that comes up in a column."""
    sums = np.zeros(len(column.values), np.int64)
    np.add.at(sums, column.codes, size_bytes)
    return {column.values[code]: int(sums[code]) for code in np.unique(column.codes).tolist()}
