"""What is known of a fleet as a whole: the check's lock, node states and adoption, usage, digests, check records."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.store.events import queue_event
from rebalance_tasks.store.records import CheckRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Check records kept for audit.
CHECKS_KEPT: Final = 200
#: Field of the fleet's info hash that the gate reads.
LIMIT_FIELD: Final = "max_concurrent_migrations"


@dataclass(frozen=True, slots=True)
class ChoreRecord:
    """What a run of a periodic chore did.

    Attributes:
        did: what → how often; what it found nothing of is left out.
    """

    at: datetime
    did: Mapping[str, int]


class NodeFigures(NamedTuple):
    """Bytes of a node: of objects (-1: never surveyed), its capacity (-1: likewise), in the trash, promised to groups."""

    used: int
    capacity: int
    awaiting: int
    reserved: int


#: A start that was asked for should be there by then.
STARTING_MS: Final = 60_000


class FleetStore:
    """Fleet-wide state."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def acquire_check(self, *, ttl_ms: int) -> int | None:
        """Become the one check; return its fencing token, or ``None`` when another one runs."""
        args: list[str | int] = [ttl_ms, uuid.uuid4().hex]
        token = int(self._redis.run("check_acquire", [self._keys.check_lock, self._keys.check_fence], args))
        return token or None

    def release_check(self, token: int) -> None:
        """End the check."""
        self._redis.run("check_release", [self._keys.check_lock], [token])

    def note_starting(self, job_id: str) -> None:
        """Remember which job was asked for, until it is there or its message is given up for lost."""
        self._redis.client.set(self._keys.check_starting, job_id, px=STARTING_MS)

    def starting(self) -> str | None:
        """The job that was asked for last, for a minute."""
        raw = self._redis.get(self._keys.check_starting)
        return None if raw is None else raw.decode()

    def record_check(self, record: CheckRecord, *, by: str) -> None:
        """Keep why a check ran or skipped, and who asked for it."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.lpush(self._keys.checks, record.model_dump_json())
        pipe.ltrim(self._keys.checks, 0, CHECKS_KEPT - 1)
        pipe.hincrby(self._keys.counters, f"checks:{record.verdict}", 1)
        told = {
            "verdict": record.verdict,
            "reason": record.reason,
            "plan_id": record.plan_id,
            "imbalance": record.imbalance,
        }
        queue_event(pipe, self._keys, EventKind.CHECKED, by=by, data=told)
        pipe.execute()

    def checks(self, limit: int) -> list[CheckRecord]:
        """The newest check records."""
        raw = cast("list[bytes]", self._redis.client.lrange(self._keys.checks, 0, limit - 1))
        return [CheckRecord.model_validate_json(entry) for entry in raw]

    def epoch(self) -> int:
        """The fleet's epoch: it grows when nodes or placements change."""
        return int(self._redis.hget(self._keys.info, "epoch") or 0)

    def note_map(self, digest: str) -> int:
        """Note the cluster map a check saw; a changed one begins a new epoch. Returns the epoch."""
        if self._redis.hget(self._keys.info, "map_digest") != digest.encode():
            pipe = self._redis.client.pipeline(transaction=True)
            pipe.hset(self._keys.info, "map_digest", digest)
            pipe.hincrby(self._keys.info, "epoch", 1)
            pipe.execute()
        return self.epoch()

    def node_states(self) -> dict[str, NodeState]:
        """States set at run time; they win over the configuration."""
        return {node: NodeState(value.decode()) for node, value in self._redis.hgetall(self._keys.node_states).items()}

    def set_node_state(self, node_id: str, state: NodeState) -> None:
        """Set a node's state at run time."""
        self._redis.hset(self._keys.node_states, {node_id: state.value})

    def forget_node_state(self, node_id: str) -> None:
        """Go by the configuration again."""
        self._redis.hdel(self._keys.node_states, node_id)

    def adopted(self) -> set[str]:
        """Nodes whose node-id file we wrote or accepted once: from then on a root without it is missing."""
        return set(self._redis.hgetall(self._keys.adopted))

    def note_adopted(self, node_id: str, *, now_ms: int) -> None:
        """Remember that a node carries its node-id."""
        self._redis.client.hsetnx(self._keys.adopted, node_id, str(now_ms))

    def set_usage(self, usage: Mapping[str, int]) -> None:
        """Keep what a survey found, bytes of objects by node."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.delete(self._keys.usage)
        if usage:
            pipe.hset(self._keys.usage, mapping=cast("Any", usage))
        pipe.execute()

    def usage(self) -> dict[str, int]:
        """Bytes of objects by node: the last survey, kept current by flips."""
        return {node: int(value) for node, value in self._redis.hgetall(self._keys.usage).items()}

    def awaiting(self) -> dict[str, int]:
        """Bytes by node that are freed but still in the trash."""
        return {node: int(value) for node, value in self._redis.hgetall(self._keys.awaiting).items()}

    def set_capacities(self, capacities: Mapping[str, int]) -> None:
        """Keep the capacities that a survey found, bytes by node."""
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.delete(self._keys.capacity)
        if capacities:
            pipe.hset(self._keys.capacity, mapping=cast("Any", capacities))
        pipe.execute()

    def figures(self, node_ids: Sequence[str]) -> list[NodeFigures]:
        """How full these nodes are, in order; one trip, however many there are."""
        if not node_ids:
            return []
        keys = [self._keys.usage, self._keys.capacity, self._keys.awaiting, *map(self._keys.reserved, node_ids)]
        text = cast("bytes", self._redis.run("node_figures", keys, node_ids))
        return [NodeFigures(*map(int, line.split())) for line in text.splitlines()]

    def paused_reasons(self) -> set[str]:
        """Reasons for which the whole fleet is paused."""
        return self._redis.smembers(self._keys.paused)

    def pause(self, reason: str) -> None:
        """Pause the whole fleet for a reason."""
        self._redis.client.sadd(self._keys.paused, reason)

    def resume(self, reason: str) -> None:
        """Lift a fleet-wide reason to pause."""
        self._redis.client.srem(self._keys.paused, reason)

    # -- limits set at run time -----------------------------------------------------------------------------------
    def limit(self) -> int | None:
        """Concurrency limit set at run time, which wins over `max_concurrent_migrations`; ``None`` when none is set."""
        raw = self._redis.hget(self._keys.info, LIMIT_FIELD)
        return None if raw is None else int(raw)

    def set_limit(self, limit: int | None) -> None:
        """Set the concurrency limit of the fleet, or with ``None`` go by the configuration again."""
        if limit is None:
            self._redis.hdel(self._keys.info, LIMIT_FIELD)
        else:
            self._redis.hset(self._keys.info, {LIMIT_FIELD: limit})

    def throttle(self) -> int | None:
        """Rate of each group set at run time, bytes a second, 0 for none; ``None`` when the configuration is in force."""
        raw = self._redis.get(self._keys.throttle)
        return None if raw is None else int(raw)

    def set_throttle(self, rate_bytes_per_s: int | None) -> None:
        """Set the rate of each group, 0 for no throttle, or with ``None`` go by the configuration again."""
        if rate_bytes_per_s is None:
            self._redis.client.delete(self._keys.throttle)
        else:
            self._redis.client.set(self._keys.throttle, rate_bytes_per_s)

    # -- lives of the server --------------------------------------------------------------------------------------
    def note_life(self, run_id: str, *, now_ms: int) -> int:
        """Note which life of the server this is; return since when it is known, in ms.

        What the end of the last life has lost takes its note along, so that a loss is always noticed as a new life.
        """
        raw = self._redis.hget(self._keys.info, "life")
        known, _, since = (raw or b"").decode().rpartition("|")
        if known == run_id:
            return int(since)
        self._redis.hset(self._keys.info, {"life": f"{run_id}|{now_ms}"})
        return now_ms

    def searched(self, node_id: str) -> str:
        """How far a node was searched for what Redis forgot; '' for never."""
        return (self._redis.hget(self._keys.info, f"searched:{node_id}") or b"").decode()

    def note_searched(self, node_id: str, progress: str) -> None:
        """Note how far a node was searched."""
        self._redis.hset(self._keys.info, {f"searched:{node_id}": progress})

    # -- chores ---------------------------------------------------------------------------------------------------
    def record_chore(self, name: str, report: Mapping[str, int], *, now_ms: int) -> None:
        """Keep what the last run of a chore (``sweep``, ``cleanup``) did."""
        did = {what: count for what, count in report.items() if count}
        self._redis.hset(self._keys.info, {f"last_{name}": json.dumps({"at_ms": now_ms, "did": did})})

    def last_chore(self, name: str) -> ChoreRecord | None:
        """What the last run of a chore did; ``None`` when it never ran."""
        raw = self._redis.hget(self._keys.info, f"last_{name}")
        if raw is None:
            return None
        data = json.loads(raw)
        at = datetime.fromtimestamp(int(data["at_ms"]) / 1000, tz=UTC)
        return ChoreRecord(at, {str(what): int(count) for what, count in data["did"].items()})

    def due(self, what: str, *, every_s: int) -> bool:
        """Whether a rare chore is due; the one who is told so is the one who does it."""
        return bool(self._redis.client.set(self._keys.key(f"chore:{what}"), "1", nx=True, ex=every_s))
