"""Moves of an ended job that did not reach their target, as far as Redis knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.records import GroupRecord, MoveRecord, unpack_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys


def unmoved(connection: Connection, keys: FleetKeys, job_id: str) -> Iterator[tuple[MoveRecord, GroupRecord]]:
    """Yield the moves of an ended job that failed or were skipped, each with its group.

    Stretches of which nothing was to be done when the job started are not kept, and so not yielded.
    """
    job = keys.job(job_id)
    states = (connection.get(job.states) or b"").decode()
    groups = {name: GroupRecord.model_validate_json(raw) for name, raw in connection.hgetall(job.groups).items()}
    for name, stretch in connection.hgetall(job.moves).items():
        group = groups.get(name.rpartition(":")[0])
        place, _, packed = stretch.partition(b"\n")
        if group is None:
            continue
        for index, (key, size_bytes) in enumerate(unpack_keys(packed), int(place.split()[0])):
            if states[index : index + 1] in {MoveState.FAILED, MoveState.SKIPPED}:
                yield MoveRecord(index, MoveId(f"{job_id}.{index}"), key, size_bytes), group
