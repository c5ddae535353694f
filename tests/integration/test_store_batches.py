"""A batch that is kept as one record: taken as a whole or not at all, and taken apart where a move goes its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.errors import StaleLease
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.store.abandon import abandon
from rebalance_tasks.store.attempts import AttemptStore
from rebalance_tasks.store.batches import JournalRow
from rebalance_tasks.store.locations import LocationStore, MovedObject
from rebalance_tasks.store.moves import FREE_PENDING, Budgets, Settlement
from rebalance_tasks.store.records import Freed, JournalEntry
from rebalance_tasks.store.trash import NEWER_AGAIN_MS, TrashStore
from tests.support.stores import SIZE, Stores, begin, flip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.store.moves import MoveStore
    from rebalance_tasks.store.records import MoveRecord

pytestmark = pytest.mark.integration

COPY = Fingerprint(SIZE, mtime_ns=5, inode=6, device=7, etag="ö\n")
NAME = "j1/g0/0"


@pytest.fixture
def stores(redis_url: str) -> Iterator[Stores]:
    """An empty fleet with one job of one group of six moves, admitted."""
    made = Stores(redis_url)
    made.create("j1", [6])
    made.jobs.admit("j1", limit=1)
    yield made
    made.close()


@pytest.fixture
def locations(stores: Stores) -> LocationStore:
    return LocationStore(stores.connection, stores.keys)


@pytest.fixture
def trash(stores: Stores) -> TrashStore:
    return TrashStore(stores.connection, stores.keys)


def taken(stores: Stores, group_id: str = "g0", job_id: str = "j1") -> tuple[MoveStore, list[MoveRecord]]:
    lease, store = stores.lease(job_id, group_id)
    return store, [move for move, _ in lease.moves]


def freed(moves: Sequence[MoveRecord]) -> list[Settlement]:
    """The common ending of moves."""
    return [Settlement(move, MoveState.COMPLETED, trash=Freed("a", move.key, move.size_bytes, COPY)) for move in moves]


def frees_of(*indices: int) -> dict[tuple[str, str], str]:
    return {("a", f"j1/{index}"): f"j1.{index}" for index in indices}


# -- the common way ---------------------------------------------------------------------------------------------------
def test_a_batch_that_goes_the_common_way_leaves_one_value_for_each_thing_that_is_kept_of_it(
    stores: Stores, locations: LocationStore, trash: TrashStore
) -> None:
    redis, keys = stores.connection.client, stores.keys
    store, moves = taken(stores)
    assert begin(store, moves, fresh=True) == ["ok"] * 6
    store.write_journal({}, [JournalRow(move.index, "d", 1, COPY, COPY) for move in moves])
    assert redis.exists(keys.job("j1").journal) == 0
    flip(store, moves)
    assert (redis.hlen(keys.frees), redis.hlen(keys.frees_batches), redis.zcard(keys.moved)) == (0, 1, 1)
    assert locations.pending_frees() == frees_of(*range(6))
    assert locations.last_moved().keys() == {move.key for move in moves}
    assert {locations.lookup(move.key)[1:3] for move in moves} == {("b", "b")}
    assert stores.connection.hgetall(keys.usage) == {"a": b"-600", "b": b"600"}
    assert stores.connection.hgetall(keys.reserved("b")) == {NAME: b"0"}
    assert store.settle(freed(moves), purge_delay_ms=0) == 0
    assert (redis.hlen(keys.trash), redis.hlen(keys.trash_batches), redis.zcard(keys.trash_due)) == (0, 1, 1)
    assert locations.pending_frees() == {}
    [due] = trash.due(limit=1)
    assert {move_id: (r.node, r.key, r.size, r.fingerprint) for move_id, r in due.records.items()} == {
        move.move_id: ("a", move.key, SIZE, COPY.to_json()) for move in moves
    }
    assert trash.known_ids() == {move.move_id for move in moves}
    job = stores.jobs.load("j1")
    assert (job.completed_moves, job.bytes_moved) == (6, 600)


def test_a_batch_that_is_settled_again_counts_nothing_and_books_no_trash(stores: Stores) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    assert [store.settle(freed(moves[:4]), purge_delay_ms=0) for _ in range(3)] == [2, 2, 2]
    assert [store.settle(freed(moves), purge_delay_ms=0) for _ in range(3)] == [0, 0, 0]
    assert stores.jobs.load("j1").completed_moves == 6
    assert stores.connection.hgetall(stores.keys.awaiting) == {"a": b"600"}


def test_a_stale_runner_s_batch_is_refused_and_changes_nothing(stores: Stores) -> None:
    store, moves = taken(stores)
    begin(store, moves[:4], fresh=True)
    flip(store, moves[:4])
    stores.expire_lease("j1", "g0")
    stores.lease("j1", "g0", "successor")
    before = stores.dump()
    for write in (
        lambda: begin(store, moves[4:], fresh=True),
        lambda: store.write_journal({}, [JournalRow(0, "d", 1, COPY, COPY)]),
        lambda: flip(store, moves),
        lambda: store.settle(freed(moves[:4]), purge_delay_ms=0),
    ):
        with pytest.raises(StaleLease):
            write()
        assert stores.dump() == before


# -- the journal ------------------------------------------------------------------------------------------------------
def test_a_successor_reads_a_batch_s_journal_and_what_stands_by_itself_wins(stores: Stores) -> None:
    store, moves = taken(stores)
    begin(store, moves[:4], fresh=True)
    rows = [JournalRow(move.index, "d", 1, COPY, COPY) for move in moves[:2]]
    own = JournalEntry(tries=2)
    store.write_journal({1: own}, rows)
    stores.expire_lease("j1", "g0")
    lease, _ = stores.lease("j1", "g0", "successor")
    assert lease.journal.keys() == {0, 1, 2, 3}
    assert (lease.journal[0].staged, lease.journal[0].booked, lease.journal[0].open) == (COPY, SIZE, True)
    assert lease.journal[1] == own
    assert lease.journal[2] == JournalEntry(open=True, booked=SIZE)


def test_attempts_of_a_batch_are_closed_one_by_one(stores: Stores) -> None:
    lease, store = stores.lease("j1", "g0")
    moves = [move for move, _ in lease.moves]
    begin(store, moves[:4], fresh=True)
    store.write_journal({}, [JournalRow(0, "d", 1, COPY, COPY)])
    store.write_journal({1: JournalEntry(tries=1)})
    attempts = AttemptStore(stores.connection, stores.keys, job_id="j1", lease=lease)
    assert attempts.close({0: 0, 1: 0, 2: 1, 5: 0}) == 2
    journal = stores.jobs.acquire_lease("j1", "g0", owner="me").journal
    assert (journal[0].open, journal[0].staged) == (False, COPY)
    assert journal[1] == JournalEntry(tries=1)
    assert (journal[2].open, journal[2].deaths) == (False, 1)
    assert journal[3].open
    assert 5 not in journal


def test_a_batch_that_does_not_fit_as_a_whole_is_judged_move_by_move(stores: Stores) -> None:
    store, moves = taken(stores)
    codes = begin(store, moves, Budgets(cost_nano=2 * SIZE), fresh=True)
    assert codes == ["ok", "ok", *["budget_cost"] * 4]
    assert not store.one_journal
    assert stores.jobs.acquire_lease("j1", "g0", owner="me").journal.keys() == {0, 1}
    job = stores.keys.job("j1").base
    assert (stores.connection.hget(job, "cost_nano"), stores.connection.hget(job, "egress_bytes")) == (b"200", b"200")
    assert stores.connection.hgetall(stores.keys.reserved("b")) == {NAME: b"200"}


# -- moves that leave it ----------------------------------------------------------------------------------------------
def test_of_a_batch_with_a_counted_move_the_others_are_flipped_each_by_itself(
    stores: Stores, locations: LocationStore
) -> None:
    store, moves = taken(stores)
    store.settle([Settlement(moves[2], MoveState.SKIPPED, "x")], purge_delay_ms=0)
    flip(store, moves)
    assert stores.connection.get(stores.keys.job("j1").states) == b"llslll"
    assert stores.connection.client.exists(stores.keys.frees_batches) == 0
    assert locations.pending_frees() == frees_of(0, 1, 3, 4, 5)
    assert stores.connection.hgetall(stores.keys.usage) == {"a": b"-500", "b": b"500"}


def test_a_second_batch_of_a_stretch_is_kept_beside_the_record_of_the_first(
    stores: Stores, locations: LocationStore, trash: TrashStore
) -> None:
    store, moves = taken(stores)
    flip(store, moves[:3])
    store.settle(freed(moves[:3]), purge_delay_ms=0)
    flip(store, moves[3:])
    assert locations.pending_frees() == frees_of(3, 4, 5)
    assert locations.last_moved().keys() == {move.key for move in moves}
    assert store.settle(freed(moves[3:]), purge_delay_ms=0) == 0
    assert trash.known_ids() == {move.move_id for move in moves}
    assert stores.connection.hgetall(stores.keys.awaiting) == {"a": b"600"}


def test_what_of_a_batch_could_not_be_freed_stays_pending_by_itself(
    stores: Stores, locations: LocationStore, trash: TrashStore
) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    left = [Settlement(moves[1], MoveState.COMPLETED, FREE_PENDING, "its node is away")]
    gone = [Settlement(moves[4], MoveState.COMPLETED)]
    assert store.settle([*left, *freed([moves[5], moves[0], moves[2], moves[3]]), *gone], purge_delay_ms=0) == 0
    assert locations.pending_frees() == frees_of(1)
    assert stores.connection.hgetall(stores.keys.frees) == {"a\0j1/1": b"j1.1"}
    assert stores.connection.client.exists(stores.keys.frees_batches) == 0
    assert trash.known_ids() == {"j1.0", "j1.2", "j1.3", "j1.5"}
    assert stores.jobs.load("j1").completed_moves == 6


def test_a_move_that_is_taken_back_leaves_its_batch_and_the_others_stay(
    stores: Stores, locations: LocationStore, trash: TrashStore
) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    for _ in range(2):
        store.retract([moves[2], moves[5]], keep_locations=True)
    assert locations.pending_frees() == frees_of(0, 1, 3, 4)
    assert locations.last_moved().keys() == {"j1/0", "j1/1", "j1/3", "j1/4"}
    assert locations.lookup("j1/2")[1:3] == (None, "a")
    rest = [moves[index] for index in (0, 1, 3, 4)]
    assert store.settle(freed(rest), purge_delay_ms=0) == 2
    assert trash.known_ids() == {move.move_id for move in rest}
    store.retract(moves, keep_locations=True)
    assert locations.last_moved().keys() == {move.key for move in rest}


def test_a_batch_cancels_pending_frees_and_undos_of_its_keys_on_the_target(
    stores: Stores, locations: LocationStore
) -> None:
    stores.connection.hset(stores.keys.frees, {"b\0j1/0": "older.7", "b\0other": "older.8"})
    stores.connection.hset(stores.keys.undos, {"j1.3": "{}", "older.1": "{}"})
    store, moves = taken(stores)
    flip(store, moves)
    assert locations.pending_frees() == {("b", "other"): "older.8", **frees_of(*range(6))}
    assert stores.connection.hgetall(stores.keys.undos).keys() == {"older.1"}


def test_a_batch_whose_stretch_is_lost_is_flipped_move_by_move(stores: Stores, locations: LocationStore) -> None:
    store, moves = taken(stores)
    stores.connection.client.delete(stores.keys.job("j1").moves)
    flip(store, moves)
    assert locations.pending_frees() == frees_of(*range(6))
    assert store.settle(freed(moves), purge_delay_ms=0) == 0


# -- afterwards -------------------------------------------------------------------------------------------------------
def test_frees_that_an_ended_job_left_as_a_batch_are_spread_and_those_of_the_active_job_are_not(
    stores: Stores, locations: LocationStore
) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    assert locations.spread_frees(active="j1") == 0
    assert stores.connection.client.hlen(stores.keys.frees) == 0
    assert locations.spread_frees(active=None) == 6
    assert stores.connection.client.exists(stores.keys.frees_batches) == 0
    assert locations.pending_frees() == frees_of(*range(6))
    assert locations.spread_frees(active=None) == 0
    # A runner that comes back settles them all the same.
    assert store.settle(freed(moves), purge_delay_ms=0) == 0
    assert locations.pending_frees() == {}


def test_a_job_that_was_given_up_leaves_no_lease_with_a_journal_behind(stores: Stores) -> None:
    store, moves = taken(stores)
    begin(store, moves, fresh=True)
    stores.connection.client.delete(stores.keys.job("j1").states)
    assert abandon(stores.connection, stores.keys, "j1", why="lost", now_ms=stores.connection.now_ms())
    assert stores.connection.client.exists(stores.keys.job("j1").lease("g0", 0)) == 1
    stores.jobs.retire("j1")
    assert stores.connection.client.exists(stores.keys.job("j1").lease("g0", 0)) == 0


def test_what_of_a_batch_could_not_be_purged_goes_on_by_itself(stores: Stores, trash: TrashStore) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    store.settle(freed(moves), purge_delay_ms=0)
    [due] = trash.due(limit=1)
    left = {MoveId("j1.1"), MoveId("j1.4")}
    for _ in range(2):
        trash.purged(due, left=left, delay_ms=60_000)
    assert stores.connection.client.exists(stores.keys.trash_batches) == 0
    assert trash.known_ids() == left
    assert stores.connection.hgetall(stores.keys.awaiting) == {"a": b"200"}
    assert trash.due(limit=5) == []
    for move_id in left:
        stores.connection.client.zadd(stores.keys.trash_due, {move_id: 0})
    for one in trash.due(limit=5):
        trash.purged(one, left=(), delay_ms=0)
    assert trash.known_ids() == set()
    assert stores.connection.hgetall(stores.keys.awaiting) == {"a": b"0"}


def test_trash_of_a_newer_release_stands_aside(stores: Stores, trash: TrashStore) -> None:
    stores.connection.hset(stores.keys.trash_batches, {NAME: "2 all is new"})
    stores.connection.client.zadd(stores.keys.trash_due, {f"\0{NAME}": 1})
    assert trash.due(limit=5) == []
    soon = stores.connection.now_ms() + NEWER_AGAIN_MS - 60_000
    assert stores.connection.zrange_due(stores.keys.trash_due, soon, 5) == []
    assert stores.connection.client.hlen(stores.keys.trash_batches) == 1


def long_ago(stores: Stores, member: str) -> None:
    stores.connection.client.zadd(stores.keys.moved, {member: 1})


def test_a_forwarding_that_a_later_move_wrote_outlives_the_record_of_the_older_batch(
    stores: Stores, locations: LocationStore
) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    now = stores.connection.now_ms()
    over = {move.key: f"b|{now - 1}" for move in moves}
    stores.connection.hset(stores.keys.forwarding, over | {"j1/2": f"c|{now + 60_000}"})
    long_ago(stores, f"\0{NAME}")
    assert locations.expire(keep_ms=60_000, limit=1) == 6
    assert stores.connection.hgetall(stores.keys.forwarding) == {"j1/2": f"c|{now + 60_000}".encode()}
    # It is remembered by itself until it is over.
    assert locations.last_moved() == {"j1/2": now}
    assert stores.connection.client.exists(stores.keys.moved_batches) == 0
    assert locations.expire(keep_ms=60_000, limit=1) == 0


def test_keys_and_batches_are_forgotten_up_to_a_limit(stores: Stores, locations: LocationStore) -> None:
    locations.remember_moves(
        [MovedObject(f"k{number}", "b", 5 + number) for number in range(4)], forwarding_ttl_ms=0, now_ms=10
    )
    store, moves = taken(stores)
    flip(store, moves)
    long_ago(stores, f"\0{NAME}")
    stores.connection.client.delete(stores.keys.forwarding)
    assert locations.expire(keep_ms=0, limit=6) == 6
    assert locations.last_moved().keys() == {"k0", "k1", "k2", "k3"}
    assert [locations.expire(keep_ms=0, limit=3) for _ in range(3)] == [3, 1, 0]


@pytest.mark.parametrize("alone_at", [1, 2**40])
def test_a_key_that_moved_several_times_was_last_moved_at_the_latest_of_them(
    stores: Stores, locations: LocationStore, alone_at: int
) -> None:
    redis, keys = stores.connection.client, stores.keys
    store, moves = taken(stores)
    flip(store, moves)
    redis.zadd(keys.moved, {f"\0{NAME}": 500})
    for name, at in (("j0/g0/0", 400), ("j2/g0/0", 600)):
        redis.hset(keys.moved_batches, name, redis.hget(keys.moved_batches, NAME))
        redis.zadd(keys.moved, {f"\0{name}": at})
    redis.zadd(keys.moved, {moves[2].key: alone_at})
    expected = {move.key: 600 for move in moves}
    assert locations.last_moved() == expected | {moves[2].key: max(600, alone_at)}


def test_a_reindex_remembers_nothing_twice_that_a_batch_remembers(stores: Stores, locations: LocationStore) -> None:
    store, moves = taken(stores)
    flip(store, moves)
    before = locations.last_moved()
    found = [MovedObject(move.key, "b", before[move.key] - 1) for move in moves]
    locations.remember_moves(found, forwarding_ttl_ms=0, now_ms=0)
    assert stores.connection.client.zcard(stores.keys.moved) == 1
    assert locations.last_moved() == before
