"""Jobs that Redis forgot altogether and that begin again under their names, over what their earlier life left on the nodes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.migration.batch import Batch
from tests.support.checker import check, record
from tests.support.engine import Engine, moves_between
from tests.support.forgetting import forget, remember
from tests.support.hooks import DAY_MS, SIZES, WorkerDiedError, append, before, die_at

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

ONE = {"a/one": SIZES["a/one"]}


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    # Each cleanup would wait for the server's next fsync: another test's matter.
    monkeypatch.setattr(cleanups, "_durable", lambda _: True)
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    options = {"throttle_bytes_per_sec": "none", "object_cooldown": "0s"}
    return fleet_config({"n1": SIZES, "n2": {}, "n3": {}}, options=options, fleet={"locator": "catalogue"})


def there_and_back(fleet: Fleet, sizes: dict[str, int] = SIZES) -> Engine:
    """One job moves objects to n2, a second one moves them back, and Redis forgets both: trash of each is on each node."""
    engine = Engine()
    nothing = remember(engine)
    for job_id, source, target in (("j1", "n1", "n2"), ("j2", "n2", "n1")):
        engine.start(moves_between(source, target, sizes), job_id=job_id)
        assert engine.finish(job_id).completed_moves == len(sizes)
    forget(engine, nothing)
    return Engine()


def die_in_a_slice(engine: Engine, step: str, job_id: str = "j1") -> None:
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(WorkerDiedError):
            engine.slice(job_id=job_id)


def kept(fleet: Fleet) -> list[Path]:
    return [path for root in fleet.roots.values() for path in root.glob(".rebalance/kept/*")]


def test_what_an_earlier_life_of_a_job_freed_is_in_nobodys_way(fleet: Fleet) -> None:
    written = record(fleet.roots)
    engine = there_and_back(fleet)
    for job_id, source, target in (("j1", "n1", "n2"), ("j2", "n2", "n1"), ("j3", "n1", "n2")):
        engine.start(moves_between(source, target, SIZES), job_id=job_id)
        job = engine.finish(job_id)
        assert (job.completed_moves, kept(fleet)) == (len(SIZES), [])
        engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job, trash=True)


@pytest.mark.parametrize(("deleted_on", "left_on"), [("n1", ["n2"]), ("n2", [])])
def test_what_an_earlier_life_freed_does_not_come_back_when_a_stranger_deletes_the_object(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, deleted_on: str, left_on: list[str]
) -> None:
    engine = there_and_back(fleet, ONE)
    content = append(fleet.roots["n1"] / "a/one")
    before(monkeypatch, Batch, "_free", lambda *_: (fleet.roots[deleted_on] / "a/one").unlink())
    engine.start(moves_between("n1", "n2", ONE))
    assert engine.finish().completed_moves == 1
    engine.cleanup(later_ms=DAY_MS)
    assert {node: (root / "a/one").read_bytes() for node, root in fleet.roots.items() if (root / "a/one").exists()} == (
        dict.fromkeys(left_on, content)
    )
    assert kept(fleet) == []


def test_what_a_stranger_wrote_while_an_earlier_life_freed_it_is_kept(fleet: Fleet) -> None:
    engine = there_and_back(fleet, ONE)
    (fleet.roots["n1"] / ".rebalance/trash/j1.0").write_bytes(b"what no manifest lists")
    engine.start(moves_between("n1", "n2", ONE))
    assert engine.finish().completed_moves == 1
    assert [path.read_bytes() for path in kept(fleet) if path.suffix != ".key"] == [b"what no manifest lists"]


@pytest.mark.parametrize("step", ["publish", "sync_published", "manifest", "flip"])
def test_readers_are_sent_to_the_copy_that_redis_forgot_when_a_stranger_deletes_the_object(
    fleet: Fleet, step: str
) -> None:
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    engine.finish()
    earlier = remember(engine)
    back = moves_between("n2", "n1", SIZES)
    engine.start(back, job_id="j2")
    die_in_a_slice(engine, step, "j2")
    forget(engine, earlier)
    (fleet.roots["n2"] / "a/one").unlink()
    engine = Engine()
    engine.start(back, job_id="j2")
    engine.finish("j2")
    engine.cleanup(later_ms=DAY_MS)
    where = engine.context.locations.lookup("a/one")
    assert (fleet.roots["n1"] / "a/one").exists()
    assert where.forwarded in {None, "n1"}
    assert where.placed == "n1"


@pytest.mark.parametrize("step", ["publish", "sync_published", "manifest", "flip"])
def test_a_copy_of_a_forgotten_job_does_not_stay_beside_its_source_that_was_written_to_since(
    fleet: Fleet, step: str
) -> None:
    engine, written = Engine(), record(fleet.roots)
    nothing = remember(engine)
    engine.start(moves_between("n1", "n2", ONE), epoch=7)
    die_in_a_slice(engine, step)
    forget(engine, nothing)
    written = written.changed("a/one", append(fleet.roots["n1"] / "a/one"))
    engine = Engine()
    engine.start(moves_between("n1", "n2", ONE), epoch=7)
    job = engine.finish()
    for _ in range(2):
        engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job, trash=True)


@pytest.mark.parametrize("step", ["publish", "sync_published", "manifest", "flip"])
def test_a_copy_of_a_forgotten_job_is_found_though_nothing_of_its_stretch_is_left_to_do_when_it_begins_again(
    fleet: Fleet, step: str
) -> None:
    """Such a stretch leaves the job no list of its moves: its plan still has one."""
    engine, written = Engine(), record(fleet.roots)
    nothing = remember(engine)
    moves = [*moves_between("n1", "n3", {"four": 0}), *moves_between("n1", "n2", ONE)]
    engine.start(moves)
    engine.messages.queue.clear()
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(WorkerDiedError):
            engine.slice("g0000")
    forget(engine, nothing)
    engine = Engine()
    engine.context.fleet.set_node_state("n2", NodeState.DRAINING)
    engine.start(moves)
    job = engine.finish()
    assert (job.completed_moves, job.skipped_moves) == (1, 1)
    assert engine.context.outcomes.moves("j1", [0]) == {}
    for _ in range(2):
        engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job, trash=True)
