"""How many objects go through a step at once between two nodes: many small ones, few large ones, and as many as pay.

A controller without a clock, as `core.pacing.pace`: each step takes how long objects took since the last one. When they take clearly longer
than they usually do, fewer go at once; when that is over, the number comes back one by one, and beyond where it began only as long
as each one more brings more through.

Source: Chiu and Jain 1989, as for `core.pacing.pace`; the rate at which objects come through is their number by Little's law.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from rebalance_tasks.core.pacing.pace import DECREASE, Pace, seen

#: Below this size an object takes its time by round trips, above it by its bytes, which more at once only divide.
LARGE_BYTES: Final = 256 * 1024
#: Large objects begin with so many at once, and never reach more than twice as many: each holds parts of itself in memory.
LARGE_AT_ONCE: Final = 4
#: One more at once must bring so much more through to be worth another.
LEAST_GAIN: Final = 0.05


class InFlight(NamedTuple):
    """What is known of objects of one kind between two nodes.

    Attributes:
        at_once: how many may go at once now.
        start: where it began.
        most: what it never exceeds.
        pace: how long an object takes, and usually does; of a large one each `LARGE_BYTES` counts for one.
        rate: how many came through in a ms when one more was let go beyond ``start``; 0 before that.
    """

    at_once: int
    start: int
    most: int
    pace: Pace = Pace()
    rate: float = 0.0

    @property
    def reason(self) -> str:
        """Why fewer go than at first, for an operator; empty while as many do."""
        if self.at_once >= self.start:
            return ""
        doing = "they take" if self.pace.too_slow else "the number recovers: they took"
        return f"{self.at_once} objects at once instead of {self.start}: {doing} {self.pace.smoothed_ms:.1f} ms, usually {self.pace.usual_ms:.1f} ms"


def begin(*, mean_bytes: float, most: int) -> InFlight:
    """Return what to begin with.

    Args:
        mean_bytes: of the objects, ≥ 0.
        most: what the nodes take at once, ≥ 1.
    """
    if mean_bytes <= LARGE_BYTES:
        return InFlight(most, most, most)
    start = min(most, LARGE_AT_ONCE)
    return InFlight(start, start, min(most, 2 * LARGE_AT_ONCE))


def step(known: InFlight, *, latency_ms: float, mean_bytes: float) -> InFlight:
    """Return what is known and allowed after one more measurement.

    Args:
        known: before.
        latency_ms: mean time that an object took, waits for the throttle left out; > 0.
        mean_bytes: of these objects, ≥ 0.
    """
    each_ms = latency_ms / max(1.0, mean_bytes / LARGE_BYTES)
    pace = seen(known.pace, latency_ms=each_ms)
    if pace.too_slow:
        return known._replace(pace=pace, at_once=max(1, int(known.at_once * DECREASE)), rate=0.0)
    rate = known.at_once / each_ms
    if known.at_once >= known.start:
        pays = not known.rate or rate >= known.rate * (1 + LEAST_GAIN)
        if known.at_once >= known.most or not pays:
            return known._replace(pace=pace)
        return known._replace(pace=pace, at_once=known.at_once + 1, rate=rate)
    return known._replace(pace=pace, at_once=known.at_once + 1)
