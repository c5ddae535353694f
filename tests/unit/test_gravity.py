"""The gravity formulas, by hand-made examples and by their properties."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.core import gravity
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.options import GravityScoringWeights

PRESETS = [
    GravityScoringWeights.default(),
    GravityScoringWeights.cost_optimized(),
    GravityScoringWeights.performance_optimized(),
    GravityScoringWeights.compliance_first(),
]
measure = st.floats(0, 1e12)
unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("score", "value", "expected"),
    [
        (gravity.access_score, 0, 0.0),
        (gravity.access_score, 99, 0.5),
        (gravity.access_score, 9_999, 1.0),
        (gravity.access_score, 1e9, 1.0),
        (gravity.access_score, math.inf, 1.0),
        (gravity.access_score, math.nan, 0.0),
        (gravity.colocation_score, 0, 0.0),
        (gravity.colocation_score, 3, 0.3),
        (gravity.colocation_score, 11, 1.0),
        (gravity.egress_score, 0.03, 0.25),
        (gravity.egress_score, 0.12, 1.0),
        (gravity.egress_score, 5, 1.0),
        (gravity.latency_score, 0, 1.0),
        (gravity.latency_score, 50, 0.75),
        (gravity.latency_score, 200, 0.0),
        (gravity.latency_score, 1e6, 0.0),
        (gravity.latency_score, math.nan, 0.5),
        (gravity.compliance_score, True, 1.0),
        (gravity.compliance_score, False, 0.0),
        (gravity.compliance_score, math.nan, 0.0),
    ],
)
def test_each_score_follows_its_formula(score: object, value: float, expected: float) -> None:
    assert score(value) == pytest.approx(expected)  # type: ignore[operator]
    assert score(np.array([value, value])).tolist() == pytest.approx([expected] * 2)  # type: ignore[operator]


def test_composite_is_the_weighted_sum_under_every_preset() -> None:
    scores = (0.5, 0.3, 0.25, 0.75, 1.0)
    for weights in PRESETS:
        shares = (
            weights.access_frequency,
            weights.colocation,
            weights.egress_cost,
            weights.latency,
            weights.compliance,
        )
        expected = sum(share * score for share, score in zip(shares, scores, strict=True))
        result = gravity.composite([99.0], [3], [0.03], [50.0], [True], weights)
        assert result.dtype == np.float64
        assert result.tolist() == pytest.approx([expected])


def test_weights_that_do_not_sum_to_one_are_normalised_and_all_zero_is_the_default() -> None:
    twice = GravityScoringWeights(access_frequency=0.6, colocation=0.4, egress_cost=0.3, latency=0.3, compliance=0.4)
    nothing = GravityScoringWeights(access_frequency=0, colocation=0, egress_cost=0, latency=0, compliance=0)
    columns = ([99.0, 5.0], [3, 0], [0.03, 0.5], [50.0, np.nan], [True, False])
    expected = gravity.composite(*columns)
    assert gravity.composite(*columns, twice).tolist() == pytest.approx(expected.tolist())
    assert gravity.composite(*columns, nothing).tolist() == expected.tolist()


def test_nothing_known_leaves_half_the_weight_of_latency() -> None:
    assert gravity.composite(0, 0, 0, np.nan, 0).tolist() == pytest.approx([0.075])


def test_scalars_count_for_every_row() -> None:
    assert gravity.composite([0.0, 9_999.0], 0, 0.12, 200, False).tolist() == pytest.approx([0.15, 0.45])


@given(st.tuples(measure, measure, measure, measure, st.booleans()), st.tuples(unit, unit, unit, unit, unit))
def test_composite_stays_in_the_unit_interval(
    row: tuple[float, float, float, float, bool], shares: tuple[float, ...]
) -> None:
    names = GravityScoringWeights.model_fields
    weights = GravityScoringWeights(**dict(zip(names, shares, strict=True)))
    for columns in (row, (1e12, 1e12, 1e12, 0.0, True)):
        assert 0.0 <= gravity.composite(*columns, weights)[0] <= 1.0


@given(st.tuples(measure, measure, measure, measure), measure)
def test_more_use_holds_more_and_more_latency_holds_less(row: tuple[float, float, float, float], more: float) -> None:
    base = gravity.composite(*row, False)[0]
    for position, sign in ((0, 1), (1, 1), (2, 1), (3, -1)):
        access, colocated, egress, latency = (one + more * (i == position) for i, one in enumerate(row))
        assert sign * (gravity.composite(access, colocated, egress, latency, False)[0] - base) >= -1e-15
    assert gravity.composite(*row, True)[0] >= base


@given(measure, measure, st.integers(0, 10**6), st.floats(0, 10), st.none() | measure, st.booleans())
def test_score_of_one_object_equals_its_row(
    reads: float, writes: float, colocated: int, egress: float, latency_ms: float | None, compliant: bool
) -> None:
    one = gravity.score(
        "k",
        "n1",
        reads_per_hour=reads,
        writes_per_hour=writes,
        colocated_dependencies=colocated,
        egress_cost_per_gb=egress,
        latency_ms=latency_ms,
        compliant=compliant,
    )
    rows = gravity.composite(
        [reads + writes] * 9,
        [colocated] * 9,
        [egress] * 9,
        [math.nan if latency_ms is None else latency_ms] * 9,
        [compliant] * 9,
    )
    assert rows.tolist() == [one.composite_score] * 9


def test_score_keeps_the_measures() -> None:
    seen = datetime(2030, 1, 2, tzinfo=UTC)
    one = gravity.score(
        "k",
        "n1",
        reads_per_hour=90,
        writes_per_hour=9,
        last_access_utc=seen,
        egress_cost_per_gb=Decimal("0.09"),
        compliant=True,
    )
    assert (one.object_key, one.current_node, one.access_frequency, one.last_access_utc) == ("k", "n1", 99, seen)
    assert (one.egress_cost_per_gb, one.latency_ms, one.compliance_weight) == (Decimal("0.09"), None, 1.0)
    assert one.composite_score == pytest.approx(0.15 + 0.15 * 0.75 + 0.075 + 0.2)


@pytest.mark.parametrize("position", range(5))
def test_a_negative_measure_is_refused(position: int) -> None:
    row = [1.0, 1.0, 1.0, 1.0, 1.0]
    row[position] = -0.5
    with pytest.raises(InvalidArgument, match=r"-0\.5 is negative"):
        gravity.composite(*row)  # type: ignore[arg-type]  # five columns, no weights


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="different lengths"):
        gravity.composite([1.0, 2.0], [1, 2, 3], 0, 0, 0)
