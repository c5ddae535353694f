"""Many cycles on paper: each is a check, a plan and all its moves, while the fleet grows, loses and gains nodes.

scenario + fleet + inventory ─▶ **simulate** ─▶ a record a cycle, utilisation by node, and how long balance took to return.
A pure function: the planner is the one that plans in earnest, every plan is verified, and what is drawn comes from the
scenario's seed. Invariants shown: 8 (budgets, the day's money included), 9 (no object twice within its cooldown, counted
here independently of the planner).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.imbalance import imbalance
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.core.planner import plan_rebalance
from rebalance_tasks.core.simulating.bound import fewest_cycles
from rebalance_tasks.core.simulating.events import Activate, Add, Drain, Growth, Heat, Lose
from rebalance_tasks.core.simulating.world import World
from rebalance_tasks.core.verify import verify_plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from rebalance_tasks.core.inventory import Inventory
    from rebalance_tasks.core.models import NodeDescriptor, RebalancePlan
    from rebalance_tasks.core.options import RebalancerOptions
    from rebalance_tasks.core.simulating.bound import Bound
    from rebalance_tasks.core.simulating.events import Event, Scenario

#: The disturbance that is there before the first event.
AT_THE_START: Final = "as it was"
#: The disturbance that no event of the cycle explains: it crept in.
CREPT_IN: Final = "growth"


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cycle.

    Attributes:
        cycle: from 1.
        at: when its check ran.
        events: what happened just before it.
        imbalance_before: when it was checked; imbalance_after: when its moves were made.
        cost: of its moves.
        mean_gravity: of the bytes moved; 0 without moves.
        leaving_bytes: what draining nodes still hold after it.
        limits: options that bound the plan.
        not_moved: reason → objects, empty where nothing was planned.
        objects: in the fleet.
    """

    cycle: int
    at: datetime
    events: tuple[str, ...]
    imbalance_before: float
    imbalance_after: float
    moves: int
    bytes: int
    cost: Decimal
    mean_gravity: float
    leaving_bytes: int
    limits: tuple[str, ...]
    not_moved: Mapping[str, int]
    objects: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """From a disturbance back under the threshold, with draining nodes empty.

    Attributes:
        cycle: the first cycle that had something to do.
        cause: what disturbed.
        bound: the fewest cycles the budgets allow, as things stood then.
        cycles: how many it took; ``None`` when it was not over at the end, or another disturbance came first.
        overtaken: whether another disturbance came first.
        held_bytes: what draining nodes still held at the end although no budget bound: pinned, protected, cooling down.
    """

    cycle: int
    cause: str
    bound: Bound
    cycles: int | None = None
    overtaken: bool = False
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Simulation:
    """What was played.

    Attributes:
        utilisation: node_id → used ÷ capacity at the start and after each cycle; ``None`` while the node is not there.
        repeated_moves: objects moved twice within their cooldown (must be 0).
    """

    seed: int
    threshold: float
    target: float
    cycles: tuple[Cycle, ...]
    utilisation: Mapping[str, tuple[float | None, ...]]
    recoveries: tuple[Recovery, ...]
    repeated_moves: int

    @property
    def total_moves(self) -> int:
        """Moves of all cycles."""
        return sum(cycle.moves for cycle in self.cycles)

    @property
    def total_bytes(self) -> int:
        """Bytes moved in all cycles."""
        return sum(cycle.bytes for cycle in self.cycles)

    @property
    def total_cost(self) -> Decimal:
        """Money of all cycles."""
        return sum((cycle.cost for cycle in self.cycles), Decimal(0))


def simulate(
    nodes: Iterable[NodeDescriptor],
    inventory: Inventory,
    *,
    options: RebalancerOptions,
    scenario: Scenario,
    start: datetime,
    prices: Mapping[tuple[str, str], Decimal] | None = None,
    verify: bool = True,
) -> Simulation:
    """Play a scenario.

    Deterministic: the same arguments give the same simulation.

    Args:
        nodes: the fleet; each active one needs a capacity.
        inventory: what lies on it.
        options: threshold, budgets of a cycle, cooldown, …
        scenario: cycles, events, seed.
        start: aware; the time of the first check.
        prices: (from, to) → money for 10⁹ bytes, between zones or else regions.
        verify: check every plan with `verify_plan`.

    Raises:
        InvalidArgument: an event names a node that is not there, or adds one that is.
        PlanInvariantError: a plan breaks a rule (a defect).
    """
    play = _Play(World(list(nodes), inventory, scenario), options, scenario, start, prices or {}, verify=verify)
    for number in range(1, scenario.cycles + 1):
        play.cycle(number)
    return play.result()


@dataclass(slots=True)
class _Watch:
    """Keeps track of disturbances."""

    options: RebalancerOptions
    prices: Mapping[tuple[str, str], Decimal]
    found: list[Recovery] = field(default_factory=list)
    is_open: bool = False
    held_bytes: int = 0

    def before(self, number: int, world: World, causes: Sequence[str], *, spread: float, now: datetime) -> None:
        """Note a disturbance; a new one overtakes one that is not over."""
        calm = spread < self.options.imbalance_threshold and world.leaving_bytes() <= self.held_bytes
        if (calm and not self.is_open) or (self.is_open and not causes):
            return
        if self.is_open:
            self.found[-1] = replace(self.found[-1], overtaken=True)
        cause = ", ".join(causes) or (AT_THE_START if number == 1 else CREPT_IN)
        bound = fewest_cycles(
            world.nodes,
            world.used,
            world.inventory,
            self.options,
            prices=self.prices,
            held=world.held(self.options, now),
        )
        self.found.append(Recovery(number, cause, bound))
        self.is_open = True

    def after(self, number: int, world: World, plan: RebalancePlan | None, *, spread: float) -> None:
        """Close the disturbance when it is over: what draining nodes hold now is held by more than a budget."""
        leaving = world.leaving_bytes()
        bound = leaving and plan is not None and plan.limits_reached
        if self.is_open and spread < self.options.imbalance_threshold and not bound:
            last = self.found[-1]
            self.found[-1] = replace(last, cycles=number - last.cycle + 1, held_bytes=leaving)
            self.is_open, self.held_bytes = False, leaving


class _Play:
    """A simulation under way."""

    def __init__(
        self,
        world: World,
        options: RebalancerOptions,
        scenario: Scenario,
        start: datetime,
        prices: Mapping[tuple[str, str], Decimal],
        *,
        verify: bool,
    ) -> None:
        self.world, self.options, self.scenario, self.prices, self.verify = world, options, scenario, prices, verify
        self.now = start
        self.every = scenario.every or options.check_interval
        self.cycles: list[Cycle] = []
        self.watch = _Watch(options, prices)
        self.repeated = 0
        self.spent: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.shares: list[dict[str, float]] = [world.shares()]

    def cycle(self, number: int) -> None:
        """Events, check, plan, moves."""
        events = [event for event in self.scenario.events if event.cycle == number]
        growing = [event for event in self.scenario.events if isinstance(event, Growth) and _grows(event, number)]
        for event in events:
            self._happen(event)
        for event in growing:
            self.world.grow(event.bytes, event.nodes, self.now)
        world = self.world
        before = imbalance(world.nodes, world.used)
        disturbing = [str(event) for event in events if not isinstance(event, Growth | Heat)]
        self.watch.before(number, world, disturbing, spread=before, now=self.now)
        plan = self._plan() if before >= self.options.imbalance_threshold or world.leaving_bytes() else None
        if plan is not None:
            cooldown = self.options.object_cooldown
            self.repeated += world.apply(plan, self.now, cooldown=cooldown)
            self._spend(plan.estimated_cost)
        after = imbalance(world.nodes, world.used)
        self.watch.after(number, world, plan, spread=after)
        self.shares.append(world.shares())
        self.cycles.append(_record(number, self.now, tuple(map(str, events)), before, after, plan, world))
        took = timedelta(seconds=plan.estimated_duration_seconds) if plan is not None else timedelta(0)
        self.now += max(self.every, took)

    def _happen(self, event: Event) -> None:
        match event:
            case Add():
                self.world.add(event.node)
            case Lose():
                self.world.lose(event.node_id, restore=event.restore)
            case Drain():
                self.world.set_state(event.node_id, NodeState.DRAINING)
            case Activate():
                self.world.set_state(event.node_id, NodeState.ACTIVE)
            case Heat():
                self.world.heat(event)
            case Growth():
                self.world.require(event.nodes)

    def _plan(self) -> RebalancePlan:
        world = self.world
        plan = plan_rebalance(
            world.nodes,
            world.inventory,
            options=self.options,
            fleet="simulated",
            plan_id=f"cycle-{len(self.cycles) + 1}",
            now=self.now,
            prices=self.prices,
            remaining_cost_today=self._left_today(),
        )
        if self.verify:
            verify_plan(plan, world.nodes, world.inventory, self.options, prices=self.prices, now=self.now)
        return plan

    def _left_today(self) -> Decimal | None:
        most = self.options.max_cost_per_day
        return None if most is None else max(Decimal(0), most - self.spent[self._today()])

    def _spend(self, cost: Decimal) -> None:
        self.spent[self._today()] += cost

    def _today(self) -> str:
        return self.now.strftime("%Y-%m-%d")

    def result(self) -> Simulation:
        """What was played."""
        names = sorted({name for shares in self.shares for name in shares})
        return Simulation(
            seed=self.scenario.seed,
            threshold=self.options.imbalance_threshold,
            target=self.options.effective_target,
            cycles=tuple(self.cycles),
            utilisation={name: tuple(shares.get(name) for shares in self.shares) for name in names},
            recoveries=tuple(self.watch.found),
            repeated_moves=self.repeated,
        )


def _grows(event: Growth, number: int) -> bool:
    return event.cycle <= number and (event.until is None or number <= event.until)


def _record(
    number: int,
    at: datetime,
    events: tuple[str, ...],
    before: float,
    after: float,
    plan: RebalancePlan | None,
    world: World,
) -> Cycle:
    moves = () if plan is None else plan.moves
    size = sum(move.size_bytes for move in moves)
    held = sum(move.size_bytes * move.gravity for move in moves)
    return Cycle(
        cycle=number,
        at=at,
        events=events,
        imbalance_before=before,
        imbalance_after=after,
        moves=len(moves),
        bytes=size,
        cost=Decimal(0) if plan is None else plan.estimated_cost,
        mean_gravity=held / size if size else 0.0,
        leaving_bytes=world.leaving_bytes(),
        limits=() if plan is None else plan.limits_reached,
        not_moved={} if plan is None else dict(plan.not_moved),
        objects=len(world.inventory),
    )
