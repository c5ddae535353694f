"""What moves when a fleet changes: with the flat rule what must, and how it is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.errors import EmptyClusterError, InvalidArgument
from rebalance_tasks.core.models import NodeDescriptor, NodeState, PlacementTarget
from rebalance_tasks.core.placement.domains import domain_path

if TYPE_CHECKING:
    from rebalance_tasks.core.crush import RuleName

FLAT = CrushPlacementAlgorithm(rule="flat", kernel="numpy")
KEYS = [f"object-{i}" for i in range(60)]

names = st.sampled_from(["", "a", "b", "c"])
weights = st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 3.7, 50.0])


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeDescriptor]:
    return [
        NodeDescriptor(node_id=f"n{i}", zone=draw(names), rack=draw(names), host=draw(names), weight=draw(weights))
        for i in range(draw(st.integers(2, 16)))
    ]


def placed(nodes: list[NodeDescriptor], replicas: int) -> list[set[str]]:
    rows = FLAT.compute_placements(KEYS, replicas, nodes)
    return [{nodes[i].node_id for i in row if i >= 0} for row in rows]


@settings(max_examples=250, deadline=None)
@given(nodes=fleets(), replicas=st.integers(1, 8), data=st.data())
def test_flat_moves_replicas_only_off_a_removed_node_and_only_to_an_added_one(
    nodes: list[NodeDescriptor], replicas: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.sampled_from(nodes)).node_id
    small = [node for node in nodes if node.node_id != chosen]
    for without, having in zip(placed(small, replicas), placed(nodes, replicas), strict=True):
        if chosen in having:
            assert len(without - having) == (len(having) == replicas and len(without) == replicas)
            assert having - without == {chosen}
        else:
            assert without == having


@settings(max_examples=250, deadline=None)
@given(nodes=fleets(), replicas=st.integers(1, 8), weight=weights, data=st.data())
def test_flat_moves_replicas_only_to_or_from_a_node_weighted_anew(
    nodes: list[NodeDescriptor], replicas: int, weight: float, data: st.DataObject
) -> None:
    chosen = data.draw(st.sampled_from(nodes))
    changed = [node.model_copy(update={"weight": weight}) if node is chosen else node for node in nodes]
    for before, after in zip(placed(nodes, replicas), placed(changed, replicas), strict=True):
        if weight >= chosen.weight:
            assert after - before <= {chosen.node_id}
        else:
            assert before - after <= {chosen.node_id}


def grid() -> list[NodeDescriptor]:
    return [
        NodeDescriptor(node_id=f"n{i}", zone=f"z{i % 4}", rack=f"r{i % 8}", host=f"h{i % 16}", weight=1 + i % 3)
        for i in range(32)
    ]


@pytest.mark.parametrize("rule", ["flat", "tree"])
def test_movement_is_counted_replica_by_replica(rule: RuleName) -> None:
    crush = CrushPlacementAlgorithm(rule=rule)
    before, after = crush.compile(grid()), crush.compile([*grid()[1:], NodeDescriptor(node_id="new", zone="z9")])
    measured = crush.measure_movement(before, after, KEYS, 3)
    was = [{before[i].node_id for i in row} for row in crush.compute_placements(KEYS, 3, before)]
    now = [{after[i].node_id for i in row} for row in crush.compute_placements(KEYS, 3, after)]
    assert measured.moved == sum(len(new - old) for old, new in zip(was, now, strict=True))
    assert (measured.keys, measured.replicas) == (60, 180)
    assert set(measured.nodes) == {node.node_id for node in (*before, *after)}
    for name, node in measured.nodes.items():
        assert node.held_before == sum(name in old for old in was)
        assert node.held_after == sum(name in new for new in now)
        assert node.arriving == sum(name in new - old for old, new in zip(was, now, strict=True))
        assert node.leaving == sum(name in old - new for old, new in zip(was, now, strict=True))
    assert measured.least == max(measured.nodes["new"].held_after, measured.nodes["n0"].held_before)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_flat_moves_the_least_for_a_node_a_host_a_rack_and_a_zone(level: int) -> None:
    nodes = grid()
    smaller = [node for node in nodes if domain_path(node)[level] != domain_path(nodes[5])[level]]
    heavier = [node if node in smaller else node.model_copy(update={"weight": node.weight * 2}) for node in nodes]
    for one, other in ((nodes, smaller), (smaller, nodes), (nodes, heavier), (heavier, nodes)):
        measured = FLAT.measure_movement(one, other, 20_000, 3)
        assert measured.moved > 0
        assert measured.ratio == pytest.approx(1.0, abs=0.02)


def test_tree_moves_more_than_the_least() -> None:
    crush = CrushPlacementAlgorithm(rule="tree")
    ratio = crush.measure_movement(grid(), grid()[1:], 20_000, 3).ratio
    assert ratio is not None
    assert ratio > 1.5


def test_nothing_moves_between_equal_maps_and_nothing_has_to() -> None:
    measured = FLAT.measure_movement(grid(), list(reversed(grid())), 1_000, 3)
    assert (measured.moved, measured.least, measured.share, measured.ratio) == (0, 0, 0.0, None)
    assert FLAT.measure_movement(grid(), grid(), [], 3).share == 0.0


def test_measured_movement_comes_near_to_what_the_weights_say() -> None:
    nodes = [NodeDescriptor(node_id=f"n{i}", weight=1 + i % 3) for i in range(20)]
    for changed in (nodes[:-1], [*nodes, NodeDescriptor(node_id="new", weight=4)]):
        measured = FLAT.measure_movement(nodes, changed, 50_000)
        assert measured.share == pytest.approx(FLAT.estimate_movement_on_resize(nodes, changed), abs=0.005)


def test_wrong_samples_and_maps_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="keys: -1"):
        FLAT.measure_movement(grid(), grid(), -1)
    with pytest.raises(EmptyClusterError):
        FLAT.measure_movement(grid(), [])


def test_a_decision_says_how_far_apart_its_nodes_are_and_how_many_are_missing() -> None:
    nodes = [
        NodeDescriptor(node_id="a", zone="z", rack="r", host="h"),
        NodeDescriptor(node_id="b", zone="z", rack="s", host="h"),
        NodeDescriptor(node_id="c", zone="z", rack="s", host="i"),
        NodeDescriptor(node_id="d", zone="z", rack="s", host="i"),
    ]
    told = []
    for replicas in (1, 2, 3, 4, 6):
        for rule in ("flat", "tree"):
            target = PlacementTarget(object_key="k", replica_count=replicas)
            decision = CrushPlacementAlgorithm(rule=rule).compute_placement(target, nodes)
            told.append((decision.separation, decision.missing_replicas))
    assert told[::2] == told[1::2] == [("zone", 0), ("rack", 0), ("host", 0), ("node", 0), ("node", 2)]


@pytest.mark.parametrize("rule", ["flat", "tree"])
def test_recompute_keeps_every_replica_that_may_stay_and_replaces_the_rest(rule: RuleName) -> None:
    crush = CrushPlacementAlgorithm(rule=rule)
    for key in KEYS:
        target = PlacementTarget(object_key=key, replica_count=3)
        decision = crush.compute_placement(target, grid())
        drained = [
            node.model_copy(update={"state": NodeState.DRAINING}) if node.node_id == decision.target_nodes[1] else node
            for node in grid()
        ]
        again = crush.recompute_on_node_change(target, drained, decision)
        assert again.target_nodes[:2] == (decision.target_nodes[0], decision.target_nodes[2])
        assert again.separation == "zone"
        assert again.target_nodes[2] != decision.target_nodes[1]


def test_rules_place_differently_and_a_fleet_keeps_its_own() -> None:
    flat, tree = CompiledFleet(grid()), CompiledFleet(grid(), rule="tree")
    both = [CrushPlacementAlgorithm().compute_placements(KEYS, 3, fleet) for fleet in (flat, tree)]
    assert not np.array_equal(both[0], both[1])
    decision = CrushPlacementAlgorithm(rule="flat").compute_placement(PlacementTarget(object_key="k"), tree)
    assert decision.placement_rule_id == "tree"
    with pytest.raises(InvalidArgument, match="rule: 'straw' is none of flat, tree"):
        CompiledFleet(grid(), rule="straw")  # type: ignore[arg-type]
