"""A batch whose plain objects go in columns keeps every promise of the one that takes them one by one."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, get_args

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle
from rebalance_tasks.core.placement.kernels import compiled_kernels
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local import compiled, plain_rows
from rebalance_tasks.drivers.local.plain_rows import PlainRows
from rebalance_tasks.migration import control, plain
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.faults import Step
from rebalance_tasks.migration.plain import Plain
from tests.integration.test_kill_matrix import assert_nothing_is_held
from tests.support import checker, killing
from tests.support.engine import Engine, moves_between
from tests.support.hooks import DAY_MS, after

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.drivers.local.plain_rows import RowStep
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("plain_rows")]

if compiled_kernels("auto", worth_loading=True) is None:
    pytest.skip("no numba here, so there are no rows", allow_module_level=True)

SIZES = {f"{number % 3}/{number}": 1000 + number for number in range(60)}
OPTIONS = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9}
#: Moments at which a process is killed.
DEATHS = 6


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(compiled, "WORTH_LOADING_OBJECTS", 0)
    return fleet_config({"n1": SIZES, "n2": {"resident": 3}}, options=OPTIONS)


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    return engine


def tidy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    for _ in range(3):
        engine.cleanup(later_ms=DAY_MS)
    assert_nothing_is_held(engine)


def all_moved(fleet: Fleet, engine: Engine, written: checker.Written, monkeypatch: pytest.MonkeyPatch) -> None:
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    assert job.bytes_moved == sum(SIZES.values())
    checker.check(fleet.roots, written, job)
    tidy(engine, monkeypatch)
    checker.check(fleet.roots, written, job, trash=True)


def test_plain_objects_go_in_columns_and_keep_one_record_of_their_batch(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    rows: list[int] = []
    after(monkeypatch, Plain, "counted", lambda self: rows.append(sum(item.counted for item in self.items)))
    engine.work()
    assert sum(rows) == len(SIZES)
    redis, keys = engine.context.connection.client, engine.context.keys
    assert redis.exists(keys.trash_batches)
    assert not redis.exists(keys.trash)
    all_moved(fleet, engine, written, monkeypatch)


STEPS = [
    *((step, 1) for step in (Step.BEGIN, Step.SYNC_STAGED, Step.VERIFY, Step.JOURNAL, Step.SYNC_PUBLISHED)),
    *((step, 1) for step in (Step.MANIFEST, Step.FLIP, Step.SETTLE)),
    *((step, 17) for step in (Step.STAGE, Step.PUBLISH, Step.FREE)),
]


@pytest.mark.parametrize(("step", "nth"), STEPS)
def test_after_a_death_at_any_step_of_rows_every_object_is_whole_and_counted_once(
    fleet: Fleet, engine: Engine, tmp_path: Path, step: Step, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    assert killing.killed(tmp_path, killing.carry_in_rows, fleet.roots, faults_text=f"{step}=kill:{nth}")
    assert written.digests.keys() <= checker.look(fleet.roots).objects.keys(), "an object was nowhere"
    engine.hurry()
    all_moved(fleet, engine, written, monkeypatch)


def progress(fleet: Fleet, pid: int) -> int:
    """How much has happened on the nodes: files that are staged, with a name or open without one, published and freed."""
    there = (fleet.roots["n2"] / ".rebalance/tmp", *(fleet.roots["n2"] / str(n) for n in range(3)))
    folders = (*there, fleet.roots["n1"] / ".rebalance/trash")
    seen = 0
    for folder in [*map(str, folders), f"/proc/{pid}/fd"]:
        with suppress(OSError):
            seen += len(os.listdir(folder))  # noqa: PTH208  a count
    return seen


def test_a_process_that_is_killed_at_any_moment_of_a_call_loses_nothing(
    fleet: Fleet, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a call there is no fault point, so the moment is left to chance: after so many names have appeared."""
    written = checker.record(fleet.roots)
    dice = random.Random(20261128)
    for number in count():
        process = killing.begun(tmp_path / f"{number}", killing.carry_in_rows, fleet.roots, faults_text="")
        pid = process.pid or 0
        wanted = progress(fleet, pid) + dice.randrange(1, len(SIZES))
        while process.is_alive() and progress(fleet, pid) < wanted:
            time.sleep(0)
        process.kill()
        process.join(60)
        assert written.digests.keys() <= checker.look(fleet.roots).objects.keys(), "an object was nowhere"
        engine.hurry()
        if number == DEATHS or engine.job().status.terminal:
            break
    job = engine.finish()
    # Three deaths on an object are its end; it is whole at its source.
    assert job.completed_moves + job.failed_moves == len(SIZES)
    tidy(engine, monkeypatch)
    checker.check(fleet.roots, written, job, trash=True)


def test_a_copy_of_a_row_has_no_name_before_its_key_and_is_gone_with_its_process(
    fleet: Fleet, engine: Engine, tmp_path: Path
) -> None:
    assert killing.killed(tmp_path, killing.carry_in_rows, fleet.roots, faults_text=f"{Step.JOURNAL}=kill:1")
    assert not list((fleet.roots["n2"] / ".rebalance/tmp").iterdir())


def test_where_no_file_can_be_without_a_name_copies_lie_aside_under_one(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_rows, "_names_descriptors", lambda: False)
    written = checker.record(fleet.roots)
    aside: list[int] = []
    tmp = fleet.roots["n2"] / ".rebalance/tmp"
    after(monkeypatch, Plain, "verify", lambda _: aside.append(len(list(tmp.iterdir()))))
    engine.work()
    assert sum(aside) == len(SIZES)
    all_moved(fleet, engine, written, monkeypatch)


@pytest.mark.parametrize(("method", "step"), [("read_back", "read"), ("publish", "verified")])
def test_a_copy_that_gets_no_name_when_its_row_leaves_is_made_anew(
    fleet: Fleet, engine: Engine, method: str, step: RowStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall_behind(self: PlainRows, *_: object) -> None:
        self.steps[:] = get_args(plain_rows.RowStep).index(step)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    written = checker.record(fleet.roots)
    if method == "publish":
        monkeypatch.setattr(PlainRows, method, fall_behind)
    else:
        after(monkeypatch, PlainRows, method, fall_behind)
    monkeypatch.setattr(os, "link", refuse)
    engine.work()
    monkeypatch.undo()
    engine.hurry()
    all_moved(fleet, engine, written, monkeypatch)


def test_an_object_that_is_not_plain_leaves_its_row_and_goes_all_the_same(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        os.setxattr(fleet.roots["n1"] / "0/0", "user.colour", b"blue")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    written = checker.record(fleet.roots)
    engine.work()
    assert os.getxattr(fleet.roots["n2"] / "0/0", "user.colour") == b"blue"
    all_moved(fleet, engine, written, monkeypatch)


def test_what_is_wrong_with_single_rows_ends_those_moves_only(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fleet.roots["n1"] / "0/0").unlink()
    (fleet.roots["n2"] / "1").mkdir()
    (fleet.roots["n2"] / "1/1").write_bytes(b"a stranger's")
    (fleet.roots["n1"] / "2/second name").hardlink_to(fleet.roots["n1"] / "2/2")
    engine.work()
    job = engine.finish()
    assert job.failures == {
        "source_vanished": 1,
        "target_exists": 1,
        "unreadable": 1,
    }
    assert job.completed_moves == len(SIZES) - 3
    assert (fleet.roots["n2"] / "1/1").read_bytes() == b"a stranger's"
    tidy(engine, monkeypatch)


def test_a_row_whose_source_changes_after_the_flip_is_taken_back_and_moved_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fleet.roots["n1"] / "0/0"
    after(monkeypatch, Plain, "flipped", lambda _: path.write_bytes(b"newer") if path.exists() else None)
    engine.work()
    monkeypatch.undo()
    job = engine.finish()
    assert job.completed_moves == len(SIZES)
    assert (fleet.roots["n2"] / "0/0").read_bytes() == b"newer"


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_rows_stop_when_they_are_told_to(
    fleet: Fleet, engine: Engine, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    monkeypatch.setattr(plain, "AHEAD_ROWS", 8)
    monkeypatch.setattr(control, "BEAT_EVERY_S", 0.0)
    acted: list[bool] = []

    def act(*_: object) -> None:
        if not acted:
            acted.append(True)
            if verb == "pause":
                lifecycle.pause(engine.context, "j1")
            else:
                lifecycle.cancel(engine.context, "j1", requested_by="test")

    after(monkeypatch, Batch, "_staged", act)
    engine.work()
    staged = list((fleet.roots["n2"] / ".rebalance/tmp").iterdir())
    if verb == "pause":
        # What is staged stays, and is not copied again.
        assert len(staged) == 8
        lifecycle.resume(engine.context, "j1")
        engine.work()
        all_moved(fleet, engine, written, monkeypatch)
    else:
        assert staged == []
        job = engine.finish()
        assert (job.status, job.skipped_moves) == (RebalanceStatus.CANCELLED, len(SIZES))
        checker.check(fleet.roots, written, job)
