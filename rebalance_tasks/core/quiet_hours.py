"""Quiet hours: hours of the local day in which no check starts and running work pauses (invariant 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from datetime import datetime

    from rebalance_tasks.core.options import RebalancerOptions


def in_quiet_hours(options: RebalancerOptions, *, now: datetime) -> bool:
    """Tell whether ``now`` lies in the fleet's quiet hours.

    The hour is read off the wall clock of ``options.quiet_hours_timezone``: on the day a clock is set back the repeated
    hour is quiet both times, on the day it is set forward a skipped hour is not quiet at all.

    Args:
        options: ``quiet_hours`` is ``(start, end)``, start inclusive, end exclusive; equal hours mean none.
        now: aware.

    Raises:
        ValueError: ``now`` is naive.
    """
    if now.tzinfo is None:
        msg = "now must be an aware datetime"
        raise ValueError(msg)
    if options.quiet_hours is None:
        return False
    start, end = options.quiet_hours
    hour = now.astimezone(ZoneInfo(options.quiet_hours_timezone)).hour
    if start <= end:
        return start <= hour < end
    return hour >= start or hour < end
