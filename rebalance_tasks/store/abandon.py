"""The end of a job of which Redis has lost a part, so that nobody can carry it to its proper end.

Redis that was restored by halves (evicted keys, a partial backup) may know a job but not its moves. Its runners find
nothing to do and its bytes can never be counted, so without this it would hold the fleet for ever.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from redis.exceptions import WatchError

from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.states import TERMINAL, RebalanceStatus
from rebalance_tasks.store.counters import job_counts
from rebalance_tasks.store.events import queue_event

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Cause of the moves of such a job.
STATE_LOST: Final = "state_lost"


def lost_part(connection: Connection, keys: FleetKeys, job_id: str) -> str:
    """Name what Redis has lost of a job ('' when nothing is missing that it needs)."""
    job = keys.job(job_id)
    pipe = connection.client.pipeline(transaction=True)
    pipe.hmget(job.base, "status", "total", "groups_total", "groups_done")
    pipe.strlen(job.states)
    pipe.hlen(job.groups)
    pipe.exists(job.moves)
    (status, total, groups_total, groups_done), states, groups, moves = pipe.execute()
    if status is None:
        return "job"
    if total is None or groups_total is None:
        return "facts"
    if states != int(total):
        return "states"
    if groups != int(groups_total):
        return "groups"
    return "moves" if not moves and int(groups_done or 0) < int(groups_total) else ""


def abandon(connection: Connection, keys: FleetKeys, job_id: str, *, why: str, now_ms: int) -> bool:
    """Close a job as failed: what was not counted yet has failed (invariant 3). False when somebody closed it first."""
    job = keys.job(job_id)
    with connection.client.pipeline() as pipe:
        try:
            pipe.watch(job.base)  # type: ignore[no-untyped-call]
            fields = connection.hgetall(job.base)
            if not fields or fields.get("status", b"").decode() in {status.value for status in TERMINAL}:
                return False
            done = {name: int(fields.get(name, b"0")) for name in ("completed", "failed", "skipped")}
            total = max(int(fields.get("total", b"0")), sum(done.values()))
            open_moves = total - sum(done.values())
            causes = connection.hgetall(job.causes)
            pipe.multi()
            pipe.hset(
                job.base,
                mapping={
                    "status": RebalanceStatus.FAILED.value,
                    "error": why,
                    "completed_ms": now_ms,
                    "total": total,
                    "failed": done["failed"] + open_moves,
                },
            )
            if "created_ms" not in fields:
                pipe.hset(job.base, "created_ms", now_ms)
            if open_moves:
                pipe.hincrby(job.causes, STATE_LOST, open_moves)
            pipe.hincrby(keys.info, "epoch", 1)
            counts = job_counts(fields, causes)
            lost = {"moves:failed": open_moves, f"cause:{STATE_LOST}": open_moves, "jobs:failed": 1}
            for name, count in (Counter(counts) + Counter(lost)).items():
                pipe.hincrby(keys.counters, name, count)
            queue_event(pipe, keys, EventKind.JOB_FAILED, by="sweep", job_id=job_id, data={**done, "error": why})
            pipe.execute()
        except WatchError:
            return False
    return True
