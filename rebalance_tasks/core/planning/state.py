"""What the planner's steps share: the nodes as columns, the budgets as a ledger, the moves chosen so far.

Byte counts that decide anything are Python ints (exact at any size); floats only guide the search.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.imbalance import is_eligible, spread, usage
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.prices import per_gb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.options import RebalancerOptions

#: (from zone or region, to zone or region) -> money for 10⁹ bytes.
Prices = "Mapping[tuple[str, str], Decimal]"
#: Exact for 19 digits of bytes times any sensible price.
_DIGITS: Final = 100
_PER_GB: Final = -9


def money(size_bytes: int, per_gb: Decimal) -> Decimal:
    """Return exactly ``size_bytes`` ÷ 10⁹ × ``per_gb``."""
    if not per_gb or not size_bytes:
        return Decimal(0)
    with localcontext() as context:
        context.prec = _DIGITS
        return (size_bytes * per_gb).scaleb(_PER_GB)


def add_money(amounts: Iterable[Decimal]) -> Decimal:
    """Return the exact sum."""
    with localcontext() as context:
        context.prec = _DIGITS
        return sum(amounts, Decimal(0))


class Fleet:
    """The nodes as columns, sorted by id; ``used`` follows the moves as they are chosen."""

    def __init__(
        self,
        nodes: Iterable[NodeDescriptor],
        inventory: Inventory,
        options: RebalancerOptions,
        *,
        reserved_bytes: Mapping[str, int],
        prices: Mapping[tuple[str, str], Decimal],
    ) -> None:
        """Take stock. Raises: InvalidArgument when a node id appears twice."""
        self.nodes = tuple(sorted(nodes, key=lambda node: node.node_id))
        self.index = {node.node_id: i for i, node in enumerate(self.nodes)}
        if len(self.index) != len(self.nodes):
            msg = "two nodes share one node_id; every node needs its own"
            raise InvalidArgument(msg)
        used = usage(self.nodes, inventory)
        self.used = [used[node.node_id] for node in self.nodes]
        self.initial_used = tuple(self.used)
        self.capacity = [node.capacity_bytes or 0 for node in self.nodes]
        self.active = [is_eligible(node) for node in self.nodes]
        self.draining = [node.state is NodeState.DRAINING and bool(node.capacity_bytes) for node in self.nodes]
        # The decimal text of the option, so that 0.95 of 100 is 95 and not 94.
        highest = Fraction(str(options.max_utilisation))
        self._ceiling = [
            int(highest * capacity) - node.reserved_bytes - reserved_bytes.get(node.node_id, 0)
            for node, capacity in zip(self.nodes, self.capacity, strict=True)
        ]
        self._queues = [frozenset(node.queues) for node in self.nodes]
        self._remote = [bool(node.remote_url) for node in self.nodes]
        self._prices = prices
        self.host = self._host_codes()
        self.pools: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            if self.active[i] or self.draining[i]:
                self.pools[node.pool].append(i)

    def takers(self, pool: str) -> list[int]:
        """Nodes of a pool that may receive (and count in its spread)."""
        return [i for i in self.pools[pool] if self.active[i]]

    def leavers(self, pool: str) -> list[int]:
        """Nodes of a pool that are to be emptied."""
        return [i for i in self.pools[pool] if self.draining[i]]

    def linked(self, i: int, j: int) -> bool:
        """Whether objects can go from node i to node j (`routes.are_linked`, asked for every pair)."""
        here, there = self._queues[i], self._queues[j]
        return self._remote[j] or not here or not there or not here.isdisjoint(there)

    def room(self, i: int) -> int:
        """Bytes a node can still receive under max_utilisation and reservations; below 0, not even an empty object."""
        return self._ceiling[i] - self.used[i]

    def share(self, i: int) -> float:
        """Utilisation now, rounded (guides and texts)."""
        return self.used[i] / self.capacity[i]

    def spread(self, members: Sequence[int]) -> float:
        """Spread of some nodes now, exact but for the last rounding."""
        return spread([self.used[i] for i in members], [self.capacity[i] for i in members])

    def per_gb(self, i: int, j: int) -> Decimal:
        """Money for 10⁹ bytes from node i to node j."""
        return per_gb(self.nodes[i], self.nodes[j], self._prices)

    def mean_price(self, i: int) -> float:
        """Money for 10⁹ bytes that leave a node, over the nodes of its pool that they could go to; its own where there are none."""
        others = [self.per_gb(i, j) for j in self.pools.get(self.nodes[i].pool, ()) if j != i] if self._prices else []
        return float(sum(others) / len(others)) if others else float(self.nodes[i].egress_cost_per_gb)

    def distance(self, i: int, j: int) -> int:
        """0 within a zone, 1 within a region, 2 beyond."""
        source, target = self.nodes[i], self.nodes[j]
        if source.region != target.region:
            return 2
        return int(source.zone != target.zone)

    def _host_codes(self) -> list[int]:
        """One code a host; a node that names none is its own host."""
        codes: dict[tuple[str, str], int] = {}
        return [
            codes.setdefault(("host", node.host) if node.host else ("node", node.node_id), len(codes))
            for node in self.nodes
        ]


class Ledger:
    """What the budgets still allow, and which of them cut something off."""

    def __init__(self, options: RebalancerOptions, *, remaining_cost_today: Decimal | None) -> None:
        """Open the cycle's budgets; the day's rest binds when it is smaller than the cycle's money."""
        self.moves_left = options.max_moves_per_cycle
        self.bytes_left = options.max_egress_bytes_per_cycle
        day = remaining_cost_today if remaining_cost_today is not None else options.max_cost_per_day
        self.cost_left = options.max_cost_per_cycle
        self._cost_name = "max_cost_per_cycle"
        if day is not None and day < self.cost_left:
            self.cost_left, self._cost_name = max(day, Decimal(0)), "max_cost_per_day"
        self._limits: frozenset[str] = frozenset()

    @property
    def limits(self) -> tuple[str, ...]:
        """Names of the options that bound the plan, sorted."""
        return tuple(sorted(self._limits))

    def note_moves(self) -> None:
        """Record that the number of moves bound."""
        self.note("max_moves_per_cycle")

    def note_egress(self) -> None:
        """Record that the egress budget bound."""
        self.note("max_egress_bytes_per_cycle")

    def note_cost(self) -> None:
        """Record that the money bound."""
        self.note(self._cost_name)

    def note(self, name: str) -> None:
        """Record another option that bound."""
        self._limits |= {name}

    def affordable(self, most: int, per_gb: Decimal, *, wanted: int | None = None) -> int:
        """Return how many of some bytes the budgets allow at a price, recording which of them cut the wanted ones.

        Args:
            most: bytes that would be of use.
            per_gb: money for 10⁹ bytes.
            wanted: bytes without which something is missing; default ``most``.
        """
        wanted = most if wanted is None else wanted
        if self.bytes_left < wanted:
            self.note_egress()
        allowed = min(most, self.bytes_left)
        if per_gb > 0:
            payable = int(Fraction(self.cost_left) / Fraction(per_gb) * 10**9)
            if payable < wanted:
                self.note_cost()
            allowed = min(allowed, payable)
        return allowed

    def spend(self, moves: int, size_bytes: int, per_gb: Decimal) -> None:
        """Book moves of some bytes at a price."""
        self.moves_left -= moves
        self.bytes_left -= size_bytes
        with localcontext() as context:
            context.prec = _DIGITS
            self.cost_left -= money(size_bytes, per_gb)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows of the inventory that go from one node to another, and which step chose them."""

    rows: NDArray[np.int64]
    source: int
    target: int
    step: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a plan was, to go on from there in another way."""

    used: list[int]
    ledger: Ledger
    candidates: dict[int, NDArray[np.int64]]
    chosen: list[Chosen]
    held: dict[int, list[NDArray[np.int64]]]


@dataclass(slots=True)
class Work:
    """Everything the steps read and change.

    Attributes:
        gravity: float64 (n,) in [0, 1].
        move_weight: λ: as many bytes, held fully, as one move more is worth.
        candidates: node → rows (int64) that may still leave it, in the order in which they should.
        held: per host, replica groups that arrive there by a chosen move.
    """

    fleet: Fleet
    inventory: Inventory
    ledger: Ledger
    gravity: NDArray[np.float64]
    candidates: dict[int, NDArray[np.int64]]
    move_weight: float = 1.0
    chosen: list[Chosen] = field(default_factory=list)
    held: dict[int, list[NDArray[np.int64]]] = field(default_factory=lambda: defaultdict(list))

    def book(self, rows: NDArray[np.int64], i: int, j: int, step: str) -> int:
        """Choose rows for i → j: spend the budgets, move the bytes on paper; return the bytes."""
        size_bytes = int(self.inventory.size_bytes[rows].sum())
        self.chosen.append(Chosen(rows, i, j, step))
        self.fleet.used[i] -= size_bytes
        self.fleet.used[j] += size_bytes
        self.ledger.spend(len(rows), size_bytes, self.fleet.per_gb(i, j))
        groups = self.inventory.replica_group
        if groups is not None:
            self.held[self.fleet.host[j]].append(groups.codes[rows].astype(np.int64))
        return size_bytes

    def snapshot(self) -> Snapshot:
        """Return where the plan stands."""
        held = {host: list(groups) for host, groups in self.held.items()}
        return Snapshot(list(self.fleet.used), copy.copy(self.ledger), dict(self.candidates), list(self.chosen), held)

    def restore(self, at: Snapshot) -> None:
        """Go back to a snapshot, or forward again to one taken later."""
        self.fleet.used[:] = at.used
        self.ledger = copy.copy(at.ledger)
        self.candidates = dict(at.candidates)
        self.chosen[:] = at.chosen
        self.held = defaultdict(list, {host: list(groups) for host, groups in at.held.items()})
