"""How fast a job goes: samples that the sweep leaves in the job's hash, and the rates that they show.

A mean since the start says little after a pause, a changed throttle or a run of small objects. So each sweep notes where
the job is, and whoever looks compares with what was noted up to a minute ago. Time in which the job was paused does not
count: the samples begin anew after a pause, and the mean leaves out what ``paused_ms`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import xxhash
from redis.exceptions import WatchError

from rebalance_tasks.core.states import RebalanceStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys

#: What is older says nothing of the pace now.
WINDOW_MS: Final = 60_000
#: A sweep every 5 s fills the window with so many, and one to reach over its edge.
SAMPLES_KEPT: Final = 13
#: Two looks closer together than this show noise.
LEAST_SPAN_MS: Final = 1_000
#: Fields of a job that say where it was when it last came on, when that was, and whether its stand was reported.
_MARKS: Final = ("mark", "mark_ms", "stuck_told")


@dataclass(frozen=True, slots=True)
class Pace:
    """Rates over some stretch of time in which the job was not paused."""

    bytes_per_s: float
    moves_per_s: float

    def time_left_s(self, *, bytes_left: int, moves_left: int) -> float | None:
        """Seconds to the end at this pace, ``None`` when nothing moves."""
        if moves_left == 0:
            return 0.0
        if self.bytes_per_s > 0 and bytes_left > 0:
            return bytes_left / self.bytes_per_s
        return moves_left / self.moves_per_s if self.moves_per_s > 0 else None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is at one moment.

    Attributes:
        at_ms: when.
        active_ms: time since its start in which it was not paused.
        moved: bytes.
        done: terminal moves.
    """

    at_ms: int
    active_ms: int
    moved: int
    done: int
    bytes_left: int = 0
    moves_left: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, bytes], *, now_ms: int) -> Self:
        """Read it from a job's fields."""

        def number(name: str) -> int:
            return int(fields.get(name, b"0") or 0)

        end = number("completed_ms") or now_ms
        paused = number("paused_ms")
        if number("paused_since_ms"):
            paused += max(0, end - number("paused_since_ms"))
        started = number("started_ms")
        done = number("completed") + number("failed") + number("skipped")
        moved = number("bytes_moved")
        return cls(
            at_ms=now_ms,
            active_ms=max(0, end - started - paused) if started else 0,
            moved=moved,
            done=done,
            bytes_left=max(0, number("total_bytes") - moved),
            moves_left=max(0, number("total") - done),
        )

    def mean(self) -> Pace:
        """The pace over the whole run."""
        seconds = self.active_ms / 1000
        return Pace(self.moved / seconds, self.done / seconds) if seconds > 0 else Pace(0.0, 0.0)


def rates(now: Progress, samples: bytes) -> Pace | None:
    """The pace since the oldest sample of the window, ``None`` without one that is old enough."""
    for at_ms, active_ms, moved, done in _parse(samples):
        span = now.active_ms - active_ms
        if now.at_ms - at_ms <= WINDOW_MS and span >= LEAST_SPAN_MS:
            return Pace(max(0, now.moved - moved) * 1000 / span, max(0, now.done - done) * 1000 / span)
    return None


class ProgressStore:
    """Notes samples in the job's hash, so that whoever reads the job reads them along."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def note(self, job_id: str) -> None:
        """Take a sample of a running job; forget those of one that does not run."""
        base = self._keys.job(job_id).base
        fields = self._redis.hgetall(base)
        if fields.get("status") != RebalanceStatus.RUNNING.value.encode():
            self._redis.hdel(base, "samples", *_MARKS)
            return
        at = Progress.of(fields, now_ms=self._redis.now_ms())
        kept = _parse(fields.get("samples", b""))[-(SAMPLES_KEPT - 1) :]
        sample = (at.at_ms, at.active_ms, at.moved, at.done)
        samples = ";".join(",".join(map(str, entry)) for entry in [*kept, sample])
        self._set(base, {"samples": samples, **self._mark(job_id, fields, at)})

    def idle_s(self, job_id: str) -> float | None:
        """Seconds since a running job last came on, in moves or in parts of one; ``None`` when it does not run."""
        since = self._redis.hget(self._keys.job(job_id).base, "mark_ms")
        return None if since is None else max(0, self._redis.now_ms() - int(since)) / 1000

    def report_stuck(self, job_id: str) -> bool:
        """Whether to report that a job is stuck: once for each time it comes to a stand."""
        base = self._keys.job(job_id).base
        return bool(self._redis.client.hsetnx(base, "stuck_told", "1"))

    def _mark(self, job_id: str, fields: Mapping[str, bytes], at: Progress) -> dict[str, str | int]:
        """Note where the job is if it has come on since the last look. Its journal is read only when no move ended."""
        ended = f"{at.moved},{at.done}"
        before = fields.get("mark", b"").decode()
        mark = ended
        if before.partition("/")[0] == ended:
            journal = self._redis.hgetall(self._keys.job(job_id).journal)
            mark = f"{ended}/{xxhash.xxh3_64_hexdigest(repr(sorted(journal.items())).encode())}"
        if mark == before:
            return {}
        self._redis.hdel(self._keys.job(job_id).base, "stuck_told")
        return {"mark": mark, "mark_ms": at.at_ms}

    def _set(self, base: str, fields: Mapping[str, str | int]) -> None:
        """Write, unless the job has vanished meanwhile: half a hash would pass for a job. A sample may be missed."""
        with self._redis.client.pipeline() as pipe:
            try:
                pipe.watch(base)  # type: ignore[no-untyped-call]
                if not pipe.exists(base):
                    return
                pipe.multi()
                pipe.hset(base, mapping=cast("Any", fields))
                pipe.execute()
            except WatchError:
                return


def _parse(samples: bytes) -> list[tuple[int, int, int, int]]:
    """Read (at ms, active ms, bytes, moves) of each sample, oldest first."""
    result: list[tuple[int, int, int, int]] = []
    for entry in samples.decode().split(";") if samples else ():
        at_ms, active_ms, moved, done = map(int, entry.split(","))
        result.append((at_ms, active_ms, moved, done))
    return result
