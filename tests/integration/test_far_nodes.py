"""Nodes that only some hosts reach: control touches none of them, and a queue that nobody serves holds up nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.reach import far_queues, within_reach
from rebalance_tasks.control.sweep import look_at_nodes, run_sweep
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.store import presence as presences
from rebalance_tasks.store.holds import MISSING
from rebalance_tasks.store.presence import Presence
from tests.support.checker import check, record
from tests.support.engine import Engine, move
from tests.support.fleets import NodeSpec
from tests.support.hooks import mount_again, unmount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

SIZE = 1000
EVERYWHERE = ("rebalance.control", "rebalance.data")
H1, H2, LAN = (f"rebalance.data.{name}" for name in ("h1", "h2", "lan"))


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """One group at a time: two disks of host h1, two of h2 that the others reach over their network too, two of anybody."""
    options = {"throttle_bytes_per_sec": "none", "max_concurrent_migrations": 1}
    nodes = {
        "a": NodeSpec({"1": SIZE}, settings={"queue": "h1"}),
        "b": NodeSpec(settings={"queue": "h1"}),
        "c": NodeSpec({"2": SIZE}, settings={"queue": ["h2", "lan"]}),
        "d": NodeSpec(settings={"queue": ["h2", "lan"]}),
        "x": NodeSpec({"3": SIZE}),
        "y": NodeSpec(),
    }
    return fleet_config(nodes, options=options)


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    """A job of three groups in the order h1, h2, anybody; the header of the first was published."""
    engine = Engine()
    ways = [("1", "a", "b"), ("2", "c", "d"), ("3", "x", "y")]
    engine.start([move(key, source, target, SIZE, priority=-int(key)) for key, source, target in ways])
    return engine


def there(engine: Engine, **workers: Sequence[str] | None) -> None:
    """These workers, and no others, have just said what they serve."""
    context = engine.context
    context.connection.client.delete(context.keys.digests)
    for name, queues in workers.items():
        mine = None if queues is None else tuple(queues)
        context.presence.publish(Presence(name, context.settings.digest(), context.connection.now_ms(), 0, mine))


def sweeps(engine: Engine, times: int = 3) -> None:
    """Sweep, with leases, and the time in which a worker might come back, run out in between."""
    deserted = engine.context.keys.deserted
    for _ in range(times):
        engine.hurry_leases()
        marks = engine.context.connection.hgetall(deserted)
        for queue, mark in marks.items():
            since, asked = map(int, mark.split())
            engine.context.connection.hset(deserted, {queue: f"{since - presences.DESERTED_MS} {asked}"})
        run_sweep(engine.context)


def holds(engine: Engine) -> list[str]:
    return [hold.node_id for hold in engine.context.holds.all() if hold.owner == MISSING]


# -- a queue that nobody serves ---------------------------------------------------------------------------------------
def test_groups_of_a_host_that_is_gone_wait_aside_and_the_others_go_on(engine: Engine) -> None:
    there(engine, w=(*EVERYWHERE, H2, LAN))
    engine.messages.queue.clear()  # nobody takes what waits for h1
    sweeps(engine)
    assert holds(engine) == ["a", "b"]
    # A worker of the control queue takes the header, sees that the nodes are held, and gives the permit back.
    assert engine.messages.queues[-1] == "rebalance.control"
    engine.work()
    job = engine.job()
    # Nothing is left to do but what waits for the host.
    assert (job.status, job.completed_moves) == (RebalanceStatus.PAUSED, 2)
    assert dict(job.held_groups) == {"node:a": 1, "node:b": 1}


def test_a_host_that_comes_back_finds_its_groups_waiting(engine: Engine, fleet: Fleet) -> None:
    written = record(fleet.roots)
    there(engine, w=(*EVERYWHERE, H2, LAN))
    engine.messages.queue.clear()
    sweeps(engine)
    engine.work()
    there(engine, w=(*EVERYWHERE, H2, LAN), back=(H1,))
    run_sweep(engine.context)
    # Control does not look at a far node: its hosts are asked.
    assert (engine.messages.chores, holds(engine)) == ([("sweep", H1)], ["a", "b"])
    assert look_at_nodes(engine.context, within_reach(engine.context, H1)).nodes_back == 2
    job = engine.finish()
    assert (job.status, job.completed_moves) == (RebalanceStatus.COMPLETED, 3)
    check(fleet.roots, written, job)


def test_what_a_dead_host_leaves_undone_fails_when_it_was_waited_for_long_enough(engine: Engine, fleet: Fleet) -> None:
    there(engine, w=(*EVERYWHERE, H2, LAN))
    engine.messages.queue.clear()
    sweeps(engine)
    engine.work()
    for node in ("a", "b"):  # its disks are gone as well
        unmount(fleet.roots[node])
    engine.outlast_outages()
    for _ in range(3):
        sweeps(engine, 1)
        engine.work()
    job = engine.job()
    assert (job.status, job.completed_moves, job.failed_moves) == (RebalanceStatus.COMPLETED, 2, 1)
    assert dict(job.failures) == {"node_missing": 1}


def test_what_can_go_another_way_goes_another_way(engine: Engine) -> None:
    there(engine, w=(*EVERYWHERE, H1, LAN))
    engine.context.jobs.cancel("j1", by="test")
    engine.finish()
    engine.start([move("2", "c", "d", SIZE)], job_id="j2")
    engine.messages.queue.clear()  # nobody takes what waits for h2
    engine.messages.queues.clear()
    engine.hurry_leases("j2")
    run_sweep(engine.context)
    assert (engine.messages.queues, holds(engine)) == ([LAN], [])
    assert engine.finish("j2").completed_moves == 1


def test_workers_that_say_nothing_are_asked_before_a_queue_is_given_up(engine: Engine) -> None:
    there(engine, w=EVERYWHERE)
    engine.messages.queue.clear()
    engine.messages.answers = {"older@h1": [H1], "older@h2": [H2, LAN]}
    sweeps(engine, 5)
    assert holds(engine) == []
    assert set(engine.messages.queues) == {H1}


@pytest.mark.parametrize("others", [{}, {"old": None}], ids=["nobody says anything", "an older release lives"])
def test_where_nobody_knows_who_serves_what_no_queue_is_given_up(engine: Engine, others: dict[str, None]) -> None:
    there(engine, **others)
    engine.messages.queue.clear()
    sweeps(engine, 5)
    assert holds(engine) == []
    assert far_queues(engine.context) == [H1, H2, LAN]


def test_a_worker_that_was_silent_for_a_while_serves_nothing(engine: Engine) -> None:
    context, now_ms = engine.context, engine.context.connection.now_ms()
    there(engine, w=EVERYWHERE)
    context.presence.publish(Presence("late", "d", now_ms - presences.SERVES_MS - 1000, 0, (H1,)))
    assert far_queues(context) == []
    # Its configuration counts for longer.
    assert set(context.digests()) == {"w", "late"}
    context.presence.forget("late")
    assert set(context.digests()) == {"w"}


# -- each host cleans its own -----------------------------------------------------------------------------------------
def test_cleanup_leaves_far_nodes_to_their_hosts(engine: Engine, fleet: Fleet) -> None:
    written = record(fleet.roots)
    job = engine.finish()
    keys = engine.context.keys
    for name in engine.context.connection.zrange_due(keys.trash_due, 2**52, 100):
        engine.context.connection.client.zincrby(keys.trash_due, -86_400_000, name)
    # Another machine's disk would not be at that path here; what is there instead is none of the node's.
    unmount(fleet.roots["a"])
    assert engine.clean_within(None).purged == 1
    mount_again(fleet.roots["a"])
    assert engine.clean_within(H2).purged == 1
    assert engine.clean_within(H1).purged == 1
    check(fleet.roots, written, job, trash=True)


def test_only_the_hosts_of_a_node_adopt_it(engine: Engine, fleet: Fleet) -> None:
    assert not (fleet.roots["a"] / ".rebalance").exists()
    assert (fleet.roots["x"] / ".rebalance" / "node-id").exists() is True
    engine.work()
    assert (fleet.roots["a"] / ".rebalance" / "node-id").read_text(encoding="utf-8").strip().endswith("a")
