"""A busy pair under several slices at once, and the gate's other limits: a lowered limit, headers ahead, groups per node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.states import MoveState, RebalanceStatus
from rebalance_tasks.migration import control
from rebalance_tasks.migration import slice as slices
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.store import jobs
from rebalance_tasks.store.moves import Settlement
from tests.support.checker import check, record
from tests.support.engine import Engine, Message, move, moves_between
from tests.support.hooks import WorkerDiedError, before, deadly
from tests.support.stores import Stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

EXTRA = Message("extra", "j1", "g0000")


@pytest.fixture
def engine(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Five objects from n1 to n2, each a stretch of its own."""
    monkeypatch.setattr("rebalance_tasks.control.start.BATCH_OBJECTS", 1)
    return Engine()


@pytest.fixture
def stores(redis_url: str) -> Iterator[Stores]:
    made = Stores(redis_url)
    yield made
    made.close()


def start(engine: Engine, fleet: Fleet) -> None:
    sizes = {key: len(content) for key, content in fleet.objects("n1").items()}
    engine.start(moves_between("n1", "n2", sizes))


# -- several slices ---------------------------------------------------------------------------------------------------
def test_slices_of_one_group_take_different_stretches_and_each_sends_for_one_more(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the first object of each slice another slice of the same group runs."""
    start(engine, fleet)
    seen: list[str] = []
    depth: list[int] = []

    def nest(batch: Batch) -> None:
        seen.extend(item.move.key for item in batch._items)
        if EXTRA in engine.messages.queue:
            engine.messages.queue.remove(EXTRA)
            depth.append(1)
            engine.handle(EXTRA)

    before(monkeypatch, Batch, "run", nest, times=100)
    engine.work()
    assert len(depth) == 4, "one extra slice at a time, until no stretch is left"
    assert sorted(seen) == sorted(set(seen))
    assert engine.job().completed_moves == 5
    assert engine.finish().status is RebalanceStatus.COMPLETED


def test_an_extra_slice_that_comes_too_late_leaves_the_monitor_alone(fleet: Fleet, engine: Engine) -> None:
    start(engine, fleet)
    assert engine.slice() is SliceOutcome.TERMINAL
    assert engine.slice(extra=True) is SliceOutcome.DROPPED
    # The lead's own message says it again: the first may have died before it told the monitor.
    assert engine.slice() is SliceOutcome.TERMINAL


def test_the_slice_that_counts_the_last_move_tells_the_monitor_even_if_it_is_an_extra_one(
    fleet: Fleet, engine: Engine
) -> None:
    start(engine, fleet)
    engine.messages.queue.clear()
    assert engine.relay(extra=True) is SliceOutcome.HANDED
    assert Message("monitor", "j1", "g0000") in engine.messages.queue
    assert engine.job().groups_done == 1


def test_a_stretch_whose_runner_died_is_taken_up_before_the_next(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)
    start(engine, fleet)
    with monkeypatch.context() as patch:
        deadly(patch, "flip", min(fleet.objects("n1")))
        with pytest.raises(WorkerDiedError):
            engine.slice()
    # Its lease is still alive: another slice passes it over and does the rest.
    assert engine.slice() is SliceOutcome.DROPPED
    assert engine.job().completed_moves == 4
    assert run_sweep(engine.context).redriven == 0
    engine.hurry()
    assert run_sweep(engine.context).redriven == 1
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, 5)
    check(fleet.roots, written)


@pytest.mark.parametrize("extra", [False, True])
def test_a_slice_whose_time_is_up_between_two_stretches_is_carried_on(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, extra: bool
) -> None:
    start(engine, fleet)
    monkeypatch.setattr(slices, "SLICE_S", 0.0)
    # An extra slice has sent for another one already; the lead sends for itself.
    assert engine.slice(extra=extra) is (SliceOutcome.DROPPED if extra else SliceOutcome.AGAIN)
    assert EXTRA in engine.messages.queue
    monkeypatch.undo()
    assert engine.finish().completed_moves == 5


def test_a_cancel_reaches_every_stretch(fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    start(engine, fleet)
    # However slow the machine is, the first stretch is carried to its end before the flags are looked at.
    monkeypatch.setattr(control, "BEAT_EVERY_S", 3600.0)
    before(monkeypatch, Batch, "run", lambda _: engine.context.jobs.cancel("j1", by="test"))
    job = engine.finish()
    assert (job.status, job.completed_moves, job.skipped_moves) == (RebalanceStatus.CANCELLED, 1, 4)
    assert fleet.leftovers() == []


# -- the gate ---------------------------------------------------------------------------------------------------------
def test_a_group_beyond_a_lowered_limit_goes_back_to_wait_and_comes_again(stores: Stores) -> None:
    stores.create("j1", [1, 1, 1])
    assert len(stores.jobs.admit("j1", limit=3)) == 3
    stores.connection.hset(stores.keys.info, {"max_concurrent_migrations": 1})
    assert stores.jobs.acquire_lease("j1", "g0", owner="a", limit=3).code == "waiting"
    assert stores.jobs.acquire_lease("j1", "g1", owner="b", limit=3).code == "waiting"
    assert stores.jobs.acquire_lease("j1", "g2", owner="c", limit=3).code == "ok"
    assert stores.jobs.permits("j1") == ["g2"]
    assert stores.jobs.admit("j1", limit=3) == []
    stores.connection.hset(stores.keys.info, {"max_concurrent_migrations": 2})
    assert [group.group_id for group in stores.jobs.admit("j1", limit=3)] == ["g0"]


def test_a_group_beyond_a_lowered_limit_keeps_its_permit_while_one_of_its_slices_works(stores: Stores) -> None:
    stores.create("j1", [2, 1], stretch=1)
    stores.jobs.admit("j1", limit=2)
    assert stores.jobs.acquire_lease("j1", "g0", owner="a", limit=1).code == "waiting"
    stores.jobs.admit("j1", limit=2)
    assert stores.jobs.acquire_lease("j1", "g0", owner="a", limit=2).code == "ok"
    assert stores.jobs.acquire_lease("j1", "g0", owner="b", limit=1).code == "busy"
    assert stores.jobs.permits("j1") == ["g0", "g1"]


def test_groups_start_by_priority_the_most_urgent_first(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    urgency = {"n2": 1, "n3": 9, "n4": -3, "n5": 5}
    fleet_config(
        {"n1": dict.fromkeys(urgency, 1), **{node: {} for node in urgency}}, options={"max_concurrent_migrations": 1}
    )
    engine, started = Engine(), list[str]()
    before(monkeypatch, Batch, "run", lambda batch: started.append(batch._c.target.node_id), times=99)
    engine.start([move(node, "n1", node, 1, priority=priority) for node, priority in urgency.items()])
    assert engine.finish().completed_moves == len(urgency)
    assert started == ["n3", "n5", "n2", "n4"]


def test_only_so_many_headers_are_out_that_nobody_picked_up(stores: Stores) -> None:
    groups = jobs.AHEAD + 5
    stores.create("j1", [1] * groups)
    out = [group.group_id for group in stores.jobs.admit("j1", limit=groups)]
    assert out == [f"g{number}" for number in range(jobs.AHEAD)]
    assert stores.jobs.admit("j1", limit=groups) == []
    stores.jobs.acquire_lease("j1", "g3", owner="a")
    assert [group.group_id for group in stores.jobs.admit("j1", limit=groups)] == [f"g{jobs.AHEAD}"]


def test_a_header_that_was_picked_up_makes_room_for_the_next(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more permits than headers may be out, whoever picks one up looks at the gate."""
    monkeypatch.setattr(jobs, "AHEAD", 1)
    stores.create("j1", [1, 1])
    assert [group.group_id for group in stores.jobs.admit("j1", limit=2)] == ["g0"]
    assert stores.jobs.acquire_lease("j1", "g0", owner="a", limit=2).room
    assert [group.group_id for group in stores.jobs.admit("j1", limit=2)] == ["g1"]
    assert not stores.jobs.acquire_lease("j1", "g1", owner="b", limit=2).room


def test_a_runner_lets_the_next_group_in_when_it_picks_its_own_up(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "AHEAD", 1)
    engine.start([move("b/0", "n1", "n2", 1), move("b/1", "n2", "n1", 1)])
    assert [message.group_id for message in engine.messages.published] == ["g0000"]
    engine.slice()
    assert [message.group_id for message in engine.messages.published] == ["g0000", "g0001"]


def test_a_group_that_is_not_terminal_makes_no_place_for_another(stores: Stores) -> None:
    stores.create("j1", [1, 1])
    assert [group.group_id for group in stores.jobs.admit("j1", limit=1)] == ["g0"]
    finished, following, published = stores.end("j1", "g0", limit=2, take_from="rebalance.data")
    assert (finished.code, following, published) == ("open", None, [])


def test_no_node_is_in_more_groups_than_allowed(stores: Stores) -> None:
    # All groups of these jobs share their nodes.
    stores.create("j1", [1, 1, 1])
    assert len(stores.jobs.admit("j1", limit=3, per_node=2)) == 2
    assert stores.jobs.admit("j1", limit=3, per_node=2) == []
    lease, store = stores.lease("j1", "g0")
    store.settle([Settlement(move, MoveState.FAILED, "x") for move, _ in lease.moves], purge_delay_ms=0)
    _, following, published = stores.end("j1", "g0", limit=3, per_node=2)
    assert (following, [group.group_id for group in published]) == (None, ["g2"])


def test_a_group_far_back_gets_in_where_those_before_it_wait_for_their_nodes(fleet_config: FleetFactory) -> None:
    targets = [f"n{number:02d}" for number in range(40)]
    options = {"max_concurrent_migrations": 5, "max_concurrent_per_node": 1}
    nodes = {"n1": dict.fromkeys(targets, 1), "far": {"last": 1}, **{target: {} for target in targets}}
    fleet_config(nodes, options=options)
    engine = Engine()
    engine.start([*[move(key, "n1", key, 1, priority=1) for key in targets[:-1]], move("last", "far", targets[-1], 1)])
    assert [message.group_id for message in engine.messages.queue] == ["g0000", "g0039"]
    assert engine.finish().completed_moves == len(targets)
