"""How fast a node may be worked: additive increase, multiplicative decrease, on the latency that its own calls show.

A controller without a clock: each step takes what was measured since the last one and says what is allowed next. It holds a node
back when its calls take clearly longer than they usually do, and lets it recover step by step. What is usual follows the lowest
that was seen, and rises slowly, so that a node that has become slower for good is not held back for ever.

Source: Chiu and Jain 1989, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks", for why
the decrease multiplies and the increase adds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Weight of the newest measurement in the smoothed latency: three of them outweigh the past.
SMOOTHING: Final = 0.3
#: What is usual rises by this share a step, so that it doubles in 70 steps of a node that stays slow.
DRIFT: Final = 0.01
#: Slower than so many times the usual latency is too slow …
TOLERANCE: Final = 2.0
#: … if it is also slower by this: below it the clock and the scheduler are what is measured.
LEAST_RISE_MS: Final = 5.0
#: What is left of the rate after a step of too slow calls.
DECREASE: Final = 0.7
#: Share of the full rate that comes back with each step of calls that are not too slow.
INCREASE: Final = 0.1
#: Share of the full rate that is never gone below: a node that is held back still shows whether it has recovered.
FLOOR: Final = 0.05


class Pace(NamedTuple):
    """What is known of a node in one direction.

    Attributes:
        usual_ms: latency of its calls when it is well; 0 before the first measurement.
        smoothed_ms: latency as it is now.
        full_bytes_per_s: the rate at which it was when it was first held back; 0 while it is not.
        rate_bytes_per_s: what it may be worked at; 0 for no limit of ours.
    """

    usual_ms: float = 0.0
    smoothed_ms: float = 0.0
    full_bytes_per_s: int = 0
    rate_bytes_per_s: int = 0

    @property
    def too_slow(self) -> bool:
        """Whether its calls take clearly longer than they usually do."""
        return self.smoothed_ms > max(TOLERANCE * self.usual_ms, self.usual_ms + LEAST_RISE_MS)

    @property
    def reason(self) -> str:
        """Why it is held back, for an operator; empty while it is not."""
        if not self.rate_bytes_per_s:
            return ""
        doing = "is held back" if self.too_slow else "recovers"
        return f"{doing}: its calls take {self.smoothed_ms:.1f} ms, usually {self.usual_ms:.1f} ms"


def step(pace: Pace, *, latency_ms: float, bytes_per_s: float) -> Pace:
    """Return what is known and allowed after one more measurement.

    Args:
        pace: what was known.
        latency_ms: mean time of a call since the last step, > 0.
        bytes_per_s: how fast bytes went since then, ≥ 0.
    """
    now = seen(pace, latency_ms=latency_ms)
    return _held_back(now, bytes_per_s) if now.too_slow else _recovering(now)


def seen(pace: Pace, *, latency_ms: float) -> Pace:
    """Return what is known of latencies after one more measurement (mean time of a call, > 0)."""
    smoothed = pace.smoothed_ms + SMOOTHING * (latency_ms - pace.smoothed_ms) if pace.usual_ms else latency_ms
    usual = min(pace.usual_ms * (1 + DRIFT), smoothed) if pace.usual_ms else latency_ms
    return pace._replace(usual_ms=usual, smoothed_ms=smoothed)


def _held_back(pace: Pace, bytes_per_s: float) -> Pace:
    full = pace.full_bytes_per_s or max(1, int(bytes_per_s))
    now = pace.rate_bytes_per_s or full
    return pace._replace(full_bytes_per_s=full, rate_bytes_per_s=max(1, int(full * FLOOR), int(now * DECREASE)))


def _recovering(pace: Pace) -> Pace:
    if not pace.rate_bytes_per_s:
        return pace
    rate = pace.rate_bytes_per_s + max(1, int(pace.full_bytes_per_s * INCREASE))
    if rate >= pace.full_bytes_per_s:
        return pace._replace(full_bytes_per_s=0, rate_bytes_per_s=0)
    return pace._replace(rate_bytes_per_s=rate)
