"""Many cycles on paper: deterministic, within every rule, and back in balance in the fewest cycles the budgets allow."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.imbalance import least_bytes, spread, usage
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import NodeDescriptor, NodeState
from rebalance_tasks.core.options import RebalancerOptions
from rebalance_tasks.core.simulating.bound import fewest_cycles
from rebalance_tasks.core.simulating.events import Scenario, parse_event, parse_scenario
from rebalance_tasks.core.simulating.fleet import synthetic_fleet
from rebalance_tasks.core.simulating.world import World
from rebalance_tasks.core.simulation import simulate

if TYPE_CHECKING:
    from rebalance_tasks.core.simulation import Simulation

START = datetime(2026, 1, 1, tzinfo=UTC)
NODES, OBJECTS = synthetic_fleet(nodes=6, objects=3_000, seed=2)
TOTAL = int(OBJECTS.size_bytes.sum())
CAPACITY = NODES[0].capacity_bytes or 0


def rules(**more: Any) -> RebalancerOptions:
    chosen = {
        "max_moves_per_cycle": 100_000,
        "max_egress_bytes_per_cycle": TOTAL // 25,
        "throttle_bytes_per_sec": None,
        **more,
    }
    return RebalancerOptions(**chosen)


def played(*events: str, cycles: int = 12, options: RebalancerOptions | None = None, **more: Any) -> Simulation:
    scenario = Scenario(cycles=cycles, every="1h", events=tuple(map(parse_event, events)), **more)
    return simulate(NODES, OBJECTS, options=options or rules(), scenario=scenario, start=START)


ADD = f"4 add node_id=new capacity_bytes={CAPACITY} zone=b"


# -- a course ----------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_simulation_and_another_seed_another_one() -> None:
    events = (ADD, f"6 growth bytes={TOTAL // 50}", "8 heat share=0.3", "9 lose node_id=n2 restore=true")
    assert played(*events) == played(*events)
    assert played(*events).utilisation != played(*events, seed=2).utilisation


@pytest.mark.parametrize(
    "events",
    [
        (),
        (ADD,),
        ("4 drain node_id=n3",),
        ("4 lose node_id=n6 restore=true",),
        (f"4 growth bytes={TOTAL // 8} until=4 nodes=n1",),
    ],
    ids=["as it is", "added", "drained", "lost", "grown"],
)
@pytest.mark.parametrize(
    ("options", "cycles"),
    [
        (rules(object_cooldown="0s"), 12),
        (rules(max_moves_per_cycle=40, max_egress_bytes_per_cycle=TOTAL, object_cooldown="0s"), 40),
    ],
    ids=["bytes bind", "moves bind"],
)
def test_after_each_disturbance_balance_is_back_in_the_fewest_cycles(
    events: tuple[str, ...], options: RebalancerOptions, cycles: int
) -> None:
    simulation = played(*events, cycles=cycles, options=options)
    assert simulation.recoveries
    for found in simulation.recoveries:
        assert found.bound.cycles is not None
        assert found.cycles is not None, found
        assert found.cycles == found.bound.cycles, found


def test_no_object_moves_twice_within_its_cooldown_and_without_one_some_do() -> None:
    events = (f"2 growth bytes={TOTAL // 40} nodes=n1", f"2 growth bytes={TOTAL // 40} nodes=n6", "5 drain node_id=n2")
    assert played(*events, cycles=20).repeated_moves == 0
    flags = rules(object_cooldown="0s")
    world = World(list(NODES), OBJECTS, Scenario())
    drained = played("2 drain node_id=n2", "4 activate node_id=n2", "6 drain node_id=n2", cycles=8, options=flags)
    assert drained.repeated_moves == 0, "nothing is repeated within no time"
    plan = _one_move(world)
    assert world.apply(plan, START, cooldown=timedelta(hours=1)) == 0
    assert world.apply(_one_move(world), START + timedelta(minutes=59), cooldown=timedelta(hours=1)) == 1
    assert world.apply(_one_move(world), START + timedelta(hours=2), cooldown=timedelta(hours=1)) == 0


def _one_move(world: World) -> Any:
    from rebalance_tasks.core.models import RebalanceMove, RebalancePlan

    inventory = world.inventory
    here = inventory.node_ids[inventory.node_index[0]]
    target = "n1" if here == "n2" else "n2"
    size = int(inventory.size_bytes[0])
    move = RebalanceMove(object_key=inventory.key(0), source_node=here, target_node=target, size_bytes=size)
    return RebalancePlan(plan_id="p", moves=(move,))


def test_a_cycle_that_takes_longer_than_the_interval_delays_the_next() -> None:
    slow = played(cycles=3, options=rules(throttle_bytes_per_sec=TOTAL // 25 // 7200, max_concurrent_migrations=1))
    gaps = [later.at - earlier.at for earlier, later in zip(slow.cycles, slow.cycles[1:], strict=False)]
    assert gaps[0] > timedelta(hours=1)


def test_the_days_money_binds_and_is_there_again_the_next_day() -> None:
    nodes = [node.model_copy(update={"egress_cost_per_gb": Decimal(1)}) for node in NODES]
    options = rules(max_cost_per_day="0.05", max_egress_bytes_per_cycle=TOTAL)
    scenario = Scenario(cycles=30, every=timedelta(hours=2))
    simulation = simulate(nodes, OBJECTS, options=options, scenario=scenario, start=START)
    by_day: dict[str, Decimal] = {}
    for cycle in simulation.cycles:
        day = cycle.at.strftime("%d")
        by_day[day] = by_day.get(day, Decimal(0)) + cycle.cost
    assert all(cost <= Decimal("0.05") for cost in by_day.values())
    assert sum(cost > Decimal("0.03") for cost in by_day.values()) >= 2


def test_growth_adds_exactly_its_bytes_where_it_is_told() -> None:
    world = World(list(NODES), OBJECTS, Scenario())
    before = dict(world.used)
    world.grow(12_345_678, ("n2",), START)
    assert world.used["n2"] - before.pop("n2") == 12_345_678
    assert all(world.used[name] == size for name, size in before.items())
    assert world.inventory.used_bytes() == world.used


def test_a_lost_node_takes_its_objects_along_or_they_come_back_elsewhere() -> None:
    gone, back = World(list(NODES), OBJECTS, Scenario()), World(list(NODES), OBJECTS, Scenario())
    here = gone.used["n4"]
    gone.lose("n4", restore=False)
    back.lose("n4", restore=True)
    assert sum(gone.used.values()) == TOTAL - here == int(gone.inventory.size_bytes.sum())
    assert sum(back.used.values()) == TOTAL
    assert "n4" not in back.used
    assert {name: back.inventory.used_bytes()[name] for name in back.used} == back.used


def test_hot_data_shifts_and_what_was_hot_before_cools_down() -> None:
    world = World(list(NODES), OBJECTS, Scenario())
    world.heat(parse_event("1 heat share=0.5 gravity=1 nodes=n1"))  # type: ignore[arg-type]
    first = world.inventory.gravity
    assert first is not None
    on_n1 = world.inventory.node_index == world.inventory.node_ids.index("n1")
    assert (first[on_n1] == 1).sum() == round(on_n1.sum() / 2)
    world.heat(parse_event("2 heat share=0.1 gravity=1 prefix=f00001/"))  # type: ignore[arg-type]
    second = world.inventory.gravity
    assert second is not None
    assert (second == 1).sum() == 100
    assert OBJECTS.gravity is not None
    assert np.array_equal(second[second < 1], OBJECTS.gravity[second < 1])


def test_hot_objects_stay_where_they_are() -> None:
    cold, hot = played(cycles=1), played("1 heat share=1 gravity=0.95", cycles=1)
    assert cold.cycles[0].moves > 0
    assert hot.cycles[0].moves == 0
    assert hot.cycles[0].not_moved["protected_gravity"] == len(OBJECTS)


def test_what_may_not_leave_a_draining_node_is_told_and_does_not_keep_the_drain_open() -> None:
    pinned = np.zeros(len(OBJECTS), np.bool_)
    row = int(np.flatnonzero(OBJECTS.node_index == OBJECTS.node_ids.index("n3"))[0])
    pinned[row] = True
    inventory = Inventory.from_arrow(OBJECTS.to_arrow().append_column("pinned", pa.array(pinned)))
    scenario = Scenario(cycles=10, every=timedelta(hours=25), events=(parse_event("5 drain node_id=n3"),))
    simulation = simulate(NODES, inventory, options=rules(), scenario=scenario, start=START)
    drained = simulation.recoveries[-1]
    assert drained.cause == "n3 drained"
    assert drained.cycles is not None
    assert drained.held_bytes >= int(inventory.size_bytes[row])


def test_utilisation_is_known_from_the_start_and_not_while_a_node_is_not_there() -> None:
    simulation = played(ADD, "8 lose node_id=n1", cycles=9)
    assert len(simulation.utilisation["n1"]) == 10
    assert simulation.utilisation["new"][:4] == (None,) * 4
    assert simulation.utilisation["new"][4] is not None
    assert simulation.utilisation["n1"][8:] == (None, None)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ("2 drain node_id=n9", "'n9' is not there"),
        ("2 lose node_id=n9", "'n9' is not there"),
        ("2 add node_id=n1 capacity_bytes=1GB", "is there already"),
        ("2 add node_id=n9", "needs a capacity_bytes"),
        ("2 growth bytes=1 nodes=n1,n9", "'n9' is not there"),
    ],
)
def test_an_event_that_cannot_happen_is_refused(event: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        played(event, cycles=3)


# -- scenarios ---------------------------------------------------------------------------------------------------------
def test_a_scenario_file_says_what_event_lines_say() -> None:
    text = """
    cycles = 30
    every = "6h"
    seed = 7
    [[events]]
    cycle = 3
    kind = "growth"
    bytes = "5GB"
    nodes = ["n1", "n2"]
    [[events]]
    cycle = 4
    kind = "add"
    node = { node_id = "n9", capacity_bytes = "4TB", zone = "b" }
    [[events]]
    cycle = 5
    kind = "lose"
    node_id = "n3"
    restore = true
    """
    lines = (
        "3 growth bytes=5GB nodes=n1,n2",
        "4 add node_id=n9 capacity_bytes=4TB zone=b",
        "5 lose node_id=n3 restore=true",
    )
    expected = Scenario(cycles=30, every="6h", seed=7, events=tuple(map(parse_event, lines)))
    assert parse_scenario(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cycles = 0", "cycles: Input should be greater than 0"),
        ("cycle = 3", "cycle: Extra inputs"),
        ('every = "0s"', "every: must be longer than 0"),
        ('[[events]]\ncycle = 1\nkind = "melt"', "melt"),
        ('[[events]]\ncycle = 1\nkind = "growth"\nbytes = "many"', "bytes"),
        ("[[events]", "not valid TOML"),
    ],
)
def test_a_wrong_scenario_names_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        parse_scenario(text)


@pytest.mark.parametrize(
    "line", ["", "drain node_id=n1", "3 melt", "3 drain n1", "3 drain node_id=", "0 drain node_id=n1"]
)
def test_a_wrong_event_line_is_refused_with_an_example(line: str) -> None:
    with pytest.raises(InvalidArgument, match="event"):
        parse_event(line)


# -- the bound -----------------------------------------------------------------------------------------------------------
def inventory_of(sizes: dict[str, list[int]]) -> Inventory:
    return Inventory.from_listings(
        {
            name: ([f"{name}/{at}" for at in range(len(own))], np.array(own, np.int64), None)
            for name, own in sizes.items()
        }
    )


@given(
    used=st.lists(st.integers(0, 10**6), min_size=2, max_size=8),
    threshold=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
)
def test_without_a_drain_the_bounds_bytes_are_the_least_of_any_plan(used: list[int], threshold: float) -> None:
    nodes = [NodeDescriptor(node_id=f"n{at}", capacity_bytes=10**6) for at in range(len(used))]
    inventory = inventory_of({node.node_id: [size] for node, size in zip(nodes, used, strict=True)})
    options = RebalancerOptions(imbalance_threshold=threshold)
    bound = fewest_cycles(nodes, dict(zip([n.node_id for n in nodes], used, strict=True)), inventory, options)
    least = least_bytes(used, [10**6] * len(used), threshold)
    assert least - 2 <= bound.bytes <= least


@given(st.data())
def test_no_way_to_place_the_objects_takes_fewer_moves_than_the_bound(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 3))
    capacity = data.draw(st.lists(st.sampled_from([50, 100, 200]), min_size=count, max_size=count))
    objects = data.draw(
        st.lists(st.tuples(st.integers(1, 60), st.integers(0, count - 1)), min_size=1, max_size=13 - 2 * count)
    )
    nodes = [NodeDescriptor(node_id=f"n{at}", capacity_bytes=size) for at, size in enumerate(capacity)]
    inventory = inventory_of({node.node_id: [s for s, at in objects if at == i] for i, node in enumerate(nodes)})
    options = RebalancerOptions(imbalance_threshold=data.draw(st.sampled_from([0.05, 0.1, 0.3])))
    fewest = None
    for places in itertools.product(range(count), repeat=len(objects)):
        used = [sum(size for (size, _), at in zip(objects, places, strict=True) if at == i) for i in range(count)]
        if spread(used, capacity) < options.imbalance_threshold:
            moves = sum(at != home for (_, home), at in zip(objects, places, strict=True))
            fewest = moves if fewest is None else min(fewest, moves)
    bound = fewest_cycles(nodes, usage(nodes, inventory), inventory, options)
    assert fewest is None or bound.moves <= fewest


def test_what_one_node_gives_is_counted_in_its_own_objects() -> None:
    nodes = [NodeDescriptor(node_id=name, capacity_bytes=1000) for name in ("full", "half", "empty")]
    inventory = inventory_of({"full": [1] * 900, "half": [100] * 5, "empty": []})
    bound = fewest_cycles(nodes, usage(nodes, inventory), inventory, RebalancerOptions(imbalance_threshold=0.1))
    # Five large objects hold enough for the empty node, but the full one has none of them to give.
    assert bound.moves > 300


def test_a_draining_nodes_bytes_all_count_and_fill_what_lacks() -> None:
    nodes = [
        NodeDescriptor(node_id="a", capacity_bytes=1000),
        NodeDescriptor(node_id="b", capacity_bytes=1000),
        NodeDescriptor(node_id="c", capacity_bytes=1000, state=NodeState.DRAINING),
    ]
    inventory = inventory_of({"a": [10] * 50, "b": [10] * 20, "c": [10] * 25})
    used = {"a": 500, "b": 200, "c": 250}
    options = RebalancerOptions(max_moves_per_cycle=10, max_egress_bytes_per_cycle=1000)
    bound = fewest_cycles(nodes, used, inventory, options)
    assert (bound.bytes, bound.moves, bound.cycles, bound.by) == (250, 25, 3, "max_moves_per_cycle")
    held = np.ones(len(inventory), np.bool_)
    assert fewest_cycles(nodes, used, inventory, options, held=held).bytes == 99


def test_a_budget_of_nothing_has_no_number_of_cycles() -> None:
    nodes = [NodeDescriptor(node_id=name, capacity_bytes=100) for name in ("a", "b")]
    inventory = inventory_of({"a": [10] * 9})
    options = RebalancerOptions(max_moves_per_cycle=0)
    bound = fewest_cycles(nodes, {"a": 90, "b": 0}, inventory, options)
    assert (bound.cycles, bound.by) == (None, "max_moves_per_cycle")


def test_money_counts_at_the_cheapest_way() -> None:
    nodes = [
        NodeDescriptor(node_id="a", capacity_bytes=10**9, zone="x", egress_cost_per_gb=Decimal(10)),
        NodeDescriptor(node_id="b", capacity_bytes=10**9, zone="y", egress_cost_per_gb=Decimal(4)),
    ]
    inventory = inventory_of({"a": [10**6] * 900})
    options = RebalancerOptions(max_cost_per_cycle=Decimal("0.5"))
    bound = fewest_cycles(nodes, {"a": 9 * 10**8, "b": 0}, inventory, options)
    assert bound.cost == pytest.approx(Decimal("1.6"), abs=Decimal("0.001"))
    assert (bound.cycles, bound.by) == (4, "max_cost_per_cycle")
    prices = {("x", "y"): Decimal(1)}
    assert fewest_cycles(nodes, {"a": 9 * 10**8, "b": 0}, inventory, options, prices=prices).cycles == 1


# -- a made-up fleet ----------------------------------------------------------------------------------------------------
def test_a_made_up_fleet_is_as_full_and_as_uneven_as_asked() -> None:
    nodes, inventory = synthetic_fleet(nodes=8, objects=20_000, fill=0.6, spread=0.3, mean_bytes=1000, seed=5)
    used = inventory.used_bytes()
    shares = [used[node.node_id] / (node.capacity_bytes or 1) for node in nodes]
    assert np.mean(shares) == pytest.approx(0.6, abs=0.001)
    assert max(shares) - min(shares) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"fill": 0.0}, {"fill": 0.9, "spread": 0.5}, {"objects": -1}])
def test_an_impossible_made_up_fleet_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="synthetic"):
        synthetic_fleet(**{"nodes": 3, "objects": 10, **wrong})
