"""Nodes that are held: by an operator, or because they are out of reach; and the groups that wait for them.

A hold is a field of one hash, so that whoever looks sees at once which nodes are held and by whom, and each owner lifts its
own. Groups that touch a held node hold no permit: the runner gives it back (``lease_acquire.lua``, ``lease_release.lua``),
and they wait beside the gate's queue, where they stand in nobody's way (invariants 5 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Owner of what `pause_node` and `resume_node` set and lift.
OPERATOR: Final = "operator"
#: Owner of what a runner sets that cannot reach a node, and the sweep lifts.
MISSING: Final = "missing"
#: A host that restarts, or a server of network disks, is back by then; afterwards moves fail, or the job would never end.
OUTAGE_MS: Final = 10 * 60 * 1000
#: Without a sign of an outage for so long, the next one is a new one. A node that comes and goes is given up all the same.
OUTAGE_OVER_MS: Final = 60 * 1000


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason for which a node is held.

    Attributes:
        owner: ``operator`` or ``missing``.
        since_ms: when it began, by Redis' clock.
    """

    node_id: str
    owner: str
    since_ms: int


class HoldStore:
    """Held nodes of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def all(self) -> list[Hold]:
        """Every hold, ordered by node and owner."""
        found = [
            Hold(node_id, owner, int(since))
            for mark, since in self._redis.hgetall(self._keys.held_nodes).items()
            for owner, _, node_id in [mark.partition("/")]
        ]
        return sorted(found, key=lambda hold: (hold.node_id, hold.owner))

    def owners(self, node_id: str) -> list[str]:
        """Who holds a node."""
        return [hold.owner for hold in self.all() if hold.node_id == node_id]

    def hold(self, node_id: str) -> None:
        """Hold a node for the operator."""
        self._redis.client.hsetnx(self._keys.held_nodes, f"{OPERATOR}/{node_id}", str(self._redis.now_ms()))

    def lift(self, node_id: str, *, owner: str) -> bool:
        """Lift one owner's hold; False when there was none."""
        return bool(self._redis.hdel(self._keys.held_nodes, f"{owner}/{node_id}"))

    def missing(self, node_id: str) -> bool:
        """Hold a node that is out of reach; False when it has been so for too long, and is waited for no more."""
        keys = [self._keys.held_nodes, self._keys.outages, self._keys.events]
        code = cast("bytes", self._redis.run("node_missing", keys, [node_id, OUTAGE_MS, OUTAGE_OVER_MS]))
        return code == b"held"

    def sort(self, job_id: str) -> tuple[int, int]:
        """Put waiting groups of held nodes aside, and those whose nodes are let go back; return how many of each."""
        keys = self._keys.job(job_id)
        aside, back = self._redis.run("gate_sort", [keys.base, keys.queue, keys.held, self._keys.held_nodes])
        return int(aside), int(back)
