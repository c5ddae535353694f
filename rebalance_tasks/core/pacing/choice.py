"""Which of two ways costs less: whole stretches of objects are tried by each, then the cheaper way is taken, and both are tried again now and then.

A controller without a clock, as `core.pacing.inflight`: it says how many objects to try each way with, and is told what an object cost. A whole
stretch is measured because of the queue in front of a server: an object that goes alone by another way than those around it waits for
their requests, once for each request of its own, whatever these cost. The first way is the one that is trusted; the second must
be clearly cheaper to be taken.

Source: explore-then-commit with growing phases (Lattimore and Szepesvári 2020, §6.1 and its doubling trick), made without chance so that a
run can be told from its measurements.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

#: Objects of one stretch that is tried: many times as many as are under way at once, so that its ends weigh little …
TRIED: Final = 96
#: … and fewer than this say nothing.
LEAST_TRIED: Final = 32
#: Both ways are tried again after so many objects; after twice as many each time that the outcome was the same …
FIRST_LOOK: Final = 256
#: … up to this: what a server costs changes, and a choice that is never looked at again is a guess.
LOOK_EVERY: Final = 8192
#: What the second way may cost, of what the first one costs, to be taken.
CLEARLY: Final = 0.95
#: Weight of the newest trial, once there are as many: three that say otherwise outweigh the past.
SMOOTHING: Final = 0.3
#: A trial counts for no more than so many times as much or as little: on a busy machine some are off by a factor.
MOST_RATIO: Final = 1.5


class Choice(NamedTuple):
    """What is known of both.

    Attributes:
        log_ratio: logarithm of what an object costs by the second way, of what it costs by the first; infinite where nothing comes through by one.
        trials: how often both were tried.
        alike: how many trials in a row had the same outcome.
        since: objects that have gone since the last trial.
    """

    log_ratio: float = 0.0
    trials: int = 0
    alike: int = 0
    since: int = 0

    @property
    def better(self) -> int:
        """The way to take, 0 or 1."""
        return _better(self.log_ratio)


def to_try(choice: Choice, objects: int) -> int:
    """Return how many objects to try each way with before the rest goes by the better one; 0 for no trial.

    Half of them go by the first way, all that are tried by the second, and then the other half by the first, so that a server that
    grows slower all the time speaks for neither.

    Args:
        choice: what is known.
        objects: how many there are, ≥ 0.
    """
    due = not choice.trials or choice.since >= min(LOOK_EVERY, FIRST_LOOK * 2 ** max(0, choice.alike - 1))
    most = min(TRIED, objects // 2)
    return most if due and most >= LEAST_TRIED else 0


def tried(choice: Choice, costs: tuple[float | None, float | None]) -> Choice:
    """Return what is known after both ways were tried, right after one another.

    Args:
        choice: what was known.
        costs: of one object by each way, in any unit, > 0; ``None`` where nothing came through.
    """
    first, second = costs
    if first is None and second is None:
        return choice._replace(since=0)
    ratio = math.inf if second is None else -math.inf if first is None else _bounded(math.log(second / first))
    # What was barred is open again, or what was open is barred: there is nothing to weigh.
    sharp = math.isinf(ratio) or math.isinf(choice.log_ratio)
    weight = 1.0 if sharp or not choice.trials else max(SMOOTHING, 1 / (choice.trials + 1))
    known = ratio if weight == 1.0 else choice.log_ratio + weight * (ratio - choice.log_ratio)
    same = choice.trials > 0 and _better(ratio) == choice.better
    return Choice(known, choice.trials + 1, choice.alike + 1 if same else 1)


def went(choice: Choice, objects: int, came_through: int) -> Choice:
    """Return what is known after objects have gone by the better way: where nothing comes through by it any more, nothing.

    Args:
        choice: what was known.
        objects: how many set out.
        came_through: how many of them did.
    """
    if not came_through and objects >= LEAST_TRIED:
        return Choice()
    return choice._replace(since=choice.since + objects)


def _bounded(log_ratio: float) -> float:
    most = math.log(MOST_RATIO)
    return max(-most, min(most, log_ratio))


def _better(log_ratio: float) -> int:
    return int(log_ratio < math.log(CLEARLY))
