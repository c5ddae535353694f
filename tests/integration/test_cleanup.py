"""What cleanup takes away, and what it must leave."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.store.records import UndoRecord
from tests.support.checker import record, violations
from tests.support.engine import Engine, move, moves_between
from tests.support.hooks import DAY_MS, SIZES, WorkerDiedError, die_at

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


# -- cleanup ----------------------------------------------------------------------------------------------------------
def test_trash_is_purged_after_the_grace_and_not_before(fleet_config: FleetFactory) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={"grace": "10m", "throttle_bytes_per_sec": "none"})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    engine.finish()
    assert engine.cleanup(later_ms=590_000).purged == 0
    assert len(list((fleet.roots["n1"] / ".rebalance/trash").iterdir())) == 5
    assert engine.context.fleet.awaiting() == {"n1": sum(SIZES.values())}
    assert engine.cleanup(later_ms=10_000).purged == 5
    assert engine.context.fleet.awaiting() == {"n1": 0}
    assert violations(fleet.roots, record(fleet.roots), trash=True) == []


def test_trash_that_somebody_still_writes_to_is_never_purged(fleet: Fleet, engine: Engine) -> None:
    with (fleet.roots["n1"] / "a/one").open("ab") as stranger:
        engine.start([move("a/one", "n1", "n2", 3000)])
        engine.finish()
        stranger.write(b"the end of a line that was begun before the move")
    for _ in range(3):
        assert engine.cleanup(later_ms=DAY_MS).purged == 0
    trash = fleet.roots["n1"] / ".rebalance/trash/j1.0"
    assert trash.read_bytes().endswith(b"before the move")


def test_forwardings_are_forgotten_after_their_time(fleet_config: FleetFactory) -> None:
    fleet_config({"n1": SIZES, "n2": {}}, options={"forwarding_ttl": "1h", "object_cooldown": "2h"})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    engine.finish()
    keys, redis = engine.context.keys, engine.context.connection.client
    assert redis.hlen(keys.forwarding) == 5
    later(engine, minutes=119)
    assert engine.cleanup().forgotten == 0
    later(engine, minutes=2)
    assert engine.cleanup().forgotten == 5
    assert redis.hlen(keys.forwarding) == redis.zcard(keys.moved) == redis.hlen(keys.moved_batches) == 0


def later(engine: Engine, *, minutes: int) -> None:
    """Let the moves have been made so much longer ago."""
    redis, keys = engine.context.connection, engine.context.keys
    for member in redis.zrange_due(keys.moved, 2**52, 10_000):
        redis.client.zincrby(keys.moved, -minutes * 60_000, member)
    for key, raw in redis.hgetall(keys.forwarding).items():
        node, _, expires = raw.decode().rpartition("|")
        redis.hset(keys.forwarding, {key: f"{node}|{int(expires) - minutes * 60_000}"})


def test_staged_copies_of_ended_jobs_go_and_those_of_running_jobs_stay(fleet: Fleet, engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    tmp = fleet.roots["n2"] / ".rebalance/tmp"
    (tmp / "j1.99").write_bytes(b"a stalled worker's")
    (tmp / "unknown-job.1").write_bytes(b"who knows")
    assert engine.cleanup().orphans == 0
    engine.finish()
    assert engine.cleanup().orphans == 1
    assert [path.name for path in tmp.iterdir()] == ["unknown-job.1"]
    os.utime(tmp / "unknown-job.1", (0, 0))
    assert engine.cleanup().orphans == 1
    assert fleet.leftovers() == []


def test_an_undo_that_a_stale_runner_noted_late_does_not_take_a_moved_object_away(fleet: Fleet, engine: Engine) -> None:
    """Its successor has made the move; meanwhile somebody wrote the key to the source again."""
    moved = fleet.roots["n1"] / "four"
    content = moved.read_bytes()
    engine.start(moves_between("n1", "n2", {"four": SIZES["four"]}))
    engine.finish()
    copy = engine.context.driver("n2").stat("four")
    assert copy is not None
    note = UndoRecord(source="n1", target="n2", key="four", fingerprint=copy.to_json())
    engine.context.connection.hset(engine.context.keys.undos, {"j1.0": note.model_dump_json()})
    moved.write_bytes(content)
    engine.cleanup()
    assert (fleet.roots["n2"] / "four").read_bytes() == content
    assert engine.context.connection.hgetall(engine.context.keys.undos) == {}


def test_sources_of_a_batch_whose_job_was_given_up_are_freed_by_the_cleanup(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left who would settle the batch as a whole."""
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    with monkeypatch.context() as patch:
        die_at(patch, "flip")
        with pytest.raises(WorkerDiedError):
            engine.slice()
    keys, redis = engine.context.keys, engine.context.connection.client
    redis.delete(keys.job("j1").states)
    engine.hurry()
    run_sweep(engine.context)
    assert redis.hlen(keys.frees_batches) == 1
    assert engine.cleanup().freed_late == len(SIZES)
    assert engine.context.locations.pending_frees() == {}
    assert engine.cleanup(later_ms=DAY_MS).purged == len(SIZES)
    assert violations(fleet.roots, written, trash=True) == []
