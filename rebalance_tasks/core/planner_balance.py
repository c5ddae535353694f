"""Balancing pools inside shared budgets: choose the best spread that the budgets can reach, then fill it.

When a budget binds, the goal is raised to the smallest spread whose flows fit all budgets: the money, bytes and moves
there are go where they lower the spread most, over all pools at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.planner_fill import fill_flows, order_candidates, pool_columns, size_limits
from rebalance_tasks.core.planner_flow import balance, pair_order, transport
from rebalance_tasks.core.planner_repair import Repair
from rebalance_tasks.core.planner_state import add_money, money

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rebalance_tasks.core.planner_candidates import Eligibility
    from rebalance_tasks.core.planner_flow import Pool
    from rebalance_tasks.core.planner_state import Work

#: Halvings of the interval in which the reachable spread is sought: a millionth of it is close enough.
_HALVINGS: Final = 20

#: (source, target, bytes).
Flows = list[tuple[int, int, int]]


class Demand:
    """What one pool wants moved for a given goal, and about how many objects that is."""

    def __init__(self, work: Work, members: list[int]) -> None:
        """Take stock of the pool's taking nodes."""
        self.members = members
        self._work = work
        self._order = pair_order(work.fleet, members, members)
        limits = size_limits(work, members)
        sizes = work.inventory.size_bytes
        self._useful = {
            i: work.candidates[i][sizes[work.candidates[i]] <= limits[i]] for i in members if i in work.candidates
        }
        movable = {i: int(sizes[rows].sum()) for i, rows in self._useful.items()}
        self._columns: Pool = pool_columns(work, members, movable=movable)
        self._running: dict[int, NDArray[np.int64]] = {}

    def flows(self, goal: float) -> Flows:
        """Return (source, target, bytes) that bring the pool's spread to the goal."""
        give, take = balance(self._columns, goal)
        # Rounding down must not leave the goal missed by a byte: a giver gives one more, the fill checks exactly.
        giving = {i: int(amount) + 1 if amount >= 1 else 0 for i, amount in zip(self.members, give, strict=True)}
        taking = {j: int(amount) + 1 if amount >= 1 else 0 for j, amount in zip(self.members, take, strict=True)}
        pairs = [pair for pair in self._order if giving[pair[0]] and taking[pair[1]]]
        # Those single bytes must not open a group of their own.
        return [flow for flow in transport(pairs, giving, taking) if flow[2] > len(self.members)]

    def moves(self, flows: Flows) -> int:
        """Return about how many objects some flows are."""
        totals: dict[int, int] = {}
        for i, _, amount in flows:
            totals[i] = totals.get(i, 0) + amount
        return sum(int(np.searchsorted(self._sums(i), total)) + 1 for i, total in totals.items())

    def order(self, givers: set[int], *, by_size: bool) -> None:
        """Put the candidates of some nodes in the order in which they should leave."""
        for i in givers:
            if i in self._useful:
                self._work.candidates[i] = order_candidates(self._work, self._work.candidates[i], by_size=by_size)
                self._useful[i] = order_candidates(self._work, self._useful[i], by_size=by_size)
        self._running = {}

    def _sums(self, i: int) -> NDArray[np.int64]:
        if i not in self._running:
            rows = self._useful.get(i, np.empty(0, np.int64))
            self._running[i] = np.cumsum(self._work.inventory.size_bytes[rows])
        return self._running[i]


def balance_pools(work: Work, eligibility: Eligibility, pools: list[list[int]], *, goal: float) -> bool:
    """Bring pools to the goal, or as near as budgets and objects allow.

    Args:
        work: what there is to move, and the ledger to stay within.
        eligibility: the hard constraints.
        pools: taking nodes of each pool to balance.
        goal: spread.

    Returns:
        Whether objects left by size because the number of moves bound.
    """
    demands = [Demand(work, members) for members in pools]
    for demand in demands:
        demand.order({i for i, _, _ in demand.flows(goal)}, by_size=False)
    reachable, bound = _reachable(work, demands, goal, frozenset({"egress", "cost"}))
    # Only if the money and bytes there are would be spent on too many objects do the largest go first.
    by_size = "moves" in _over(work, demands, reachable)
    if by_size:
        for demand in demands:
            demand.order({i for i, _, _ in demand.flows(reachable)}, by_size=True)
        reachable, bound = _reachable(work, demands, goal, frozenset({"moves", "egress", "cost"}))
    _note(work, bound)
    for demand in demands:
        flows = demand.flows(reachable)
        # The fullest sources first: should a budget end here after all, it ended where it helped most.
        flows.sort(key=lambda flow: -work.fleet.share(flow[0]))
        fill_flows(work, eligibility, flows, demand.members)
    for demand in demands:
        Repair(work, eligibility, demand.members, goal=reachable).run()
    return by_size


def _reachable(
    work: Work,
    demands: list[Demand],
    goal: float,
    budgets: frozenset[str],
) -> tuple[float, frozenset[str]]:
    """Return the smallest spread ≥ goal whose flows fit some budgets, and which of these stand in the way of less."""
    if not (bound := _over(work, demands, goal) & budgets):
        return goal, frozenset()
    low, high = goal, max(work.fleet.spread(demand.members) for demand in demands)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if over := _over(work, demands, middle) & budgets:
            low, bound = middle, over
        else:
            high = middle
    return high, bound


def _note(work: Work, bound: frozenset[str]) -> None:
    note = {"moves": work.ledger.note_moves, "egress": work.ledger.note_egress, "cost": work.ledger.note_cost}
    for name in sorted(bound):
        note[name]()


def _over(work: Work, demands: list[Demand], goal: float) -> frozenset[str]:
    """Return which budgets the flows for a goal would exceed."""
    moves, size_bytes, costs = 0, 0, []
    for demand in demands:
        flows = demand.flows(goal)
        moves += demand.moves(flows)
        size_bytes += sum(amount for _, _, amount in flows)
        costs += [money(amount, work.fleet.per_gb(i, j)) for i, j, amount in flows]
    over = set()
    if moves > work.ledger.moves_left:
        over.add("moves")
    if size_bytes > work.ledger.bytes_left:
        over.add("egress")
    if add_money(costs) > work.ledger.cost_left:
        over.add("cost")
    return frozenset(over)
