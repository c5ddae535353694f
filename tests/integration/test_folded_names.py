"""A node that cannot tell ``a/two`` from ``a/TWO``: each object has an outcome of its own, and both spellings keep their bytes.

Behind a real SFTP server that looks names up so, and on a real file system that does where this machine can mount one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.core.errors import SourceVanished, TargetExists
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.doors import door_of
from rebalance_tasks.drivers.sftp.driver import SftpDriver
from rebalance_tasks.drivers.spelling import Spelling
from rebalance_tasks.migration.faults import Step
from tests.support import checker
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.folding import FILES, MOVED, ON_NTFS, RESIDENT, carried, folding_file_system, write
from tests.support.hosts import namespaces
from tests.support.killing import carry, killed
from tests.support.places import SftpPlace
from tests.support.sftp import Folding, Sftp, sftp_server
from tests.unit.drivers.conformance import read_all, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = {"throttle_bytes_per_sec": "none"}
M1 = MoveId("job-1.0")


@pytest.fixture(scope="module")
def folding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sftp]:
    with sftp_server(tmp_path_factory.mktemp("folding"), Folding) as server:
        yield server


@pytest.fixture
def fleet(folding: Sftp, fleet_config: FleetFactory, tmp_path: Path) -> Fleet:
    """A disk, and a folder behind that server."""
    place = SftpPlace(tmp_path / "nodes/n2", folding.port, folding.options())
    made = fleet_config({"n1": {}, "n2": NodeSpec(settings={"url": place.url(), **place.settings()})}, options=OPTIONS)
    write(made.roots["n1"], FILES)
    return made


def started(fleet: Fleet, files: dict[str, bytes]) -> Engine:
    engine = Engine()
    engine.start(moves_between("n1", "n2", {key: len(content) for key, content in files.items()}))
    return engine


# -- a job ----------------------------------------------------------------------------------------------------------------
def test_names_that_a_server_cannot_tell_apart_are_refused_one_by_one_and_no_byte_is_lost(fleet: Fleet) -> None:
    write(fleet.roots["n2"], RESIDENT)
    assert carried(fleet.roots) == {"causes": MOVED, "problems": []}


@pytest.mark.parametrize("step", [Step.PUBLISH, Step.FLIP])
def test_after_a_death_the_copy_of_one_twin_is_not_taken_for_that_of_the_other(
    fleet: Fleet, tmp_path: Path, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(fleet.roots["n2"], RESIDENT)
    engine = started(fleet, FILES)
    assert killed(tmp_path, carry, fleet.roots, faults_text=f"{step}=kill")
    engine.hurry()
    half_way = checker.look(fleet.roots).objects
    assert half_way.keys() >= FILES.keys(), "an object was nowhere where a reader looks"
    job = engine.finish()
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    engine.cleanup()
    written = checker.Written({}, dict.fromkeys(FILES, "n1") | dict.fromkeys(RESIDENT, "n2"))
    for key, content in {**FILES, **RESIDENT}.items():
        written = written.changed(key, content)
    checker.check(fleet.roots, written, job)
    assert job.failures == {"target_exists": 4}, [engine.outcome(index) for index in range(len(FILES))]


def test_unlike_twins_of_one_size_and_time_are_not_mistaken_for_each_other_after_a_death(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time are all by which SFTP tells a version."""
    twins = {"t/x": made_up("x", 900), "t/X": made_up("X", 900)}
    write(fleet.roots["n1"], twins)
    written = checker.record(fleet.roots)
    engine = started(fleet, twins)
    assert killed(tmp_path, carry, fleet.roots, faults_text="publish=kill")
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {"target_exists": 1})
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    engine.cleanup()
    checker.check(fleet.roots, written, job)


@pytest.mark.skipif(
    not (folding_file_system() and namespaces("--mount")), reason="no lowntfs-3g here (Debian: ntfs-3g), or no mounts"
)
def test_names_that_a_file_system_cannot_tell_apart_are_refused_one_by_one_and_no_byte_is_lost(
    fleet_config: FleetFactory,
) -> None:
    made = fleet_config({"n1": {}, "n2": {}}, options=OPTIONS)
    write(made.roots["n1"], FILES)
    done = subprocess.run(
        [*namespaces("--mount"), sys.executable, "-m", "tests.support.folding"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "FOLDING_ROOTS": str(made.roots["n1"].parent)},
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found == {"causes": ON_NTFS, "problems": []}


# -- readers and writers --------------------------------------------------------------------------------------------------
@pytest.fixture
def driver(folding: Sftp, tmp_path: Path) -> Iterator[SftpDriver]:
    (tmp_path / "root").mkdir()
    made = SftpDriver("n2", folding.link(), str(tmp_path / "root"))
    made.adopt()
    yield made
    made.close()


def test_a_reader_is_not_shown_the_object_of_another_name(driver: SftpDriver, tmp_path: Path) -> None:
    write(tmp_path / "root", RESIDENT)
    assert driver.stat("a/TWO") is not None
    assert [driver.stat(key) for key in ("a/two", "A/TWO", "d/resident")] == [None] * 3
    with pytest.raises(SourceVanished, match="cannot tell"):
        door_of(driver).open_reader("a/two")


def test_a_writer_does_not_replace_the_object_of_another_name(driver: SftpDriver, tmp_path: Path) -> None:
    write(tmp_path / "root", RESIDENT)
    door = door_of(driver)
    for key in ("a/two", "d/new"):
        stage(driver, M1, b"newer")
        with pytest.raises(TargetExists, match="cannot tell"):
            door.replace(M1, key)
        driver.discard(M1)
    stage(driver, M1, b"newer")
    door.replace(M1, "a/TWO")
    assert read_all(driver, "a/TWO") == b"newer"
    assert set(driver.list_objects().keys) == set(RESIDENT)


# -- how a name is spelled ------------------------------------------------------------------------------------------------
class Told(Spelling):
    """What a node would answer, one answer after the other."""

    def __init__(self, *answers: bool | None, **folders: list[str]) -> None:
        super().__init__()
        self.answers, self.folders, self.listed, self.tried = list(answers), folders, 0, 0

    def _ask(self) -> bool | None:
        return self.answers.pop(0)

    def _names(self, folder: str) -> list[str]:
        self.listed += 1
        return self.folders[folder or "root"]

    def _try(self) -> bool:
        self.tried += 1
        return False


def test_where_all_names_are_told_apart_nothing_is_listed_and_nothing_tried() -> None:
    spelling = Told(False)
    assert spelling.of("a/b/c")
    assert spelling.keeps("A")
    assert (spelling.listed, spelling.tried) == (0, 0)


def test_what_is_not_known_yet_is_asked_again_and_what_is_known_is_not() -> None:
    spelling = Told(None, True, root=["A"], A=["b"])
    assert spelling.of("a")
    assert [spelling.of(path) for path in ("a", "A", "A/b", "A/B", "")] == [False, True, True, False, True]
    assert [spelling.keeps(path) for path in ("a", "A", "b/C")] == [True, False, False]
    assert spelling.tried == 1
