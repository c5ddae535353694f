"""Direct access to the job store for tests: small jobs without nodes, leases, and time travel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.jobs import JobStore, NewGroup, NewJob, Stretch
from rebalance_tasks.store.keys import FleetKeys
from rebalance_tasks.store.moves import Attempt, Budgets, MoveStore
from rebalance_tasks.store.records import GroupRecord, JournalEntry
from tests.support.engine import hurry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.store.jobs import Finished
    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.records import MoveRecord

#: Size of every object of these jobs.
SIZE = 100


@dataclass
class Stores:
    """The stores of one fleet on a real server."""

    url: str
    fleet: str = "test"
    connection: Connection = field(init=False)
    keys: FleetKeys = field(init=False)
    jobs: JobStore = field(init=False)

    def __post_init__(self) -> None:
        self.connection = Connection(connect(self.url))
        self.keys = FleetKeys(self.fleet)
        self.jobs = JobStore(self.connection, self.keys)

    def close(self) -> None:
        self.connection.client.close()

    def create(self, job_id: str, sizes: Sequence[int], *, target: str = "b", stretch: int = 1000) -> bool:
        """Create a job with a group of so many moves for each entry, cut into stretches."""
        groups: list[NewGroup] = []
        offset = 0
        for number, size in enumerate(sizes):
            record = GroupRecord(
                group_id=f"g{number}",
                source="a",
                target=target,
                offset=offset,
                size=size,
                total_bytes=size * SIZE,
                queue="rebalance.data",
            )
            keys = [(f"{job_id}/{index}", SIZE) for index in range(offset, offset + size)]
            stretches = [Stretch(offset + at, keys[at : at + stretch]) for at in range(0, size, stretch)]
            groups.append(NewGroup(record, score=float(number), left=size, stretches=stretches))
            offset += size
        job = NewJob(
            job_id=job_id,
            plan_id="p",
            requested_by="test",
            imbalance_before=0.5,
            states="p" * offset,
            total_bytes=offset * SIZE,
            groups=groups,
            skipped={},
            capacities={"a": 10**6, "b": 10**6},
        )
        return self.jobs.create(job)

    def lease(self, job_id: str, group_id: str, owner: str = "me") -> tuple[Lease, MoveStore]:
        """Take a group's lease; return it with the store that writes under it."""
        lease = self.jobs.acquire_lease(job_id, group_id, owner=owner)
        assert lease.group is not None, lease.code
        return lease, self.moves(job_id, lease)

    def moves(self, job_id: str, lease: Lease) -> MoveStore:
        return MoveStore(self.connection, self.keys, job_id=job_id, lease=lease)

    def end(
        self, job_id: str, group_id: str, *, limit: int, per_node: int | None = None, take_from: str = ""
    ) -> tuple[Finished, GroupRecord | None, list[GroupRecord]]:
        """Count a terminal group and admit the next ones."""
        calls = self.jobs.ending(job_id, group_id, limit=limit, per_node=per_node, take_from=take_from)
        return self.jobs.ended(self.connection.run_all(calls))

    def expire_lease(self, job_id: str, group_id: str) -> None:
        """Let all leases in a group run out now."""
        hurry(self.connection, self.keys.job(job_id), [group_id])

    def dump(self) -> dict[str, bytes]:
        """Everything of the fleet, byte for byte."""
        return dump(self.connection)


def dump(connection: Connection) -> dict[str, bytes]:
    """Everything of every fleet, byte for byte."""
    keys = [key.decode() for key in connection.client.scan_iter("rebalance:*") if isinstance(key, bytes)]
    return {key: connection.client.dump(key) or b"" for key in sorted(keys)}


def begin(
    store: MoveStore, moves: Sequence[MoveRecord], budgets: Budgets | None = None, *, fresh: bool = False
) -> list[str]:
    """Begin moves at their full size."""
    attempts = [
        Attempt(move, JournalEntry(open=True), egress_bytes=move.size_bytes, cost_nano=move.size_bytes)
        for move in moves
    ]
    return store.begin(attempts, budgets=budgets or Budgets(), day="2026-01-31", fresh=fresh)


def flip(store: MoveStore, moves: Sequence[MoveRecord]) -> None:
    store.flip(moves, forwarding_ttl_ms=60_000, keep_locations=True)
