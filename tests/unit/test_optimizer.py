"""Placement corrected by gravity, with providers plugged in and left out."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from rebalance_tasks.core.crush import CompiledFleet, CrushPlacementAlgorithm
from rebalance_tasks.core.errors import EmptyClusterError, InvalidArgument, ObjectNotFound
from rebalance_tasks.core.gravity import score
from rebalance_tasks.core.inventory import Inventory
from rebalance_tasks.core.models import DataGravityScore, NodeDescriptor, PlacementDecision, PlacementTarget
from rebalance_tasks.core.optimizer import GravityAwarePlacementOptimizer, GravityProviders
from rebalance_tasks.core.options import GravityScoringWeights, RebalancerOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

CRUSH = CrushPlacementAlgorithm()
NODES = [NodeDescriptor(node_id=f"n{i}", zone=f"z{i % 4}") for i in range(8)]
SEEN = datetime(2030, 1, 2, tzinfo=UTC)


class Host:
    """A host's catalogue that knows every dimension."""

    places = {"a": "n1", "b": "n2", "c": "n3"}  # noqa: RUF012

    def current_nodes(self, keys: Sequence[str]) -> list[str | None]:
        return [self.places.get(key) for key in keys]

    def reads_and_writes_per_hour(self, keys: Sequence[str]) -> tuple[list[float], list[float]]:
        return [{"a": 90.0, "b": 0.0}.get(key, np.nan) for key in keys], [9.0 if key == "a" else 0.0 for key in keys]

    def last_access_utc(self, keys: Sequence[str]) -> list[datetime | None]:
        return [SEEN if key == "a" else None for key in keys]

    def colocated_dependencies(self, keys: Sequence[str], nodes: Sequence[str]) -> list[int]:
        return [3 if (key, node) == ("a", "n1") else 0 for key, node in zip(keys, nodes, strict=True)]

    def egress_cost_per_gb(self, keys: Sequence[str], nodes: Sequence[str]) -> list[Decimal]:
        return [Decimal("0.03") if node == "n1" else Decimal(0) for node in nodes]

    def latency_ms(self, keys: Sequence[str], nodes: Sequence[str]) -> list[float]:
        return [50.0 if node == "n1" else np.nan for node in nodes]

    def compliant(self, keys: Sequence[str], nodes: Sequence[str]) -> list[bool]:
        return [node == "n1" for node in nodes]


def everything() -> GravityProviders:
    host = Host()
    return GravityProviders(host, host, host, host, host, host)


def held(node: str, composite: float, key: str = "k") -> DataGravityScore:
    return DataGravityScore(object_key=key, current_node=node, composite_score=composite)


def test_gravity_is_gathered_from_all_providers() -> None:
    one = GravityAwarePlacementOptimizer(CRUSH, providers=everything()).compute_gravity("a")
    assert one == score(
        "a",
        "n1",
        reads_per_hour=90,
        writes_per_hour=9,
        last_access_utc=SEEN,
        colocated_dependencies=3,
        egress_cost_per_gb=Decimal("0.03"),
        latency_ms=50,
        compliant=True,
    )
    assert one.composite_score == pytest.approx(0.3 * 0.5 + 0.2 * 0.3 + 0.15 * 0.25 + 0.15 * 0.75 + 0.2)


def test_a_missing_provider_gives_the_default_of_its_dimension() -> None:
    one = GravityAwarePlacementOptimizer(CRUSH, providers=GravityProviders(location=Host())).compute_gravity("a")
    assert one == score("a", "n1")
    assert one.composite_score == pytest.approx(0.075)


def test_an_unknown_measure_counts_as_missing() -> None:
    optimizer = GravityAwarePlacementOptimizer(CRUSH, providers=everything())
    assert optimizer.compute_gravity("c") == score("c", "n3")


@pytest.mark.parametrize("weights", [None, GravityScoringWeights.cost_optimized()])
def test_batch_gravity_equals_the_single_one(weights: GravityScoringWeights | None) -> None:
    optimizer = GravityAwarePlacementOptimizer(CRUSH, weights, providers=everything())
    keys = ["b", "a", "c", "a"]
    batch = optimizer.compute_gravity_batch(keys)
    assert batch.dtype == np.float64
    assert batch.tolist() == [optimizer.compute_gravity(key).composite_score for key in keys]
    assert optimizer.compute_gravity_batch([]).shape == (0,)


def test_an_object_that_nobody_holds_is_not_found() -> None:
    optimizer = GravityAwarePlacementOptimizer(CRUSH, providers=everything())
    with pytest.raises(ObjectNotFound, match="'ghost'"):
        optimizer.compute_gravity("ghost")
    with pytest.raises(ObjectNotFound, match="'ghost'"):
        optimizer.compute_gravity_batch(["a", "ghost"])
    with pytest.raises(ObjectNotFound):
        GravityAwarePlacementOptimizer(CRUSH).compute_gravity("a")


def test_a_provider_that_answers_for_too_few_is_refused() -> None:
    class Short(Host):
        def colocated_dependencies(self, keys: Sequence[str], nodes: Sequence[str]) -> list[int]:
            return [1]

    providers = GravityProviders(location=Host(), colocation=Short())
    with pytest.raises(InvalidArgument, match="colocation provider"):
        GravityAwarePlacementOptimizer(CRUSH, providers=providers).compute_gravity_batch(["a", "b"])


def plain(replicas: int = 3) -> tuple[PlacementTarget, PlacementDecision]:
    target = PlacementTarget(object_key="k", replica_count=replicas)
    return target, CRUSH.compute_placement(target, NODES)


@pytest.mark.parametrize("position", [1, 2])
def test_a_strongly_held_node_of_the_set_becomes_primary_and_the_others_keep_their_order(position: int) -> None:
    target, decision = plain()
    node = decision.target_nodes[position]
    result = GravityAwarePlacementOptimizer(CRUSH).optimize_placement(target, CompiledFleet(NODES), held(node, 0.71))
    others = tuple(name for name in decision.target_nodes if name != node)
    assert result.primary_node == node
    assert result.replica_nodes == others
    assert result.target_nodes == (node, *others)
    assert result.deterministic


def test_placement_stays_where_gravity_is_weak_or_outside_the_set() -> None:
    target, decision = plain()
    optimizer = GravityAwarePlacementOptimizer(CRUSH)
    outside = next(node.node_id for node in NODES if node.node_id not in decision.target_nodes)
    unmoved = [None, held(decision.target_nodes[1], 0.7), held(outside, 1.0), held(decision.primary_node, 1.0)]
    for gravity in unmoved:
        assert optimizer.optimize_placement(target, NODES, gravity) == decision


def test_gravity_of_another_object_is_refused_and_no_node_is_an_error() -> None:
    target, _ = plain()
    optimizer = GravityAwarePlacementOptimizer(CRUSH)
    with pytest.raises(InvalidArgument, match="'other'"):
        optimizer.optimize_placement(target, NODES, held("n1", 1.0, key="other"))
    with pytest.raises(EmptyClusterError):
        optimizer.optimize_placement(target, [], held("n1", 1.0))


def test_plan_is_made_by_the_planner_with_the_optimisers_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from rebalance_tasks.core import planner

    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(planner, "plan_rebalance", lambda *args, **kwargs: asked.append((args, kwargs)))
    inventory = Inventory.from_arrow(
        pa.table({"object_key": ["a"], "size_bytes": pa.array([1], pa.int64()), "node_id": ["n1"]})
    )
    weights = GravityScoringWeights.cost_optimized()
    GravityAwarePlacementOptimizer(CRUSH, weights).generate_rebalance_plan(
        CompiledFleet(NODES), inventory, RebalancerOptions.aggressive(), epoch=4, now=SEEN
    )
    GravityAwarePlacementOptimizer(CRUSH).generate_rebalance_plan(NODES, inventory)
    context = {"fleet": "default", "epoch": 4, "plan_id": None, "now": SEEN}
    options = RebalancerOptions.aggressive().model_copy(update={"scoring_weights": weights})
    assert asked == [
        ((NODES, inventory), {"options": options, **context}),
        ((NODES, inventory), {"options": RebalancerOptions(), **context, "epoch": 0, "now": None}),
    ]


def test_plan_of_an_uneven_fleet_moves_something() -> None:
    nodes = [NodeDescriptor(node_id=name, capacity_bytes=10_000) for name in ("n1", "n2")]
    table = pa.table(
        {
            "object_key": [f"o{i}" for i in range(80)],
            "size_bytes": pa.array([100] * 80, pa.int64()),
            "node_id": ["n1"] * 80,
        }
    )
    plan = GravityAwarePlacementOptimizer(CRUSH).generate_rebalance_plan(nodes, Inventory.from_arrow(table), now=SEEN)
    assert plan.moves
    assert plan.imbalance_after < plan.imbalance_before
