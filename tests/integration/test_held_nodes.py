"""One node is held, by an operator or since it is out of reach: its groups wait, all others go on, nothing is lost or blamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import fleetwide, lifecycle
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.errors import NodeMissing, UnknownNode
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.migration import control as controls
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.store.holds import MISSING, OUTAGE_MS, OUTAGE_OVER_MS
from tests.support.checker import check, record
from tests.support.engine import Engine, move, moves_between
from tests.support.fleets import NodeSpec
from tests.support.hooks import SIZES, before, mount_again, slices_of_one_object, unmount

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZE = 1000


@pytest.fixture
def wide(fleet_config: FleetFactory) -> Fleet:
    """One group at a time: a → b, a → c, d → c."""
    options = {"throttle_bytes_per_sec": "none", "max_concurrent_migrations": 1}
    nodes = {
        "a": NodeSpec({"1": SIZE, "2": SIZE}),
        "b": NodeSpec(),
        "c": NodeSpec(),
        "d": NodeSpec({"3": SIZE}),
    }
    return fleet_config(nodes, options=options)


def start(engine: Engine) -> None:
    ways = [("1", "a", "b"), ("2", "a", "c"), ("3", "d", "c")]
    engine.start([move(key, source, target, SIZE, priority=-int(key)) for key, source, target in ways])


def drive(engine: Engine) -> None:
    """Work and sweep, with leases and waiting times run out, but with no outage given up."""
    for _ in range(4):
        engine.work()
        engine.hurry_leases()
        run_sweep(engine.context)
    engine.work()


# -- by an operator ---------------------------------------------------------------------------------------------------
def test_groups_of_a_paused_node_wait_and_the_others_go_on(wide: Fleet) -> None:
    written = record(wide.roots)
    engine = Engine()
    start(engine)
    # The first group has the only permit, and its message is out.
    answer = fleetwide.pause_node(engine.context, "b")
    assert (answer.status, answer.reason) == (RebalanceStatus.RUNNING, "")
    drive(engine)
    job = engine.job()
    assert (job.groups_done, job.completed_moves) == (2, 2)
    assert wide.objects("b") == {}
    assert engine.context.jobs.permits("j1") == []
    # Nothing but the held group is left.
    assert (job.status, job.paused_reasons, job.held_groups) == (RebalanceStatus.PAUSED, ("node:b",), {"node:b": 1})
    answer = fleetwide.resume_node(engine.context, "b")
    assert (answer.status, answer.reason) == (RebalanceStatus.RUNNING, "")
    job = engine.finish()
    assert (job.status, job.completed_moves, job.held_groups) == (RebalanceStatus.COMPLETED, 3, {})
    check(wide.roots, written, job)


def test_the_status_tells_at_every_instant_which_groups_wait_for_which_node(wide: Fleet) -> None:
    engine = Engine()
    start(engine)
    fleetwide.pause_node(engine.context, "c")
    job = engine.job()
    assert (job.status, job.paused_reasons, job.held_groups) == (RebalanceStatus.RUNNING, (), {"node:c": 2})
    fleetwide.pause_node(engine.context, "a")
    job = engine.job()
    assert (job.status, job.paused_reasons) == (RebalanceStatus.PAUSED, ("node:a", "node:c"))
    assert job.held_groups == {"node:a": 2, "node:c": 2}
    assert (job.throughput, job.eta) == (0.0, None)
    lifecycle.pause(engine.context, "j1")
    assert engine.job().paused_reasons == ("node:a", "node:c", "operator")
    fleetwide.resume_node(engine.context, "a")
    job = engine.job()
    assert (job.status, job.paused_reasons, job.held_groups) == (RebalanceStatus.PAUSED, ("operator",), {"node:c": 2})
    lifecycle.resume(engine.context, "j1")
    assert engine.job().status is RebalanceStatus.RUNNING
    engine.work()
    assert engine.job().status is RebalanceStatus.PAUSED  # the one that could go on is done
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.CANCELLED, 1, {"cancelled": 2})


def test_a_group_in_flight_stops_at_its_next_look_and_gives_its_permit_to_another(
    wide: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(wide.roots)
    engine = Engine()
    start(engine)
    engine.messages.queue.clear()
    monkeypatch.setattr(controls, "BEAT_EVERY_S", 0.0)
    before(monkeypatch, Batch, "_stage", lambda *_: fleetwide.pause_node(engine.context, "b"))
    assert engine.relay("g0000") is SliceOutcome.PARKED
    assert wide.objects("b") == {}
    assert engine.context.jobs.permits("j1") == ["g0001"]
    assert [message.group_id for message in engine.messages.queue] == ["g0001"]
    engine.work()
    fleetwide.resume_node(engine.context, "b")
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (3, {})
    check(wide.roots, written, job)


def test_every_slice_of_a_busy_pair_leaves_before_its_permit_is_given_back(wide: Fleet) -> None:
    engine = Engine()
    start(engine)
    jobs, keys = engine.context.jobs, engine.context.keys.job("j1")
    lease = jobs.acquire_lease("j1", "g0000", owner="one")
    # A second stretch of the same group, in another runner's hands.
    engine.context.connection.hset(keys.group("g0000"), {"open": " 0 1"})
    engine.context.connection.hset(keys.lease("g0000", 1), {"epoch": 2, "owner": "two", "lease_until": 2**52})
    engine.context.connection.hset(keys.lease("g0000", 1), {"lease_until": engine.context.connection.now_ms() + 9000})
    fleetwide.pause_node(engine.context, "b")
    assert jobs.beat("j1", "g0000", lease.stretch, epoch=lease.epoch)[0] == "paused"
    assert jobs.release_lease("j1", "g0000", lease.stretch, epoch=lease.epoch) == "held"
    assert jobs.permits("j1") == ["g0000"]
    assert jobs.release_lease("j1", "g0000", 1, epoch=2, extra=True) == "held"
    assert jobs.permits("j1") == []


def test_a_job_started_while_a_node_is_paused_leaves_its_groups_alone(wide: Fleet) -> None:
    engine = Engine()
    fleetwide.pause_node(engine.context, "a")
    start(engine)
    assert [message.group_id for message in engine.messages.queue] == ["g0002"]
    engine.work()
    assert engine.job().status is RebalanceStatus.PAUSED
    fleetwide.resume_node(engine.context, "a")
    assert engine.finish().completed_moves == 3


def test_a_node_is_known_and_told_when_it_is_not_paused(wide: Fleet) -> None:
    engine = Engine()
    with pytest.raises(UnknownNode):
        fleetwide.pause_node(engine.context, "nobody")
    assert fleetwide.resume_node(engine.context, "a").reason == "node 'a' is not paused"
    assert fleetwide.pause_node(engine.context, "a").job_id == ""
    assert [(hold.node_id, hold.owner) for hold in engine.context.holds.all()] == [("a", "operator")]


# -- cancelled while it waits -----------------------------------------------------------------------------------------
def test_a_cancel_winds_up_a_group_that_ran_before_it_was_held(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    with slices_of_one_object():
        assert engine.slice() is SliceOutcome.AGAIN
    fleetwide.pause_node(engine.context, "n2")
    assert engine.relay() is SliceOutcome.PARKED
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.CANCELLED, 1, {"cancelled": 4})
    check(fleet.roots, written, job)


def test_a_cancel_after_the_limit_was_lowered_keeps_what_was_counted(
    wide: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(wide.roots)
    engine = Engine()
    fleetwide.set_limit(engine.context, 2)
    engine.start([move("1", "a", "b", SIZE), move("2", "a", "b", SIZE), move("3", "d", "c", SIZE)])
    with slices_of_one_object():
        assert engine.slice("g0000") is SliceOutcome.AGAIN
    fleetwide.set_limit(engine.context, 1)
    engine.messages.queue.clear()
    assert engine.slice("g0000") is SliceOutcome.DROPPED  # it waits again
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert (job.completed_moves, job.skipped_moves) == (1, 2)
    check(wide.roots, written, job)


# -- out of reach -----------------------------------------------------------------------------------------------------
#: at which call a node is gone for a moment, and of which node
BLIPS = {
    "a look at the source before the first copy": ("n1", "check_identity"),
    "a look at the target before the first copy": ("n2", "check_identity"),
    "the sync of the copies": ("n2", "sync"),
    "the manifest": ("n2", "write_manifest"),
    "publishing": ("n2", "publish"),
    "freeing": ("n1", "free"),
}


@pytest.mark.parametrize("blip", BLIPS)
@pytest.mark.parametrize("times", [1, 4])
def test_a_node_that_is_gone_for_a_moment_costs_no_move_and_no_attempt(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, blip: str, times: int
) -> None:
    node, call = BLIPS[blip]
    written = record(fleet.roots)
    original, left = getattr(LocalDriver, call), [times]

    def gone(self: LocalDriver, *args: Any, **kwargs: Any) -> Any:
        if self.node_id == node and left[0]:
            left[0] -= 1
            raise NodeMissing(node, f"{call}: Stale file handle")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LocalDriver, call, gone)
    engine.start(moves_between("n1", "n2", SIZES))
    engine.work()
    assert engine.job().held_groups == {f"node:{node}": 1}
    assert engine.context.jobs.permits("j1") == []
    journal = engine.context.connection.hgetall(engine.context.keys.job("j1").journal)
    assert not any(b"open" in entry or b"deaths" in entry for entry in journal.values())
    for _ in range(2 * times):
        run_sweep(engine.context)
        engine.work()
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    check(fleet.roots, written, job)


def test_a_node_that_stays_away_holds_its_groups_until_its_time_is_over(wide: Fleet) -> None:
    engine = Engine()
    start(engine)
    unmount(wide.roots["b"])
    drive(engine)
    job = engine.job()
    assert (job.status, job.paused_reasons, job.failures) == (RebalanceStatus.PAUSED, ("node:b",), {})
    assert job.completed_moves == 2
    assert "out of reach" in fleetwide.resume_node(engine.context, "b").reason
    assert [hold.owner for hold in engine.context.holds.all()] == [MISSING]
    engine.outlast_outages()
    assert run_sweep(engine.context).nodes_given_up == 1
    engine.work()
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, 2, {"node_missing": 1})
    assert engine.context.holds.all() == []
    mount_again(wide.roots["b"])


def test_a_node_that_comes_back_lets_its_groups_go_on(wide: Fleet) -> None:
    written = record(wide.roots)
    engine = Engine()
    start(engine)
    unmount(wide.roots["b"])
    drive(engine)
    mount_again(wide.roots["b"])
    report = run_sweep(engine.context)
    assert (report.nodes_back, report.admitted) == (1, 1)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (3, {})
    check(wide.roots, written, job)


def test_a_node_that_is_out_of_reach_and_paused_is_let_go_by_each_for_itself(wide: Fleet) -> None:
    engine = Engine()
    start(engine)
    unmount(wide.roots["b"])
    engine.work()
    fleetwide.pause_node(engine.context, "b")
    mount_again(wide.roots["b"])
    run_sweep(engine.context)
    assert [hold.owner for hold in engine.context.holds.all()] == ["operator"]
    drive(engine)
    assert engine.job().paused_reasons == ("node:b",)
    fleetwide.resume_node(engine.context, "b")
    assert engine.finish().completed_moves == 3


def test_a_cancel_does_not_wait_for_a_node_and_fails_nothing(fleet: Fleet, engine: Engine) -> None:
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    with slices_of_one_object():
        assert engine.slice() is SliceOutcome.AGAIN
    unmount(fleet.roots["n2"])
    engine.work()
    lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.CANCELLED, 1, {"cancelled": 4})
    mount_again(fleet.roots["n2"])
    engine.cleanup()
    check(fleet.roots, written, job)


def test_an_outage_is_one_until_the_node_was_well_for_a_while(engine: Engine) -> None:
    holds, connection, keys = engine.context.holds, engine.context.connection, engine.context.keys
    assert holds.missing("n1")
    now = connection.now_ms()
    # It comes and goes: what is waited for is the whole of it.
    connection.hset(keys.outages, {"n1": f"{now - OUTAGE_MS} {now - 1000}"})
    assert holds.lift("n1", owner=MISSING)
    assert not holds.missing("n1")
    assert holds.all() == []
    # Well for a while: the next outage is a new one. Also when the clock was set back meanwhile.
    for times in (f"{now - OUTAGE_MS} {now - OUTAGE_OVER_MS - 1000}", f"{now + 10**6} {now + 10**6}"):
        connection.hset(keys.outages, {"n1": times})
        assert holds.missing("n1")
        assert holds.lift("n1", owner=MISSING)
