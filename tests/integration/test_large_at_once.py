"""Large objects between disks go through a step several at once: each of them whole, counted once, and none after a pause."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.core.options import MIB
from rebalance_tasks.core.pacing.inflight import LARGE_AT_ONCE
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local import burst as local_burst
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.files import LocalWriter
from rebalance_tasks.drivers.local.linux import native
from rebalance_tasks.migration import control, copying
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.faults import Step
from rebalance_tasks.migration.slice import SliceOutcome
from tests.support.checker import check, record
from tests.support.engine import Engine, copied_bytes, count_copied, killed_carry, moves_between
from tests.support.fleets import NodeSpec
from tests.support.killing import PART_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZES = {f"large/{number}": 2 * MIB + number for number in range(6)} | {"small/1": 10, "small/2": 2000}
#: Longer than any machine takes to start a thread.
PATIENCE_S = 60


def two_disks(fleet_config: FleetFactory, **storage_options: bool) -> Fleet:
    settings = {"storage_options": storage_options}
    nodes = {"n1": NodeSpec(SIZES, 10**9, settings), "n2": NodeSpec({}, 10**9, settings)}
    return fleet_config(nodes, options={"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9})


@pytest.fixture
def fleet(fleet_config: FleetFactory, tmp_path: Path) -> Fleet:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        if not native().direct(file.fileno()):
            (pytest.fail if os.environ.get("CI") else pytest.skip)("temporary files lie on no disk with direct I/O")
    return two_disks(fleet_config)


def let_two_meet(patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Let the first two calls of a method go on only together."""
    original, turn, meeting = getattr(owner, name), itertools.count(), threading.Barrier(2)

    def call(*arguments: Any, **more: Any) -> Any:
        if next(turn) < meeting.parties:
            meeting.wait(PATIENCE_S)
        return original(*arguments, **more)

    patch.setattr(owner, name, call)


@pytest.mark.parametrize(("owner", "name"), [(LocalWriter, "write"), (LocalDriver, "open_staged")])
def test_several_are_written_and_read_back_at_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    let_two_meet(monkeypatch, owner, name)
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, len(SIZES))
    check(fleet.roots, written, job)


def test_a_pause_stops_all_of_them_and_nothing_is_copied_twice(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    monkeypatch.setattr(control, "BEAT_EVERY_S", 0.0)  # each look is a look at the flags
    writes: list[tuple[str, int]] = []
    pausing = threading.Lock()
    original = LocalWriter.write

    def write(self: LocalWriter, data: memoryview) -> None:
        with pausing:
            writes.append((self._label, len(data)))
            if len(writes) == LARGE_AT_ONCE:
                lifecycle.pause(engine.context, "j1", by="test")
        original(self, data)

    monkeypatch.setattr(LocalWriter, "write", write)
    assert engine.slice() is SliceOutcome.PARKED
    assert len(writes) < 2 * LARGE_AT_ONCE, "after the pause only those wrote that had leave already"
    lifecycle.resume(engine.context, "j1", by="test")
    job = engine.finish()
    check(fleet.roots, written, job)
    lengths = Counter[str]()
    for label, length in writes:
        lengths[label] += length
    assert lengths.most_common(1)[0][1] <= max(SIZES.values()), "nothing was copied twice"


def test_what_is_wrong_with_one_of_them_is_its_trouble_alone(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    (fleet.roots["n1"] / "large/3").unlink()
    with (fleet.roots["n1"] / "large/4").open("ab") as file:
        file.write(b"grown")
    written = record(fleet.roots)
    job = engine.finish()
    assert (job.completed_moves, job.skipped_moves, job.failed_moves) == (len(SIZES) - 1, 1, 0)
    check(fleet.roots, written, job)


def test_an_operator_may_keep_a_node_s_large_copies_in_the_page_cache_where_they_go_one_by_one(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = two_disks(fleet_config, direct=False)
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    threads: set[int] = set()
    original = LocalWriter.write

    def write(self: LocalWriter, data: memoryview) -> None:
        threads.add(threading.get_ident())
        assert self._around is None
        original(self, data)

    monkeypatch.setattr(LocalWriter, "write", write)
    check(fleet.roots, written, engine.finish())
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("step", "nth"),
    [
        *((Step.PART, nth) for nth in (1, 7)),
        *((Step.STAGE, nth) for nth in (1, 4)),
        *((step, 1) for step in (Step.SYNC_STAGED, Step.VERIFY, Step.PUBLISH)),
    ],
)
def test_after_a_death_between_them_each_is_whole_counted_once_and_at_most_the_parts_in_flight_are_copied_again(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, nth: int
) -> None:
    written = record(fleet.roots)
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(Copier, "_part", Copier._part)
    monkeypatch.setattr(local_burst, "write_at", local_burst.write_at)
    count_copied(tmp_path / "copied")
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    assert killed_carry(tmp_path, faults_text=f"{step}=kill:{nth}", part_bytes=PART_BYTES)
    engine.hurry()
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (len(SIZES), {})
    check(fleet.roots, written, job)
    assert copied_bytes(tmp_path / "copied") - sum(SIZES.values()) <= (LARGE_AT_ONCE - 1) * PART_BYTES
    assert job.bytes_moved == sum(SIZES.values())
