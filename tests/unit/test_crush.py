"""What placement promises: even, stable, apart, and blind to everything but the cluster map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.errors import EmptyClusterError, InvalidArgument
from rebalance_tasks.core.models import (
    ConstraintType,
    NodeDescriptor,
    NodeState,
    PlacementConstraint,
    PlacementDecision,
    PlacementTarget,
    StorageClass,
)
from rebalance_tasks.core.placement.domains import Level, domain_path

if TYPE_CHECKING:
    import random

KEYS = [f"bucket/{i % 31}/object-{i}" for i in range(20_000)]


@pytest.fixture(scope="module", params=["flat", "tree"])
def crush(request: pytest.FixtureRequest) -> CrushPlacementAlgorithm:
    """Each rule in turn: what is promised here, both keep."""
    return CrushPlacementAlgorithm(rule=request.param)


def flat(weights: list[float]) -> list[NodeDescriptor]:
    return [NodeDescriptor(node_id=f"n{i}", weight=weight) for i, weight in enumerate(weights)]


def grid(zones: int, racks: int, hosts: int, nodes: int = 1) -> list[NodeDescriptor]:
    return [
        NodeDescriptor(
            node_id=f"n{z}-{r}-{h}-{n}", zone=f"z{z}", rack=f"r{r}", host=f"h{h}", weight=1 + (z + r + n) % 3
        )
        for z in range(zones)
        for r in range(racks)
        for h in range(hosts)
        for n in range(nodes)
    ]


def named(
    crush: CrushPlacementAlgorithm, nodes: list[NodeDescriptor], replicas: int, keys: list[str] = KEYS
) -> list[list[str]]:
    ids = np.array([node.node_id for node in nodes])
    rows: list[list[str]] = ids[crush.compute_placements(keys, replicas, nodes)].tolist()
    return rows


def test_batch_result_is_int32_with_a_row_a_key(crush: CrushPlacementAlgorithm) -> None:
    rows = crush.compute_placements(KEYS[:10], 3, grid(3, 2, 2))
    assert rows.dtype == np.int32
    assert rows.shape == (10, 3)
    assert crush.compute_placements([], 3, grid(3, 2, 2)).shape == (0, 3)


def test_decision_names_the_row_of_the_batch_and_is_deterministic(crush: CrushPlacementAlgorithm) -> None:
    nodes = grid(3, 2, 2)
    target = PlacementTarget(object_key="k", replica_count=3)
    decision = crush.compute_placement(target, nodes)
    assert decision == crush.compute_placement(target, crush.compile(nodes))
    assert list(decision.target_nodes) == named(crush, nodes, 3, ["k"])[0]
    assert decision.primary_node == decision.target_nodes[0]
    assert decision.replica_nodes == decision.target_nodes[1:]
    assert decision.placement_rule_id == crush.rule
    assert decision.deterministic


@given(st.randoms(use_true_random=False))
def test_order_of_the_nodes_does_not_matter(crush: CrushPlacementAlgorithm, rng: random.Random) -> None:
    nodes = grid(3, 2, 2, 2)
    shuffled = rng.sample(nodes, len(nodes))
    assert named(crush, shuffled, 4, KEYS[:50]) == named(crush, nodes, 4, KEYS[:50])


@pytest.mark.parametrize("factor", [2.0**-40, 0.5, 2.0, 2.0**60, 3.0, 0.1, 1e9 / 7])
def test_scaling_all_weights_changes_nothing(crush: CrushPlacementAlgorithm, factor: float) -> None:
    nodes = grid(3, 3, 3)
    scaled = [node.model_copy(update={"weight": node.weight * factor}) for node in nodes]
    assert np.array_equal(crush.compute_placements(KEYS, 3, nodes), crush.compute_placements(KEYS, 3, scaled))


@pytest.mark.parametrize("nodes", [flat([1, 2, 0.5, 4, 1, 3] * 5), grid(4, 3, 2, 2)], ids=["flat", "tree"])
def test_primaries_are_proportional_to_weight(crush: CrushPlacementAlgorithm, nodes: list[NodeDescriptor]) -> None:
    # Chi-square of d degrees of freedom has mean d and variance 2d; 3 standard deviations above. Keys are fixed.
    keys = [f"object-{i}" for i in range(200_000)]
    held = np.bincount(crush.compute_placements(keys, 1, nodes)[:, 0], minlength=len(nodes))
    weights = np.array([node.weight for node in nodes])
    expected = len(keys) * weights / weights.sum()
    chi_square = float(((held - expected) ** 2 / expected).sum())
    degrees = len(nodes) - 1
    assert chi_square < degrees + 3 * math.sqrt(2 * degrees)


def test_second_replicas_are_spread_evenly_over_equal_nodes(crush: CrushPlacementAlgorithm) -> None:
    nodes = flat([1.0] * 20)
    pairs = crush.compute_placements([f"object-{i}" for i in range(190_000)], 2, nodes)
    # Every ordered pair of different nodes is as likely as any other: 380 cells of 500.
    cells = np.bincount(pairs[:, 0] * 20 + pairs[:, 1], minlength=400).reshape(20, 20)
    off_diagonal = cells[~np.eye(20, dtype=bool)]
    assert cells.trace() == 0
    assert float(((off_diagonal - 500) ** 2 / 500).sum()) < 379 + 3 * math.sqrt(2 * 379)


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_all_replicas_of_the_tree_follow_the_weights_of_zones_closer_than_the_flat_rules(replicas: int) -> None:
    nodes = [
        NodeDescriptor(node_id=f"n{i}", zone=f"z{i}", weight=weight) for i, weight in enumerate((3, 4, 4, 5, 5, 6))
    ]
    keys = [f"object-{i}" for i in range(100_000)]
    off = {}
    for rule in ("flat", "tree"):
        rows = CrushPlacementAlgorithm(rule=rule).compute_placements(keys, replicas, nodes)
        load = np.bincount(rows.ravel(), minlength=6) / [node.weight for node in nodes]
        off[rule] = float(load.std() / load.mean())
    assert off["tree"] < off["flat"] * 0.9


@pytest.mark.parametrize("heavy", [10.0, 1e4, 1e6])
def test_strongly_mixed_weights_keep_their_proportion(crush: CrushPlacementAlgorithm, heavy: float) -> None:
    nodes = flat([heavy, 1.0])
    keys = np.random.default_rng(5).integers(0, 2**64, 1_000_000, dtype=np.uint64)
    light = int((crush.compute_placements(keys, 1, nodes)[:, 0] == 1).sum())
    expected = len(keys) / (heavy + 1)
    assert abs(light - expected) <= 4 * math.sqrt(expected) + 1


def test_weight_zero_and_inactive_nodes_get_nothing(crush: CrushPlacementAlgorithm) -> None:
    nodes = [
        *flat([1.0, 0.0, 1.0]),
        NodeDescriptor(node_id="draining", state=NodeState.DRAINING),
        NodeDescriptor(node_id="away", state=NodeState.MAINTENANCE, weight=100),
    ]
    assert set(np.unique(crush.compute_placements(KEYS, 2, nodes))) == {0, 2}


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 7, 12, 20])
def test_replicas_are_as_far_apart_as_the_fleet_allows(crush: CrushPlacementAlgorithm, replicas: int) -> None:
    nodes = [node for node in grid(3, 2, 2, 2) if (node.zone, node.rack) != ("z2", "r1")]  # 3 zones 5 racks 10 hosts
    levels = (Level.ZONE, Level.RACK, Level.HOST, Level.NODE)
    available = {level: len({domain_path(node)[level] for node in nodes}) for level in levels}
    assert list(available.values()) == [3, 5, 10, 20]
    for row in crush.compute_placements(KEYS[:300], replicas, nodes):
        for level in levels:
            used = {domain_path(nodes[i])[level] for i in row}
            assert len(used) == min(replicas, available[level])


@pytest.mark.parametrize(("replicas", "level"), [(3, Level.ZONE), (5, Level.RACK), (9, Level.HOST), (13, Level.NODE)])
def test_separation_says_how_far_replicas_had_to_fall_back(
    crush: CrushPlacementAlgorithm, replicas: int, level: Level
) -> None:
    fleet = crush.compile(grid(3, 2, 2, 2))
    decision = crush.compute_placement(PlacementTarget(object_key="k", replica_count=replicas), fleet)
    assert fleet.separation(decision.target_nodes) is level
    with pytest.raises(InvalidArgument, match="'ghost'"):
        fleet.separation(["ghost"])


def test_nodes_without_names_are_hosts_of_their_own_in_one_nameless_zone(crush: CrushPlacementAlgorithm) -> None:
    nodes = [*flat([1.0, 1.0]), NodeDescriptor(node_id="b", zone="z")]
    for row in crush.compute_placements(KEYS[:200], 2, nodes):
        assert 2 in row  # the named zone is a zone beside the nameless one
    assert sorted(crush.compute_placements(["k"], 3, nodes)[0]) == [0, 1, 2]


def test_a_host_name_equal_to_a_node_id_does_not_merge_them(crush: CrushPlacementAlgorithm) -> None:
    nodes = [NodeDescriptor(node_id="a"), NodeDescriptor(node_id="b", host="a"), NodeDescriptor(node_id="c", host="a")]
    for row in crush.compute_placements(KEYS[:100], 2, nodes):
        assert 0 in row


def test_fewer_nodes_than_replicas_pads_the_batch_and_shortens_the_decision(crush: CrushPlacementAlgorithm) -> None:
    nodes = [NodeDescriptor(node_id="off", weight=0), *flat([1.0, 1.0])]
    row = crush.compute_placements(["k"], 4, nodes)[0]
    assert sorted(row[:2]) == [1, 2]
    assert list(row[2:]) == [-1, -1]
    decision = crush.compute_placement(PlacementTarget(object_key="k", replica_count=4), nodes)
    assert sorted(decision.target_nodes) == ["n0", "n1"]


def test_one_node_holds_everything(crush: CrushPlacementAlgorithm) -> None:
    assert not crush.compute_placements(KEYS, 1, flat([0.3])).any()


def test_removing_a_node_moves_only_what_it_held_on_a_single_level(crush: CrushPlacementAlgorithm) -> None:
    nodes = flat([1, 2, 3, 0.5, 1, 1.7, 2.2, 1])
    before, after = named(crush, nodes, 3), named(crush, nodes[:-1], 3)
    for old, new in zip(before, after, strict=True):
        assert new[: len(old)] == [*(name for name in old if name != "n7"), *new[2:]][:3]
        assert "n7" in old or old == new


def test_adding_a_node_moves_objects_only_to_it_on_a_single_level(crush: CrushPlacementAlgorithm) -> None:
    nodes = flat([1, 2, 3, 0.5, 1, 1.7, 2.2, 9])
    moved = 0
    for old, new in zip(named(crush, nodes[:-1], 1), named(crush, nodes, 1), strict=True):
        assert new in (old, ["n7"])
        moved += new != old
    assert moved / len(KEYS) == pytest.approx(9 / 20.4, abs=0.015)


def test_draining_a_node_places_as_if_it_were_gone(crush: CrushPlacementAlgorithm) -> None:
    nodes = grid(3, 2, 2)
    drained = [*nodes[:-1], nodes[-1].model_copy(update={"state": NodeState.DRAINING})]
    assert np.array_equal(crush.compute_placements(KEYS, 3, drained), crush.compute_placements(KEYS, 3, nodes[:-1]))


# --- constraints ---------------------------------------------------------------------------------------------------

MIXED = [
    NodeDescriptor(
        node_id=f"n{i}",
        zone="abc"[i % 3],
        rack=f"r{i % 2}",
        host=f"h{i}",
        region=("eu", "us")[i % 2],
        tags={"tier": ("gold", "tin")[i // 6]},
        storage_classes=(StorageClass.SSD,) if i % 4 == 0 else (StorageClass.HDD, StorageClass.COLD),
    )
    for i in range(12)
]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ({"required_storage_class": StorageClass.SSD}, {0, 4, 8}),
        ({"required_zones": ("a", "b")}, {0, 1, 3, 4, 6, 7, 9, 10}),
        ({"required_tags": {"tier": "gold"}}, set(range(6))),
        ({"compliance_regions": ("eu",)}, {0, 2, 4, 6, 8, 10}),
        ({"compliance_regions": ("eu",), "required_zones": ("b",)}, {4, 10}),
    ],
)
def test_an_objects_needs_filter_the_nodes(
    crush: CrushPlacementAlgorithm, needs: dict[str, object], expected: set[int]
) -> None:
    target = PlacementTarget.model_validate({"object_key": "k", "replica_count": 12, **needs})
    assert set(crush.compute_placement(target, MIXED).target_nodes) == {f"n{i}" for i in expected}


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        (ConstraintType.ZONE, "", "a", {0, 3, 6, 9}),
        (ConstraintType.RACK, "", "r1", {1, 3, 5, 7, 9, 11}),
        (ConstraintType.HOST, "", "h5", {5}),
        (ConstraintType.TAG, "tier", "tin", set(range(6, 12))),
        (ConstraintType.STORAGE_CLASS, "", "cold", {1, 2, 3, 5, 6, 7, 9, 10, 11}),
        (ConstraintType.COMPLIANCE, "", "us", {1, 3, 5, 7, 9, 11}),
    ],
)
def test_a_required_constraint_filters_and_a_preferred_one_ranks(
    crush: CrushPlacementAlgorithm, kind: ConstraintType, key: str, value: str, expected: set[int]
) -> None:
    wanted = {f"n{i}" for i in expected}
    fleet = crush.compile(MIXED)
    for name in KEYS[:20]:
        target = PlacementTarget(object_key=name, replica_count=12)
        required = PlacementConstraint(constraint_type=kind, key=key, value=value)
        assert set(crush.compute_placement(target, fleet, [required]).target_nodes) == wanted
        preferred = required.model_copy(update={"required": False})
        decision = crush.compute_placement(target, fleet, [preferred])
        assert decision.primary_node in wanted
        assert len(decision.target_nodes) == 12


def test_a_preference_does_not_bring_replicas_together(crush: CrushPlacementAlgorithm) -> None:
    fleet = crush.compile(MIXED)
    prefer = PlacementConstraint(constraint_type=ConstraintType.ZONE, value="a", required=False)
    for name in KEYS[:50]:
        decision = crush.compute_placement(PlacementTarget(object_key=name, replica_count=3), fleet, [prefer])
        assert fleet.separation(decision.target_nodes) is Level.ZONE
        assert fleet[fleet.positions[decision.primary_node]].zone == "a"


@pytest.mark.parametrize(
    ("nodes", "needs", "culprit"),
    [
        ([], {}, "cluster map is empty"),
        ([NodeDescriptor(node_id="a", state=NodeState.DRAINING)], {}, "state=active"),
        (flat([0.0, 0.0]), {}, "weight>0"),
        (MIXED, {"required_storage_class": StorageClass.TAPE}, "required_storage_class='tape'"),
        (MIXED, {"required_zones": ("x",)}, r"required_zones=\('x',\)"),
        (MIXED, {"required_tags": {"tier": "iron"}}, "required_tags={'tier': 'iron'}"),
        (MIXED, {"required_zones": ("a",), "compliance_regions": ("mars",)}, r"compliance_regions=\('mars',\)"),
    ],
)
def test_no_eligible_node_names_the_constraint_that_emptied_the_set(
    crush: CrushPlacementAlgorithm, nodes: list[NodeDescriptor], needs: dict[str, object], culprit: str
) -> None:
    with pytest.raises(EmptyClusterError, match=culprit):
        crush.compute_placement(PlacementTarget.model_validate({"object_key": "k", **needs}), nodes)


def test_a_constraint_that_empties_the_set_is_named(crush: CrushPlacementAlgorithm) -> None:
    constraint = PlacementConstraint(constraint_type=ConstraintType.TAG, key="tier", value="iron")
    with pytest.raises(EmptyClusterError, match=r"constraint tag\['tier'\]='iron'"):
        crush.compute_placement(PlacementTarget(object_key="k"), MIXED, [constraint])
    with pytest.raises(EmptyClusterError, match="cluster map is empty"):
        crush.compute_placements(["k"], 1, [])


def test_impossible_maps_and_arguments_are_refused(crush: CrushPlacementAlgorithm) -> None:
    with pytest.raises(InvalidArgument, match="'n0' occurs twice"):
        crush.compute_placements(["k"], 1, [*flat([1.0]), *flat([2.0])])
    with pytest.raises(InvalidArgument, match="not a NodeDescriptor"):
        CompiledFleet(["n0"])  # type: ignore[list-item]
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidArgument, match="weight"):
            CompiledFleet([NodeDescriptor.model_construct(node_id="n0", weight=weight)])
    with pytest.raises(InvalidArgument, match="replica_count: 0"):
        crush.compute_placements(["k"], 0, flat([1.0]))
    with pytest.raises(InvalidArgument, match="key is empty"):
        crush.compute_placement(
            PlacementTarget(object_key="k"), MIXED, [PlacementConstraint(constraint_type=ConstraintType.TAG, value="x")]
        )


def test_trees_of_many_requirements_are_not_kept_for_ever(crush: CrushPlacementAlgorithm) -> None:
    fleet = crush.compile(MIXED)
    for i in range(200):
        crush.compute_placement(PlacementTarget(object_key="k", required_zones=("a", f"z{i}")), fleet)
    assert len(fleet._rules) <= 64


# --- recompute, estimate -------------------------------------------------------------------------------------------


def placed(
    crush: CrushPlacementAlgorithm, nodes: list[NodeDescriptor], key: str, replicas: int
) -> tuple[PlacementTarget, PlacementDecision]:
    target = PlacementTarget(object_key=key, replica_count=replicas)
    return target, crush.compute_placement(target, nodes)


@pytest.mark.parametrize("replicas", [1, 3, 4, 7])
def test_recompute_on_an_unchanged_map_changes_nothing(crush: CrushPlacementAlgorithm, replicas: int) -> None:
    nodes = grid(3, 2, 2, 2)
    for key in KEYS[:40]:
        target, decision = placed(crush, nodes, key, replicas)
        assert crush.recompute_on_node_change(target, nodes, decision) == decision


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7, 13])
def test_recompute_replaces_only_the_lost_replica_and_keeps_the_rest_apart(
    crush: CrushPlacementAlgorithm, replicas: int
) -> None:
    nodes = grid(3, 2, 2, 2)
    for key in KEYS[:40]:
        target, decision = placed(crush, nodes, key, replicas)
        lost = decision.primary_node
        left = crush.compile([node for node in nodes if node.node_id != lost])
        again = crush.recompute_on_node_change(target, left, decision)
        assert again.target_nodes[:-1] == decision.target_nodes[1:]
        assert lost not in again.target_nodes
        fresh = crush.compute_placement(target, left)
        assert left.separation(again.target_nodes) is left.separation(fresh.target_nodes)


def test_recompute_moves_a_replica_that_shares_a_zone_once_another_zone_is_there(
    crush: CrushPlacementAlgorithm,
) -> None:
    small = grid(1, 2, 2)
    target, decision = placed(crush, small, "k", 2)
    wide = crush.compile(grid(2, 2, 2))
    again = crush.recompute_on_node_change(target, wide, decision)
    assert again.primary_node == decision.primary_node
    assert wide.separation(again.target_nodes) is Level.ZONE


def test_recompute_puts_the_replacement_into_an_unused_zone_though_nearer_nodes_came_first(
    crush: CrushPlacementAlgorithm,
) -> None:
    nodes = grid(3, 2, 2)
    heavy = [NodeDescriptor(node_id=f"new{z}", zone=f"z{z}", weight=50) for z in range(3)]
    for key in KEYS[:40]:
        target, decision = placed(crush, nodes, key, 3)
        changed = crush.compile([*(node for node in nodes if node.node_id != decision.primary_node), *heavy])
        again = crush.recompute_on_node_change(target, changed, decision)
        assert again.target_nodes[:2] == decision.target_nodes[1:]
        assert changed.separation(again.target_nodes) is Level.ZONE


def test_recompute_replaces_draining_nodes_and_those_that_no_longer_comply(crush: CrushPlacementAlgorithm) -> None:
    target = PlacementTarget(object_key="k", replica_count=2, compliance_regions=("eu",))
    decision = crush.compute_placement(target, MIXED)
    stays, goes = decision.target_nodes
    for change in ({"state": NodeState.DRAINING}, {"region": "us"}, {"weight": 0.0}):
        changed = [node.model_copy(update=change) if node.node_id == goes else node for node in MIXED]
        again = crush.recompute_on_node_change(target, changed, decision)
        assert again.primary_node == stays
        assert goes not in again.target_nodes
        assert len(again.target_nodes) == 2


def test_recompute_follows_a_changed_replica_count(crush: CrushPlacementAlgorithm) -> None:
    nodes = grid(3, 2, 2)
    _, decision = placed(crush, nodes, "k", 3)
    fewer = crush.recompute_on_node_change(PlacementTarget(object_key="k", replica_count=1), nodes, decision)
    assert fewer.target_nodes == decision.target_nodes[:1]
    more = crush.recompute_on_node_change(PlacementTarget(object_key="k", replica_count=5), nodes, decision)
    assert more.target_nodes[:3] == decision.target_nodes
    assert len(set(more.target_nodes)) == 5


def test_recompute_equals_a_fresh_placement_on_a_single_level(crush: CrushPlacementAlgorithm) -> None:
    nodes = flat([1, 2, 3, 0.5, 1, 1.7])
    for key in KEYS[:100]:
        target, decision = placed(crush, nodes, key, 3)
        left = [node for node in nodes if node.node_id != decision.target_nodes[1]]
        assert crush.recompute_on_node_change(target, left, decision) == crush.compute_placement(target, left)


@pytest.mark.parametrize(
    ("current", "new", "expected"),
    [
        ([1.0] * 10, [1.0] * 10, 0.0),
        ([1.0] * 10, [1.0] * 11, 1 / 11),
        ([1.0] * 10, [1.0] * 9, 1 / 10),
        ([1.0, 1.0], [1.0, 3.0], 0.5),
        ([1.0, 3.0], [1.0, 1.0], 0.5),
        ([1.0, 0.0], [0.0, 1.0], 1.0),
        ([1.0], [0.0], 1.0),
        ([0.0], [1.0], 0.0),
        ([], [1.0], 0.0),
    ],
)
def test_estimate_of_movement_counts_weights_that_leave_and_arrive(
    crush: CrushPlacementAlgorithm, current: list[float], new: list[float], expected: float
) -> None:
    assert crush.estimate_movement_on_resize(flat(current), crush.compile(flat(new))) == pytest.approx(expected)


def test_estimate_of_movement_counts_a_draining_node_as_gone_and_never_exceeds_one(
    crush: CrushPlacementAlgorithm,
) -> None:
    nodes = flat([1.0] * 4)
    draining = [nodes[0].model_copy(update={"state": NodeState.DRAINING}), *nodes[1:]]
    assert crush.estimate_movement_on_resize(nodes, draining) == 0.25
    others = [NodeDescriptor(node_id=f"m{i}") for i in range(4)]
    assert crush.estimate_movement_on_resize(nodes, others) == 1.0


def test_compiled_fleet_is_a_sequence_of_its_nodes(crush: CrushPlacementAlgorithm) -> None:
    nodes = flat([1.0, 2.0, 3.0])
    fleet = crush.compile(nodes)
    assert list(fleet) == nodes
    assert fleet[1] == nodes[1]
    assert fleet[1:] == tuple(nodes[1:])
    assert len(fleet) == 3
    assert fleet.place("some/key", 2) == tuple(crush.compute_placements(["some/key"], 2, fleet)[0])
