"""What a cancel leaves on the nodes after Redis lost its last seconds, and how cleanup mends it, under a claim of the key."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control.cleaning import stray_verdicts
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.store.claims import ClaimStore
from rebalance_tasks.store.connection import Connection
from tests.support.checker import check, look, record
from tests.support.engine import Engine, move, moves_between
from tests.support.forgetting import forget, forgotten_job, remember
from tests.support.hooks import DAY_MS, SIZES, after, mount_again, unmount

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

ONE = {"a/one": SIZES["a/one"]}
#: Steps after which the copy stands beside its source …
DOUBLED = ("publish", "sync_published", "manifest", "flip")
#: … and after which the source is in the trash.
FREED = ("free", "settle")


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    # Each run would wait for the server's next fsync, up to a second: another test's matter.
    monkeypatch.setattr(cleanups, "_durable", lambda _: True)
    nodes = {"n1": SIZES, "n2": {}, "n3": {}}
    return fleet_config(nodes, options={"throttle_bytes_per_sec": "none"}, fleet={"locator": "catalogue"})


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    engine = Engine()
    engine.context.locations.place(dict.fromkeys(SIZES, "n1"))
    return engine


def tidy(engine: Engine) -> cleanups.CleanupReport:
    """Clean up until nothing is due; return what all runs did together."""
    total = cleanups.CleanupReport()
    for _ in range(4):
        report = engine.cleanup(later_ms=DAY_MS)
        for name in ("strays", "adopted", "ambiguous", "restored", "orphans"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
    return total


def cleanup_of_young_trash(engine: Engine) -> cleanups.CleanupReport:
    """Clean up right after something came into the trash: with no age asked for, a millisecond would make it old."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cleanups, "_orphans", lambda *_, **__: None)
        return engine.cleanup()


def places(fleet: Fleet, key: str) -> list[str]:
    return [node for node, _ in look(fleet.roots).objects.get(key, [])]


def holds(engine: Engine, key: str) -> str | None:
    """Where readers are sent."""
    return engine.context.locations.lookup(key).placed


def another_life(engine: Engine) -> None:
    """Redis has come back once more: what was searched was so in an earlier life."""
    for node in ("n1", "n2", "n3"):
        engine.context.fleet.note_searched(node, "an earlier one")


@pytest.mark.parametrize("step", DOUBLED)
def test_a_copy_that_redis_forgot_is_taken_off_its_target(fleet: Fleet, engine: Engine, step: str) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), step)
    assert places(fleet, "a/one") == ["n1", "n2"]
    assert tidy(engine).strays > 0
    check(fleet.roots, written, engine.job(), trash=True)
    assert {holds(engine, key) for key in SIZES} == {"n1"}
    assert not engine.context.connection.hgetall(engine.context.keys.claims)


@pytest.mark.parametrize("step", FREED)
def test_a_source_that_redis_forgot_was_freed_is_brought_back(fleet: Fleet, engine: Engine, step: str) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), step)
    assert places(fleet, "a/one") == ["n2"]
    assert tidy(engine).strays == len(SIZES)
    check(fleet.roots, written, engine.job(), trash=True)
    assert {holds(engine, key) for key in SIZES} == {"n1"}


def test_a_copy_whose_source_is_gone_for_good_is_adopted(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), "settle")
    engine.context.driver("n1").purge(MoveId("j1.0"), None)
    assert tidy(engine).adopted == 1
    check(fleet.roots, written, trash=True)
    assert (places(fleet, "a/one"), holds(engine, "a/one")) == (["n2"], "n2")


def the_copy_is_the_object(fleet: Fleet, engine: Engine, step: str) -> None:
    """Redis forgets a move from a step on, somebody who was sent to the copy before writes to it, and that is what remains."""
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), step)
    with (fleet.roots["n2"] / "a/one").open("ab") as stranger:
        stranger.write(b"more")
    written = written.changed("a/one", (fleet.roots["n2"] / "a/one").read_bytes())
    assert tidy(engine).adopted == 1
    check(fleet.roots, written, trash=True)
    assert (places(fleet, "a/one"), holds(engine, "a/one")) == (["n2"], "n2")


def test_a_copy_that_was_written_to_is_adopted_and_its_source_stays_in_the_trash_until_that_is_purged(
    fleet: Fleet, engine: Engine
) -> None:
    the_copy_is_the_object(fleet, engine, "settle")


@pytest.mark.parametrize("step", ["publish", "manifest", "flip"])
def test_a_copy_that_was_written_to_is_the_object_and_its_source_is_freed(
    fleet: Fleet, engine: Engine, step: str
) -> None:
    the_copy_is_the_object(fleet, engine, step)
    assert engine.context.locations.pending_frees() == {}


@pytest.mark.parametrize("step", ["publish", "manifest"])
def test_a_source_that_was_written_to_is_the_object(fleet: Fleet, engine: Engine, step: str) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), step)
    with (fleet.roots["n1"] / "a/one").open("ab") as stranger:
        stranger.write(b"more")
    written = written.changed("a/one", (fleet.roots["n1"] / "a/one").read_bytes())
    assert tidy(engine).strays == 1
    check(fleet.roots, written, engine.job(), trash=True)


@pytest.mark.parametrize("step", ["publish", "manifest"])
def test_copies_that_were_both_written_to_stay_and_are_counted(fleet: Fleet, engine: Engine, step: str) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), step)
    contents = {}
    for node in ("n1", "n2"):
        path = fleet.roots[node] / "a/one"
        path.write_bytes(path.read_bytes() + node.encode())
        contents[node] = path.read_bytes()
    report = tidy(engine)
    assert (report.strays, report.adopted, report.ambiguous) == (0, 0, 1)
    assert {node: (fleet.roots[node] / "a/one").read_bytes() for node in contents} == contents


def test_a_source_that_was_cut_short_is_not_taken_for_an_older_version(fleet: Fleet, engine: Engine) -> None:
    """A log that was rotated begins as the copy does, but it is the newer one."""
    forgotten_job(engine, moves_between("n1", "n2", ONE), "publish")
    os.truncate(fleet.roots["n1"] / "a/one", 100)
    report = tidy(engine)
    assert (report.strays, report.adopted, report.ambiguous) == (0, 0, 1)
    assert [(fleet.roots[node] / "a/one").stat().st_size for node in ("n1", "n2")] == [100, 3000]


def test_a_copy_is_put_back_whose_source_a_frozen_runner_frees_right_then(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    copied = engine.context.driver("n1").stat("a/one")
    assert copied is not None

    def freed(driver: LocalDriver, *_: object) -> None:
        if driver.node_id == "n2":
            engine.context.driver("n1").free("a/one", MoveId("j1.0"), copied)

    after(monkeypatch, LocalDriver, "free", freed)
    cleanup_of_young_trash(engine)
    assert places(fleet, "a/one") == ["n2"]
    tidy(engine)
    check(fleet.roots, written, engine.job(), trash=True)
    assert (places(fleet, "a/one"), holds(engine, "a/one")) == (["n1"], "n1")


def test_a_source_comes_back_that_a_frozen_runner_frees_after_its_copy_was_taken_off(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    source = engine.context.driver("n1")
    copied = source.stat("a/one")
    assert copied is not None
    assert cleanup_of_young_trash(engine).strays == 1
    source.free("a/one", MoveId("j1.0"), copied)
    assert places(fleet, "a/one") == []
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(days=1))
    assert engine.cleanup().restored == 1
    assert places(fleet, "a/one") == ["n1"]
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    tidy(engine)
    check(fleet.roots, written, engine.job(), trash=True)


def test_trash_that_redis_forgot_goes_when_a_later_job_moved_the_object_on(fleet: Fleet, engine: Engine) -> None:
    """Found by chaos: nothing stands where the first manifest says, since the second job took it from there."""
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), "settle")
    engine.start(moves_between("n2", "n3", SIZES), job_id="j2")
    assert engine.finish("j2").completed_moves == len(SIZES)
    tidy(engine)
    check(fleet.roots, written, trash=True)


def test_trash_that_redis_forgot_goes_when_later_jobs_brought_the_object_back_to_the_node_that_took_it(
    fleet: Fleet, engine: Engine
) -> None:
    """Found by chaos (seed 4135): the chain of manifests comes through a node twice, each time in another version."""
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), "settle")
    engine.start(moves_between("n2", "n3", ONE), job_id="j2")
    assert engine.finish("j2").completed_moves == 1
    engine.start(moves_between("n3", "n2", ONE), job_id="j3", undo_of="j2")  # whatever the cooldown
    assert engine.finish("j3").completed_moves == 1
    tidy(engine)
    check(fleet.roots, written, trash=True)
    assert places(fleet, "a/one") == ["n2"]


@pytest.mark.parametrize("step", DOUBLED)
def test_a_copy_goes_when_a_later_job_moved_its_source_elsewhere(fleet: Fleet, engine: Engine, step: str) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), step)
    engine.start(moves_between("n1", "n3", ONE), job_id="j2")
    assert engine.finish("j2").completed_moves == 1
    assert places(fleet, "a/one") == ["n2", "n3"]
    assert tidy(engine).strays == 1
    check(fleet.roots, written, trash=True)
    assert (places(fleet, "a/one"), holds(engine, "a/one")) == (["n3"], "n3")


def test_a_copy_stays_while_the_node_of_its_source_is_away(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    engine.context.driver("n1").close()
    unmount(fleet.roots["n1"])
    report = tidy(engine)
    assert (report.strays, report.adopted) == (0, 0)
    assert places(fleet, "a/one") == ["n2"]
    mount_again(fleet.roots["n1"])
    assert tidy(engine).strays == 1
    check(fleet.roots, written, engine.job(), trash=True)


@pytest.mark.parametrize("gone", [unmount, None], ids=["unmounted", "maintenance"])
@pytest.mark.parametrize("step", ["publish", "flip"])
def test_a_copy_is_not_taken_for_the_object_while_a_node_is_away_that_may_hold_it(
    fleet: Fleet, engine: Engine, step: str, gone: Callable[[Path], None] | None
) -> None:
    """A later job took the object further; only the node that is away knows of that."""
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", ONE), step)
    engine.start(moves_between("n1", "n3", ONE), job_id="j2")
    assert engine.finish("j2").completed_moves == 1
    with (fleet.roots["n3"] / "a/one").open("ab") as stranger:
        stranger.write(b"more")
    written = written.changed("a/one", (fleet.roots["n3"] / "a/one").read_bytes())
    engine.context.driver("n3").close()
    if gone is None:
        engine.context.fleet.set_node_state("n3", NodeState.MAINTENANCE)
    else:
        gone(fleet.roots["n3"])
    report = tidy(engine)
    assert (report.strays, report.adopted) == (0, 0)
    assert holds(engine, "a/one") == "n3"
    if gone is None:
        engine.context.fleet.forget_node_state("n3")
    else:
        mount_again(fleet.roots["n3"])
    assert tidy(engine).strays == 1
    check(fleet.roots, written, trash=True)
    assert (places(fleet, "a/one"), holds(engine, "a/one")) == (["n3"], "n3")


def test_a_copy_without_a_manifest_that_was_written_to_stays_beside_the_object_that_a_later_job_moved(
    fleet: Fleet, engine: Engine
) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), "publish")
    engine.start(moves_between("n1", "n3", ONE), job_id="j2")
    assert engine.finish("j2").completed_moves == 1
    with (fleet.roots["n2"] / "a/one").open("ab") as stranger:
        stranger.write(b"more")
    report = tidy(engine)
    assert (report.strays, report.adopted, report.ambiguous) == (0, 0, 1)
    assert (places(fleet, "a/one"), holds(engine, "a/one")) == (["n2", "n3"], "n3")


def test_a_copy_stays_while_a_writer_holds_its_key(fleet: Fleet, engine: Engine) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    context = engine.context
    claims = ClaimStore(context.connection, context.keys, context.locations)
    claim = claims.take("a/one", "a writer", ttl_ms=60_000)
    assert not isinstance(claim, int)
    assert engine.cleanup().strays == 0
    claims.give_back(claim)
    assert engine.cleanup().strays == 1


def test_a_strangers_object_at_the_targets_key_is_no_copy(fleet: Fleet, engine: Engine) -> None:
    (fleet.roots["n2"] / "a").mkdir()
    (fleet.roots["n2"] / "a/one").write_bytes(b"another object")
    engine.start([move("a/one", "n1", "n2", 3000)])
    assert engine.finish().failed_moves == 1
    report = tidy(engine)
    assert (report.strays, report.ambiguous) == (0, 1)
    assert (fleet.roots["n2"] / "a/one").read_bytes() == b"another object"


def test_what_is_too_large_to_compare_stays(fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stray_verdicts, "COMPARED_BYTES", 2999)
    forgotten_job(engine, moves_between("n1", "n2", ONE), "publish")
    assert tidy(engine).ambiguous == 1
    assert places(fleet, "a/one") == ["n1", "n2"]


def test_nodes_are_searched_once_in_each_life_of_the_server(fleet: Fleet, engine: Engine) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    assert tidy(engine).strays == 1
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip", "j2")
    assert tidy(engine).strays == 0
    another_life(engine)
    assert tidy(engine).strays == 1


def test_nothing_is_searched_while_the_life_of_the_server_is_young(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(hours=24))
    assert tidy(engine).strays == 0
    keys, redis = engine.context.keys, engine.context.connection
    run_id, _, since = (redis.hget(keys.info, "life") or b"").decode().rpartition("|")
    redis.hset(keys.info, {"life": f"{run_id}|{int(since) - DAY_MS}"})
    assert tidy(engine).strays == 1


def test_nothing_is_searched_while_a_job_runs_that_may_have_lost_something(fleet: Fleet, engine: Engine) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    engine.start([move("four", "n1", "n3", 0)], job_id="j2")
    assert tidy(engine).strays == 0
    engine.finish("j2")
    assert tidy(engine).strays == 1


def test_a_job_whose_creation_was_lost_as_well_leaves_nothing_that_a_manifest_lists(
    fleet: Fleet, engine: Engine
) -> None:
    written = record(fleet.roots)
    before = remember(engine)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), "flip")
    forget(engine, before)
    assert engine.context.jobs.ids() == []
    assert tidy(engine).strays == len(SIZES)
    check(fleet.roots, written, trash=True)


def test_a_search_goes_on_where_the_last_run_stopped(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanups, "LOOKS", 2)
    written = record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), "flip")
    assert [engine.cleanup().strays for _ in range(4)] == [2, 2, 1, 0]
    tidy(engine)
    check(fleet.roots, written, engine.job(), trash=True)


def test_what_could_not_be_mended_is_looked_for_again_when_the_search_is_through(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanups, "LOOKS", 2)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), "flip")
    context = engine.context
    claims = ClaimStore(context.connection, context.keys, context.locations)
    claim = claims.take("a/one", "a writer", ttl_ms=60_000)
    assert not isinstance(claim, int)
    assert [engine.cleanup().strays for _ in range(3)] == [1, 2, 1]
    claims.give_back(claim)
    assert [engine.cleanup().strays for _ in range(2)] == [1, 0]


def test_nothing_is_searched_where_the_server_does_not_tell_its_lives_apart(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "run_id", lambda _: "")
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    assert tidy(engine).strays == 0
    assert places(fleet, "a/one") == ["n1", "n2"]


def test_a_search_comes_to_its_end_though_the_node_of_a_source_was_taken_out(fleet: Fleet, engine: Engine) -> None:
    forgotten_job(engine, moves_between("n1", "n2", ONE), "flip")
    text = fleet.config.read_text()
    first, second = text.index("[[nodes]]"), text.index("[[nodes]]", text.index("[[nodes]]") + 1)
    fleet.config.write_text(text[:first] + text[second:])
    without = Engine()
    assert tidy(without).strays == 0
    assert without.context.fleet.searched("n2").split("|")[1] == "done"
    assert (fleet.roots["n2"] / "a/one").exists()


def test_a_job_whose_beginning_redis_forgot_counts_what_it_had_moved_when_it_begins_again(
    fleet: Fleet, engine: Engine
) -> None:
    written, before = record(fleet.roots), remember(engine)
    moves = [*moves_between("n1", "n2", SIZES), move("never/there", "n1", "n2", 7)]
    engine.start(moves, epoch=7)
    engine.work()
    forget(engine, before)
    engine = Engine()
    engine.start(moves, epoch=7)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (len(SIZES), {"stale_plan_source_gone": 1})
    tidy(engine)
    check(fleet.roots, written, job)


def test_another_job_does_not_count_what_an_earlier_one_moved(fleet: Fleet, engine: Engine) -> None:
    moves = [*moves_between("n1", "n2", SIZES)]
    engine.start(moves, epoch=7)
    engine.finish()
    engine.start(moves, job_id="j2", epoch=7)
    job = engine.finish("j2")
    assert (job.completed_moves, job.failures) == (0, {"stale_plan_source_gone": len(SIZES)})
