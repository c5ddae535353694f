"""Throttles: of groups and of nodes, as configured, as set at run time, and as nodes themselves ask for (adaptive).

Three limits hold at once: of the group, of the node that is read and of the node that is written; a copy that a server makes, to a key
or into its trash, also asks for a request. All of them are buckets in Redis, so that they hold fleet-wide (`store.throttle`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast, get_args

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.pacing.timetable import throttle_at
from rebalance_tasks.migration.control import Buckets
from rebalance_tasks.migration.tap import RATE_EVERY_S
from rebalance_tasks.store.pace import pace_keys
from rebalance_tasks.store.throttle import ByteBucket
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from datetime import datetime

    from rebalance_tasks.control.context import StateContext
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.core.pacing.pace import Pace
    from rebalance_tasks.store.records import GroupRecord

log = get_logger(__name__)

Direction = Literal["read", "write", "requests"]
#: What of a node can be limited.
DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)
_FIELD: Final[dict[Direction, str]] = {
    "read": "read_bytes_per_sec",
    "write": "write_bytes_per_sec",
    "requests": "requests_per_sec",
}


class NodeThrottle(NamedTuple):
    """How fast a node may be worked in one direction.

    Attributes:
        node_id: which node.
        direction: ``read``, ``write`` (bytes a second) or ``requests`` (copies that its server makes, a second).
        rate: in force; ``None`` is no limit.
        pace: what its calls show, where adaptive throttling has measured it.
    """

    node_id: str
    direction: Direction
    rate: int | None
    pace: Pace | None

    @property
    def reason(self) -> str:
        """Why it is slower than its limit; empty where it is not."""
        return "" if self.pace is None else self.pace.reason

    @property
    def why(self) -> str:
        """What is in force, in a word: ``limit``, ``latency`` or ``none``."""
        if self.pace is not None and self.rate_now == self.pace.rate_bytes_per_s:
            return "latency"
        return "none" if self.rate is None else "limit"

    @property
    def rate_now(self) -> int | None:
        """The lower of limit and pace; ``None`` where neither is."""
        held = self.pace.rate_bytes_per_s if self.pace is not None else 0
        return min((rate for rate in (self.rate, held) if rate), default=None)


class Throttles:
    """The buckets of a process; those of nodes are kept, so that one answer "no limit" does for all slices of a moment."""

    def __init__(self, context: StateContext) -> None:
        """Bind to a fleet."""
        self._context = context
        self._nodes: dict[tuple[str, Direction], ByteBucket] = {}
        #: what nobody limits, and when that was looked at
        self._free: set[tuple[str, Direction]] = set()
        self._looked_at = float("-inf")

    def of(self, job_id: str, group: GroupRecord, *, now: datetime) -> Buckets:
        """Return what a slice of a group leases from; the group's rate is that of the timetable's hour."""
        self._look()
        context = self._context
        of_group = ByteBucket(
            context.connection,
            context.keys.job(job_id).throttle(group.group_id),
            rate_bytes_per_s=throttle_at(context.settings.options, now),
            override_key=context.keys.throttle,
        )
        read, write = self._node(group.source, "read"), self._node(group.target, "write")
        return Buckets(
            (of_group, read, write), self._node(group.target, "requests"), self._node(group.source, "requests")
        )

    def _node(self, node_id: str, direction: Direction) -> ByteBucket:
        kept = self._nodes.get((node_id, direction))
        if kept is None:
            context = self._context
            adaptive = context.settings.options.adaptive_throttle and direction != "requests"
            kept = self._nodes[node_id, direction] = ByteBucket(
                context.connection,
                context.keys.node_bucket(node_id, direction),
                rate_bytes_per_s=_configured(context.settings.node(node_id), direction),
                override_key=context.keys.node_throttle(node_id, direction),
                pace_keys=pace_keys(context.keys, node_id, direction) if adaptive else (),
            )
        if (node_id, direction) in self._free:
            kept.free_at = self._looked_at
        return kept

    def _look(self) -> None:
        """Ask for the limits of all nodes at once: a group of one small object must not wait for three answers of its own."""
        now = time.monotonic()
        if now - self._looked_at < RATE_EVERY_S:
            return
        settings, keys = self._context.settings, self._context.keys
        pairs: list[tuple[str, Direction]] = [
            (node.node_id, direction)
            for node in settings.nodes
            for direction in DIRECTIONS
            if _configured(node, direction) is None
            and (direction == "requests" or not settings.options.adaptive_throttle)
        ]
        told = self._context.connection.client.mget([keys.node_throttle(*pair) for pair in pairs]) if pairs else []
        self._free = {pair for pair, raw in zip(pairs, cast("list[bytes | None]", told), strict=True) if raw is None}
        self._looked_at = now


def _configured(node: NodeDescriptor, direction: Direction) -> int | None:
    rate: int | None = getattr(node, _FIELD[direction])
    return rate


def set_node_throttle(
    context: StateContext, node_id: str, direction: Direction, rate: int | Literal["default"] | None, *, by: str = ""
) -> int | None:
    """Set how fast a node may be worked, fleet-wide and from the next lease on.

    Args:
        context: the fleet.
        node_id: which node.
        direction: what of it.
        rate: bytes, or requests, a second; ``None`` lifts the limit, ``"default"`` goes by the configuration again.
        by: who asks.

    Returns:
        The rate in force.

    Raises:
        UnknownNode: it is not configured.
        InvalidArgument: below 1 (to hold a node there is `pause --node`).
    """
    configured = _configured(context.settings.node(node_id), direction)
    if isinstance(rate, int) and rate < 1:
        msg = f"throttle {rate} of node {node_id!r}: at least 1 a second; `rebalance pause --node {node_id}` holds it"
        raise InvalidArgument(msg)
    key = context.keys.node_throttle(node_id, direction)
    if rate == "default":
        context.connection.client.delete(key)
    else:
        context.connection.client.set(key, rate or 0)
    data = {"node": node_id, "direction": direction, "rate": "configured" if rate == "default" else rate or 0}
    context.events.note(EventKind.FLEET_THROTTLE, by=by, data=data)
    log.info("fleet.throttle", **data)
    return configured if rate == "default" else rate


def node_throttles(context: StateContext) -> list[NodeThrottle]:
    """Return the limits in force and what holds nodes back; directions with neither are left out."""
    nodes = context.settings.nodes
    paces = context.paces.all(node.node_id for node in nodes) if context.settings.options.adaptive_throttle else {}
    pairs = [(node, direction) for node in nodes for direction in DIRECTIONS]
    told = context.connection.client.mget(
        [context.keys.node_throttle(node.node_id, way) for node, way in pairs] or [""]
    )
    found: list[NodeThrottle] = []
    for (node, direction), raw in zip(pairs, cast("list[bytes | None]", told), strict=False):
        rate = _configured(node, direction) if raw is None else int(raw) or None
        pace = paces.get((node.node_id, direction))
        if rate is not None or pace is not None:
            found.append(NodeThrottle(node.node_id, direction, rate, pace))
    return found
