"""The storm of wrong clocks: somebody sets the clocks of workers and beat, by seconds, hours and a day, back and forth.

The usual storm moves the times that Redis holds, since its server's clock cannot be set. Here the clocks of the processes
themselves are wrong, which is to change nothing: leases, graces and quiet hours go by Redis' clock, durations by clocks that only count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.chaos.schedule import WEIGHTS
from tests.chaos.storm import Storm
from tests.support import clocks

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

#: The usual faults, and a clock that is set.
CLOCK_WEIGHTS: Final = {**WEIGHTS, "wrong_clock": 14}
#: Each has a file that says how wrong it is; workers take the first two in turn.
CLOCKS: Final = ("worker-0", "worker-1", "beat")
OFFSETS_S: Final = (-86_400, -3_600, -20, -2, 0, 2, 20, 3_600, 86_400)


@dataclass
class ClocksStorm(Storm):
    """A round in which no process but Redis knows what time it is."""

    weights: Mapping[str, float] = field(default_factory=lambda: CLOCK_WEIGHTS)

    def worker_env(self) -> dict[str, str]:
        return super().worker_env() | self.clock(CLOCKS[self.begun % 2])

    def start_beat(self) -> None:
        self.beats.append(self.processes.beat(env=self.clock("beat")))

    def clock(self, name: str) -> dict[str, str]:
        """What gives a process that clock."""
        return clocks.environment(self.folder / f"{name}.clock")

    def wrong_clock(self, dice: random.Random) -> None:
        """Somebody sets one of the clocks."""
        clocks.set_offset(self.folder / f"{dice.choice(CLOCKS)}.clock", dice.choice(OFFSETS_S))

    def mend(self) -> None:
        super().mend()
        for name in CLOCKS:
            clocks.set_offset(self.folder / f"{name}.clock", 0)
