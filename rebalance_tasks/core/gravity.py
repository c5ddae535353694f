"""Gravity: how strongly an object is held where it is, in [0, 1].

The planner moves what gravity holds least and never what it holds at `gravity_protection_threshold` or more. Five
measures, each brought to [0, 1], are weighed by `GravityScoringWeights` (normalised to sum 1):

========== ================================================ =================
measure    score                                            when not known
========== ================================================ =================
access     min(1, log₁₀(1 + reads/h + writes/h) ÷ 4)         0
colocation min(1, objects it depends on, on the node ÷ 10)  0
egress     min(1, $/GB ÷ 0.12)                              0
latency    max(0, 1 − ms ÷ 200)                             ½
compliance 1 in a compliant region, else 0                  0
========== ================================================ =================

Pure functions over columns; a NaN in any of them means "not known". All are float64 and monotone in their argument.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.models import DataGravityScore
from rebalance_tasks.core.options import GravityScoringWeights

if TYPE_CHECKING:
    from datetime import datetime

F64: TypeAlias = npt.NDArray[np.float64]

#: 10⁴ accesses an hour (about three a second) are as hot as it gets.
ACCESS_DECADES: Final = 4.0
#: Ten dependencies on the same node hold an object fully.
COLOCATION_FULL: Final = 10.0
#: What the large clouds ask for 10⁹ bytes to the internet, rounded up.
EGRESS_FULL_PER_GB: Final = 0.12
#: A node this far away has nothing left to lose.
LATENCY_NONE_MS: Final = 200.0
#: An unknown latency speaks neither for nor against.
LATENCY_UNKNOWN: Final = 0.5
#: Rows scored at a time.
BLOCK_ROWS: Final = 1 << 15
#: Above it, an object's present node becomes its primary if placement names it at all.
PRIMARY_THRESHOLD: Final = 0.7


def access_score(access_per_hour: npt.ArrayLike) -> F64:
    """Score reads + writes an hour; shape kept. Raises InvalidArgument for negative values."""
    return np.minimum(1.0, np.log10(1.0 + _known(access_per_hour, "access_per_hour")) / ACCESS_DECADES)


def colocation_score(colocated: npt.ArrayLike) -> F64:
    """Score the number of dependencies on the same node; shape kept. Raises InvalidArgument for negative values."""
    return np.minimum(1.0, _known(colocated, "colocated") / COLOCATION_FULL)


def egress_score(egress_cost_per_gb: npt.ArrayLike) -> F64:
    """Score the price of 10⁹ bytes leaving the node; shape kept. Raises InvalidArgument for negative values."""
    return np.minimum(1.0, _known(egress_cost_per_gb, "egress_cost_per_gb") / EGRESS_FULL_PER_GB)


def latency_score(latency_ms: npt.ArrayLike) -> F64:
    """Score the node's latency in milliseconds, NaN unknown; shape kept. Raises InvalidArgument for negative values."""
    milliseconds = np.asarray(latency_ms, dtype=np.float64)
    known = np.maximum(0.0, 1.0 - _known(milliseconds, "latency_ms") / LATENCY_NONE_MS)
    return np.where(np.isnan(milliseconds), LATENCY_UNKNOWN, known)


def compliance_score(compliant: npt.ArrayLike) -> F64:
    """Score whether the node's region complies with what the object asks; true, or a number > 0, is 1; shape kept."""
    return (_known(compliant, "compliant") > 0).astype(np.float64)


def composite(
    access_per_hour: npt.ArrayLike,
    colocated: npt.ArrayLike,
    egress_cost_per_gb: npt.ArrayLike,
    latency_ms: npt.ArrayLike,
    compliant: npt.ArrayLike,
    weights: GravityScoringWeights | None = None,
) -> F64:
    """Weigh the five scores of many objects.

    Args:
        access_per_hour: reads + writes an hour, ≥ 0, (n,).
        colocated: dependencies on the same node, ≥ 0, (n,).
        egress_cost_per_gb: money for 10⁹ bytes, ≥ 0, (n,).
        latency_ms: ≥ 0, NaN unknown, (n,).
        compliant: bool, (n,).
        weights: normalised here; None is the default.

    A scalar stands for the same value in every row.

    Returns:
        float64 (n,), in [0, 1].

    Raises:
        InvalidArgument: a negative value, or columns of different lengths.
    """
    share = (weights or GravityScoringWeights()).normalized()
    scores = (
        (share.access_frequency, access_score, access_per_hour),
        (share.colocation, colocation_score, colocated),
        (share.egress_cost, egress_score, egress_cost_per_gb),
        (share.latency, latency_score, latency_ms),
        (share.compliance, compliance_score, compliant),
    )
    given = [np.asarray(column, dtype=np.float64) for _, _, column in scores]
    try:
        shape = np.broadcast_shapes((1,), *(column.shape for column in given))
    except ValueError as exc:
        msg = f"gravity columns of different lengths: {[column.shape for column in given]}"
        raise InvalidArgument(msg) from exc
    columns = [np.broadcast_to(column, shape) for column in given]
    total = np.zeros(shape, dtype=np.float64)
    # A block of all columns stays in the processor's cache: twice as fast, and memory does not grow with the fleet.
    for first in range(0, shape[0], BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        for (weight, score_of, _), column in zip(scores, columns, strict=True):
            total[rows] += weight * score_of(column[rows])
    # Five rounded products may add up to a hair over 1.
    return np.minimum(total, 1.0, out=total)


def score(  # noqa: PLR0913  one keyword a measure
    object_key: str,
    current_node: str,
    *,
    reads_per_hour: float = 0.0,
    writes_per_hour: float = 0.0,
    last_access_utc: datetime | None = None,
    colocated_dependencies: int = 0,
    egress_cost_per_gb: Decimal | float = Decimal(0),
    latency_ms: float | None = None,
    compliant: bool = False,
    weights: GravityScoringWeights | None = None,
) -> DataGravityScore:
    """Score one object; the composite is bit for bit what `composite` gives.

    Returns:
        The measures as given (`access_frequency` in accesses an hour) and the composite.

    Raises:
        InvalidArgument: a negative value.
    """
    access_per_hour = reads_per_hour + writes_per_hour
    total = composite(
        access_per_hour,
        colocated_dependencies,
        float(egress_cost_per_gb),
        np.nan if latency_ms is None else latency_ms,
        compliant,
        weights,
    )
    return DataGravityScore(
        object_key=object_key,
        current_node=current_node,
        access_frequency=access_per_hour,
        last_access_utc=last_access_utc,
        colocated_dependencies=colocated_dependencies,
        egress_cost_per_gb=Decimal(str(egress_cost_per_gb)),
        latency_ms=latency_ms,
        compliance_weight=1.0 if compliant else 0.0,
        composite_score=float(total[0]),
    )


def _known(values: npt.ArrayLike, name: str) -> F64:
    """Return the values as float64 with NaN replaced by 0; refuse negative ones."""
    column = np.asarray(values, dtype=np.float64)
    if np.any(column < 0):
        msg = f"{name}: {float(np.nanmin(column))} is negative; a measure of gravity is ≥ 0"
        raise InvalidArgument(msg)
    return np.nan_to_num(column, nan=0.0, posinf=np.inf)
