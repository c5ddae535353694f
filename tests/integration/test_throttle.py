"""The byte bucket in a real Redis: what it grants is bounded, however many slices share it, and a new rate acts at once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.migration.control import CHUNK_BYTES, SliceControl
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.throttle import LEASE_VALID_S, ByteBucket

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

RATE = 10_000_000
OVERRIDE = "rebalance:{test}:throttle"


@pytest.fixture
def connection(redis_url: str) -> Connection:
    return Connection(connect(redis_url))


def bucket(connection: Connection, rate: int | None = RATE) -> ByteBucket:
    return ByteBucket(connection, "rebalance:{test}:job:j1:t:g0000", rate_bytes_per_s=rate, override_key=OVERRIDE)


def grants(*buckets: ByteBucket, seconds: float) -> list[tuple[float, int]]:
    """Ask as fast as possible for so long, in turn; return (when, bytes)."""
    seen = []
    begun = time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        seen.append((elapsed, sum(each.take()[0] for each in buckets)))
    return seen


def test_slices_that_share_a_bucket_get_its_rate_together(connection: Connection) -> None:
    seen = grants(*(bucket(connection) for _ in range(4)), seconds=1.5)
    total, elapsed = sum(granted for _, granted in seen), seen[-1][0]
    # One lease lies in it at first, and nothing has been saved up.
    assert (elapsed - 0.05) * RATE <= total <= (elapsed + 0.11) * RATE


def test_what_was_saved_up_while_nobody_wrote_comes_back_slowly_and_only_a_quarter_second_of_it(
    connection: Connection, redis_url: str
) -> None:
    shared = bucket(connection)
    shared.take()
    key = "rebalance:{test}:job:j1:t:g0000"
    seconds, micros = connection.client.time()
    connection.client.hset(key, "at", seconds * 1_000_000 + micros - 30_000_000)
    seen = grants(shared, seconds=1.0)
    total, elapsed = sum(granted for _, granted in seen), seen[-1][0]
    assert total <= (1.05 * elapsed + 0.11) * RATE, "no second is more than a fifth over, a lease in hand included"
    assert float(connection.client.hget(key, "saved") or 0) <= 0.25 * RATE


def test_what_was_leased_and_not_spent_in_time_is_given_back(connection: Connection) -> None:
    shared = bucket(connection)
    granted, _ = shared.take()
    assert granted == RATE // 10
    again, wait_ms = shared.take(back=granted)
    assert again == granted
    assert 90 <= wait_ms <= 100


def test_the_rate_set_at_run_time_wins_from_the_next_lease_on(connection: Connection) -> None:
    shared = bucket(connection)
    shared.take()
    for value, expected in (("2000000", 2_000_000), ("0", None), ("nonsense", RATE)):
        connection.client.set(OVERRIDE, value)
        shared.take()
        assert shared.rate_bytes_per_s == expected
    connection.client.delete(OVERRIDE)
    without = bucket(connection, None)
    assert without.take() == (0, 0)
    connection.client.set(OVERRIDE, RATE)
    assert without.take()[0] > 0


# -- slices -------------------------------------------------------------------------------------------------------
def write(control: SliceControl, spent: list[tuple[float, int]], until: Callable[[], bool]) -> None:
    """What a copy does, without the copying."""
    while not until():
        size = control.chunk_bytes
        control.spend(size)
        spent.append((time.perf_counter(), size))


def test_four_slices_write_at_one_rate_and_follow_it_when_it_changes(connection: Connection) -> None:
    fast, slow = 20_000_000, 4_000_000
    connection.client.set(OVERRIDE, fast)
    stop = threading.Event()
    spent: list[tuple[float, int]] = []
    controls = [SliceControl(lambda: "ok", bucket=bucket(connection)) for _ in range(4)]
    threads = [threading.Thread(target=write, args=(control, spent, stop.is_set)) for control in controls]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(1)
    connection.client.set(OVERRIDE, slow)
    changed = time.perf_counter()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    before = sum(size for at, size in spent if at < changed)
    # A chunk of the old size may still have been under way in each of them.
    after = sum(size for at, size in spent if changed + 1 <= at < changed + 2)
    # Never faster; how much slower depends on who else uses this machine.
    assert 0.5 < before / fast / (changed - begun) < 1.25
    assert 0.5 * slow < after < 1.25 * slow + CHUNK_BYTES


def test_a_lease_that_grew_old_is_not_spent_on_top_of_what_was_saved_up(connection: Connection) -> None:
    control = SliceControl(lambda: "ok", bucket=bucket(connection, 100 * CHUNK_BYTES))
    control.spend(1)
    begun = time.perf_counter()
    time.sleep(LEASE_VALID_S * 2)
    spent = 0
    while time.perf_counter() - begun < 0.5:
        control.spend(CHUNK_BYTES)
        spent += CHUNK_BYTES
    assert spent <= 100 * CHUNK_BYTES * (1.05 * 0.5 + 0.1 + 0.03)
