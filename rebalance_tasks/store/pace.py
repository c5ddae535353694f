"""How fast each node may be worked, fleet-wide: measurements of all slices together, and what the controller makes of them.

The controller (`core.pacing.pace`) is pure; here it is fed, once in an interval and by whoever notes then. Its rate is read by the byte
buckets of the node (``throttle_take.lua``), so that it acts within a tenth of a second on every worker. A direction has two paces, since what
an object of a burst usually takes is no measure for a call that goes alone.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final, cast

from rebalance_tasks.core.pacing.pace import Pace, step
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

log = get_logger(__name__)

#: Directions in which a node is worked.
READ: Final = "read"
WRITE: Final = "write"
#: One step of the controller.
INTERVAL_MS: Final = 1000
#: What is usual for a node is forgotten when nobody has worked it for so long.
REMEMBERED_MS: Final = 600_000
_FIELDS: Final = ("usual", "smoothed", "full", "rate")


def pace_keys(keys: FleetKeys, node_id: str, direction: str) -> tuple[str, str]:
    """Keys of a node's paces in one direction: of calls that go alone, and of objects of bursts."""
    return keys.pace(node_id, direction), keys.pace(node_id, direction, together=True)


class PaceStore:
    """Paces of a fleet's nodes."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis, self._keys = connection, keys

    def note(
        self, node_id: str, direction: str, *, seconds: float, calls: int, size_bytes: int, together: bool = False
    ) -> None:
        """Note how long calls took; once in an interval this takes a step of the controller.

        Args:
            node_id: whose calls.
            direction: ``read`` or ``write``.
            seconds: spent in them.
            calls: how many.
            size_bytes: that they moved.
            together: they were objects of a burst.
        """
        keys = pace_keys(self._keys, node_id, direction)
        key, other = reversed(keys) if together else keys
        args = [int(seconds * 1e6), calls, size_bytes, INTERVAL_MS, REMEMBERED_MS]
        turn = self._redis.run("pace_note", [key, other], args)
        if not turn:
            return
        age_ms, spent_us, took, moved = (int(value) for value in turn[:4])
        before = _pace(turn[4:])
        after = step(before, latency_ms=max(spent_us, 1) / 1000 / took, bytes_per_s=moved * 1000 / age_ms)
        known = {"usual": f"{after.usual_ms:.6f}", "smoothed": f"{after.smoothed_ms:.6f}"}
        self._redis.hset(key, {**known, "full": after.full_bytes_per_s, "rate": after.rate_bytes_per_s})
        if bool(before.rate_bytes_per_s) != bool(after.rate_bytes_per_s):
            log.info("node.pace", node_id=node_id, direction=direction, rate_bytes_per_s=after.rate_bytes_per_s)

    def all(self, node_ids: Iterable[str]) -> dict[tuple[str, str], Pace]:
        """Return (node, direction) → pace of what has been measured lately; of two the one that holds it back more."""
        pairs = [(node_id, direction) for node_id in node_ids for direction in (READ, WRITE)]
        named = [(pair, key) for pair in pairs for key in pace_keys(self._keys, *pair)]
        pipe = self._redis.client.pipeline(transaction=False)
        for _, key in named:
            pipe.hmget(key, _FIELDS)
        found: dict[tuple[str, str], Pace] = {}
        for (pair, _), raw in zip(named, pipe.execute(), strict=True):
            if raw[0] is not None:
                pace = _pace([value or b"0" for value in raw])
                found[pair] = min(found.get(pair, pace), pace, key=lambda one: one.rate_bytes_per_s or math.inf)
        return found

    def note_in_flight(self, source: str, target: str, reason: str) -> None:
        """Note why fewer objects than usual are in flight between two nodes; an empty reason says that all are again."""
        field = json.dumps([source, target])
        if not reason:
            self._redis.client.hdel(self._keys.in_flight, field)
            return
        self._redis.hset(self._keys.in_flight, {field: reason})
        self._redis.client.pexpire(self._keys.in_flight, REMEMBERED_MS)

    def in_flight(self) -> dict[tuple[str, str], str]:
        """Return (source, target) → why fewer objects than usual are in flight between them."""
        told = cast("dict[bytes, bytes]", self._redis.client.hgetall(self._keys.in_flight))
        return {tuple(json.loads(field)): reason.decode() for field, reason in sorted(told.items())}


def _pace(values: Iterable[bytes | str]) -> Pace:
    usual, smoothed, full, rate = (float(value) for value in values)
    return Pace(usual, smoothed, int(full), int(rate))
