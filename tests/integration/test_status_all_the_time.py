"""What a job says of itself is true at every instant: it is looked at after each step that changes a node or Redis.

The steps are the code's own fault points, so that a new one is looked at as well. What is said is compared with the state of
each move as it lies in Redis, and with the files themselves.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.locate import Locator
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration import copying, faults
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.faults import Step
from tests.support import checker
from tests.support.engine import Engine, moves_between
from tests.support.hooks import before, mount_again, unmount
from tests.support.killing import PART_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.core.models import RebalanceJob
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZES = {**{f"small/{number}": 2000 + number for number in range(6)}, "large": 3 * PART_BYTES + 77}
KEYS = list(SIZES)


class Looker:
    """Looks at the job, and remembers what it said before."""

    def __init__(self, fleet: Fleet, engine: Engine) -> None:
        self.fleet, self.engine = fleet, engine
        self.looks = 0
        self.steps: set[Step] = set()
        self.before: RebalanceJob | None = None
        #: objects that are nowhere in reach just now
        self.hidden = False

    def __call__(self, step: Step) -> None:
        self.looks += 1
        self.steps.add(step)
        job = self.engine.job()
        states = self.states()
        self.counts_are_those_of_the_moves(job, states)
        self.status_follows_from_the_moves(job, states)
        self.nothing_goes_back(job)
        if not self.hidden:
            self.files_are_where_it_says(states)
        self.before = job

    def states(self) -> str:
        raw = self.engine.context.connection.client.get(self.engine.context.keys.job("j1").states)
        return cast("bytes", raw or b"").decode()

    @staticmethod
    def counts_are_those_of_the_moves(job: RebalanceJob, states: str) -> None:
        told = {"c": job.completed_moves, "f": job.failed_moves, "s": job.skipped_moves}
        found = Counter(states)
        assert told == {state: found[state] for state in told}
        assert job.total_moves == len(states) == len(SIZES)
        assert job.bytes_moved == sum(SIZES[key] for key, state in zip(KEYS, states, strict=True) if state == "c")

    @staticmethod
    def status_follows_from_the_moves(job: RebalanceJob, states: str) -> None:
        assert (job.completed_utc is not None) == job.status.terminal
        if job.status.terminal:
            assert not {"p", "l"} & set(states), f"{job.status} although moves are open: {states}"
        else:
            assert (job.status is RebalanceStatus.PAUSED) == bool(job.paused_reasons)
        assert (job.throughput or 0) >= 0

    def nothing_goes_back(self, job: RebalanceJob) -> None:
        if self.before is not None:
            assert not self.before.status.terminal or self.before.status is job.status
            for count in ("completed_moves", "failed_moves", "skipped_moves", "bytes_moved"):
                assert getattr(job, count) >= getattr(self.before, count), count

    def files_are_where_it_says(self, states: str) -> None:
        roots, locator = self.fleet.roots, Locator(self.engine.context)
        for key, state in zip(KEYS, states, strict=True):
            source, target = (roots[node] / key for node in ("n1", "n2"))
            assert source.exists() or state in "lc", f"{key} is {state} and not at its source"
            assert target.exists() or state not in "lc", f"{key} is {state} and not at its target"
            assert state != "c" or not source.exists(), f"{key} counts as completed beside its source"
            assert (roots[locator.locate(key)] / key).exists(), f"{key} is not where readers are sent"


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(controls, "BEAT_EVERY_S", 0.0)
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9}
    return fleet_config({"n1": SIZES, "n2": {"resident": 3}}, options=options)


@pytest.fixture
def looker(fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Looker:
    """Looks after every step from now on."""
    made = Looker(fleet, engine)
    original = faults.reached

    def reached(step: Step, *more: Any) -> None:
        original(step, *more)
        made(step)

    for module in [*sys.modules.values()]:
        if getattr(module, "reached", None) is original:
            monkeypatch.setattr(module, "reached", reached)
    return made


def at(looker: Looker, monkeypatch: pytest.MonkeyPatch, step: Step, act: Callable[[], Any], *, nth: int = 1) -> None:
    """Act when a step is reached for the n-th time, before it is looked at."""
    seen: list[Step] = []
    original = Looker.__call__

    def look(self: Looker, reached: Step) -> None:
        seen.append(reached)
        if reached is step and seen.count(step) == nth:
            act()
        original(self, reached)

    monkeypatch.setattr(Looker, "__call__", look)


def finished(looker: Looker, fleet: Fleet, written: checker.Written) -> RebalanceJob:
    job = looker.engine.finish()
    looker(Step.RETIRE)
    checker.check(fleet.roots, written, job)
    assert looker.looks > len(SIZES), "nobody looked"
    return job


def started(engine: Engine) -> None:
    engine.start(moves_between("n1", "n2", SIZES))


def test_a_job_that_nobody_disturbs_says_the_truth_after_each_step(
    fleet: Fleet, engine: Engine, looker: Looker
) -> None:
    written = checker.record(fleet.roots)
    started(engine)
    assert finished(looker, fleet, written).completed_moves == len(SIZES)
    assert looker.steps >= {Step.BEGIN, Step.STAGE, Step.PUBLISH, Step.FLIP, Step.FREE, Step.SETTLE, Step.FINALIZE}


@pytest.mark.parametrize(
    ("verb", "step"),
    [
        *(("pause", step) for step in (Step.STAGE, Step.PART, Step.FREE)),
        *(("cancel", step) for step in (Step.BEGIN, Step.PART, Step.PUBLISH)),
    ],
)
def test_a_job_that_is_paused_or_cancelled_at_any_step_says_so_and_goes_on_from_there(
    fleet: Fleet, engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch, step: Step, verb: str
) -> None:
    written = checker.record(fleet.roots)
    started(engine)
    if verb == "pause":
        at(looker, monkeypatch, step, lambda: lifecycle.pause(engine.context, "j1"))
        engine.work()
        lifecycle.resume(engine.context, "j1")
    else:
        at(looker, monkeypatch, step, lambda: lifecycle.cancel(engine.context, "j1", requested_by="test"))
    job = finished(looker, fleet, written)
    assert job.completed_moves == len(SIZES) or verb == "cancel"


def test_a_job_with_copies_that_are_spoilt_on_the_way_says_the_truth_after_each_step(
    fleet: Fleet, engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    copy = fleet.roots["n2"] / ".rebalance/tmp/j1.0"
    at(looker, monkeypatch, Step.STAGE, lambda: faults.corrupt(copy))
    started(engine)
    assert finished(looker, fleet, written).completed_moves == len(SIZES)
    assert Step.AGAIN in looker.steps


def test_a_job_whose_flips_are_taken_back_says_the_truth_after_each_step(
    fleet: Fleet, engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger touches a source right before it is freed; its size stays, as the counts of bytes here go by it."""
    written = checker.record(fleet.roots)
    source = fleet.roots["n1"] / "small/0"
    before(monkeypatch, Batch, "_free_all", lambda *_: source.write_bytes(source.read_bytes()))
    started(engine)
    assert finished(looker, fleet, written).completed_moves == len(SIZES)
    assert Step.RETRACT in looker.steps


def test_a_job_whose_target_goes_away_and_comes_back_says_the_truth_after_each_step(
    fleet: Fleet, engine: Engine, looker: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)

    def lose(*_: Any) -> None:
        looker.hidden = True
        engine.context.driver("n2").close()
        unmount(fleet.roots["n2"])

    before(monkeypatch, LocalDriver, "write_manifest", lose)
    started(engine)
    engine.work()
    assert Step.HOLD in looker.steps
    mount_again(fleet.roots["n2"])
    looker.hidden = False
    engine.hurry_leases()
    assert finished(looker, fleet, written).completed_moves == len(SIZES)
