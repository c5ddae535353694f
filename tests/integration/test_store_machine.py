"""A stateful machine drives the job store against a model in plain Python.

Everything a runner, an operator, a sweep or a dead worker may do to a job, in any order: the real store must answer as
the model does, count as it does, give out no more permits than allowed, and change states only along the arrows of
`core.states`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rebalance_tasks.core.errors import JobActive, StaleLease
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.states import MOVE_TRANSITIONS, TERMINAL, TRANSITIONS, MoveState, RebalanceStatus
from rebalance_tasks.store.batches import JournalRow
from rebalance_tasks.store.locations import LocationStore
from rebalance_tasks.store.moves import FREE_PENDING, Settlement
from rebalance_tasks.store.records import Freed, JournalEntry
from rebalance_tasks.store.trash import TrashStore
from tests.support.stores import SIZE, Stores, begin, flip

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.store.leases import Lease
    from rebalance_tasks.store.moves import MoveStore
    from rebalance_tasks.store.records import MoveRecord

pytestmark = pytest.mark.integration

#: The gate's limit in this machine; jobs have up to four groups, so that some must wait.
LIMIT = 2
#: The version of every copy.
COPY = Fingerprint(SIZE, mtime_ns=1, inode=2, device=3)
P, L, C, F, S = MoveState.PENDING, MoveState.FLIPPED, MoveState.COMPLETED, MoveState.FAILED, MoveState.SKIPPED

#: What a runner may write besides beginning and settling.
WRITES: dict[str, Callable[[MoveStore, list[MoveRecord]], Any]] = {
    "flip": flip,
    "retract": lambda store, moves: store.retract(moves, keep_locations=True),
}


@dataclass
class ModelStretch:
    """What the model knows of a stretch."""

    indices: range
    epoch: int = 0
    owner: str = ""
    held: bool = False


@dataclass
class ModelGroup:
    """What the model knows of a group."""

    indices: range
    status: RebalanceStatus = RebalanceStatus.PENDING
    queued: bool = True
    permit: bool = False
    counted: bool = False
    epoch: int = 0
    #: by number; those that are done drop out
    stretches: dict[int, ModelStretch] = field(default_factory=dict)

    def free(self) -> int | None:
        """The stretch that the next runner gets."""
        for number, stretch in self.stretches.items():
            if not stretch.held:
                return number
        return None


@dataclass
class ModelJob:
    """What the model knows of a job."""

    groups: dict[str, ModelGroup]
    moves: list[MoveState]
    status: RebalanceStatus = RebalanceStatus.PENDING
    reasons: set[str] = field(default_factory=set)
    cancel: bool = False
    cancelled_moves: int = 0
    #: index -> whether its copy is staged, of what was begun and is not counted
    journal: dict[int, bool] = field(default_factory=dict)
    #: completed, but the source could not be freed
    unfreed: set[int] = field(default_factory=set)

    def left(self, group: ModelGroup) -> int:
        return sum(1 for index in group.indices if not self.moves[index].terminal)

    def close_group(self, group: ModelGroup) -> None:
        states = [self.moves[index] for index in group.indices]
        if self.cancel and S in states:
            group.status = RebalanceStatus.CANCELLED
        else:
            group.status = RebalanceStatus.COMPLETED if C in states else RebalanceStatus.FAILED


class Runner(NamedTuple):
    """One that was given a lease once."""

    group_id: str
    lease: Lease
    store: MoveStore
    owner: str

    @property
    def moves(self) -> list[MoveRecord]:
        return [move for move, _ in self.lease.moves]


class JobStoreMachine(RuleBasedStateMachine):
    """The rules; `url` is set by the test."""

    url: ClassVar[str]
    fleets: ClassVar[Any] = itertools.count()

    @initialize()
    def begin_fleet(self) -> None:
        self.stores = Stores(self.url, fleet=f"f{next(self.fleets)}")
        self.numbers = itertools.count(1)
        self.owners = itertools.count(1)
        self.job_id = ""
        self.model: ModelJob | None = None
        #: runners that were given a lease once
        self.runners: list[Runner] = []
        self.seen: dict[str, RebalanceStatus] = {}
        self.seen_moves = ""
        self.locations = LocationStore(self.stores.connection, self.stores.keys)
        self.trash = TrashStore(self.stores.connection, self.stores.keys)
        #: move ids in the trash, of all jobs
        self.trashed: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            self.stores.close()

    # -- the job --------------------------------------------------------------------------------------------------
    @rule(sizes=st.lists(st.integers(1, 4), max_size=4), stretch=st.integers(1, 4))
    def create(self, sizes: list[int], stretch: int) -> None:
        if self.model is not None and self.model.status not in TERMINAL:
            with pytest.raises(JobActive):
                self.stores.create("another", sizes)
            assert not self.stores.create(self.job_id, sizes)
            return
        self.job_id = f"j{next(self.numbers)}"
        assert self.stores.create(self.job_id, sizes, stretch=stretch)
        groups: dict[str, ModelGroup] = {}
        offset = 0
        for number, size in enumerate(sizes):
            groups[f"g{number}"] = ModelGroup(
                range(offset, offset + size),
                stretches={
                    n: ModelStretch(range(offset + at, offset + min(at + stretch, size)))
                    for n, at in enumerate(range(0, size, stretch))
                },
            )
            offset += size
        self.model = ModelJob(groups, [P] * offset)
        self.runners, self.seen, self.seen_moves = [], {}, ""

    @precondition(lambda self: self.model is not None)
    @rule(reason=st.sampled_from(["operator", "quiet_hours"]))
    def pause(self, reason: str) -> None:
        job = self.known()
        code, _ = self.stores.jobs.pause(self.job_id, reason=reason)
        if job.status in TERMINAL:
            assert code == "terminal"
        elif job.cancel:
            assert code == "cancelling"
        else:
            assert code == "paused"
            job.status = RebalanceStatus.PAUSED
            job.reasons.add(reason)

    @precondition(lambda self: self.model is not None)
    @rule(reason=st.sampled_from(["operator", "quiet_hours"]))
    def resume(self, reason: str) -> None:
        job = self.known()
        code, _, left = self.stores.jobs.resume(self.job_id, reason=reason)
        if job.status in TERMINAL:
            assert code == "terminal"
            return
        job.reasons.discard(reason)
        assert set(left) == job.reasons
        if job.reasons:
            assert code == "held"
        elif job.status is RebalanceStatus.PAUSED:
            assert code == "resumed"
            job.status = RebalanceStatus.RUNNING
        else:
            assert code == "not_paused"

    @precondition(lambda self: self.model is not None)
    @rule()
    def cancel(self) -> None:
        job = self.known()
        code, _, left, _ = self.stores.jobs.cancel(self.job_id, by="test")
        if job.status in TERMINAL:
            assert code == "terminal"
            return
        assert code == ("already" if job.cancel else "requested")
        job.cancel = True
        for group in job.groups.values():
            if group.queued:
                for index in group.indices:
                    job.moves[index] = S
                    job.cancelled_moves += 1
                group.status, group.queued, group.counted = RebalanceStatus.CANCELLED, False, True
        assert left == sum(not group.counted for group in job.groups.values())

    @precondition(lambda self: self.model is not None)
    @rule()
    def finalize(self) -> None:
        job = self.known()
        code, status = self.stores.jobs.finalize(self.job_id, imbalance_after=0.1, error="nothing moved")
        if job.status in TERMINAL:
            assert code == "already"
        elif any(not move.terminal for move in job.moves):
            assert code == "open"
        else:
            assert code == "finalized"
            completed = job.moves.count(C)
            if job.cancel and (job.cancelled_moves or not completed):
                job.status = RebalanceStatus.CANCELLED
            elif completed or not job.moves:
                job.status = RebalanceStatus.COMPLETED
            else:
                job.status = RebalanceStatus.FAILED
            for group in job.groups.values():
                group.permit = False
            assert status == job.status

    # -- the gate -------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.model is not None)
    @rule()
    def admit(self) -> None:
        job = self.known()
        free = LIMIT - sum(group.permit for group in job.groups.values())
        waiting = [name for name, group in job.groups.items() if group.queued]
        closed = job.status in TERMINAL or job.cancel or job.reasons
        expected = [] if closed else waiting[: max(0, free)]
        assert [group.group_id for group in self.stores.jobs.admit(self.job_id, limit=LIMIT)] == expected
        for name in expected:
            group = job.groups[name]
            group.queued, group.permit, group.status = False, True, RebalanceStatus.RUNNING
        if expected and job.status is RebalanceStatus.PENDING:
            job.status = RebalanceStatus.RUNNING

    @precondition(lambda self: self.model and self.model.groups)
    @rule(data=st.data())
    def finish_group(self, data: st.DataObject) -> None:
        job = self.known()
        name = data.draw(st.sampled_from(sorted(job.groups)))
        group = job.groups[name]
        finished, following, admitted = self.stores.end(self.job_id, name, limit=0)
        assert (following, admitted) == (None, [])
        if group.status not in TERMINAL:
            assert finished.code == "open"
        else:
            assert finished.code == ("already" if group.counted else "finished")
            group.counted, group.permit = True, False
            assert finished.left == sum(not other.counted for other in job.groups.values())

    # -- runners --------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.model and self.model.groups)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        job = self.known()
        name = data.draw(st.sampled_from(sorted(job.groups)))
        group = job.groups[name]
        owner = f"o{next(self.owners)}"
        lease = self.stores.jobs.acquire_lease(self.job_id, name, owner=owner)
        if job.status in TERMINAL:
            assert lease.code == "gone"
        elif group.status in TERMINAL:
            assert lease.code == "terminal"
        elif not group.permit:
            assert lease.code == "waiting"
        elif (number := group.free()) is None:
            assert lease.code == "busy"
        elif job.reasons and not job.cancel:
            assert lease.code == "paused"
            group.status = RebalanceStatus.PAUSED
        else:
            assert lease.code == ("cancel" if job.cancel else "ok")
            self.hand_out(name, group, number, lease, owner)

    def hand_out(self, name: str, group: ModelGroup, number: int, lease: Lease, owner: str) -> None:
        group.epoch += 1
        stretch = group.stretches[number]
        assert (lease.stretch, lease.epoch, lease.first) == (number, group.epoch, stretch.indices.start)
        stretch.epoch, stretch.owner, stretch.held = group.epoch, owner, True
        group.status = RebalanceStatus.RUNNING
        assert [(move.index, state) for move, state in lease.moves] == [
            (index, self.known().moves[index]) for index in stretch.indices if not self.known().moves[index].terminal
        ]
        journal = {index: staged for index, staged in self.known().journal.items() if index in stretch.indices}
        unfinished = [move.index for move, _ in lease.moves]
        assert {i: entry.staged is not None for i, entry in lease.journal.items() if i in unfinished} == journal
        assert all(lease.journal[index].open for index in journal)
        self.runners.append(Runner(name, lease, self.stores.moves(self.job_id, lease), owner))

    @precondition(lambda self: self.model and self.model.groups)
    @rule(data=st.data())
    def lease_expires(self, data: st.DataObject) -> None:
        job = self.known()
        name = data.draw(st.sampled_from(sorted(job.groups)))
        self.stores.expire_lease(self.job_id, name)
        for stretch in job.groups[name].stretches.values():
            stretch.held = False

    @precondition(lambda self: bool(self.runners))
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        runner, job = self.runner(data), self.known()
        stretch = self.stretch_of(runner)
        code, _ = self.stores.jobs.beat(self.job_id, runner.group_id, runner.lease.stretch, epoch=runner.lease.epoch)
        if stretch is None or stretch.owner != runner.owner:
            assert code == "lost"
            return
        assert code == ("cancel" if job.cancel else "paused" if job.reasons else "ok")
        stretch.held = True

    @precondition(lambda self: bool(self.runners))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        runner, job = self.runner(data), self.known()
        lease, group = runner.lease, job.groups[runner.group_id]
        code = self.stores.jobs.release_lease(self.job_id, runner.group_id, lease.stretch, epoch=lease.epoch)
        stretch = self.stretch_of(runner)
        if stretch is None and lease.stretch in group.stretches:
            assert code == "stale"
            return
        if stretch is not None:
            stretch.held, stretch.owner = False, ""
        if group.status in TERMINAL:
            assert code == "done"
        elif job.reasons and not job.cancel:
            assert code == "parked"
            group.status = RebalanceStatus.PAUSED
        else:
            assert code == "again"

    @precondition(lambda self: bool(self.runners))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """First attempts may be journalled as one, and so may their staged copies."""
        runner, job = self.runner(data), self.known()
        chosen = [move for move in self.chosen(data, runner.moves) if job.moves[move.index] is P]
        fresh = not any(move.index in job.journal for move in chosen)
        if self.stretch_of(runner) is None:
            with pytest.raises(StaleLease):
                begin(runner.store, chosen, fresh=fresh)
            return
        begin(runner.store, chosen, fresh=fresh)
        for move in chosen:
            job.journal[move.index] = False
        assert runner.store.one_journal == (fresh and len(chosen) > 1)
        staged = [move for move in chosen if data.draw(st.booleans())]
        if runner.store.one_journal:
            rows = [JournalRow(move.index, "d", 1, COPY, COPY) for move in staged]
            runner.store.write_journal({}, rows)
        else:
            runner.store.write_journal({move.index: JournalEntry(open=True, staged=COPY) for move in staged})
        for move in staged:
            job.journal[move.index] = True

    @precondition(lambda self: bool(self.runners))
    @rule(data=st.data(), what=st.sampled_from(["flip", "retract"]))
    def write(self, data: st.DataObject, what: str) -> None:
        runner, job = self.runner(data), self.known()
        chosen = self.chosen(data, runner.moves)
        if self.stretch_of(runner) is None:
            with pytest.raises(StaleLease):
                WRITES[what](runner.store, chosen)
            return
        WRITES[what](runner.store, chosen)
        before, after = {"flip": (P, L), "retract": (L, P)}[what]
        for move in chosen:
            if job.moves[move.index] is before:
                job.moves[move.index] = after

    @precondition(lambda self: bool(self.runners))
    @rule(data=st.data(), state=st.sampled_from([C, F, S]), freed=st.sampled_from(["trash", "gone", FREE_PENDING]))
    def settle(self, data: st.DataObject, state: MoveState, freed: str) -> None:
        runner, job = self.runner(data), self.known()
        group, store = job.groups[runner.group_id], runner.store
        cause = {
            C: FREE_PENDING if freed == FREE_PENDING else "",
            F: "broken",
            S: "cancelled" if job.cancel else "vanished",
        }[state]
        chosen = self.chosen(data, runner.moves)
        trash = {move.index: Freed("a", move.key, SIZE, COPY) for move in chosen if (state, freed) == (C, "trash")}
        endings = [Settlement(move, state, cause, cause, trash.get(move.index)) for move in chosen]
        stretch = self.stretch_of(runner)
        if stretch is None:
            if runner.lease.stretch in group.stretches:
                with pytest.raises(StaleLease):
                    store.settle(endings, purge_delay_ms=0)
            else:
                # The answer may have been lost: said again, it counts nothing and is no error.
                assert store.settle(endings, purge_delay_ms=0) == job.left(group)
            return
        was_open = job.left(group) > 0
        for move in chosen:
            if job.moves[move.index] is (L if state is C else P):
                job.moves[move.index] = state
                job.cancelled_moves += cause == "cancelled"
                job.journal.pop(move.index, None)
                if cause == FREE_PENDING:
                    job.unfreed.add(move.index)
                if move.index in trash:
                    self.trashed.add(move.move_id)
        assert store.settle(endings, purge_delay_ms=0) == job.left(group)
        if all(job.moves[index].terminal for index in stretch.indices):
            del group.stretches[runner.lease.stretch]
        if was_open and job.left(group) == 0:
            job.close_group(group)

    # -- cleanup --------------------------------------------------------------------------------------------------
    @precondition(lambda self: bool(self.trashed))
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        for due in self.trash.due(limit=data.draw(st.integers(1, 5))):
            left = {move_id for move_id in sorted(due.records) if data.draw(st.booleans())}
            for _ in range(2):  # said twice it is done once
                self.trash.purged(due, left=left if due.batch else set(), delay_ms=0)
            self.trashed -= due.records.keys() - (left if due.batch else set())

    @precondition(lambda self: self.model is not None)
    @rule()
    def spread_frees(self) -> None:
        self.locations.spread_frees(active=self.stores.jobs.active())

    # -- what must always hold ------------------------------------------------------------------------------------
    @precondition(lambda self: self.model is not None)
    @invariant()
    def counts_are_the_model_s(self) -> None:
        job = self.known()
        real = self.stores.jobs.load(self.job_id)
        assert real.status is job.status
        assert (real.completed_moves, real.failed_moves, real.skipped_moves) == (
            job.moves.count(C),
            job.moves.count(F),
            job.moves.count(S),
        )
        assert real.bytes_moved == job.moves.count(C) * SIZE
        assert sum(real.failures.values()) == real.failed_moves + real.skipped_moves
        if real.status in TERMINAL:
            assert real.completed_moves + real.failed_moves + real.skipped_moves == real.total_moves

    @precondition(lambda self: self.model is not None)
    @invariant()
    def what_was_moved_and_is_to_be_freed_or_purged_is_the_model_s(self) -> None:
        job = self.known()
        moved = {index for index, state in enumerate(job.moves) if state in {L, C}}
        pending = {index for index in moved if job.moves[index] is L} | job.unfreed
        prefix = f"{self.job_id}/"
        assert {key for key in self.locations.last_moved() if key.startswith(prefix)} == {f"{prefix}{i}" for i in moved}
        frees = {
            place: move_id for place, move_id in self.locations.pending_frees().items() if place[1].startswith(prefix)
        }
        assert frees == {("a", f"{prefix}{index}"): f"{self.job_id}.{index}" for index in pending}
        assert self.trash.known_ids() == self.trashed
        awaiting = self.stores.connection.hget(self.stores.keys.awaiting, "a")
        assert int(awaiting or 0) == SIZE * len(self.trashed)

    @precondition(lambda self: self.model is not None)
    @invariant()
    def permits_are_never_more_than_the_limit(self) -> None:
        job = self.known()
        permits = self.stores.jobs.permits(self.job_id)
        assert len(permits) <= LIMIT
        assert permits == sorted(name for name, group in job.groups.items() if group.permit)

    @precondition(lambda self: self.model is not None)
    @invariant()
    def states_change_along_the_arrows_only(self) -> None:
        keys, redis = self.stores.keys.job(self.job_id), self.stores.connection
        statuses = {"job": redis.hget(keys.base, "status")}
        statuses |= {name: redis.hget(keys.group(name), "status") for name in self.known().groups}
        for name, raw in statuses.items():
            status = RebalanceStatus((raw or b"").decode())
            before = self.seen.get(name, status)
            assert status is before or status in TRANSITIONS[before], f"{name}: {before} → {status}"
            self.seen[name] = status
        moves = (redis.get(keys.states) or b"").decode()
        for before_byte, byte in zip(self.seen_moves, moves, strict=False):
            old, new = MoveState(before_byte), MoveState(byte)
            assert new is old or new in MOVE_TRANSITIONS[old], f"{old} → {new}"
        self.seen_moves = moves
        assert moves == "".join(self.known().moves)

    # -- choosing -------------------------------------------------------------------------------------------------
    def known(self) -> ModelJob:
        assert self.model is not None
        return self.model

    def runner(self, data: st.DataObject) -> Runner:
        return data.draw(st.sampled_from(self.runners))

    def stretch_of(self, runner: Runner) -> ModelStretch | None:
        """The stretch that a runner may write, ``None`` when it has lost it."""
        stretch = self.known().groups[runner.group_id].stretches.get(runner.lease.stretch)
        return stretch if stretch is not None and stretch.epoch == runner.lease.epoch else None

    def chosen(self, data: st.DataObject, moves: list[MoveRecord]) -> list[MoveRecord]:
        return data.draw(st.lists(st.sampled_from(moves), min_size=1, max_size=8, unique=True))


class RunnersMachine(JobStoreMachine):
    """The same store, once a job runs: chance alone seldom gets as far as a flip."""

    @initialize(sizes=st.lists(st.integers(3, 8), min_size=1, max_size=2), stretch=st.integers(3, 8))
    def begin_fleet(self, sizes: list[int] | None = None, stretch: int = 6) -> None:
        super().begin_fleet()
        self.create(sizes=sizes or [6], stretch=stretch)
        self.admit()
        job = self.known()
        for name, group in job.groups.items():
            while (number := group.free()) is not None and number < len(group.stretches):
                owner = f"o{next(self.owners)}"
                lease = self.stores.jobs.acquire_lease(self.job_id, name, owner=owner)
                self.hand_out(name, group, number, lease, owner)


@pytest.mark.parametrize("machine", [JobStoreMachine, RunnersMachine])
def test_the_job_store_behaves_as_its_model_does(redis_url: str, machine: type[JobStoreMachine]) -> None:
    machine.url = redis_url
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=checks),
    )
