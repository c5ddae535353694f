"""How a fleet is rebalanced: thresholds, limits, budgets, and the weights of gravity.

Pure values; where they come from (file, environment) is `rebalance_tasks.settings`. Sizes, rates and durations may be
given as people write them ("10GiB", "50MiB/s", "5m"); ``"none"`` lifts a limit that can be lifted.
"""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Final, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rebalance_tasks.core.models import Frozen, Money, Rate, Size, Unit
from rebalance_tasks.core.pacing.timetable import HourlyRate, parse_timetable
from rebalance_tasks.core.quiet_hours import parse_quiet_hours
from rebalance_tasks.core.units import parse_duration

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
GB: Final = 10**9

Hour = Annotated[int, Field(ge=0, le=23)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(0))]

#: How text says "no limit" where a limit is optional (TOML and the environment have no null).
_NONE_WORDS: Final = frozenset({"", "none", "off", "unlimited"})


class GravityScoringWeights(Frozen):
    """How much each part of gravity counts; normalised to sum 1, all zero means the default."""

    access_frequency: Unit = 0.30
    colocation: Unit = 0.20
    egress_cost: Unit = 0.15
    latency: Unit = 0.15
    compliance: Unit = 0.20

    def normalized(self) -> GravityScoringWeights:
        """Return the same proportions with sum 1 (all zero: the default weights)."""
        total = self.access_frequency + self.colocation + self.egress_cost + self.latency + self.compliance
        if total == 0:
            return GravityScoringWeights()
        return GravityScoringWeights(
            access_frequency=self.access_frequency / total,
            colocation=self.colocation / total,
            egress_cost=self.egress_cost / total,
            latency=self.latency / total,
            compliance=self.compliance / total,
        )

    @classmethod
    def named(cls, name: str) -> Self:
        """Return a preset by its name (``"cost_optimized"``). Raises: ValueError."""
        if name not in WEIGHT_PRESETS:
            msg = f"{name!r} is not a preset of weights; known are {', '.join(WEIGHT_PRESETS)}"
            raise ValueError(msg)
        preset: Self = getattr(cls, name)()
        return preset

    @classmethod
    def default(cls) -> Self:
        """Access .30, colocation .20, egress .15, latency .15, compliance .20."""
        return cls()

    @classmethod
    def cost_optimized(cls) -> Self:
        """Egress first (.35), compliance next (.25)."""
        return cls(access_frequency=0.20, colocation=0.10, egress_cost=0.35, latency=0.10, compliance=0.25)

    @classmethod
    def performance_optimized(cls) -> Self:
        """Access (.35), colocation (.30) and latency (.25) first."""
        return cls(access_frequency=0.35, colocation=0.30, egress_cost=0.05, latency=0.25, compliance=0.05)

    @classmethod
    def compliance_first(cls) -> Self:
        """Compliance .60, the others .10 each."""
        return cls(access_frequency=0.10, colocation=0.10, egress_cost=0.10, latency=0.10, compliance=0.60)


#: Names of the weight presets, each a class method of `GravityScoringWeights`.
WEIGHT_PRESETS: Final = ("default", "cost_optimized", "performance_optimized", "compliance_first")
#: Names of the option presets, each a class method of `RebalancerOptions`.
OPTION_PRESETS: Final = ("default", "aggressive", "conservative")


class RebalancerOptions(Frozen):
    """Every knob of a fleet, with the defaults that a careful operator would choose.

    Attributes:
        imbalance_threshold: a check plans when max − min utilisation reaches it.
        target_imbalance: what a plan aims at; ``None`` is half the threshold.
        max_concurrent_migrations: groups that transfer at once, fleet-wide.
        max_concurrent_per_node: of these, groups that touch one node; ``None`` is no limit.
        throttle_bytes_per_sec: per group; ``None`` is no limit.
        throttle_timetable: other rates of each group for some hours, by the clock of ``quiet_hours_timezone``; the first that fits counts.
        adaptive_throttle: hold a node back while its calls take clearly longer than they usually do.
        quiet_hours: ``(start_hour, end_hour)``, start inclusive, end exclusive, wrapping midnight; equal means none.
        grace: how long a freed source stays in the trash.
        min_object_age: what was written more recently is left alone.
        min_object_size: what is smaller is left alone, unless its node drains.
        max_utilisation: a plan never fills a target above it.
        job_deadline: a job that is older, pauses included, is cancelled by the sweep; ``None`` is no deadline.
        job_retention: how long a finished job is remembered.
        full_survey_interval: how long a survey may go by folders that did not change before it lists everything anew; 0 is always.
        check_retention: how long what a check saw and decided is remembered.
    """

    check_interval: Annotated[Duration, Field(ge=timedelta(seconds=1))] = timedelta(minutes=5)
    imbalance_threshold: Unit = 0.10
    target_imbalance: Unit | None = None
    max_concurrent_migrations: PositiveInt = 3
    max_concurrent_per_node: PositiveInt | None = None
    max_moves_per_cycle: NonNegativeInt = 1000
    max_egress_bytes_per_cycle: Size = 10 * GIB
    max_cost_per_cycle: Money = Decimal("100.00")
    max_cost_per_day: Money | None = None
    gravity_protection_threshold: Unit = 0.9
    throttle_bytes_per_sec: Rate | None = 50 * MIB
    throttle_timetable: Annotated[tuple[HourlyRate, ...], BeforeValidator(parse_timetable)] = ()
    adaptive_throttle: bool = False
    enable_read_forwarding: bool = True
    validate_checksums: bool = True
    quiet_hours: tuple[Hour, Hour] | None = None
    quiet_hours_timezone: str = "UTC"
    scoring_weights: GravityScoringWeights = GravityScoringWeights()
    grace: Duration = timedelta(minutes=15)
    forwarding_ttl: Duration = timedelta(hours=24)
    object_cooldown: Duration = timedelta(hours=24)
    min_object_age: Duration = timedelta(seconds=60)
    min_object_size: Size = 0
    max_utilisation: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.95
    job_deadline: Annotated[Duration, Field(ge=timedelta(seconds=1))] | None = None
    job_retention: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(days=7)
    check_retention: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(days=7)
    full_survey_interval: Duration = timedelta(hours=1)

    @field_validator("quiet_hours_timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as exc:
            msg = f"{value!r} is not a known IANA time zone (try 'UTC' or 'Europe/Berlin')"
            raise ValueError(msg) from exc
        return value

    @field_validator("quiet_hours", mode="before")
    @classmethod
    def _read_quiet_hours(cls, value: object) -> object:
        return None if value is None else parse_quiet_hours(value)

    @field_validator("scoring_weights", mode="before")
    @classmethod
    def _read_weights(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            try:
                return json.loads(value)
            except ValueError as exc:
                msg = f"{value!r} is not JSON: {exc}"
                raise ValueError(msg) from None
        return GravityScoringWeights.named(value)

    # The last one defined is the first one run.
    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_and_read_none(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation is not bool:
            msg = f"true or false does not fit here, got {value}"  # to Python a bool is an int: `true` would become 1
            raise ValueError(msg)
        if isinstance(value, str) and value.strip().lower() in _NONE_WORDS and type(None) in get_args(annotation):
            return None
        return value

    @model_validator(mode="after")
    def _target_under_threshold(self) -> Self:
        if self.target_imbalance is not None and self.target_imbalance > self.imbalance_threshold:
            msg = (
                f"target_imbalance {self.target_imbalance} must not exceed imbalance_threshold {self.imbalance_threshold}, "
                "or every check would plan again; lower it, or leave it out (half the threshold)"
            )
            raise ValueError(msg)
        return self

    @property
    def effective_target(self) -> float:
        """The spread a plan aims at."""
        return self.imbalance_threshold / 2 if self.target_imbalance is None else self.target_imbalance

    @classmethod
    def named(cls, name: str) -> Self:
        """Return a preset by its name (``"aggressive"``). Raises: ValueError."""
        if name not in OPTION_PRESETS:
            msg = f"{name!r} is not a preset of options; known are {', '.join(OPTION_PRESETS)}"
            raise ValueError(msg)
        preset: Self = getattr(cls, name)()
        return preset

    @classmethod
    def default(cls) -> Self:
        """Check every 5 min, threshold 0.10, 3 groups, 1,000 moves, 50 MiB/s."""
        return cls()

    @classmethod
    def aggressive(cls) -> Self:
        """Check every minute, threshold 0.05, 10 groups, 10,000 moves, 200 MiB/s."""
        return cls(
            check_interval=timedelta(minutes=1),
            imbalance_threshold=0.05,
            max_concurrent_migrations=10,
            max_moves_per_cycle=10_000,
            throttle_bytes_per_sec=200 * MIB,
        )

    @classmethod
    def conservative(cls) -> Self:
        """Check every 30 min, threshold 0.20, one group, 100 moves, 10 MiB/s."""
        return cls(
            check_interval=timedelta(minutes=30),
            imbalance_threshold=0.20,
            max_concurrent_migrations=1,
            max_moves_per_cycle=100,
            throttle_bytes_per_sec=10 * MIB,
        )
