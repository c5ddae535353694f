"""What goes wrong with one object becomes that object's outcome; the job goes on and adds up.

The engine runs in this process (tests.support.engine), so that a fault strikes exactly between two steps; the checker
that judges the result knows nothing of our code.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import ObjectUnreadable
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local import driver as local
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.files import LocalSource
from rebalance_tasks.drivers.local.linux import native
from rebalance_tasks.migration.batch import Batch
from tests.support.checker import check, record
from tests.support.engine import Engine, move, moves_between
from tests.support.fleets import made_up
from tests.support.hooks import (
    DAY_MS,
    MOMENTS,
    SIZES,
    append,
    before,
    corrupt,
    replace,
    rewrite_in_place,
)
from tests.support.privileges import modes_bind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


# -- the plain way ----------------------------------------------------------------------------------------------------
def test_every_object_moves_whole_and_once_when_nothing_goes_wrong(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, 5)
    assert job.bytes_moved == sum(SIZES.values())
    check(fleet.roots, written, job)
    engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job, trash=True)


# -- one object -------------------------------------------------------------------------------------------------------
def test_a_vanished_object_is_skipped_and_the_others_move(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots).without("a/two")
    engine.start(moves_between("n1", "n2", SIZES))
    (fleet.roots["n1"] / "a/two").unlink()
    job = engine.finish()
    assert (job.completed_moves, job.skipped_moves, job.failures) == (4, 1, {"source_vanished": 1})
    assert "source_vanished" in engine.outcome(1)
    check(fleet.roots, written, job)


def test_an_object_that_vanishes_after_it_was_copied_is_skipped_and_does_not_rise_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots).without("a/two")
    before(monkeypatch, Batch, "_publish", lambda _: (fleet.roots["n1"] / "a/two").unlink())
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"source_vanished": 1})
    check(fleet.roots, written, job)


def test_an_object_that_cannot_be_read_fails_and_the_others_move(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalSource.readinto

    def readinto(self: LocalSource, buffer: memoryview) -> int:
        if self._key == "a/two":
            raise ObjectUnreadable(self._key, "read: Input/output error; look at the disk")
        return original(self, buffer)

    monkeypatch.setattr(LocalSource, "readinto", readinto)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failed_moves, job.failures) == (4, 1, {"unreadable": 1})
    check(fleet.roots, written, job)


def test_an_object_whose_mode_forbids_reading_fails_and_the_others_move(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    (fleet.roots["n1"] / "a/two").chmod(0)
    engine.start(moves_between("n1", "n2", SIZES))
    with modes_bind():
        job = engine.finish()
    (fleet.roots["n1"] / "a/two").chmod(0o600)
    assert (job.completed_moves, job.failures) == (4, {"unreadable": 1})
    assert "let the worker's user read it" in engine.outcome(1)
    check(fleet.roots, written, job)


def test_an_object_in_a_folder_that_forbids_writing_is_not_copied_since_it_could_not_be_freed(
    fleet: Fleet, engine: Engine
) -> None:
    written = record(fleet.roots)
    (fleet.roots["n1"] / "a").chmod(0o555)
    engine.start(moves_between("n1", "n2", SIZES))
    with modes_bind():
        job = engine.finish()
    (fleet.roots["n1"] / "a").chmod(0o755)
    assert (job.completed_moves, job.failures) == (3, {"unreadable": 2})
    check(fleet.roots, written, job)


def test_a_target_that_forbids_writing_fails_every_object_and_says_so(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    (fleet.roots["n2"] / ".rebalance/tmp").chmod(0o555)
    with modes_bind():
        job = engine.finish()
    assert (job.status, job.failures) == (RebalanceStatus.FAILED, {"node_not_writable": 5})
    assert job.error is not None
    assert "node_not_writable" in job.error
    check(fleet.roots, written, job)


def test_an_object_that_cannot_be_freed_fails_and_stays_where_it_was(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LocalDriver.free

    def free(self: LocalDriver, key: str, move_id: Any, expected: Any, **more: Any) -> Any:
        if key == "a/two" and self.node_id == "n1":
            raise ObjectUnreadable(key, "free: Operation not permitted; let the worker's user write to its folder")
        return original(self, key, move_id, expected, **more)

    monkeypatch.setattr(LocalDriver, "free", free)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"unreadable": 1})
    assert engine.context.locations.lookup("a/two")[1:3] == (None, None)
    check(fleet.roots, written, job)
    assert not list((fleet.roots["n2"] / ".rebalance/trash").iterdir())


def test_a_different_object_at_the_key_is_never_overwritten(fleet: Fleet, engine: Engine) -> None:
    stranger = fleet.roots["n2"] / "a/two"
    stranger.parent.mkdir()
    stranger.write_bytes(b"not yours")
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_exists": 1})
    assert stranger.read_bytes() == b"not yours"
    assert fleet.objects("n1") == {"a/two": made_up("a/two", 5000)}
    assert fleet.leftovers() == []


def test_a_name_that_the_target_cannot_tell_from_the_key_is_refused_and_both_objects_stay(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = native()

    def rename_folding_case(source: str, target: str, source_dir_fd: int, target_dir_fd: int) -> None:
        folder = os.open(".", os.O_RDONLY, dir_fd=target_dir_fd)
        try:
            with os.scandir(folder) as entries:
                taken = {entry.name.casefold() for entry in entries}
        finally:
            os.close(folder)
        if target.casefold() in taken:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        calls.rename_noreplace(source, target, source_dir_fd, target_dir_fd)

    monkeypatch.setattr(local, "native", lambda: replaced(calls, rename_noreplace=rename_folding_case))
    fleet = fleet_config({"n1": SIZES, "n2": {"a/TWO": 70}}, options={"throttle_bytes_per_sec": "none"})
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_exists": 1})
    assert "cannot tell from it" in engine.outcome(1)
    assert fleet.objects("n1") == {"a/two": made_up("a/two", 5000)}
    assert fleet.objects("n2")["a/TWO"] == made_up("a/TWO", 70)
    assert fleet.leftovers() == []


def test_a_copy_corrupted_on_its_way_is_noticed_and_made_again(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(monkeypatch, times=1)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written, job)


def test_a_copy_that_is_corrupted_every_time_fails_after_three_tries(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    strikes = corrupt(monkeypatch, times=1000)
    written = record(fleet.roots)
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.status, job.failures) == (RebalanceStatus.FAILED, {"checksum_mismatch": 1})
    assert "3 tries" in engine.outcome(0)
    assert len(strikes) == 3
    check(fleet.roots, written, job)


# -- strangers write to the source ------------------------------------------------------------------------------------
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("write", [append, replace, rewrite_in_place])
def test_what_a_stranger_writes_to_the_source_is_never_lost(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str, write: Callable[[Path], bytes]
) -> None:
    owner, method, hook = MOMENTS[moment]
    written = record(fleet.roots)
    fresh: list[bytes] = []
    hook(monkeypatch, owner, method, lambda *_: fresh.append(write(fleet.roots["n1"] / "a/one")))
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (5, {})
    check(fleet.roots, written.changed("a/one", fresh[0]), job)
    assert fleet.objects("n2")["a/one"] == fresh[0]
    assert engine.context.locations.lookup("a/one").forwarded == "n2"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_source_that_changes_every_time_is_skipped_after_three_tries(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, method, hook = MOMENTS[moment]
    written = record(fleet.roots)
    fresh: list[bytes] = []
    hook(monkeypatch, owner, method, lambda *_: fresh.append(append(fleet.roots["n1"] / "a/one")), times=1000)
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.status, job.skipped_moves, job.failures) == (RebalanceStatus.FAILED, 1, {"source_changed": 1})
    assert len(fresh) == 3
    assert engine.context.locations.lookup("a/one")[1:3] == (None, None)
    check(fleet.roots, written.changed("a/one", fresh[-1]), job)
    assert not list((fleet.roots["n2"] / ".rebalance/trash").iterdir())


def test_the_bytes_of_a_source_that_grew_are_counted_as_they_are(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: list[bytes] = []
    before(monkeypatch, Batch, "_publish", lambda _: fresh.append(append(fleet.roots["n1"] / "a/one")))
    engine.context.fleet.set_usage({"n1": sum(SIZES.values()), "n2": 10})
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert job.bytes_moved == sum(SIZES.values()) + 4
    assert engine.context.fleet.usage()["n2"] == fleet.used_bytes("n2")
    assert engine.context.fleet.awaiting()["n1"] == sum(SIZES.values()) + 4


def test_a_source_deleted_after_the_flip_counts_as_moved(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    before(monkeypatch, Batch, "_free", lambda *_: (fleet.roots["n1"] / "a/one").unlink())
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {})
    check(fleet.roots, written, job)


def test_two_strangers_who_write_to_both_copies_are_both_kept(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(*_: Any) -> None:
        append(fleet.roots["n1"] / "a/one")
        (fleet.roots["n2"] / "a/one").write_bytes(b"from a reader who became a writer")

    before(monkeypatch, Batch, "_free", both)
    engine.start([move("a/one", "n1", "n2", 3000)])
    job = engine.finish()
    assert job.failures == {"conflict": 1}
    assert fleet.objects("n1")["a/one"] == made_up("a/one", 3000) + b"more"
    assert fleet.objects("n2")["a/one"] == b"from a reader who became a writer"
