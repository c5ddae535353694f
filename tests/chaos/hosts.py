"""The storm over three hosts: each with disks of its own, a line of its own to Redis, and workers that reach no others' disks.

To what strikes everybody comes what strikes one host: all its processes die at once, or its line goes silent for longer than its
leases last, while it goes on copying and knows nothing of it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil

from rebalance_tasks.migration import faults
from tests.chaos.schedule import WEIGHTS
from tests.chaos.storm import DEATH_ONE_IN, Storm
from tests.support import fragile
from tests.support.hosts import HOSTS, Host, nodes_of_hosts

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from tests.support.fleets import NodeSpec
    from tests.support.proxy import ChaosProxy

#: The usual faults, and those of a host.
HOST_WEIGHTS: Final = {**WEIGHTS, "kill_host": 4, "cut_off": 6, "come_back": 8}


@dataclass
class HostsStorm(Storm):
    """A round on three hosts; h1 and h3 decide, all three move."""

    weights: Mapping[str, float] = field(default_factory=lambda: HOST_WEIGHTS)

    def layout(self) -> dict[str, NodeSpec]:
        return nodes_of_hosts({}, capacity=10**8)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hosts = {
            name: Host(name, self.fleet, self.folder, self.server.port, control=name != "h2") for name in HOSTS
        }

    # -- processes ------------------------------------------------------------------------------------------------
    def keep_alive(self) -> None:
        env = {faults.ENVIRONMENT: f"*=maybe:{DEATH_ONE_IN}", faults.LEDGER: str(self.ledger)}
        for host in self.hosts.values():
            host.workers = [worker for worker in host.workers if worker.alive]
            if not host.workers:
                host.start(env=env)
        self.workers = [worker for host in self.hosts.values() for worker in host.workers]
        self.beats = [beat for beat in self.beats if beat.alive]
        if not self.beats:
            self.start_beat()

    def kill_worker(self, dice: random.Random) -> None:
        self.kill_host(dice)

    def kill_host(self, dice: random.Random) -> None:
        """All its processes at once."""
        for worker in self.hosts[dice.choice(HOSTS)].workers:
            worker.kill()
            self.kills["worker"] += 1

    def power_cut(self, dice: random.Random) -> None:
        for worker in self.workers:
            worker.kill()
            self.kills["worker"] += 1
        self._crash(dice, lose_s=dice.uniform(0.5, 2.0))

    def freeze(self, dice: random.Random) -> None:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            super().freeze(dice)

    # -- lines ----------------------------------------------------------------------------------------------------
    def line(self, dice: random.Random) -> ChaosProxy:
        return self.hosts[dice.choice(HOSTS)].line

    def cut_off(self, dice: random.Random) -> None:
        """Silence for longer than the leases last, as everybody else sees it."""
        self.hosts[dice.choice(HOSTS)].cut_off(dice.uniform(1.0, 6.0))
        fragile.jump(self.server.client, self.prefix, 11_000)

    def come_back(self, dice: random.Random) -> None:
        """What was on its way arrives now, late."""
        self.line(dice).calm()

    def mend(self) -> None:
        super().mend()
        for host in self.hosts.values():
            host.back()

    def end(self) -> None:
        super().end()
        for host in self.hosts.values():
            host.end()
