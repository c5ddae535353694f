"""Quiet hours: hours of the local day in which no check starts and running work pauses (invariant 11)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from datetime import datetime

    from rebalance_tasks.core.options import RebalancerOptions

_TEXT: Final = re.compile(r"(\d{1,2})(?::00)?\s*[-,–]\s*(\d{1,2})(?::00)?", re.ASCII)
_LAST_HOUR: Final = 23
_HELP: Final = 'write two whole hours from 0 to 23, for example "22-6" or [22, 6] (0 is midnight)'


def parse_quiet_hours(value: object) -> tuple[int, int]:
    """Read quiet hours.

    Args:
        value: a pair of whole hours, or text such as "22-6", "22,6", "22:00-06:00".

    Returns:
        ``(start, end)``, each from 0 to 23.

    Raises:
        ValueError: anything else.
    """
    hours: tuple[object, ...] = ()
    if isinstance(value, str) and (found := _TEXT.fullmatch(value.strip())) is not None:
        hours = (int(found[1]), int(found[2]))
    elif isinstance(value, list | tuple):
        hours = tuple(value)
    match hours:
        case (int(start), int(end)) if not any(isinstance(hour, bool) for hour in hours):
            if 0 <= start <= _LAST_HOUR and 0 <= end <= _LAST_HOUR:
                return start, end
    msg = f"{value!r} is not a pair of quiet hours; {_HELP}"
    raise ValueError(msg)


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
    if now.utcoffset() is None:
        msg = "now must be an aware datetime"
        raise ValueError(msg)
    if options.quiet_hours is None:
        return False
    start, end = options.quiet_hours
    return within(start, end, now.astimezone(ZoneInfo(options.quiet_hours_timezone)).hour)


def within(start: int, end: int, hour: int) -> bool:
    """Tell whether an hour lies in a range that may wrap midnight; ``end`` is outside, and equal ends hold nothing."""
    if start <= end:
        return start <= hour < end
    return hour >= start or hour < end
