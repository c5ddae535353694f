"""The kill matrix: ``kill -9`` right after each step of the way of one object, then a fresh process takes over.

The list of steps is the code's own (`faults.Step`), so a new step without a death is a failing test. The killed process
is a real one, killed by SIGKILL; its successor runs in the test's process. After every death: each object whole, once,
counted once; nothing left behind; no byte copied twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration import copying
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.faults import Step
from tests.support import checker
from tests.support.engine import Engine, copied_bytes, count_copied, killed_carry, moves_between

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("kill_matrix")]

SMALL = {f"small/{number}": 2000 + number for number in range(6)}
#: A large object has parts; 64 MiB each would take the matrix minutes.
PART_BYTES = 64 << 10
LARGE = {"large": 5 * PART_BYTES + 77}
SIZES = {**SMALL, **LARGE}
DAY_MS = 86_400_000

#: Steps that are reached only when the source changes between the flip and the free.
AFTER_A_CHANGE = {Step.RETRACT, Step.UNPUBLISH}
#: The step strikes at its n-th time too, in the middle of a batch or of an object.
DEATHS = [(step, 1) for step in Step if step not in AFTER_A_CHANGE]
IN_THE_MIDDLE = [(Step.PART, 3), (Step.STAGE, 4), (Step.PUBLISH, 4), (Step.FREE, 4)]


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(Copier, "_part", Copier._part)  # counted below, and restored
    count_copied(tmp_path / "copied")
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9}
    return fleet_config({"n1": SIZES, "n2": {"resident": 3}}, options=options)


def start() -> Engine:
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    return engine


def check_all(fleet: Fleet, engine: Engine, written: checker.Written) -> None:
    """After the successor's turn: all that the design promises."""
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    assert job.bytes_moved == sum(SIZES.values())
    checker.check(fleet.roots, written, job)
    assert engine.cleanup(later_ms=DAY_MS).purged == len(SIZES)
    checker.check(fleet.roots, written, job, trash=True)
    assert engine.context.fleet.awaiting() == {"n1": 0}
    assert engine.context.locations.pending_frees() == {}
    assert engine.context.connection.hgetall(engine.context.keys.reserved("n2")) == {}
    assert engine.context.connection.hgetall(engine.context.keys.permits) == {}
    assert engine.context.jobs.active() is None


@pytest.mark.parametrize(("step", "nth"), [*DEATHS, *IN_THE_MIDDLE])
def test_a_worker_killed_right_after_a_step_loses_nothing_and_copies_nothing_twice(
    fleet: Fleet, tmp_path: Path, step: Step, nth: int
) -> None:
    written = checker.record(fleet.roots)
    engine = start()
    assert killed_carry(tmp_path, faults_text=f"{step}=kill:{nth}", part_bytes=PART_BYTES), f"{step} was not reached"
    half_way = checker.look(fleet.roots).objects
    assert written.digests.keys() <= half_way.keys(), "an object was nowhere where a reader looks"
    engine.finish()
    assert copied_bytes(tmp_path / "copied") == sum(SIZES.values())
    check_all(fleet, engine, written)


@pytest.mark.parametrize("step", [step for step in Step if step is not Step.RELEASE])
def test_two_workers_killed_at_the_same_step_one_after_the_other_change_nothing_either(
    fleet: Fleet, tmp_path: Path, step: Step
) -> None:
    written = checker.record(fleet.roots)
    engine = start()
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        killed_carry(tmp_path / f"{number}", faults_text=f"{step}=kill", part_bytes=PART_BYTES)
        engine.hurry()
    assert engine.finish().failures == {}
    check_all(fleet, engine, written)


@pytest.mark.parametrize("step", [Step.FREE, *sorted(AFTER_A_CHANGE)])
def test_a_worker_killed_while_it_takes_a_flip_back_leaves_the_newer_source_the_truth(
    fleet: Fleet, tmp_path: Path, step: Step
) -> None:
    written = checker.record(fleet.roots)
    engine = start()
    assert killed_carry(
        tmp_path, faults_text=f"{step}=kill", part_bytes=PART_BYTES, stranger=str(fleet.roots["n1"] / "small/0")
    ), f"{step} was not reached"
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (len(SIZES), {})
    fresh = checker.look(fleet.roots).objects["small/0"]
    assert [node for node, _ in fresh] == ["n2"]
    content = (fleet.roots["n2"] / "small/0").read_bytes()
    assert content.endswith(b"from a stranger")
    engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written.changed("small/0", content), job, trash=True)
