"""Whose message a worker of several fleets takes next: fleets take turns by their priorities, and none waits for ever.

A turn is one message of a data queue, so a slice of up to 20 s. A fleet that has work at every turn gets as many of them as its
priority says, beside those of the others; one that has none gives its turns away and saves none up. Queues of control, of data,
and each queue of a host application come in turn evenly, as Celery has it.

Source: start-time fair queuing, Goyal, Vin, Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated Services
Packet Switching Networks", SIGCOMM 1996, section 2. Whole numbers of 1/`HIGHEST_PRIORITY`! stand for its fractions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.routes import CONTROL_QUEUE, DATA_QUEUE, fleet_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HIGHEST_PRIORITY: Final = 100
#: What a turn costs a fleet of priority 1; every priority divides it.
_COST: Final = math.lcm(*range(1, HIGHEST_PRIORITY + 1))


class Turns:
    """The order in which a worker asks its queues; kombu's Redis transport takes it as ``queue_order_strategy``.

    Its methods are those of `kombu.utils.scheduling.round_robin_cycle`: the transport names all queues, asks for the order before
    it waits for a message, and says from which queue one came.
    """

    def __init__(self, priorities: Mapping[str, int]) -> None:
        """Begin with nobody's turn taken.

        Args:
            priorities: fleet → 1 to `HIGHEST_PRIORITY`.
        """
        self._priorities = dict(priorities)
        self._queues: list[str] = []
        self._now = 0
        #: start of the turn that was taken last, in virtual time
        self._begun = 0
        #: fleet → end of its last turn, in virtual time
        self._ends: dict[str, int] = {}
        #: queue or kind of queues → number of the turn in which it was last taken from
        self._taken: dict[str, int] = {}

    def update(self, queues: Iterable[str]) -> None:
        """Take note of all queues that the worker serves now."""
        self._queues = list(queues)

    def consume(self, count: int) -> list[str]:
        """Return so many queues, the one whose turn it is first."""
        return sorted(self._queues, key=self._place)[:count]

    def rotate(self, queue: str) -> str:
        """Note that a message came from a queue."""
        self._now += 1
        kind = _kind(queue)
        self._taken[queue] = self._taken[kind] = self._now
        if kind == DATA_QUEUE:
            fleet = fleet_of(queue)
            self._begun = self._start(fleet)
            self._ends[fleet] = self._begun + _COST // self._priority(fleet)
        return queue

    def _place(self, queue: str) -> tuple[int, int, int, int]:
        kind, fleet = _kind(queue), fleet_of(queue)
        due = (self._start(fleet), -self._priority(fleet)) if kind == DATA_QUEUE else (0, 0)
        return self._taken.get(kind, 0), *due, self._taken.get(queue, 0)

    def _start(self, fleet: str) -> int:
        """When the fleet's next turn starts: where its last one ended, and never in a past in which it had no work."""
        return max(self._begun, self._ends.get(fleet, 0))

    def _priority(self, fleet: str) -> int:
        return self._priorities.get(fleet, 1)


def _kind(queue: str) -> str:
    return next((kind for kind in (CONTROL_QUEUE, DATA_QUEUE) if queue.startswith(kind)), queue)
