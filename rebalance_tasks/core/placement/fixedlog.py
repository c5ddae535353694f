"""The logarithm of straw2 in integers: no float ever decides where an object lives.

`crush` asks here for draws: the child of a bucket with the smallest ``−ln(u) ÷ weight`` wins, where u is a number in
(0, 1) made from (key, child). Each wins with probability weight ÷ sum of weights, and changing one weight moves keys
only to or from that child. Source: Ceph's straw2 bucket; the mathematics is Efraimidis & Spirakis 2006.

How: u is the upper 32 bits of the mixed hash; its upper 12 bits choose a cell of a table of −ln, its lower 20 bits
interpolate in the cell. The table is made with integers too (a series, 96 bits), so it does not depend on a libm.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from rebalance_tasks.core.placement.hashing import U64, mix, mix_many

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

#: 4,096 cells: both tables fit the first-level cache, and interpolation errs by < 2⁻²⁵ around u = ½.
CELL_BITS: Final = 12
#: Together with the cell, 32 bits of u: two of 1,000 equal children tie on fewer than one key in a million.
FRACTION_BITS: Final = 20
#: Fractional bits of the table; with FRACTION_BITS more, the largest draw (10.3 · 2⁶⁰) still fits 64 bits.
TABLE_BITS: Final = 40
#: Working precision of the series; 4,096 roundings of 2⁻⁹⁶ stay far below half a unit of 2⁻⁴⁰.
SERIES_BITS: Final = 96
#: The heaviest child of a bucket has this many bits of weight; lighter ones are rounded to it, but never to 0.
WEIGHT_BITS: Final = 28
#: Significant bits of a weight of its own. The greatest quotient has 33 bits and is shifted by 31: it still fits 64.
FLOATING_BITS: Final = 32

_CELLS: Final = 1 << CELL_BITS
_CELL_SHIFT: Final = 64 - CELL_BITS
_FRACTION_SHIFT: Final = _CELL_SHIFT - FRACTION_BITS
_FRACTION_MASK: Final = (1 << FRACTION_BITS) - 1


class LogTable(NamedTuple):
    """−ln over (0, 1): ``top[cell] − slope[cell] · fraction`` has 60 fractional bits.

    Attributes:
        top: value at the lower end of each cell, less half a step, so that u stands for the middle of its step.
        slope: fall per step of the fraction, always > 0, so that draws fall strictly as u grows.
        top_array: uint64 (4096,), the same.
        slope_array: uint64 (4096,), the same.
    """

    top: tuple[int, ...]
    slope: tuple[int, ...]
    top_array: U64
    slope_array: U64


@functools.cache
def log_table() -> LogTable:
    """Return the table (made once, some milliseconds)."""
    edges = [0] * (_CELLS + 1)
    exact = 0
    for i in range(_CELLS - 1, 0, -1):
        exact += _log_of_step(i)
        edges[i] = (exact + (1 << (SERIES_BITS - TABLE_BITS - 1))) >> (SERIES_BITS - TABLE_BITS)
    # −ln has no value at 0. A fall of 2 over the lowest cell keeps its mean: E[−ln u | u < ε] = 1 − ln ε.
    edges[0] = edges[1] + (2 << TABLE_BITS)
    slope = tuple(edges[i] - edges[i + 1] for i in range(_CELLS))
    top = tuple((edges[i] << FRACTION_BITS) - slope[i] // 2 for i in range(_CELLS))
    return LogTable(top, slope, np.array(top, dtype=np.uint64), np.array(slope, dtype=np.uint64))


def negative_log(mixed: int) -> int:
    """Return −ln(u) · 2⁶⁰ for u = the upper 32 bits of a mixed hash; > 0."""
    table = log_table()
    cell = mixed >> _CELL_SHIFT
    return table.top[cell] - table.slope[cell] * ((mixed >> _FRACTION_SHIFT) & _FRACTION_MASK)


def negative_logs(mixed: U64) -> U64:
    """Return `negative_log` of every element, of any shape."""
    table = log_table()
    cell = (mixed >> np.uint64(_CELL_SHIFT)).view(np.int64)
    fraction = (mixed >> np.uint64(_FRACTION_SHIFT)) & np.uint64(_FRACTION_MASK)
    logs: U64 = table.top_array[cell] - table.slope_array[cell] * fraction
    return logs


def draw(key_hash: int, item_hash: int, weight: int, round_number: int = 0) -> int:
    """Return the draw of one child for one key; the smallest of a bucket wins.

    Args:
        key_hash: from `hashing.hash_key`.
        item_hash: from `hashing.hash_path`.
        weight: > 0, from `normalize_weights`.
        round_number: which attempt.
    """
    return negative_log(mix(key_hash, item_hash, round_number)) // weight


def log_draws(key_hashes: U64, item_hashes: U64, out: U64, work: U64) -> None:
    """Return −ln(u) · 2⁶⁰ of all children for all keys; `divide` makes draws of it, as `draw` does.

    Args:
        key_hashes: uint64 (n,).
        item_hashes: uint64 (m,), from `hashing.round_hashes`.
        out: uint64 (m, n), overwritten with the result: a row a child.
        work: uint64 (2, m, n), overwritten; a loop that keeps it spares fresh pages each time (2–3 × faster).
    """
    table = log_table()
    mixed, scratch = work
    mix_many(key_hashes, item_hashes, mixed, scratch)
    np.right_shift(mixed, np.uint64(_CELL_SHIFT), out=scratch)
    cell = scratch.view(np.int64)  # what `take` wants; a cell has 12 bits, so the sign never shows
    np.right_shift(mixed, np.uint64(_FRACTION_SHIFT), out=mixed)
    np.bitwise_and(mixed, np.uint64(_FRACTION_MASK), out=mixed)
    # mode="clip" spares the buffering of the default mode; a cell is in range by its width.
    np.take(table.slope_array, cell, out=out, mode="clip")
    np.multiply(out, mixed, out=mixed)
    np.take(table.top_array, cell, out=out, mode="clip")
    np.subtract(out, mixed, out=out)


def divide(logs: U64, weights: U64 | None, out: U64) -> None:
    """Make draws of logarithms: a divisor a row, so NumPy divides by an invariant integer (multiply and shift).

    Args:
        logs: uint64 (m, n).
        weights: uint64 (m,), > 0; None stands for all 1.
        out: uint64 (m, n), overwritten; may be `logs`.
    """
    if weights is not None:
        np.floor_divide(logs, weights[:, None], out=out)
    elif out is not logs:
        np.copyto(out, logs)


def normalize_weights(exact: Sequence[int]) -> tuple[int, ...]:
    """Scale a bucket's weights to integers whose greatest is 2²⁸; equal weights become 1.

    Dividing by the greatest makes the result blind to a common factor: scaling all weights changes no placement.

    Args:
        exact: > 0, in any common unit (`exact_weights`).

    Returns:
        One integer a child, in [1, 2²⁸]; a child lighter than 2⁻²⁹ of the heaviest counts as 2⁻²⁸ of it.
    """
    greatest = max(exact)
    if min(exact) == greatest:
        return (1,) * len(exact)
    return tuple(max(1, ((weight << (WEIGHT_BITS + 1)) + greatest) // (2 * greatest)) for weight in exact)


def floating_weights(weights: npt.ArrayLike) -> tuple[U64, U64]:
    """Round each weight to 32 significant bits, by itself: no weight's divisor depends on another's mantissa.

    So a draw ``(−ln u ÷ mantissa) << shift`` compares with a third node's as before when a node comes or goes, which
    `normalize_weights` cannot promise. A common factor changes nothing if it is a power of two, and else the order of
    less than one pair of draws in 10⁹.

    Args:
        weights: float64 (n,), > 0.

    Returns:
        mantissas uint64 (n,) in [2³¹, 2³²), and shifts uint64 (n,) in [0, 31] from the heaviest; a node lighter than 2⁻³¹
        of it counts as that light.
    """
    fractions, exponents = np.frexp(np.asarray(weights, dtype=np.float64))
    mantissas = np.rint(fractions * 2.0**FLOATING_BITS)
    carried = mantissas == 2.0**FLOATING_BITS
    exponents = exponents + carried
    shifts = np.minimum(exponents.max() - exponents, FLOATING_BITS - 1)
    return np.where(carried, mantissas / 2, mantissas).astype(np.uint64), shifts.astype(np.uint64)


def exact_weights(weights: Sequence[float]) -> list[int]:
    """Return the weights as integers in a common unit, without rounding, so that sums do not depend on their order."""
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    unit = max(denominator for _, denominator in ratios)  # all are powers of two
    return [numerator * (unit // denominator) for numerator, denominator in ratios]


def _log_of_step(i: int) -> int:
    """Return ln((i + 1) / i) · 2⁹⁶ = 2·artanh(1/(2i + 1)), truncated."""
    base = 2 * i + 1
    power = (2 << SERIES_BITS) // base
    total, odd = 0, 1
    while power:
        total += power // odd
        power //= base * base
        odd += 2
    return total
