"""Which of two ways costs less: both are tried in turn, then the cheaper one is taken, and the other looked at now and then.

A controller without a clock, as `core.inflight`: it says which way to take next, and is told what each one took. The first way is
the one that is trusted; the second must be clearly cheaper to be taken.

Source: an ε-greedy choice (Sutton and Barto 2018, §2.2), made without chance so that a run can be told from its measurements.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Each way is measured so often before there is a choice.
TRIALS: Final = 32
#: Then one in so many goes the other way: what a node costs changes, and a choice that is never looked at again is a guess.
LOOK_EVERY: Final = 32
#: What the second way may cost, of what the first one costs, to be taken.
CLEARLY: Final = 0.95
#: Weight of the newest measurement, once there are as many: the last few dozens count.
SMOOTHING: Final = 1 / 32


class Measured(NamedTuple):
    """What is known of one way.

    Attributes:
        mean_ms: of the newest objects that came through.
        times: how many came through.
    """

    mean_ms: float = 0.0
    times: int = 0


class Choice(NamedTuple):
    """What is known of both.

    Attributes:
        known: of the first way, and of the second.
        turn: how often a way was asked for.
    """

    known: tuple[Measured, Measured] = (Measured(), Measured())
    turn: int = 0

    @property
    def better(self) -> int:
        """The way to take, 0 or 1. One by which nothing comes through is not taken, however quickly it says so."""
        first, second = self.known
        return int(second.times > 0 and (not first.times or second.mean_ms < CLEARLY * first.mean_ms))


def asked(choice: Choice) -> tuple[int, bool, Choice]:
    """Return the way to take now (0 or 1), whether what it takes is to be told, and what is known then.

    What is told comes in pairs, one way right after the other, so that both means are of the same times: a node's calls take
    many times as long in one minute as in the next.
    """
    turn = choice.turn
    place = turn % 2 if turn < 2 * TRIALS else turn % LOOK_EVERY
    way = place if turn < 2 * TRIALS else choice.better ^ (place == 0)
    return way, place < 2, choice._replace(turn=turn + 1)  # noqa: PLR2004  a pair


def told(choice: Choice, way: int, *, took_ms: float) -> Choice:
    """Return what is known after one object has come through by a way.

    Args:
        choice: what was known.
        way: 0 or 1.
        took_ms: how long it took, ≥ 0.
    """
    mean, times = choice.known[way]
    weight = max(SMOOTHING, 1 / (times + 1))
    now = Measured(mean + weight * (took_ms - mean), times + 1)
    return choice._replace(known=(now, choice.known[1]) if way == 0 else (choice.known[0], now))
