"""A copy that a dead worker gave its key is read again before readers are sent to it: a disk may have lost a bit of it since.

Until the flip its source is whole, so that what is spoilt can be made again (docs/invariants.md, step 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration import copying, faults
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.faults import Step
from tests.support import checker, killing
from tests.support.engine import Engine, moves_between
from tests.support.forgetting import forget, remember
from tests.support.hooks import DAY_MS, before
from tests.support.killing import PART_BYTES, killed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

PARTS = 5
SIZES = {"large": PARTS * PART_BYTES, "small/0": 2000, "small/1": 2001}
OPTIONS = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9}
PUBLISHED = [Step.PUBLISH, Step.SYNC_PUBLISHED, Step.MANIFEST]


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    return fleet_config({"n1": SIZES, "n2": {"resident": 3}}, options=OPTIONS)


def died(fleet: Fleet, tmp_path: Path, keys: list[str], step: Step = Step.SYNC_PUBLISHED) -> Engine:
    """A worker died when objects had their keys on n2, and no reader was sent there."""
    engine = Engine()
    engine.start(moves_between("n1", "n2", {key: SIZES[key] for key in keys}))
    assert killed(tmp_path / "death", killing.carry, fleet.roots, faults_text=f"{step}=kill")
    engine.hurry()
    return engine


def rot(fleet: Fleet, key: str) -> None:
    faults.corrupt(fleet.roots["n2"] / key)


def read_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is read back."""
    lengths: list[int] = []
    original = Copier._read_back

    def read_back(self: Copier, reader: Any, length: int) -> str:
        digest = original(self, reader, length)
        lengths.append(length)
        return digest

    monkeypatch.setattr(Copier, "_read_back", read_back)
    return lengths


@pytest.mark.parametrize("key", ["large", "small/0"])
@pytest.mark.parametrize("step", PUBLISHED)
def test_a_copy_that_lost_a_bit_at_its_key_before_the_flip_is_made_again(
    fleet: Fleet, tmp_path: Path, step: Step, key: str
) -> None:
    written = checker.record(fleet.roots)
    engine = died(fleet, tmp_path, [key], step)
    rot(fleet, key)
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, 1, {})
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, job, trash=True)


def test_of_several_copies_only_the_spoilt_one_is_made_again(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    engine = died(fleet, tmp_path, ["small/0", "small/1"])
    rot(fleet, "small/1")
    kept = (fleet.roots["n2"] / "small/0").stat().st_ino
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (2, {})
    assert (fleet.roots["n2"] / "small/0").stat().st_ino == kept
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, job, trash=True)


def test_nobody_reads_again_what_no_death_has_interrupted(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = read_parts(monkeypatch)
    engine = Engine()
    engine.start(moves_between("n1", "n2", {"large": SIZES["large"]}))
    engine.finish()
    assert len(lengths) == PARTS


def test_without_checksums_nothing_is_read_again(
    fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={**OPTIONS, "validate_checksums": False})
    engine = died(fleet, tmp_path, ["small/0"])
    lengths = read_parts(monkeypatch)
    assert engine.finish().completed_moves == 1
    assert lengths == []


# -- what stops the reading -----------------------------------------------------------------------------------------------
def test_a_pause_in_the_middle_of_reading_again_sends_no_reader_there_and_the_next_runner_goes_on_with_the_next_part(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    engine = died(fleet, tmp_path, ["large"])
    monkeypatch.setattr(controls, "BEAT_EVERY_S", 0.0)
    lengths = read_parts(monkeypatch)
    with monkeypatch.context() as patch:
        original = Copier._read_back

        def read_and_pause(self: Copier, reader: Any, length: int) -> str:
            digest = original(self, reader, length)
            if len(lengths) == 2:
                lifecycle.pause(engine.context, "j1")
            return digest

        patch.setattr(Copier, "_read_back", read_and_pause)
        lifecycle.wake(engine.context, "j1")
        engine.work()
    assert engine.job().completed_moves == 0
    assert engine.context.locations.lookup("large").forwarded is None
    assert len(lengths) == 2
    lifecycle.resume(engine.context, "j1")
    job = engine.finish()
    assert len(lengths) == PARTS
    assert (job.completed_moves, job.failures) == (1, {})
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, job, trash=True)


@pytest.mark.parametrize("spoilt", [False, True], ids=["whole", "spoilt"])
def test_a_cancel_finishes_what_is_published_and_whole_and_sends_nobody_to_what_is_not(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: bool
) -> None:
    written = checker.record(fleet.roots)
    engine = died(fleet, tmp_path, ["large"])
    monkeypatch.setattr(controls, "BEAT_EVERY_S", 0.0)
    if spoilt:
        rot(fleet, "large")
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert (job.completed_moves, job.skipped_moves) == ((0, 1) if spoilt else (1, 0))
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, job, trash=True)


# -- strangers, and a Redis that forgot -----------------------------------------------------------------------------------
def test_a_spoilt_copy_whose_source_a_stranger_has_deleted_may_be_the_last_one_and_stays(
    fleet: Fleet, tmp_path: Path
) -> None:
    engine = died(fleet, tmp_path, ["small/0"])
    rot(fleet, "small/0")
    (fleet.roots["n1"] / "small/0").unlink()
    spoilt = (fleet.roots["n2"] / "small/0").read_bytes()
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    assert fleet.objects("n2")["small/0"] == spoilt


def test_a_copy_that_a_stranger_deletes_while_it_is_read_again_is_made_again(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    engine = died(fleet, tmp_path, ["small/0"])
    before(monkeypatch, Copier, "verify_published", lambda *_: (fleet.roots["n2"] / "small/0").unlink())
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, job, trash=True)


@pytest.mark.parametrize("key", ["large", "small/0"])
def test_a_listed_copy_that_redis_forgot_and_that_lost_a_bit_is_made_again(
    fleet: Fleet, tmp_path: Path, key: str
) -> None:
    written = checker.record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", {key: SIZES[key]}))
    known = remember(engine)
    assert killed(tmp_path / "death", killing.carry, fleet.roots, faults_text=f"{Step.MANIFEST}=kill")
    forget(engine, known)
    rot(fleet, key)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, job, trash=True)
