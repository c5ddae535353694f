"""The kill matrix of a reindex: Redis is lost in the middle of a job, and whoever rebuilds it is killed after each step.

That no write of it stands without a fault point is held by test_kill_matrix.py.

After every death, and with a cleanup that comes before anybody tries again: no object is missing, nothing is purged that is
not whole elsewhere, and the next reindex ends with what one would have come to that nobody had killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from rebalance_tasks.control.locate import Locator
from rebalance_tasks.control.reindex import reindex
from rebalance_tasks.core.catalogue import Flip
from rebalance_tasks.core.errors import RetryableError
from rebalance_tasks.migration import copying
from rebalance_tasks.migration.faults import Step
from tests.integration.test_kill_matrix import INDEX_STEPS
from tests.integration.test_reindex import OBJECTS, PART_BYTES, assert_idempotent, clean_up, lose_redis
from tests.support import checker, host, killing
from tests.support.engine import Engine, moves_between
from tests.support.killing import killed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("kill_matrix_reindex")]


class Case(NamedTuple):
    """A death: at the n-th time that a reindex reaches a step, in a fleet with that locator."""

    step: Step
    locator: str = "crush"
    nth: int = 1
    #: a cleanup comes before anybody tries again
    cleaned: bool = False

    def __str__(self) -> str:
        return f"{self.step}-{self.nth}-{self.locator}{'-cleaned' if self.cleaned else ''}"


CASES = [
    *(Case(step) for step in (Step.INDEX_ADOPTED, Step.INDEX_FREE, Step.INDEX_PLACED, Step.INDEX_UNPLACED)),
    *(Case(step) for step in (Step.INDEX_MOVED, Step.INDEX_USAGE, Step.INDEX_TRASH, Step.INDEX_STAGED)),
    *(Case(step, nth=2, cleaned=True) for step in (Step.INDEX_ADOPTED, Step.INDEX_FREE, Step.INDEX_TRASH)),
    *(Case(step, "catalogue", cleaned=True) for step in (Step.INDEX_FREE, Step.INDEX_PLACED, Step.INDEX_USAGE)),
    Case(Step.INDEX_FREE, "union", cleaned=True),
    *(Case(step, "host", cleaned=True) for step in (Step.INDEX_COMMITTED, Step.INDEX_FREE, Step.INDEX_CORRECTED)),
]


def test_every_step_of_a_reindex_has_a_case() -> None:
    assert {case.step for case in CASES} == INDEX_STEPS


@pytest.fixture(autouse=True)
def _lines_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each engine that Redis is lost under has a line of its own, which redis-py leaves to the collector of cycles."""
    made: list[Engine] = []
    begin = Engine.__init__

    def noted(self: Engine) -> None:
        begin(self)
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", noted)
    yield
    for engine in made:
        engine.context.connection.client.close()


@pytest.fixture
def fleet(case: Case, fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    """A job was killed while it freed its sources, so that some are in the trash and some beside their copies; then Redis is lost."""
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    hosted = case.locator == "host"
    if hosted:
        host.install(tmp_path, monkeypatch)
    made = fleet_config(
        {"n1": OBJECTS, "n2": {"resident": 3}},
        options={"throttle_bytes_per_sec": "none", "grace": "10m"},
        fleet=host.HOSTED if hosted else {"locator": case.locator},
    )
    if hosted:
        host.fill(made.roots)
    return made


def lost(fleet: Fleet, tmp_path: Path, case: Case) -> None:
    """Bring that about."""
    Engine().start(moves_between("n1", "n2", OBJECTS))
    assert killed(tmp_path / "job", killing.carry, fleet.roots, faults_text="free=kill:4")
    (fleet.roots["n2"] / ".rebalance/tmp/j1.99").write_bytes(b"half a copy")
    if case.locator == "host":
        # An application that is wrong about one object.
        host.catalogue().flip([Flip("resident", "n2", "n1", 1)])
    lose_redis()


def assert_nothing_is_missing(fleet: Fleet, written: checker.Written) -> None:
    found = checker.look(fleet.roots).objects
    assert written.digests.keys() <= found.keys(), "an object was nowhere where a reader looks"
    for key, places in found.items():
        assert {digest for _, digest in places} == {written.digests[key]}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_reindex_that_died_at_any_step_loses_nothing_and_the_next_one_finds_everything(
    fleet: Fleet, tmp_path: Path, case: Case
) -> None:
    written = checker.record(fleet.roots)
    lost(fleet, tmp_path, case)
    assert killed(tmp_path / "index", killing.rebuild, fleet.roots, faults_text=f"{case.step}=kill:{case.nth}"), (
        f"{case.step} was not reached"
    )
    assert_nothing_is_missing(fleet, written)
    engine = Engine()
    with pytest.raises(RetryableError, match="killed less than 10 minutes ago"):
        reindex(engine.context)
    if case.cleaned:
        clean_up(engine)
        assert_nothing_is_missing(fleet, written)
    report = reindex(engine.context, force=True)
    assert (report.missing, report.ambiguous, report.unexplained_trash) == ({}, 0, 0)
    for key in written.digests:
        assert (fleet.roots[Locator(engine.context).locate(key)] / key).is_file()
    engine.context.connection.client.delete(engine.context.keys.check_lock)
    assert_idempotent(engine)
    clean_up(engine)
    checker.check(fleet.roots, written, trash=True)
    assert engine.context.locations.pending_frees() == {}
    assert engine.context.fleet.usage() == {node: fleet.used_bytes(node) for node in fleet.roots}
    assert not any(engine.context.fleet.awaiting().values())
    if case.locator == "host":
        assert dict(host.catalogue().entries()) == {key: node for node in fleet.roots for key in fleet.objects(node)}
