"""The job store on a real server: a stale writer is refused, budgets and room bind, and every count is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import StaleLease
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.locations import LocationStore
from rebalance_tasks.store.moves import Budgets, Settlement
from rebalance_tasks.store.records import JournalEntry, TrashRecord
from tests.support.stores import SIZE, Stores, begin, flip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebalance_tasks.store.moves import MoveStore
    from rebalance_tasks.store.records import MoveRecord

pytestmark = pytest.mark.integration


@pytest.fixture
def stores(redis_url: str) -> Iterator[Stores]:
    """An empty fleet with one job of two groups, both admitted."""
    made = Stores(redis_url)
    made.create("j1", [3, 2])
    made.jobs.admit("j1", limit=2)
    yield made
    made.close()


def end(moves: list[MoveRecord], state: MoveState, cause: str = "") -> list[Settlement]:
    return [Settlement(move, state, cause, "why") for move in moves]


# -- fencing ----------------------------------------------------------------------------------------------------------
WRITES: dict[str, Callable[[MoveStore, list[MoveRecord]], Any]] = {
    "begin": begin,
    "journal": lambda store, moves: store.write_journal({moves[0].index: JournalEntry(open=True, tries=2)}),
    "flip": flip,
    "retract": lambda store, moves: store.retract(moves, keep_locations=True),
    "fail": lambda store, moves: store.settle(end(moves, MoveState.FAILED, "x"), purge_delay_ms=0),
    "complete": lambda store, moves: store.settle(end(moves, MoveState.COMPLETED), purge_delay_ms=0),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("flipped", [False, True])
def test_a_write_under_a_stale_epoch_is_refused_and_changes_nothing(stores: Stores, write: str, flipped: bool) -> None:
    lease, stale = stores.lease("j1", "g0", "stalled")
    moves = [move for move, _ in lease.moves]
    if flipped:
        flip(stale, moves)
    stores.expire_lease("j1", "g0")
    stores.lease("j1", "g0", "successor")
    before = stores.dump()
    with pytest.raises(StaleLease):
        WRITES[write](stale, moves)
    assert stores.dump() == before


def test_a_stale_runner_can_neither_renew_nor_release_the_lease_of_its_successor(stores: Stores) -> None:
    stale, _ = stores.lease("j1", "g0", "stalled")
    stores.expire_lease("j1", "g0")
    stores.lease("j1", "g0", "successor")
    before = stores.dump()
    assert stores.jobs.beat("j1", "g0", 0, epoch=stale.epoch)[0] == "lost"
    assert stores.jobs.release_lease("j1", "g0", 0, epoch=stale.epoch) == "stale"
    assert stores.dump() == before


def test_a_beat_that_arrives_after_the_release_does_not_take_the_lease_again(stores: Stores) -> None:
    lease, _ = stores.lease("j1", "g0")
    assert stores.jobs.release_lease("j1", "g0", 0, epoch=lease.epoch) == "again"
    assert stores.jobs.beat("j1", "g0", 0, epoch=lease.epoch)[0] == "lost"
    assert stores.jobs.acquire_lease("j1", "g0", owner="next").code == "ok"


def test_a_held_lease_is_not_given_to_another_runner(stores: Stores) -> None:
    stores.lease("j1", "g0", "me")
    assert stores.jobs.acquire_lease("j1", "g0", owner="you").code == "busy"
    assert stores.jobs.acquire_lease("j1", "g0", owner="me").code == "ok"


def test_a_group_without_a_permit_gets_no_lease(redis_url: str) -> None:
    stores = Stores(redis_url)
    stores.create("j1", [1, 1])
    assert [group.group_id for group in stores.jobs.admit("j1", limit=1)] == ["g0"]
    assert stores.jobs.acquire_lease("j1", "g1", owner="me").code == "waiting"
    stores.close()


# -- counting ---------------------------------------------------------------------------------------------------------
def test_moves_are_counted_once_however_often_they_are_settled(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    flip(store, moves[:1])
    for _ in range(3):
        store.settle(end(moves[:1], MoveState.COMPLETED), purge_delay_ms=0)
        store.settle(end(moves[1:2], MoveState.FAILED, "x"), purge_delay_ms=0)
        store.settle(end(moves[1:2], MoveState.SKIPPED, "y"), purge_delay_ms=0)
    job = stores.jobs.load("j1")
    assert (job.completed_moves, job.failed_moves, job.skipped_moves) == (1, 1, 0)
    assert job.failures == {"x": 1}
    assert job.bytes_moved == SIZE


def test_a_move_that_was_not_flipped_cannot_complete_and_a_flipped_one_cannot_fail(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    flip(store, moves[:1])
    store.settle([*end(moves[:1], MoveState.FAILED, "x"), *end(moves[1:], MoveState.COMPLETED)], purge_delay_ms=0)
    job = stores.jobs.load("j1")
    assert (job.completed_moves, job.failed_moves) == (0, 0)


def test_a_doubled_flip_counts_its_bytes_once(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    flip(store, moves)
    flip(store, moves)
    assert stores.connection.hgetall(stores.keys.usage) == {"a": b"-300", "b": b"300"}
    store.retract(moves, keep_locations=True)
    store.retract(moves, keep_locations=True)
    assert stores.connection.hgetall(stores.keys.usage) == {"a": b"0", "b": b"0"}


def test_a_flip_that_is_taken_back_leaves_no_trace_for_readers(stores: Stores) -> None:
    locations = LocationStore(stores.connection, stores.keys)
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    flip(store, moves)
    assert locations.lookup("j1/0")[1:3] == ("b", "b")
    store.retract(moves, keep_locations=True)
    assert locations.lookup("j1/0")[1:3] == (None, "a")
    assert locations.pending_frees() == {}
    assert locations.last_moved() == {}


def test_a_flip_cancels_the_pending_free_of_its_target(stores: Stores) -> None:
    locations = LocationStore(stores.connection, stores.keys)
    stores.connection.hset(stores.keys.frees, {"b\0j1/0": "older-job.7", "b\0other": "older-job.8"})
    lease, store = stores.lease("j1", "g0")
    flip(store, [lease.moves[0][0]])
    assert locations.pending_frees() == {("b", "other"): "older-job.8", ("a", "j1/0"): "j1.0"}


def test_trash_is_booked_once(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    move = lease.moves[0][0]
    flip(store, [move])
    trash = TrashRecord(node="a", key=move.key, size=SIZE, fingerprint={"size_bytes": SIZE})
    for _ in range(2):
        store.settle([Settlement(move, MoveState.COMPLETED, trash=trash)], purge_delay_ms=5000)
    assert stores.connection.hgetall(stores.keys.awaiting) == {"a": b"100"}


# -- room and budgets -------------------------------------------------------------------------------------------------
def test_what_no_longer_fits_is_refused_move_by_move(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    assert begin(store, moves, Budgets(egress_bytes=250)) == ["ok", "ok", "budget_egress"]
    assert set(stores.jobs.acquire_lease("j1", "g0", owner="me").journal) == {0, 1}


def test_room_promised_to_another_group_is_taken_until_it_has_arrived(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    first = [move for move, _ in lease.moves]
    other, second = stores.lease("j1", "g1", "other")
    budgets = Budgets(target_bytes=5 * SIZE)
    moves = [move for move, _ in other.moves]
    assert begin(store, first, budgets) == ["ok", "ok", "ok"]
    assert begin(second, moves, Budgets(target_bytes=4 * SIZE)) == ["ok", "target_full"]
    flip(store, first)
    assert begin(second, moves, budgets) == ["ok", "ok"]
    assert begin(second, moves, Budgets(target_bytes=4 * SIZE)) == ["ok", "target_full"]


def test_the_day_s_budget_is_shared_by_jobs(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    assert begin(store, moves[:2], Budgets(cost_nano_day=250)) == ["ok", "ok"]
    store.settle(end(moves, MoveState.FAILED, "x"), purge_delay_ms=0)
    rest, last = stores.lease("j1", "g1")
    last.settle(end([move for move, _ in rest.moves], MoveState.FAILED, "x"), purge_delay_ms=0)
    assert stores.jobs.finalize("j1", imbalance_after=None, error="x") == ("finalized", "failed")
    stores.create("j2", [1])
    stores.jobs.admit("j2", limit=1)
    lease, store = stores.lease("j2", "g0")
    assert begin(store, [lease.moves[0][0]], Budgets(cost_nano_day=250)) == ["budget_cost_day"]


# -- the end ----------------------------------------------------------------------------------------------------------
def test_a_job_whose_closing_process_dies_right_after_leaves_no_permit_behind(stores: Stores) -> None:
    """`retire` never ran: the gate must not stay narrower for ever."""
    for group_id in ("g0", "g1"):
        lease, store = stores.lease("j1", group_id)
        store.settle(end([move for move, _ in lease.moves], MoveState.SKIPPED, "x"), purge_delay_ms=0)
    assert stores.jobs.finalize("j1", imbalance_after=None, error="x")[0] == "finalized"
    stores.create("j2", [1, 1])
    assert len(stores.jobs.admit("j2", limit=2)) == 2


def test_a_job_with_open_moves_cannot_be_closed(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    store.settle(end([move for move, _ in lease.moves], MoveState.SKIPPED, "x"), purge_delay_ms=0)
    assert stores.jobs.finalize("j1", imbalance_after=None, error="x") == ("open", "running")
