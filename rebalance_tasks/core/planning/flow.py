"""How many bytes go from which node to which, as if objects were water: a min-cost flow with budgets as constraints.

For each pool a band [a, a + T] of utilisation is laid; bytes flow from the nodes to *hubs* and on to nodes. A hub is a set of
nodes that no object, no price and no host can tell apart (zone, region, queues, storage classes, tags, patterns), so that a thousand nodes make some
ten thousand variables and not a million. Goals in order: the smallest spread that goal, objects and budgets allow → fewest
bytes → least money → nearest targets. The solver's doubles guide; filling decides with exact byte counts.

Source: Ahuja, Magnanti, Orlin, Network Flows (1993) §9; docs/adr/0012.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.options import GB
from rebalance_tasks.core.planning.solver import INFINITY, Program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.core.planning.solver import Columns, Values
    from rebalance_tasks.core.planning.state import Fleet, Work

#: The mean node, and a spread of 1, in the solver's units: its tolerance of 10⁻⁷ is then 10⁻¹¹ of them.
SCALE: Final = 1e4
#: A budget is called used up when less than this share of it is left.
_TIGHT: Final = 1e-6
#: Less than this, in the solver's units, is rounding and no flow.
_CRUMB: Final = 1e-6

#: (source, target, bytes).
Flows = list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Supply:
    """What may leave one node: objects that may go to the same hubs.

    Attributes:
        node: the node.
        size_bytes: of all of them.
        hubs: bool (hubs,): where they may go.
    """

    node: int
    size_bytes: int
    hubs: NDArray[np.bool_]


class Hubs:
    """Sets of taking nodes that are alike to every object and every price.

    Attributes:
        nodes: hub → nodes.
        of: node → hub.
    """

    def __init__(self, fleet: Fleet, members: Sequence[int]) -> None:
        """Sort the nodes into hubs."""
        self._fleet = fleet
        by_traits: dict[tuple[object, ...], list[int]] = {}
        for i in members:
            node = fleet.nodes[i]
            tags = tuple(sorted(node.tags.items()))
            places = (node.pool, node.zone, node.region, frozenset(node.queues), bool(node.remote_url))
            traits = (*places, node.storage_classes, tags, node.include, node.exclude)
            by_traits.setdefault(traits, []).append(i)
        self.nodes = list(by_traits.values())
        self.of = {i: hub for hub, nodes in enumerate(self.nodes) for i in nodes}

    def prices(self, i: int) -> Values:
        """Money for 10⁹ bytes from a node to each hub, float64 (hubs,)."""
        return np.array([float(self._fleet.per_gb(i, nodes[0])) for nodes in self.nodes])

    def distances(self, i: int) -> Values:
        """How far each hub is from a node, float64 (hubs,)."""
        return np.array([float(self._fleet.distance(i, nodes[0])) for nodes in self.nodes])

    def open_to(self, i: int) -> NDArray[np.bool_]:
        """Return bool (hubs,): those of a node's pool that some host reaches together with it."""
        fleet = self._fleet
        return np.array(
            [fleet.nodes[nodes[0]].pool == fleet.nodes[i].pool and fleet.linked(i, nodes[0]) for nodes in self.nodes]
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What the flows of a cycle may come to; ``None`` leaves it open.

    Attributes:
        size_bytes: in all.
        cost: money in all.
        moves: objects in all.
        counts: node → (bytes > 0, objects), float64 (segments,), of its largest objects, the largest first; for ``moves``.
    """

    size_bytes: int | None = None
    cost: float | None = None
    moves: int | None = None
    counts: Mapping[int, tuple[Values, Values]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Solution:
    """Flows, the spread that each pool reaches with them, and which limits are used up."""

    flows: Flows
    goals: tuple[float, ...]
    size_bytes: float
    cost: float
    used_up: frozenset[str]


class Network:
    """The flow problem of some pools under common budgets."""

    def __init__(self, work: Work, pools: Sequence[list[int]], supplies: Sequence[Supply], hubs: Hubs) -> None:
        """Take the pools' taking nodes, what may leave them, and the hubs."""
        self._fleet = work.fleet
        self._pools = pools
        self._hubs = hubs
        self._members = [i for members in pools for i in members]
        self._place = {i: at for at, i in enumerate(self._members)}
        self._unit = sum(work.fleet.capacity[i] for i in self._members) / len(self._members) / SCALE
        self._supplies = [supply for supply in supplies if supply.size_bytes > 0 and supply.hubs.any()]
        arcs = [np.flatnonzero(supply.hubs) for supply in self._supplies]
        # One arc from each supply to each hub that its objects may go to.
        self._arc_supply = np.repeat(np.arange(len(arcs)), [len(hubs) for hubs in arcs])
        self._arc_hub = np.concatenate([*arcs, np.empty(0, np.int64)]).astype(np.int64)
        self._arc_node = np.array([self._place[s.node] for s in self._supplies], np.int64)[self._arc_supply]
        prices = [hubs.prices(s.node)[at] for s, at in zip(self._supplies, arcs, strict=True)]
        distances = [hubs.distances(s.node)[at] for s, at in zip(self._supplies, arcs, strict=True)]
        self._price = np.concatenate([*prices, np.empty(0)]) * self._unit / GB
        self._distance = np.concatenate([*distances, np.empty(0)])

    def solve(self, goal: float, limits: Limits) -> Solution | None:
        """Return the best flows for a goal of spread under limits; None when the solver finds none."""
        program, x, y, spreads = self._program(goal)
        self._limit(program, x, limits)
        worst = program.variables(np.full(1, INFINITY))
        pools = np.arange(len(spreads))
        program.rows(
            np.zeros(len(pools)),
            np.full(len(pools), INFINITY),
            [(pools, np.full(len(pools), worst[0]), np.ones(len(pools))), (pools, spreads, -np.ones(len(pools)))],
        )
        goals = [(worst, np.ones(1)), (spreads, np.ones(len(spreads))), (x, np.ones(len(x)))]
        goals += [(x, costs) for costs in (self._price, self._distance) if len(costs) and np.ptp(costs) > 0]
        found = None
        for columns, costs in (goal for goal in goals[len(spreads) == 1 :] if len(goal[0])):
            # Prices of bytes are tiny numbers; the solver's tolerances are not.
            better = program.minimise_and_keep(columns, costs / costs.max())
            if better is None:
                break
            found = better
        return None if found is None else self._read(found, x, y, spreads, limits)

    # -- the program ----------------------------------------------------------------------------------------------
    def _program(self, goal: float) -> tuple[Program, Columns, Columns, Columns]:
        """Return the program, and its columns: bytes node → hub, bytes hub → node, spread of each pool."""
        fleet, members, unit = self._fleet, self._members, self._unit
        n, pools = len(members), len(self._pools)
        every = np.arange(n)
        used = np.array([fleet.used[i] / unit for i in members])
        capacity = np.array([fleet.capacity[i] / unit for i in members])
        pool = np.repeat(np.arange(pools), [len(nodes) for nodes in self._pools])
        program = Program()
        x = program.variables(np.full(len(self._arc_hub), INFINITY))
        y = program.variables(np.array([max(0, fleet.room(i)) / unit for i in members]))
        bottom = program.variables(np.full(pools, INFINITY))
        spreads = program.variables(np.full(pools, INFINITY))
        leaving = (self._arc_node, x, -np.ones(len(x)))
        level = [leaving, (every, y, np.ones(n)), (every, bottom[pool], -capacity / SCALE)]
        program.rows(-used, np.full(n, INFINITY), level)
        program.rows(np.full(n, -INFINITY), -used, [*level, (every, spreads[pool], -capacity / SCALE)])
        supply = np.array([s.size_bytes / unit for s in self._supplies])
        program.rows(np.full(len(supply), -INFINITY), supply, [(self._arc_supply, x, np.ones(len(x)))])
        hub_of = np.array([self._hubs.of[i] for i in members])
        nothing = np.zeros(len(self._hubs.nodes))
        program.rows(nothing, nothing, [(self._arc_hub, x, np.ones(len(x))), (hub_of, y, -np.ones(n))])
        program.rows(
            np.full(pools, goal * SCALE), np.full(pools, INFINITY), [(np.arange(pools), spreads, np.ones(pools))]
        )
        return program, x, y, spreads

    def _limit(self, program: Program, x: Columns, limits: Limits) -> None:
        if limits.size_bytes is not None:
            program.at_most(limits.size_bytes / self._unit, (x, np.ones(len(x))))
        if limits.cost is not None:
            scale = limits.cost or 1.0
            program.at_most(limits.cost / scale, (x, self._price / scale))
        if limits.moves is None:
            return
        sizes = [limits.counts[i][0] / self._unit for i in self._members]
        objects = np.concatenate([limits.counts[i][1] for i in self._members])
        segment = program.variables(np.concatenate(sizes))
        node = np.repeat(np.arange(len(sizes)), [len(size) for size in sizes])
        program.rows(
            np.full(len(sizes), -INFINITY),
            np.zeros(len(sizes)),
            [(self._arc_node, x, np.ones(len(x))), (node, segment, -np.ones(len(segment)))],
        )
        program.at_most(float(limits.moves), (segment, objects / np.concatenate(sizes)))

    # -- the answer -----------------------------------------------------------------------------------------------
    def _read(self, found: Values, x: Columns, y: Columns, spreads: Columns, limits: Limits) -> Solution:
        sent = np.where(found[x] > _CRUMB, found[x], 0.0)
        size_bytes, cost = float(sent.sum()) * self._unit, float(sent @ self._price)
        used_up = set()
        if limits.size_bytes is not None and size_bytes >= limits.size_bytes * (1 - _TIGHT):
            used_up.add("egress")
        if limits.cost is not None and cost >= limits.cost * (1 - _TIGHT):
            used_up.add("cost")
        goals = tuple((found[spreads] / SCALE).tolist())
        return Solution(self._pairs(sent, found[y]), goals, size_bytes, cost, frozenset(used_up))

    def _pairs(self, sent: Values, taken: Values) -> Flows:
        """Cut node → hub → node into pairs: few and fat, since each pair becomes a group of its own."""
        flows: dict[tuple[int, int], float] = {}
        for hub, nodes in enumerate(self._hubs.nodes):
            here = (self._arc_hub == hub) & (sent > 0)
            amounts = np.bincount(self._arc_node[here], weights=sent[here], minlength=len(self._members))
            giving = {self._members[at]: float(amounts[at]) for at in np.flatnonzero(amounts).tolist()}
            taking = {j: float(taken[self._place[j]]) for j in nodes}
            for i, j, amount in _matched(giving, taking):
                flows[i, j] = amount
        return [(i, j, round(amount * self._unit)) for (i, j), amount in sorted(flows.items()) if i != j]


def _matched(giving: Mapping[int, float], taking: Mapping[int, float]) -> Iterator[tuple[int, int, float]]:
    """Yield (giver, taker, amount), the largest with the largest; each pair exhausts one side."""
    givers, takers = ([[amount, i] for i, amount in side.items() if amount > _CRUMB] for side in (giving, taking))
    while givers and takers:
        give, take = max(givers), max(takers)
        amount = min(give[0], take[0])
        yield int(give[1]), int(take[1]), amount
        for side, one in ((givers, give), (takers, take)):
            one[0] -= amount
            if one[0] <= _CRUMB:
                side.remove(one)
