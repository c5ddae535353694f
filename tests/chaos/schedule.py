"""What a seed does to a fleet: a pure function, so that a round can be played again and cut down.

The order of the processes' own steps is not in its hands.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Act:
    """One fault: when (seconds into the storm), which, and its dice."""

    at: float
    name: str
    dice: int


#: What happens, and how often in relation to the others.
WEIGHTS: Final = {
    "kill_child": 30,
    "kill_worker": 6,
    "kill_beat": 3,
    "crash_redis": 2,
    "crash_and_lose": 3,
    "power_cut": 1,
    "freeze": 4,
    "reset": 3,
    "refuse": 1,
    "stall": 1,
    "delay": 4,
    "tear": 5,
    "double": 10,
    "reorder": 8,
    "lose": 4,
    "publish_again": 6,
    "late_finalize": 2,
    "jump": 4,
    "time_passes": 24,
    "pause": 4,
    "resume": 14,
    "cancel": 0.7,
    "sweep": 10,
    "cleanup": 6,
}
#: Come in bursts.
KILLS: Final = ("kill_child",)


def schedule(
    seed: int, storm_s: float, pace: float = 1.0, weights: Mapping[str, float] = MappingProxyType(WEIGHTS)
) -> list[Act]:
    """What a seed does to a fleet; kills come in bursts, and everything ``pace`` times as fast."""
    dice = random.Random(f"schedule {seed}")
    acts: list[Act] = []
    at = 0.2
    while at < storm_s:
        name = dice.choices(list(weights), list(weights.values()))[0]
        burst = dice.randint(1, 4) if name in KILLS else 1
        for _ in range(burst):
            acts.append(Act(at, name, dice.getrandbits(32)))
            at += dice.uniform(0.02, 0.15) / pace
        at += dice.uniform(0.05, 0.5) / pace
    return acts
