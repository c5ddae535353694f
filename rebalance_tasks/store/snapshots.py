"""What each check saw and decided, kept for an audit: how full every node was, why it ran or skipped, what it planned.

One sorted set, a compressed document a check with its time as the score, so that retention is one command.
"""

from __future__ import annotations

import zlib
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, cast

from pydantic import AwareDatetime, Field, NonNegativeInt

from rebalance_tasks.core.models import Frozen, Money, NodeState
from rebalance_tasks.store.records import Stamped

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys


class NodeSnapshot(Frozen):
    """How one node was."""

    node_id: str
    pool: str
    state: NodeState
    used_bytes: NonNegativeInt
    capacity_bytes: NonNegativeInt


class Snapshot(Stamped):
    """One check.

    Attributes:
        nodes: as they were surveyed; empty when the check skipped before it looked.
        left_out: node_id → why it was not surveyed.
        objects: in the inventory.
        moves, bytes, cost: of the plan; 0 without one.
        limits, not_moved, cannot: as the plan says.
    """

    kind = "snapshot"

    at: AwareDatetime
    verdict: str
    reason: str
    forced: bool = False
    plan_id: str | None = None
    nodes: tuple[NodeSnapshot, ...] = ()
    left_out: dict[str, str] = Field(default_factory=dict)
    objects: NonNegativeInt = 0
    imbalance_before: float | None = None
    imbalance_after: float | None = None
    moves: NonNegativeInt = 0
    bytes: NonNegativeInt = 0
    cost: Money = Decimal(0)
    limits: tuple[str, ...] = ()
    not_moved: dict[str, int] = Field(default_factory=dict)
    cannot: tuple[str, ...] = ()


class SnapshotStore:
    """Snapshots of a fleet's checks."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._key = keys.check_snapshots

    def save(self, snapshot: Snapshot, *, retention: timedelta) -> None:
        """Keep a snapshot and forget those older than the retention."""
        at_ms = int(snapshot.at.timestamp() * 1000)
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.zadd(self._key, {zlib.compress(snapshot.model_dump_json().encode()): at_ms})
        pipe.zremrangebyscore(self._key, "-inf", at_ms - retention // timedelta(milliseconds=1))
        pipe.execute()

    def newest(self, limit: int) -> list[Snapshot]:
        """Return the newest snapshots, newest first. Raises: NewerVersion."""
        raw = cast("list[bytes]", self._redis.client.zrevrange(self._key, 0, limit - 1))
        return [Snapshot.model_validate_json(zlib.decompress(entry)) for entry in raw]
