"""Options of a fleet: defaults, presets, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rebalance_tasks.core.options import MIB, OPTION_PRESETS, WEIGHT_PRESETS, GravityScoringWeights, RebalancerOptions

SHARES = st.floats(0, 1)


def refused(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        RebalancerOptions.model_validate(values)
    return str(caught.value)


def test_defaults_are_those_of_the_design() -> None:
    assert RebalancerOptions().model_dump() == {
        "check_interval": timedelta(minutes=5),
        "imbalance_threshold": 0.10,
        "target_imbalance": None,
        "max_concurrent_migrations": 3,
        "max_concurrent_per_node": None,
        "max_moves_per_cycle": 1000,
        "max_egress_bytes_per_cycle": 10 * 2**30,
        "max_cost_per_cycle": Decimal("100.00"),
        "max_cost_per_day": None,
        "gravity_protection_threshold": 0.9,
        "throttle_bytes_per_sec": 50 * 2**20,
        "throttle_timetable": (),
        "full_survey_interval": timedelta(hours=1),
        "adaptive_throttle": False,
        "enable_read_forwarding": True,
        "validate_checksums": True,
        "quiet_hours": None,
        "quiet_hours_timezone": "UTC",
        "scoring_weights": GravityScoringWeights.default().model_dump(),
        "grace": timedelta(minutes=15),
        "forwarding_ttl": timedelta(hours=24),
        "object_cooldown": timedelta(hours=24),
        "min_object_age": timedelta(seconds=60),
        "min_object_size": 0,
        "max_utilisation": 0.95,
        "job_deadline": None,
        "job_retention": timedelta(days=7),
        "check_retention": timedelta(days=7),
    }


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("default", {}),
        (
            "aggressive",
            {
                "check_interval": timedelta(minutes=1),
                "imbalance_threshold": 0.05,
                "max_concurrent_migrations": 10,
                "max_moves_per_cycle": 10_000,
                "throttle_bytes_per_sec": 200 * MIB,
            },
        ),
        (
            "conservative",
            {
                "check_interval": timedelta(minutes=30),
                "imbalance_threshold": 0.20,
                "max_concurrent_migrations": 1,
                "max_moves_per_cycle": 100,
                "throttle_bytes_per_sec": 10 * MIB,
            },
        ),
    ],
)
def test_a_preset_changes_five_options_and_leaves_the_rest(name: str, changed: dict[str, Any]) -> None:
    preset = RebalancerOptions.named(name)
    assert preset == getattr(RebalancerOptions, name)()
    assert preset.model_dump() == {**RebalancerOptions().model_dump(), **changed}
    assert preset.model_dump(exclude_unset=True) == changed


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="known are default, aggressive, conservative"):
        RebalancerOptions.named("reckless")
    with pytest.raises(ValueError, match="known are default, cost_optimized"):
        GravityScoringWeights.named("model_dump")


def test_all_presets_are_listed() -> None:
    assert [RebalancerOptions.named(name) for name in OPTION_PRESETS]
    assert [GravityScoringWeights.named(name) for name in WEIGHT_PRESETS]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("default", (0.30, 0.20, 0.15, 0.15, 0.20)),
        ("cost_optimized", (0.20, 0.10, 0.35, 0.10, 0.25)),
        ("performance_optimized", (0.35, 0.30, 0.05, 0.25, 0.05)),
        ("compliance_first", (0.10, 0.10, 0.10, 0.10, 0.60)),
    ],
)
def test_weight_presets_are_those_of_the_design_and_sum_to_one(name: str, weights: tuple[float, ...]) -> None:
    preset = GravityScoringWeights.named(name)
    assert tuple(preset.model_dump().values()) == weights
    assert sum(weights) == pytest.approx(1.0)


@given(st.tuples(SHARES, SHARES, SHARES, SHARES, SHARES).filter(any))
def test_normalised_weights_sum_to_one_and_keep_their_order(shares: tuple[float, ...]) -> None:
    given_weights = GravityScoringWeights(**dict(zip(GravityScoringWeights.model_fields, shares, strict=True)))
    result = tuple(given_weights.normalized().model_dump().values())
    assert sum(result) == pytest.approx(1.0)
    for (first, weight), (second, other) in combinations(zip(shares, result, strict=True), 2):
        assert (weight <= other) or first > second


def test_weights_that_are_all_zero_mean_the_default() -> None:
    zero = GravityScoringWeights(access_frequency=0, colocation=0, egress_cost=0, latency=0, compliance=0)
    assert zero.normalized() == GravityScoringWeights.default()


@pytest.mark.parametrize(
    ("name", "given_value", "expected"),
    [
        ("check_interval", "5m", timedelta(minutes=5)),
        ("check_interval", 90, timedelta(seconds=90)),
        ("grace", timedelta(0), timedelta(0)),
        ("max_egress_bytes_per_cycle", "10GiB", 10 * 2**30),
        ("max_egress_bytes_per_cycle", "0", 0),
        ("throttle_bytes_per_sec", "50MiB/s", 50 * 2**20),
        ("throttle_bytes_per_sec", "none", None),
        ("throttle_bytes_per_sec", "Unlimited", None),
        ("target_imbalance", "none", None),
        ("max_cost_per_day", "none", None),
        ("max_cost_per_cycle", "0.10", Decimal("0.10")),
        ("max_cost_per_cycle", 0.1, Decimal("0.1")),
        ("quiet_hours", "none", None),
        ("quiet_hours", "off", None),
        ("quiet_hours", [22, 6], (22, 6)),
        ("enable_read_forwarding", "no", False),
        ("scoring_weights", "compliance_first", GravityScoringWeights.compliance_first()),
        ("scoring_weights", '{"latency": 1}', GravityScoringWeights(latency=1.0)),
        ("scoring_weights", {"latency": 1}, GravityScoringWeights(latency=1.0)),
        ("max_utilisation", 1, 1.0),
    ],
)
def test_values_are_read_as_people_write_them(name: str, given_value: object, expected: object) -> None:
    assert getattr(RebalancerOptions.model_validate({name: given_value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("imbalance_threshold", 1.01, "less than or equal to 1"),
        ("imbalance_threshold", -0.01, "greater than or equal to 0"),
        ("imbalance_threshold", float("nan"), "finite"),
        ("imbalance_threshold", True, "true or false does not fit"),
        ("max_utilisation", float("nan"), "finite"),
        ("max_utilisation", 0, "greater than 0"),
        ("gravity_protection_threshold", 2, "less than or equal to 1"),
        ("max_concurrent_migrations", 0, "greater than 0"),
        ("max_concurrent_migrations", True, "true or false does not fit"),
        ("max_concurrent_migrations", "none", "valid integer"),
        ("max_concurrent_migrations", 1.5, "valid integer"),
        ("max_moves_per_cycle", -1, "greater than or equal to 0"),
        ("max_egress_bytes_per_cycle", "-1GiB", "must not be negative"),
        ("max_cost_per_cycle", -1, "greater than or equal to 0"),
        ("max_cost_per_cycle", "NaN", "finite"),
        ("throttle_bytes_per_sec", 0, "greater than 0"),
        ("check_interval", "0s", "greater than or equal to"),
        ("grace", "-1s", "must not be negative"),
        ("quiet_hours_timezone", "Mars/Olympus", "not a known IANA time zone"),
        ("quiet_hours_timezone", "Europe", "not a known IANA time zone"),
        ("quiet_hours_timezone", "../../etc/passwd", "not a known IANA time zone"),
        ("quiet_hours_timezone", "", "not a known IANA time zone"),
        ("scoring_weights", "fastest", "not a preset of weights"),
        ("scoring_weights", "{", "not JSON"),
        ("scoring_weights", {"latency": 2}, "less than or equal to 1"),
        ("imbalance_treshold", 0.1, "Extra inputs are not permitted"),
    ],
)
def test_wrong_values_are_refused(name: str, value: object, complaint: str) -> None:
    message = refused(**{name: value})
    assert complaint in message
    assert name in message


def test_a_target_above_the_threshold_is_refused_with_both_values() -> None:
    message = refused(target_imbalance=0.2, imbalance_threshold=0.1)
    assert "target_imbalance 0.2 must not exceed imbalance_threshold 0.1" in message


def test_the_target_is_half_the_threshold_unless_set() -> None:
    assert RebalancerOptions(imbalance_threshold=0.3).effective_target == 0.15
    assert RebalancerOptions(imbalance_threshold=0.3, target_imbalance=0.3).effective_target == 0.3
    assert RebalancerOptions(imbalance_threshold=0.3, target_imbalance=0).effective_target == 0


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RebalancerOptions().grace = timedelta(0)  # type: ignore[misc]


@pytest.mark.parametrize("preset", OPTION_PRESETS)
def test_options_survive_json(preset: str) -> None:
    options = RebalancerOptions.named(preset).model_copy(
        update={"quiet_hours": (22, 6), "max_cost_per_day": Decimal("0.10")}
    )
    assert RebalancerOptions.model_validate_json(options.model_dump_json()) == options
    assert RebalancerOptions.model_validate(options.model_dump()) == options
