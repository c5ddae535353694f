"""What strikes the lines between processes and servers, and the messages that wait on the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import fragile

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.models import RebalancePlan
    from tests.support.proxy import ChaosProxy


class Weather:
    """A part of a storm (`tests.chaos.storm`), whose fleet and servers it works on."""

    server: fragile.FragileServer
    proxy: ChaosProxy
    context: FleetContext
    queues: list[str]
    plans: Mapping[str, RebalancePlan]

    def line(self, dice: random.Random) -> ChaosProxy:
        """The line to Redis that is struck."""
        return self.proxy

    def reset(self, dice: random.Random) -> None:
        self.line(dice).reset_all()

    def refuse(self, dice: random.Random) -> None:
        line = self.line(dice)
        line.refuse(dice.uniform(0.1, 1.5))
        line.reset_all()

    def stall(self, dice: random.Random) -> None:
        self.line(dice).stall(dice.uniform(0.5, 3.0))

    def delay(self, dice: random.Random) -> None:
        self.line(dice).delay(dice.uniform(0.01, 0.2), dice.uniform(0.2, 1.5))

    def tear(self, dice: random.Random) -> None:
        self.line(dice).tear(dice.choice(("request", "reply")), dice.randint(1, 4))

    def double(self, dice: random.Random) -> None:
        for _ in range(dice.randint(1, 3)):
            fragile.double(self.server.client, dice, self.queues)

    def reorder(self, dice: random.Random) -> None:
        fragile.reorder(self.server.client, dice, self.queues)

    def lose(self, dice: random.Random) -> None:
        fragile.lose(self.server.client, dice, self.queues)

    def publish_again(self, dice: random.Random) -> None:
        job_id = self.context.jobs.active()
        if job_id is not None:
            groups = list(self.context.jobs.groups(job_id).values())
            for _ in range(dice.randint(1, 4)):
                self.context.messenger.publish_group(job_id, dice.choice(groups))

    def late_finalize(self, dice: random.Random) -> None:
        if self.plans:
            self.context.messenger.publish_finalize(dice.choice(sorted(self.plans)))
