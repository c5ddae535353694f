"""A write or a removal through the fleet at every step of a move of the same key: it wins, and nobody sees anything older again."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import Flip, Rebalancer
from rebalance_tasks.core.errors import ObjectNotFound, RetryableError
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.fleetfs.opened import OpenFleet
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.settings import load_settings
from rebalance_tasks.store.claims import STILL_MS, WriteInDoubt
from rebalance_tasks.store.moves import MoveStore
from tests.support import host
from tests.support.engine import Engine, move
from tests.support.fleets import made_up
from tests.support.hooks import after, before

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

KEYS = {"a/one": 3000, "a/two": 5000, "b/three": 7000}
#: Between two steps of a batch: owner, method, hook.
MOMENTS: dict[str, tuple[type, str, Callable[..., None]]] = {
    "before it is copied": (Batch, "_stage", before),
    "when it is copied": (Batch, "_verify", before),
    "when it is verified": (Batch, "_publish", before),
    "when it is published": (Batch, "_commit", before),
    "right before the flip": (MoveStore, "flip", before),
    "right after the flip": (MoveStore, "flip", after),
    "when it is freed": (Batch, "_settle", before),
}
#: Whether the object may leave for its target although it was written to.
FLIPPED = {"right after the flip", "when it is freed"}


def open_fleet(**changes: Any) -> OpenFleet:
    """The fleet as another process sees it; its writers do not wait for readers that are not there."""
    fleet = OpenFleet(load_settings().model_copy(update=changes), sample=0)
    fleet.writer._sleep = lambda _: None
    return fleet


def write(fleet: OpenFleet, key: str, data: bytes) -> str:
    draft = fleet.writer.begin(key)
    draft.write(data)
    return fleet.writer.commit(draft)


def void(_: object) -> None:
    """Return nothing."""


@pytest.fixture(params=["union", "crush", "catalogue", "host"])
def nodes(
    fleet_config: FleetFactory, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Fleet:
    """Two nodes, all objects on the first, nothing about them in Redis."""
    options = {"throttle_bytes_per_sec": "none"}
    service = {"locator": request.param}
    if request.param == "host":
        host.install(tmp_path, monkeypatch)
        service = host.HOSTED
    made = fleet_config({"n1": KEYS, "n2": {"resident": 10}}, options=options, fleet=service)
    if request.param == "host":
        host.fill(made.roots)
    Rebalancer().adopt()
    return made


def carry(monkeypatch: pytest.MonkeyPatch, moment: str, act: Callable[[], None]) -> Engine:
    """Move all objects, and act at one moment; the job ends and all is cleaned up."""
    owner, method, hook = MOMENTS[moment]
    acted: list[bool] = []

    def once(*_: object, **__: object) -> None:
        acted.append(True)
        act()

    hook(monkeypatch, owner, method, once)
    engine = Engine()
    engine.start([move(key, "n1", "n2", size) for key, size in KEYS.items()])
    job = engine.finish()
    assert acted == [True]
    assert job.completed_moves + job.skipped_moves == job.total_moves == len(KEYS)
    assert job.failed_moves == 0
    engine.cleanup(later_ms=10**9)
    return engine


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_is_written_while_it_moves_is_what_everybody_reads_from_then_on(
    nodes: Fleet, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fleet = open_fleet()

    def act() -> None:
        write(fleet, "a/one", b"written")
        assert open_fleet().reader.read("a/one") == b"written"
        assert fleet.reader.read("a/one") == b"written"

    engine = carry(monkeypatch, moment, act)
    assert open_fleet().reader.read("a/one") == b"written"
    holders = [node for node in nodes.roots if (nodes.roots[node] / "a/one").exists()]
    # A host's catalogue has committed it by then.
    leaves = FLIPPED if engine.context.catalogue is None else {*FLIPPED, "right before the flip"}
    assert holders == (
        ["n2"] if moment in leaves or (moment == "before it is copied" and holders == ["n2"]) else ["n1"]
    )
    assert nodes.leftovers() == []
    for key in ("a/two", "b/three"):
        assert open_fleet().reader.read(key) == made_up(key, KEYS[key])
        assert (nodes.roots["n2"] / key).exists()
    assert engine.context.connection.hgetall(engine.context.keys.claims) == {}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_is_removed_while_it_moves_stays_away_and_can_be_written_again(
    nodes: Fleet, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fleet = open_fleet()

    def act() -> None:
        fleet.writer.remove("a/one")
        for reader in (fleet.reader, open_fleet().reader):
            with pytest.raises(ObjectNotFound):
                reader.read("a/one")
        # The very bytes that are on their way: no free of the old object may take the new one.
        write(fleet, "b/three", b"other")
        fleet.writer.remove("b/three")
        write(fleet, "b/three", made_up("b/three", KEYS["b/three"]))

    carry(monkeypatch, moment, act)
    with pytest.raises(ObjectNotFound):
        open_fleet().reader.read("a/one")
    assert not any((root / "a/one").exists() for root in nodes.roots.values())
    assert open_fleet().reader.read("b/three") == made_up("b/three", KEYS["b/three"])
    assert [node for node in nodes.roots if (nodes.roots[node] / "b/three").exists()] in (["n1"], ["n2"])
    assert nodes.leftovers() == []


def test_a_writer_waits_for_readers_who_go_by_what_they_knew_before_the_job(
    nodes: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, reader = open_fleet(), open_fleet().reader
    waits: list[float] = []
    fleet.writer._sleep = waits.append
    # Waits are skipped; what the steps themselves take is a reader's time too, however slow the machine is.
    reader._clock = lambda: time.monotonic() + sum(waits)
    assert reader.read("a/one") == made_up("a/one", KEYS["a/one"])  # from here on it may go to n1 unasked

    def act() -> None:
        write(fleet, "a/one", b"written")
        # n1 still holds the old object: without the wait this is what that reader would see.
        assert reader.read("a/one") == b"written"

    owner, method, hook = MOMENTS["right after the flip"]
    hook(monkeypatch, owner, method, lambda *_, **__: act())
    engine = Engine()
    engine.start([move("a/one", "n1", "n2", KEYS["a/one"])])
    assert engine.finish().completed_moves == 1
    assert all(0 < wait <= STILL_MS / 1000 for wait in waits)
    del nodes


def test_the_next_job_moves_what_was_written_while_the_last_one_ran(
    nodes: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = carry(monkeypatch, "when it is published", lambda: void(write(open_fleet(), "a/one", b"written")))
    assert (nodes.roots["n1"] / "a/one").exists()
    engine.start([move("a/one", "n1", "n2", len(b"written"))], job_id="j2")
    assert engine.finish("j2").completed_moves == 1
    assert open_fleet().reader.read("a/one") == b"written"


def test_a_claim_of_a_dead_writer_holds_up_others_no_longer_than_it_lasts(nodes: Fleet) -> None:
    fleet = open_fleet()
    dead = open_fleet().writer
    claim = dead._claims.take("a/one", "write:dead", ttl_ms=80)
    assert not isinstance(claim, int)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    fleet.writer._sleep = sleep
    write(fleet, "a/one", b"written")
    assert slept
    assert not dead._claims.mark(claim, "n1", ttl_ms=1000)
    assert not dead._claims.end(claim, "n1", there=True, placed=False, grown_bytes=0)
    assert fleet.reader.read("a/one") == b"written"
    del nodes


def test_a_write_whose_claim_was_lost_says_that_nobody_knows(nodes: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, other = open_fleet(), open_fleet()
    context = Engine().context

    def lose(*_: object) -> None:
        context.connection.client.delete(context.keys.claims)
        write(other, "a/one", b"other")

    door = fleet.door("n1")
    after(monkeypatch, type(door), "replace", lose)
    with pytest.raises(WriteInDoubt, match="read it, and write it again"):
        write(fleet, "a/one", b"mine")
    assert fleet.reader.read("a/one") == b"other"
    del nodes


def test_a_copy_that_nothing_vouches_for_is_not_written_to(nodes: Fleet) -> None:
    engine = Engine()
    if engine.context.catalogue is not None:
        engine.context.catalogue.flip([Flip("a/one", "n1", None, 0)])
    (nodes.roots["n2"] / "a").mkdir()
    (nodes.roots["n2"] / "a/one").write_bytes(b"another")
    engine.context.connection.client.hset(engine.context.keys.frees, "n9\0other", "j0.1")  # things move
    with pytest.raises(RetryableError, match="is on nodes n1, n2, and nothing says which"):
        write(open_fleet(), "a/one", b"written")
    assert (nodes.roots["n2"] / "a/one").read_bytes() == b"another"


def test_nothing_is_written_to_a_disk_that_is_not_mounted(nodes: Fleet) -> None:
    fleet = open_fleet()
    write(fleet, "a/one", b"written")
    (nodes.roots["n1"] / ".rebalance/node-id").rename(nodes.roots["n1"] / ".rebalance/elsewhere")
    with pytest.raises(Exception, match="was never adopted"):
        write(fleet, "a/one", b"again")
    assert (nodes.roots["n1"] / "a/one").read_bytes() == b"written"


def test_cleanup_lets_go_of_what_was_written_and_of_what_a_dead_remover_left(
    nodes: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = carry(monkeypatch, "right before the flip", lambda: void(write(open_fleet(), "a/one", b"written")))
    written = engine.context.keys.written
    assert engine.context.connection.hgetall(written) == {}  # `carry` cleaned up
    client = engine.context.connection.client
    client.hset(written, mapping={"a/two": "n2", "b/three": "n2"})
    client.hset(engine.context.keys.frees, "n1\0a/two", "j9.0")  # a copy of it may still stand there
    engine.cleanup()
    assert engine.context.connection.hgetall(written) == {"a/two": b"n2"}
    driver = engine.context.driver("n2")
    found = driver.stat("a/two")
    assert found is not None
    driver.free("a/two", MoveId("write:dead"), found)
    monkeypatch.setattr("rebalance_tasks.control.cleanup.ORPHAN_AGE", timedelta(days=-1))
    engine.cleanup()
    assert list(driver.list_trash()) == []
    del nodes
