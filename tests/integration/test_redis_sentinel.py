"""A master dies while a real worker carries a job; Sentinel makes its replica the master, and the job goes on there."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.store import connection
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.errors import StateUnreachable
from tests.support.rig import rig
from tests.support.servers import Sentinels
from tests.support.tls import Authority
from tests.support.wait import wait_until
from tests.support.workers import ProcessFactory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    with Sentinels(tmp_path) as made:
        yield made


def outlives_a_failover(sentinels: Sentinels, folder: Path) -> None:
    """A job runs, its Redis is killed in the middle, and it ends as if nothing had been."""
    with rig(folder, sentinels.url, options={"throttle_bytes_per_sec": 100_000}) as fleet:
        fleet.worker()
        fleet.start()
        fleet.wait_moving()
        if sentinels.count > 1:
            sentinels.kill_sentinel()
        sentinels.master.kill()
        sentinels.wait_failover()
        wait_until(lambda: fleet.rebalancer.status("j1").status, 20, "the client has found the new master")
        fleet.check(fleet.finish())


def test_a_job_outlives_the_death_of_its_redis_and_of_a_sentinel_at_once(tmp_path: Path) -> None:
    """State, broker and results come from one ``sentinel://`` URL, whose first Sentinel is dead already; two of three are a majority."""
    with Sentinels(tmp_path, count=3) as sentinels:
        outlives_a_failover(sentinels, tmp_path)


def test_a_job_outlives_a_failover_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State, broker and results by TLS alone, to Sentinels and servers; an authority that is not ours is not believed."""
    (tmp_path / "other").mkdir()
    other = Authority.make(tmp_path / "other")
    with Sentinels(tmp_path, tls=Authority.make(tmp_path)) as sentinels:
        place = sentinels.url.partition("?")[0]
        with monkeypatch.context() as patch:
            patch.setattr(connection, "RETRY_S", 0.2)
            for options in ("", f"?ssl_ca_certs={other.ca}"):
                with pytest.raises(StateUnreachable):
                    Connection(connect(place + options)).now_ms()
        outlives_a_failover(sentinels, tmp_path)
        # The replica's, the Sentinel's, the master's.
        assert all(front.by_tls > 0 for front in sentinels.fronts)


@pytest.mark.skipif(
    not importlib.util.find_spec("redbeat") and not os.environ.get("CI"),
    reason="celery-redbeat is not installed (the extra `redbeat`)",
)
def test_a_redbeat_works_behind_a_sentinel_and_when_it_is_started_again_after_a_failover(
    sentinels: Sentinels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that holds the lock ends when it cannot renew it, and a supervisor starts it again."""
    monkeypatch.setenv("REBALANCE_REDIS_URL", sentinels.url)
    factory = ProcessFactory(tmp_path, sentinels.url)

    def asks_for_sweeps() -> None:
        beat = factory.redbeat(app="tests.support.short_lock")
        line = "Sending due task rebalance-sweep"
        wait_until(lambda: line in beat.log_path.read_text(encoding="utf-8"), 60, "it asks for sweeps")

    try:
        asks_for_sweeps()
        sentinels.master.kill()
        sentinels.wait_failover()
        factory.stop_all()
        asks_for_sweeps()
    finally:
        factory.stop_all()
        print(factory.logs()[-5000:])  # noqa: T201  shown when the test fails


def test_scripts_and_commands_follow_a_master_that_was_made_a_replica(sentinels: Sentinels) -> None:
    """Its connections stand, but it refuses writes: they are made anew, to where the master is."""
    state = Connection(connect(sentinels.url))
    assert state.run("check_acquire", ["lock", "fence"], [60_000, "me"]) == 1
    state.hset("hash", {"a": 1})
    wait_until(lambda: sentinels.replica.client().exists("hash"), 10, "the replica has it")
    sentinels.switch()

    def follows() -> bool:
        try:
            return int(state.run("check_release", ["lock"], [1])) >= 0
        except StateUnreachable:
            return False

    wait_until(follows, 20, "a script reaches the new master")
    state.hset("hash", {"b": 2})
    assert sentinels.replica.client().hgetall("hash") == {"a": "1", "b": "2"}


def test_without_a_sentinel_that_answers_the_error_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_S", 0.2)
    state = Connection(connect("sentinel://:hunter2@127.0.0.1:1,127.0.0.1:2/mymaster/0"))
    with pytest.raises(StateUnreachable, match=r"sentinel://.*127\.0\.0\.1:1,127\.0\.0\.1:2/mymaster") as told:
        state.now_ms()
    assert "hunter2" not in str(told.value)
