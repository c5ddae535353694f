"""The models that cross a boundary: frozen, strict about names, exact about money, lossless in JSON."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebalance_tasks.core import models
from rebalance_tasks.core.models import (
    CheckResult,
    ControlResult,
    DataGravityScore,
    FailureGroup,
    Frozen,
    NodeDescriptor,
    NodeState,
    PlacementConstraint,
    PlacementDecision,
    PlacementTarget,
    RebalanceJob,
    RebalanceMove,
    RebalancePlan,
    StorageClass,
)
from rebalance_tasks.core.states import RebalanceStatus

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MOVE: dict[str, Any] = {"object_key": "a/ü b", "source_node": "n1", "target_node": "n2", "size_bytes": 5}

EXAMPLES: list[Frozen] = [
    NodeDescriptor(
        node_id="disk-1",
        url="file:///srv/d1",
        tags={"owner": "media"},
        storage_classes=(StorageClass.HDD,),
        capacity_bytes=4 * 10**12,
        egress_cost_per_gb=Decimal("0.09"),
        latency_ms=1.5,
        state=NodeState.DRAINING,
        exclude=("tmp/*",),
        storage_options={"retries": 3},
    ),
    PlacementTarget(object_key="k", replica_count=3, required_zones=("a", "b"), required_tags={"x": "y"}),
    PlacementDecision(target_nodes=("a", "b"), primary_node="a", replica_nodes=("b",)),
    PlacementConstraint(constraint_type=models.ConstraintType.ZONE, value="a"),
    DataGravityScore(object_key="k", current_node="n", last_access_utc=NOW, composite_score=0.5),
    RebalanceMove(**MOVE, gravity=0.3, cost=Decimal("0.000000001"), reason="n1 is 12 points above n2"),
    RebalancePlan(
        plan_id="plan-1",
        created_utc=NOW,
        moves=(RebalanceMove(**MOVE),),
        estimated_cost=Decimal("0.10"),
        limits_reached=("max_moves_per_cycle",),
        not_moved={"protected": 3},
    ),
    RebalanceJob(
        job_id="rebal-1", plan_id="plan-1", status=RebalanceStatus.PAUSED, created_utc=NOW, paused_reasons=("operator",)
    ),
    FailureGroup(cause="target_exists", moves=2, hint="compare the two", object_key="k", detail="it is there"),
    CheckResult(verdict="planned", reason="imbalance 0.3", plan_id="plan-1"),
    ControlResult(job_id="rebal-1", status=None, reason="unknown"),
]
example = pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: type(model).__name__)


def test_every_model_has_an_example_here() -> None:
    concrete = {
        kind
        for _, kind in inspect.getmembers(models, inspect.isclass)
        if issubclass(kind, Frozen) and kind is not Frozen and kind.__module__ == models.__name__
    }
    assert {type(model) for model in EXAMPLES} == concrete


@example
def test_models_are_frozen(model: Frozen) -> None:
    name = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model, name, getattr(model, name))


@example
def test_an_unknown_field_is_refused(model: Frozen) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        type(model).model_validate({**model.model_dump(), "object_kye": "x"})


@example
def test_models_survive_json(model: Frozen) -> None:
    assert type(model).model_validate_json(model.model_dump_json()) == model
    assert type(model).model_validate(model.model_dump(mode="json")) == model


@given(st.decimals(min_value=0, max_value=10**9, places=12))
def test_money_is_exact_through_json(cost: Decimal) -> None:
    move = RebalanceMove(**MOVE, cost=cost)
    read = RebalanceMove.model_validate_json(move.model_dump_json())
    assert (read.cost, str(read.cost)) == (cost, str(cost))


def test_money_from_a_float_is_what_was_written_not_its_binary_neighbour() -> None:
    assert NodeDescriptor(node_id="n", egress_cost_per_gb=0.09).egress_cost_per_gb == Decimal("0.09")  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize(
    "changed",
    [
        {"size_bytes": -1},
        {"gravity": 1.1},
        {"gravity": float("nan")},
        {"cost": Decimal(-1)},
        {"cost": Decimal("NaN")},
        {"object_key": ""},
        {"object_key": "k" * 1025},
        {"source_node": "a b"},
        {"target_node": "{x}"},
        {"target_node": "../x"},
    ],
    ids=str,
)
def test_impossible_moves_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RebalanceMove.model_validate({**MOVE, **changed})


@pytest.mark.parametrize("node_id", ["", "-x", ".x", "a/b", "a b", "a\n", "x" * 129, "{a}", "a*"])
def test_identifiers_that_would_be_unsafe_in_keys_and_file_names_are_refused(node_id: str) -> None:
    with pytest.raises(ValidationError):
        NodeDescriptor(node_id=node_id)


def test_capacity_may_be_written_with_a_unit() -> None:
    assert NodeDescriptor.model_validate({"node_id": "n", "capacity_bytes": "4TB"}).capacity_bytes == 4 * 10**12
    with pytest.raises(ValidationError, match="must not be negative"):
        NodeDescriptor.model_validate({"node_id": "n", "capacity_bytes": -1})


def test_storage_options_are_not_in_the_repr() -> None:
    node = NodeDescriptor(node_id="n", storage_options={"secret_key": "hunter2"})
    assert "hunter2" not in repr(node) + str(node)


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        RebalancePlan(plan_id="p", created_utc=datetime(2026, 1, 1))  # noqa: DTZ001  the point


def test_reasons_for_a_pause_are_a_sorted_set_of_names() -> None:
    job = RebalanceJob.model_validate(
        {
            "job_id": "j",
            "plan_id": "p",
            "status": "paused",
            "created_utc": NOW,
            "paused_reasons": {"quiet_hours", "operator"},
        }
    )
    assert job.paused_reasons == ("operator", "quiet_hours")


def test_a_plan_as_a_table_has_a_row_a_move_and_keeps_money_exact() -> None:
    moves = (
        RebalanceMove(**MOVE, priority=2, gravity=0.25, cost=Decimal("0.000000000000000001"), reason="why"),
        RebalanceMove(**{**MOVE, "object_key": "b", "size_bytes": 2**62}, cost=Decimal("12345678901234567890.1")),
    )
    table = RebalancePlan(plan_id="p", moves=moves).to_arrow()
    assert table.schema.names == [
        "object_key",
        "source_node",
        "target_node",
        "size_bytes",
        "priority",
        "gravity",
        "cost",
        "reason",
    ]
    assert table.schema.field("size_bytes").type == pa.int64()
    assert table.schema.field("cost").type == pa.decimal128(38, 18)
    assert [RebalanceMove.model_validate(row) for row in table.to_pylist()] == list(moves)


def test_an_empty_plan_is_an_empty_table_of_the_same_columns() -> None:
    empty = RebalancePlan(plan_id="p").to_arrow()
    full = RebalancePlan(plan_id="p", moves=(RebalanceMove(**MOVE),)).to_arrow()
    assert empty.num_rows == 0
    assert empty.schema == full.schema
