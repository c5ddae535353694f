"""Whose message a worker of several fleets takes next: fleets take turns by their priorities, and none waits for ever.

A turn is one message of a data queue, so a slice of up to 20 s; what it counts for is how long it took. A fleet that has work at every
turn gets as much of the time as its priority says, beside the others; one that has none gives its time away and saves none
up. Queues of control, of data, and each queue of a host application come in turn evenly, as Celery has it.

Source: start-time fair queuing, Goyal, Vin, Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated Services
Packet Switching Networks", SIGCOMM 1996, section 2; for turns whose length is known at their end only: Goyal, Guo, Vin, "A Hierarchical CPU
Scheduler for Multimedia Operating Systems", OSDI 1996, section 3. Whole numbers of 1/`HIGHEST_PRIORITY`! stand for its fractions.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.routes import CONTROL_QUEUE, DATA_QUEUE, fleet_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HIGHEST_PRIORITY: Final = 100
#: What a millisecond costs a fleet of priority 1; every priority divides it.
_COST: Final = math.lcm(*range(1, HIGHEST_PRIORITY + 1))
#: What a fleet's first turn is taken for until it has ended: a slice (`migration.control.SLICE_S`).
_FIRST_MS: Final = 20_000


class Shares:
    """How much of its time a worker has given to each fleet; one for all connections to its broker.

    While a turn is under way it counts for as long as the fleet's last ones took; what it took less or more is made up for at its end.
    Called, it is kombu's ``queue_order_strategy``: each channel gets an order of its own that goes by these shares.
    """

    def __init__(self, priorities: Mapping[str, int]) -> None:
        """Begin with nobody's turn taken.

        Args:
            priorities: fleet → 1 to `HIGHEST_PRIORITY`.
        """
        self._priorities = dict(priorities)
        #: start of the turn that was taken last, in virtual time
        self._begun = 0
        #: fleet → end of its last turn, in virtual time
        self._ends: dict[str, int] = {}
        #: fleet → what its last turns took, the last of them half of it
        self._usual_ms: dict[str, int] = {}
        #: fleet → what its turns under way count for; of one that was lost with its connection that stays
        self._charged_ms: defaultdict[str, deque[int]] = defaultdict(deque)
        #: whoever ends a turn may be another thread than the one that takes the next
        self._ended: deque[tuple[str, int]] = deque()

    def __call__(self) -> Turns:
        """Return an order of queues that goes by these shares."""
        return Turns(self)

    def priority(self, fleet: str) -> int:
        """Return a fleet's priority, the lowest where it has none."""
        return self._priorities.get(fleet, 1)

    def start(self, fleet: str) -> int:
        """Return when the fleet's next turn starts, in virtual time: where its last one ended, and never in a past in which it had no work."""
        return max(self._begun, self._ends.get(fleet, 0))

    def take(self, fleet: str) -> None:
        """Note that a fleet's turn begins."""
        charged_ms = self._usual_ms.get(fleet, _FIRST_MS)
        self._begun = self.start(fleet)
        self._ends[fleet] = self._begun + self._cost(fleet, charged_ms)
        self._charged_ms[fleet].append(charged_ms)

    def end(self, queue: str, took_ms: int) -> None:
        """Note, from any thread, that a turn is over.

        Args:
            queue: that its message came from; only those of data count.
            took_ms: how long a process was busy with it, ≥ 0.
        """
        if _kind(queue) == DATA_QUEUE:
            self._ended.append((fleet_of(queue), took_ms))

    def settle(self) -> None:
        """Make up for what the turns that have ended took less or more than they were taken for."""
        while self._ended:
            fleet, took_ms = self._ended.popleft()
            charged = self._charged_ms[fleet]
            if charged:
                self._ends[fleet] += self._cost(fleet, took_ms - charged.popleft())
                self._usual_ms[fleet] = (self._usual_ms.get(fleet, took_ms) + took_ms) // 2

    def _cost(self, fleet: str, milliseconds: int) -> int:
        return milliseconds * (_COST // self.priority(fleet))


class Turns:
    """The order in which a channel asks its queues.

    Its methods are those of `kombu.utils.scheduling.round_robin_cycle`: the transport names all queues, asks for the order before
    it waits for a message, and says from which queue one came.
    """

    def __init__(self, shares: Shares) -> None:
        """Go by these shares."""
        self._shares = shares
        self._queues: list[str] = []
        self._now = 0
        #: queue or kind of queues → number of the turn in which it was last taken from
        self._taken: dict[str, int] = {}

    def update(self, queues: Iterable[str]) -> None:
        """Take note of all queues that the worker serves now."""
        self._queues = list(queues)

    def consume(self, count: int) -> list[str]:
        """Return so many queues, the one whose turn it is first."""
        self._shares.settle()
        return sorted(self._queues, key=self._place)[:count]

    def rotate(self, queue: str) -> str:
        """Note that a message came from a queue."""
        self._now += 1
        kind = _kind(queue)
        self._taken[queue] = self._taken[kind] = self._now
        if kind == DATA_QUEUE:
            self._shares.take(fleet_of(queue))
        return queue

    def _place(self, queue: str) -> tuple[int, int, int, int]:
        kind, fleet = _kind(queue), fleet_of(queue)
        due = (self._shares.start(fleet), -self._shares.priority(fleet)) if kind == DATA_QUEUE else (0, 0)
        return self._taken.get(kind, 0), *due, self._taken.get(queue, 0)


def _kind(queue: str) -> str:
    return next((kind for kind in (CONTROL_QUEUE, DATA_QUEUE) if queue.startswith(kind)), queue)
