"""Jobs and groups in Redis: creation, flags, the gate, leases, closing. Every change is one Lua compare-and-set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from rebalance_tasks.core.errors import JobActive, JobNotFound
from rebalance_tasks.core.states import MoveState, RebalanceStatus, origins
from rebalance_tasks.store.connection import script_source
from rebalance_tasks.store.counters import JOB_BOUNDS_S
from rebalance_tasks.store.job_view import Holds, job_view
from rebalance_tasks.store.leases import REDRIVE_MS, LeaseStore
from rebalance_tasks.store.records import GroupRecord, pack_keys
from rebalance_tasks.store.versions import VERSIONS, require_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rebalance_tasks.core.models import RebalanceJob
    from rebalance_tasks.store.connection import Call, Value

#: Headers of one data queue that are out and not picked up yet: more would only make the broker's queue longer, while
#: those that run go on with the next group by themselves.
AHEAD: Final = 8
#: Finished jobs are remembered that long.
JOB_RETENTION: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Moves of a group that one runner takes under one lease.

    Attributes:
        first: index of the first one.
        keys: (object key, size in bytes) of each, in order of their indexes.
    """

    first: int
    keys: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A group about to be created.

    Attributes:
        score: order at the gate, lowest first.
        left: moves still to do (the rest were skipped when the plan was re-verified).
        stretches: what runners take, one at a time; they leave out only moves that were skipped.
    """

    record: GroupRecord
    score: float
    left: int
    stretches: Sequence[Stretch]


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be created, with everything its workers will need."""

    job_id: str
    plan_id: str
    requested_by: str
    imbalance_before: float
    states: str
    total_bytes: int
    groups: Sequence[NewGroup]
    #: cause -> number of moves skipped from the start
    skipped: Mapping[str, int]
    capacities: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Finished:
    """What finishing a group came to.

    Attributes:
        code: finished, already, open (not terminal) or gone.
        left: groups not counted yet.
    """

    code: str
    left: int
    cancel_requested: bool


class JobStore(LeaseStore):
    """Jobs of a fleet, and the leases in their groups."""

    # -- creation -------------------------------------------------------------------------------------------------
    def create(self, job: NewJob) -> bool:
        """Create a job with all its groups in one step.

        Returns:
            False when a job with this id is there already (nothing is changed).

        Raises:
            JobActive: the fleet runs another job.
        """
        keys = self._keys.job(job.job_id)
        skipped = sum(job.skipped.values())
        fields: dict[str, Value] = {
            "status": RebalanceStatus.PENDING.value,
            "plan_id": job.plan_id,
            "requested_by": job.requested_by,
            "imbalance_before": repr(job.imbalance_before),
            "total": len(job.states),
            "total_bytes": job.total_bytes,
            "completed": 0,
            "failed": 0,
            "skipped": skipped,
            "bytes_moved": 0,
            "groups_total": len(job.groups),
            "groups_done": 0,
            "capacities": json.dumps(dict(job.capacities)),
            "version": VERSIONS["job"],
        }
        args: list[Value] = [job.job_id, job.states, len(fields)]
        for name, value in fields.items():
            args += [name, value]
        chunks = [
            (f"{group.record.group_id}:{number}", pack_keys(stretch.first, stretch.keys))
            for group in job.groups
            for number, stretch in enumerate(group.stretches)
        ]
        args.append(len(chunks))
        for name, chunk in chunks:
            args += [name, chunk]
        args.append(len(job.groups))
        for group in job.groups:
            record = group.record
            args += [
                record.group_id,
                record.model_dump_json(),
                group.score,
                group.left,
                record.offset,
                record.size,
                record.size - group.left,
                len(group.stretches),
                record.queue,
                record.source,
                record.target,
            ]
        script_keys = [
            keys.base,
            self._keys.active,
            self._keys.jobs,
            keys.states,
            keys.groups,
            keys.queue,
            keys.moves,
            keys.causes,
            self._keys.events,
            self._keys.written,
            self._keys.frees,
            self._keys.frees_batches,
            self._keys.undos,
        ]
        for cause, count in job.skipped.items():
            args += [cause, count]
        reply = cast("list[bytes]", self._redis.run("job_create", script_keys, args))
        if reply[0] == b"busy":
            raise JobActive(reply[1].decode())
        return reply[0] == b"created"

    # -- reading --------------------------------------------------------------------------------------------------
    def exists(self, job_id: str) -> bool:
        """Whether the job is known."""
        return bool(self._redis.client.exists(self._keys.job(job_id).base))

    def active(self) -> str | None:
        """Id of the one active job."""
        raw = self._redis.get(self._keys.active)
        return None if raw is None else raw.decode()

    def clear_active(self, job_id: str) -> None:
        """Forget an active job that no longer exists (its keys were lost)."""
        if self.active() == job_id and not self.exists(job_id):
            self._redis.client.delete(self._keys.active)

    def ids(self) -> list[str]:
        """Known jobs, newest first; expired ones drop out."""
        raw = cast("list[bytes]", self._redis.client.zrevrange(self._keys.jobs, 0, -1))
        return [entry.decode() for entry in raw]

    def load(self, job_id: str) -> RebalanceJob:
        """The job as it is at this instant. Raises: JobNotFound, NewerVersion."""
        keys = self._keys.job(job_id)
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.hgetall(keys.base)
        pipe.smembers(keys.paused)
        pipe.smembers(self._keys.paused)
        pipe.hgetall(keys.causes)
        pipe.time()
        pipe.eval(script_source("job_holds"), 3, keys.base, keys.groups, self._keys.held_nodes)
        raw, paused, fleet_paused, causes, now, holds = pipe.execute()
        if not raw:
            raise JobNotFound(job_id)
        fields = {name.decode(): value for name, value in raw.items()}
        require_known("job", fields.get("version"))
        seconds, micros = now
        return job_view(
            self._keys.fleet,
            job_id,
            fields,
            now=datetime.fromtimestamp(seconds + micros / 1e6, tz=UTC),
            reasons={reason.decode() for reason in (*paused, *fleet_paused)},
            causes={cause.decode(): int(n) for cause, n in causes.items()},
            holds=Holds.read(holds),
        )

    def capacities(self, job_id: str) -> dict[str, int]:
        """Capacities of the nodes when the job started, bytes by node."""
        raw = self._redis.hget(self._keys.job(job_id).base, "capacities")
        return {} if raw is None else {str(node): int(value) for node, value in json.loads(raw).items()}

    def group(self, job_id: str, group_id: str) -> GroupRecord | None:
        """What never changes about a group."""
        raw = self._redis.hget(self._keys.job(job_id).groups, group_id)
        return None if raw is None else GroupRecord.model_validate_json(raw)

    def groups(self, job_id: str) -> dict[str, GroupRecord]:
        """All groups of a job."""
        raw = self._redis.hgetall(self._keys.job(job_id).groups)
        return {name: GroupRecord.model_validate_json(value) for name, value in raw.items()}

    def was_flipped(self, move_id: str) -> bool:
        """Whether readers were sent to the target of a move; False also when its job is forgotten."""
        job_id, _, index = move_id.rpartition(".")
        if not index.isdecimal():
            return False
        byte = self._redis.client.getrange(self._keys.job(job_id).states, int(index), int(index))
        return byte in {MoveState.FLIPPED.value.encode(), MoveState.COMPLETED.value.encode()}

    def permits(self, job_id: str) -> list[str]:
        """Groups of the job that hold a permit."""
        prefix = f"{job_id}/"
        return sorted(
            name.removeprefix(prefix) for name in self._redis.hgetall(self._keys.permits) if name.startswith(prefix)
        )

    # -- the gate -------------------------------------------------------------------------------------------------
    def admit(self, job_id: str, *, limit: int, per_node: int | None = None) -> list[GroupRecord]:
        """Grant permits; return the groups whose headers are now to be published.

        Args:
            job_id: the job.
            limit: groups with a permit, fleet-wide; a limit set at run time wins.
            per_node: groups with a permit that touch one node.
        """
        _, *groups = self._redis.run(*self._admission(job_id, limit, per_node))
        return _groups(groups)

    def _admission(
        self, job_id: str, limit: int, per_node: int | None, *, take_from: str = "", counted: str = ""
    ) -> Call:
        keys = self._keys.job(job_id)
        script_keys = [
            keys.base,
            keys.queue,
            self._keys.permits,
            keys.paused,
            self._keys.paused,
            keys.groups,
            self._keys.info,
            keys.waiting,
        ]
        return "gate_admit", script_keys, [job_id, limit, REDRIVE_MS, AHEAD, per_node or 0, take_from, counted]

    def ending(
        self, job_id: str, group_id: str, *, limit: int, per_node: int | None = None, take_from: str = ""
    ) -> list[Call]:
        """The scripts that count a terminal group, give its permit back and admit the next ones.

        While the group is not terminal they do nothing, so they can be asked along with what may end it.

        Args:
            job_id: the job.
            group_id: the group.
            limit: see `admit`.
            per_node: see `admit`.
            take_from: the data queue from which a runner goes on with a group at once.
        """
        admission = self._admission(job_id, limit, per_node, take_from=take_from, counted=group_id)
        return [self._finish(job_id, group_id), admission]

    @staticmethod
    def ended(replies: Sequence[Any]) -> tuple[Finished, GroupRecord | None, list[GroupRecord]]:
        """Return what finishing came to, the group to go on with, and the groups to publish, from the replies to `ending`."""
        (code, left, cancel), (taken, *groups) = replies
        following = GroupRecord.model_validate_json(taken) if taken else None
        return Finished(code.decode(), int(left), bool(cancel)), following, _groups(groups)

    def count_group(self, job_id: str, group_id: str) -> Finished:
        """Count a terminal group and give its permit back; who comes next is left to the caller."""
        code, left, cancel = self._redis.run(*self._finish(job_id, group_id))
        return Finished(code.decode(), int(left), bool(cancel))

    def _finish(self, job_id: str, group_id: str) -> Call:
        keys = self._keys.job(job_id)
        script_keys = [keys.base, keys.group(group_id), self._keys.permits, keys.waiting]
        return "group_finish", script_keys, [f"{job_id}/{group_id}", group_id]

    # -- flags and the end ----------------------------------------------------------------------------------------
    def pause(self, job_id: str, *, reason: str, by: str = "") -> tuple[str, str]:
        """Add a reason to pause, and note who asked; return (code, status). Raises: JobNotFound."""
        keys = self._keys.job(job_id)
        allowed = sorted(state.value for state in origins(RebalanceStatus.PAUSED))
        code, status = self._redis.run(
            "job_pause", [keys.base, keys.paused, self._keys.events], [job_id, reason, by, *allowed]
        )
        return self._known(job_id, code), status.decode()

    def resume(self, job_id: str, *, reason: str, by: str = "") -> tuple[str, str, list[str]]:
        """Lift a reason to pause, and note who asked; return (code, status, reasons left). Raises: JobNotFound."""
        keys = self._keys.job(job_id)
        script_keys = [keys.base, keys.paused, self._keys.paused, self._keys.events]
        code, status, *left = self._redis.run("job_resume", script_keys, [job_id, reason, by])
        return self._known(job_id, code), status.decode(), sorted(entry.decode() for entry in left)

    def cancel(self, job_id: str, *, by: str) -> tuple[str, str, int, list[str]]:
        """Ask the job to stop; return (code, status, groups left to wind up, those that need waking). Raises: JobNotFound."""
        keys = self._keys.job(job_id)
        script_keys = [keys.base, keys.queue, keys.states, keys.causes, keys.held, self._keys.events]
        code, status, left, woken = self._redis.run("job_cancel", script_keys, [by, job_id])
        return self._known(job_id, code), status.decode(), int(left), [entry.decode() for entry in woken]

    def finalize(self, job_id: str, *, imbalance_after: float | None, error: str) -> tuple[str, str]:
        """Close the job if every move is terminal; return (code, status), see ``job_finalize.lua``."""
        keys = self._keys.job(job_id)
        script_keys = [keys.base, self._keys.active, keys.states, keys.causes, self._keys.permits, self._keys.info]
        script_keys += [self._keys.counters, self._keys.events]
        after = "" if imbalance_after is None else repr(imbalance_after)
        code, status = self._redis.run("job_finalize", script_keys, [job_id, after, error, *JOB_BOUNDS_S])
        return code.decode(), status.decode()

    def retire(self, job_id: str, *, keep: timedelta = JOB_RETENTION) -> None:
        """After the end: drop what only a running job needs, let the rest expire after ``keep``."""
        keys = self._keys.job(job_id)
        group_ids = list(self._redis.hgetall(keys.groups))
        expiry = int(keep.total_seconds())
        pipe = self._redis.client.pipeline(transaction=False)
        for group_id in group_ids:
            pipe.hget(keys.group(group_id), "open")
        # Only a job that was given up has stretches left; the journals of their batches lie in the leases.
        left = [
            keys.lease(group_id, int(stretch))
            for group_id, stretches in zip(group_ids, pipe.execute(), strict=True)
            for stretch in (stretches or b"").split()
        ]
        pipe.delete(
            *left,
            keys.journal,
            keys.queue,
            keys.held,
            keys.waiting,
            keys.paused,
            *(keys.throttle(group_id) for group_id in group_ids),
        )
        if group_ids:
            pipe.hdel(self._keys.permits, *(f"{job_id}/{group_id}" for group_id in group_ids))
        for key in (*keys.all_fixed(), *(keys.group(group_id) for group_id in group_ids)):
            pipe.expire(key, expiry)
        pipe.zremrangebyscore(self._keys.jobs, "-inf", self._redis.now_ms() - expiry * 1000)
        pipe.execute()

    @staticmethod
    def _known(job_id: str, code: bytes) -> str:
        if code == b"unknown":
            raise JobNotFound(job_id)
        return code.decode()


def _groups(reply: Sequence[bytes]) -> list[GroupRecord]:
    return [GroupRecord.model_validate_json(entry) for entry in reply]
