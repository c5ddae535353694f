"""The relay: a runner that has ended a group goes on with the next one, and whatever stops it leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.relay import RELAY_S
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration.slice import Slice, SliceOutcome
from rebalance_tasks.store.connection import Connection
from tests.support.checker import check, record
from tests.support.engine import Engine, move
from tests.support.fleets import NodeSpec
from tests.support.hooks import WorkerDiedError, deadly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.store.connection import Call
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZE = 1000
FAR = {"queue": "far"}


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """One group at a time: two of the common queue, one of a queue of its own, one more of the common one."""
    options = {"throttle_bytes_per_sec": "none", "max_concurrent_migrations": 1}
    nodes = {
        "a": NodeSpec({"1": SIZE, "2": SIZE, "4": SIZE}),
        "b": NodeSpec(),
        "c": NodeSpec(),
        "d": NodeSpec(),
        "x": NodeSpec({"3": SIZE}, settings=FAR),
        "y": NodeSpec(settings=FAR),
    }
    return fleet_config(nodes, options=options)


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    """A job of four groups whose first header was published and taken."""
    engine = Engine()
    ways = [("1", "a", "b"), ("2", "a", "c"), ("3", "x", "y"), ("4", "a", "d")]
    engine.start([move(key, source, target, SIZE, priority=-int(key)) for key, source, target in ways])
    engine.messages.queue.clear()
    return engine


def told(engine: Engine, task: str) -> list[str]:
    return [message.group_id for message in engine.messages.published if message.task == task]


def test_one_message_carries_the_groups_of_its_queue_and_each_has_its_monitor(engine: Engine) -> None:
    assert engine.relay() is SliceOutcome.HANDED
    assert engine.job().groups_done == 2
    # The third group is of another queue: its own workers are told.
    assert told(engine, "migrate") == ["g0000", "g0002"]
    assert told(engine, "monitor") == engine.messages.counted == ["g0000", "g0001"]
    assert engine.finish().status is RebalanceStatus.COMPLETED


def test_a_group_with_nothing_after_it_is_left_to_its_chain(engine: Engine) -> None:
    engine.relay()
    engine.messages.published.clear()
    assert engine.relay("g0002", queue="rebalance.data.far") is SliceOutcome.TERMINAL
    assert (told(engine, "migrate"), told(engine, "monitor")) == (["g0003"], [])


def test_no_further_group_is_begun_when_the_time_is_up(engine: Engine) -> None:
    times = iter((0.0,))
    assert engine.relay(clock=lambda: next(times, RELAY_S)) is SliceOutcome.TERMINAL
    # Its permit is given back by the monitor.
    assert (engine.job().completed_moves, engine.job().groups_done) == (1, 0)
    lifecycle.finish_group(engine.context, "j1", "g0000")
    assert told(engine, "migrate") == ["g0000", "g0001"]


def test_a_pause_between_two_groups_parks_the_second(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Slice.run

    def run_and_pause(self: Slice) -> SliceOutcome:
        outcome = run(self)
        lifecycle.pause(engine.context, "j1")
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(Slice, "run", run_and_pause)
        engine.relay()
    assert engine.job().completed_moves == 1
    engine.messages.queue.clear()
    lifecycle.resume(engine.context, "j1")
    assert engine.finish().completed_moves == 4


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the scripts of each trip to Redis, from now on."""
    found: list[list[str]] = []
    run_all = Connection.run_all

    def noted(self: Connection, calls: Sequence[Call]) -> list[Any]:
        found.append([name for name, _, _ in calls])
        return run_all(self, calls)

    monkeypatch.setattr(Connection, "run_all", noted)
    return found


def test_the_last_move_is_counted_and_the_next_group_admitted_in_one_trip(
    engine: Engine, trips: list[list[str]]
) -> None:
    trips.clear()
    engine.relay()
    assert trips.count(["moves_settle", "group_finish", "gate_admit"]) == 2
    assert not [trip for trip in trips if "group_finish" in trip and "moves_settle" not in trip]


def test_a_group_of_one_object_makes_five_trips_and_asks_the_throttle_on_one_of_them(
    fleet_config: FleetFactory, trips: list[list[str]]
) -> None:
    fleet_config({"a": {"1": SIZE}, "b": {}}, options={"throttle_bytes_per_sec": 10 * SIZE})
    engine = Engine()
    engine.start([move("1", "a", "b", SIZE)])
    trips.clear()
    assert engine.relay() is SliceOutcome.TERMINAL
    # On a busy machine 50 ms may pass, after which the lease is renewed.
    assert [trip for trip in trips if trip != ["lease_beat"]] == [
        ["lease_acquire"],
        ["moves_begin", "throttle_take"],
        ["journal_write"],
        ["moves_flip"],
        ["moves_settle", "group_finish", "gate_admit"],
    ]
    assert engine.finish().completed_moves == 1


def test_what_was_let_in_for_an_overtaken_runner_is_published(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Slice.run

    def overtaken(self: Slice) -> SliceOutcome:
        run(self)
        return SliceOutcome.DROPPED

    with monkeypatch.context() as patch:
        patch.setattr(Slice, "run", overtaken)
        assert engine.relay() is SliceOutcome.DROPPED
    assert told(engine, "migrate") == ["g0000", "g0001"]
    assert engine.finish().completed_moves == 4


@pytest.mark.parametrize("step", ["begin", "journal", "flip", "free"])
def test_a_runner_that_dies_in_its_second_group_is_followed(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    written = record(fleet.roots)
    with monkeypatch.context() as patch:
        deadly(patch, step, "2")
        with pytest.raises(WorkerDiedError):
            engine.relay()
    engine.messages.queue.clear()
    engine.hurry()
    assert run_sweep(engine.context).redriven + engine.job().groups_done >= 1
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, 4)
    check(fleet.roots, written)


def test_a_runner_that_dies_between_two_groups_is_followed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second group was admitted, no message says so, and nobody ever took its lease."""
    run = Slice.run

    def run_first(self: Slice) -> SliceOutcome:
        if self._group_id != "g0000":
            raise WorkerDiedError
        return run(self)

    with monkeypatch.context() as patch:
        patch.setattr(Slice, "run", run_first)
        with pytest.raises(WorkerDiedError):
            engine.relay()
    engine.messages.queue.clear()
    assert run_sweep(engine.context).redriven == 0  # its header is not overdue yet
    engine.hurry()
    assert run_sweep(engine.context).redriven == 1
    assert engine.finish().completed_moves == 4
