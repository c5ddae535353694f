"""A throttle by the hour of the day: fast at night, slow while the office works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from zoneinfo import ZoneInfo

from rebalance_tasks.core.quiet_hours import parse_quiet_hours, within
from rebalance_tasks.core.units import parse_rate

if TYPE_CHECKING:
    from datetime import datetime

    from rebalance_tasks.core.options import RebalancerOptions

_NO_LIMIT: Final = "none"


class HourlyRate(NamedTuple):
    """A rate for some hours of the day.

    Attributes:
        start: first hour, 0 to 23.
        end: the hour it ends at, wrapping midnight.
        bytes_per_s: of each group; 0 for no limit.
    """

    start: int
    end: int
    bytes_per_s: int


def parse_timetable(value: object) -> tuple[HourlyRate, ...]:
    """Read a timetable.

    Args:
        value: entries such as ``"8-18 10MiB/s"`` or ``"22-6 none"``, in a list or with commas between them; ``none`` is no timetable.

    Raises:
        ValueError: an entry is neither hours and a rate, nor read already.
    """
    if isinstance(value, str):
        value = [] if value.strip().lower() == _NO_LIMIT else value.split(",")
    if not isinstance(value, list | tuple):
        msg = f"{value!r} is no timetable; write for example ['8-18 10MiB/s', '22-6 none']"
        raise ValueError(msg)  # noqa: TRY004  pydantic shows these to whoever wrote the setting
    return tuple(entry if isinstance(entry, HourlyRate) else _entry(entry) for entry in value)


def _entry(entry: object) -> HourlyRate:
    if isinstance(entry, list | tuple) and len(entry) == len(HourlyRate._fields):
        start, end, bytes_per_s = entry
        return HourlyRate(*parse_quiet_hours((start, end)), parse_rate(bytes_per_s))
    hours, _, rate = str(entry).strip().partition(" ")
    if not rate:
        msg = f"{entry!r} is no entry of a timetable; write hours and a rate, as '8-18 10MiB/s' or '22-6 none'"
        raise ValueError(msg)
    start, end = parse_quiet_hours(hours)
    bytes_per_s = 0 if rate.strip().lower() == _NO_LIMIT else parse_rate(rate.strip())
    if start == end or (bytes_per_s < 1 and rate.strip().lower() != _NO_LIMIT):
        msg = f"{entry!r} of a timetable needs an hour at least, and a rate of at least 1 byte a second, or 'none'"
        raise ValueError(msg)
    return HourlyRate(start, end, bytes_per_s)


def throttle_at(options: RebalancerOptions, now: datetime) -> int | None:
    """Return the rate of each group at a moment: the first entry that holds its hour, else `throttle_bytes_per_sec`.

    Args:
        options: whose timetable is read off the clock of ``quiet_hours_timezone``.
        now: aware.

    Returns:
        Bytes a second, ``None`` for no limit.
    """
    if not options.throttle_timetable:
        return options.throttle_bytes_per_sec
    hour = now.astimezone(ZoneInfo(options.quiet_hours_timezone)).hour
    for entry in options.throttle_timetable:
        if within(entry.start, entry.end, hour):
            return entry.bytes_per_s or None
    return options.throttle_bytes_per_sec
