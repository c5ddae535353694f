"""What was ever counted in a fleet: kept in Redis, so that it adds up over all processes and outlasts each of them.

A job counts in its own hash while it runs and is added to these counters by the script that ends it, in the same step
in which it stops being the active one. `CounterStore.totals` reads both in one transaction, so no total ever goes back.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, cast

from rebalance_tasks.core.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: Upper bounds of the histogram of jobs' durations, seconds.
JOB_BOUNDS_S: Final = (10, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
#: Upper bounds of the histogram of tasks' durations, seconds: from a look at the state to a long slice or check.
TASK_BOUNDS_S: Final = (0.01, 0.05, 0.25, 1, 5, 30, 120, 600)
#: Field of a job's hash → counter that it is added to when the job ends.
_OF_A_JOB: Final = {
    "completed": "moves:completed",
    "failed": "moves:failed",
    "skipped": "moves:skipped",
    "bytes_moved": "moved_bytes",
    "egress_bytes": "egress_bytes",
    "cost_nano": "cost_nano",
}
_ENDED: Final = frozenset(status.value.encode() for status in TERMINAL)
#: A job may end between two looks; three in a row would be a defect.
_LOOKS: Final = 3


class CounterStore:
    """Counters of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def add(self, counts: Mapping[str, int]) -> None:
        """Add to counters, in one trip."""
        pipe = self._redis.client.pipeline(transaction=False)
        for name, count in counts.items():
            pipe.hincrby(self._keys.counters, name, count)
        pipe.execute()

    def totals(self) -> Counter[str]:
        """Every counter, with what the active job has counted so far."""
        active = self._redis.get(self._keys.active) or b""
        for _ in range(_LOOKS):
            seen, totals = self._look(active)
            if seen == active:
                break
            active = seen
        return totals

    def _look(self, active: bytes) -> tuple[bytes, Counter[str]]:
        """Read the counters and a job in one transaction; return which job was the active one."""
        job = self._keys.job(active.decode())
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.get(self._keys.active)
        pipe.hgetall(self._keys.counters)
        pipe.hmget(job.base, ["status", *_OF_A_JOB])
        pipe.hgetall(job.causes)
        seen, counted, (status, *figures), causes = cast(
            "tuple[bytes | None, dict[bytes, bytes], list[bytes | None], dict[bytes, bytes]]", pipe.execute()
        )
        totals = Counter({name.decode(): int(value) for name, value in counted.items()})
        if status is not None and status not in _ENDED:
            totals.update({name: int(value or 0) for name, value in zip(_OF_A_JOB.values(), figures, strict=True)})
            totals.update({f"cause:{cause.decode()}": int(count) for cause, count in causes.items()})
        return seen or b"", totals


def job_counts(fields: Mapping[str, bytes], causes: Mapping[str, bytes]) -> dict[str, int]:
    """What a job adds to the counters when it ends outside of ``job_finalize.lua``."""
    counts = {name: int(fields.get(field, b"0")) for field, name in _OF_A_JOB.items()}
    return {**counts, **{f"cause:{cause}": int(count) for cause, count in causes.items()}}


def bucket(name: str, seconds: float, bounds: tuple[float, ...]) -> dict[str, int]:
    """What one observation adds to a histogram: its bucket (none beyond the last bound) and its milliseconds."""
    bound = next((bound for bound in bounds if seconds <= bound), None)
    found = {} if bound is None else {f"{name}_seconds:{bound:g}": 1}
    return {**found, f"{name}_ms": round(seconds * 1000)}
