"""Sizes, rates and durations as people write them: ``"10GiB"``, ``"50MiB/s"``, ``"5m"``.

Used wherever a setting or an argument enters (options, ``rebalance.toml``, environment, command line); behind that border
sizes are ints of bytes and durations are timedeltas. Decimal prefixes are powers of 1000 (GB = 10⁹), binary prefixes
powers of 1024 (GiB = 2³⁰), and arithmetic is exact: nothing passes through a binary fraction.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

#: Sizes travel as int64 columns; nothing bigger can be carried through.
MAX_SIZE_BYTES: Final = 2**63 - 1

SIZE_EXAMPLES: Final = '"10GiB", "4TB", "1.5MiB", or a whole number of bytes'
RATE_EXAMPLES: Final = '"50MiB/s", "200MB/s", or a whole number of bytes a second'
DURATION_EXAMPLES: Final = '"90s", "5m", "1h30m", "24h", "7d", or a number of seconds'

_SIZE_UNITS: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgtpe", start=1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtpe", start=1)},
}
_DURATION_UNITS: Final[dict[str, timedelta]] = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}

_NUMBER: Final = r"(\d+(?:_\d+)*(?:\.\d+)?)"
_SIZE: Final = re.compile(rf"([+-]?){_NUMBER}\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_DURATION_PART: Final = re.compile(rf"{_NUMBER}\s*(ms|[wdhms])\s*", re.ASCII)
_PLAIN_SECONDS: Final = re.compile(rf"([+-]?){_NUMBER}", re.ASCII)
_ISO_DURATION: Final = re.compile(r"[+-]?P")
_RATE_SUFFIX: Final = re.compile(r"\s*(?:/|\bper\b)\s*(?:s|sec|second)$", re.IGNORECASE)

_TIMEDELTA: Final[TypeAdapter[timedelta]] = TypeAdapter(timedelta, config=ConfigDict(defer_build=True))


def parse_size(value: object) -> int:
    """Read a size in bytes.

    Prefixes are not case-sensitive ("gib", "GIB"); a fraction needs a unit and is rounded down to whole bytes
    ("1.5KiB" = 1,536; "0.0001kB" = 0). A bare "10G" is refused, since it does not say which G.

    Args:
        value: an int, a whole float (a file may say ``1e9``), or text such as "10GiB", "4TB", "1_000".

    Raises:
        ValueError: not a size, negative, or more than 2⁶³ − 1 bytes.
    """
    if isinstance(value, bool):
        raise _not_a(value, "a size", SIZE_EXAMPLES)
    if isinstance(value, int):
        return _checked_size(value, value)
    if isinstance(value, float):
        if not value.is_integer():  # also NaN and infinity
            raise _not_a(value, "a whole number of bytes", SIZE_EXAMPLES)
        return _checked_size(int(value), value)
    if not isinstance(value, str) or (found := _SIZE.fullmatch(value.strip())) is None:
        raise _not_a(value, "a size", SIZE_EXAMPLES)
    sign, number, unit = found.groups()
    factor = _size_factor(unit, value)
    if "." in number and factor == 1:
        msg = f"{value!r} is a fraction of a byte; write a unit or a whole number, for example {SIZE_EXAMPLES}"
        raise ValueError(msg)
    size = _times(number, factor)
    return _checked_size(-size if sign == "-" else size, value)


def parse_rate(value: object) -> int:
    """Read a rate in bytes a second: what `parse_size` takes, with or without "/s".

    Raises:
        ValueError: not a rate, or negative.
    """
    text = _RATE_SUFFIX.sub("", value.strip()) if isinstance(value, str) else value
    try:
        return parse_size(text)
    except ValueError as exc:
        msg = f"{str(exc).split('; write')[0]} (a rate is {RATE_EXAMPLES})"
        raise ValueError(msg) from None


def parse_duration(value: object) -> timedelta:
    """Read a duration.

    Args:
        value: a timedelta, a number of seconds, or text: a number of seconds ("90"), units from large to small
            ("1h30m", "1.5h", "250ms"; w d h m s ms, where m is a minute), or ISO 8601 ("PT5M", as JSON dumps write it).

    Raises:
        ValueError: not a duration, or negative.
    """
    try:
        duration = _duration(value)
    except OverflowError:
        msg = f"{value!r} is longer than a duration can be; write for example {DURATION_EXAMPLES}"
        raise ValueError(msg) from None
    if duration < timedelta(0):
        msg = f"a duration must not be negative, got {value!r}; write for example {DURATION_EXAMPLES}"
        raise ValueError(msg)
    return duration


def _duration(value: object) -> timedelta:
    match value:
        case timedelta():
            return value
        case bool():
            raise _not_a(value, "a duration", DURATION_EXAMPLES)
        case int():
            return timedelta(seconds=value)
        case float() if value == value and abs(value) != float("inf"):  # noqa: PLR0124  NaN is the one value that differs from itself
            return timedelta(seconds=value)
        case str():
            return _duration_text(value.strip(), value)
        case _:
            raise _not_a(value, "a duration", DURATION_EXAMPLES)


def _duration_text(text: str, given: str) -> timedelta:
    if (found := _PLAIN_SECONDS.fullmatch(text)) is not None:
        seconds = _microseconds(found[2], timedelta(seconds=1))
        return -seconds if found[1] == "-" else seconds
    if _ISO_DURATION.match(text):
        try:
            return _TIMEDELTA.validate_python(text)
        except ValidationError:
            raise _not_a(given, "a duration", DURATION_EXAMPLES) from None
    negative, text = text.startswith("-"), text.removeprefix("-")
    total, position, previous = timedelta(0), 0, None
    while (part := _DURATION_PART.match(text, position)) is not None:
        unit = _DURATION_UNITS[part[2]]
        if previous is not None and unit >= previous:
            msg = f"{given!r}: units go from large to small, each once, for example {DURATION_EXAMPLES}"
            raise ValueError(msg)
        total, position, previous = total + _microseconds(part[1], unit), part.end(), unit
    if previous is None or position != len(text):
        raise _not_a(given, "a duration", DURATION_EXAMPLES)
    return -total if negative else total


def _microseconds(number: str, unit: timedelta) -> timedelta:
    """Multiply exactly; a float in between would turn 0.1 s into something else."""
    return timedelta(microseconds=_times(number, unit // timedelta(microseconds=1)))


def _times(number: str, factor: int) -> int:
    """Multiply a number in text by an int, exactly, rounded down."""
    numerator, denominator = Decimal(number.replace("_", "")).as_integer_ratio()
    return numerator * factor // denominator


def _size_factor(unit: str, given: str) -> int:
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is not None:
        return factor
    if len(unit) == 1 and f"{unit.lower()}ib" in _SIZE_UNITS:
        upper = unit.upper()
        msg = f"{given!r} does not say which {upper}: write {upper}B (powers of 1000) or {upper}iB (powers of 1024)"
        raise ValueError(msg)
    raise _not_a(given, "a size", SIZE_EXAMPLES)


def _checked_size(size: int, given: object) -> int:
    if size < 0:
        msg = f"a size must not be negative, got {given!r}; write for example {SIZE_EXAMPLES}"
        raise ValueError(msg)
    if size > MAX_SIZE_BYTES:
        msg = f"{given!r} is more than the largest size, 2^63 - 1 bytes (about 9.2 EB)"
        raise ValueError(msg)
    return size


def _not_a(value: object, what: str, examples: str) -> ValueError:
    return ValueError(f"{value!r} is not {what}; write for example {examples}")
