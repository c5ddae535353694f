"""Limits of nodes hold fleet-wide, act at once, and are made tighter by what the nodes' own calls show."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import Rebalancer
from rebalance_tasks.control.metering.readings import _limits
from rebalance_tasks.control.throttles import Throttles, node_throttles, set_node_throttle
from rebalance_tasks.core.errors import InvalidArgument, UnknownNode
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration import measured_burst
from rebalance_tasks.migration.control import CHUNK_BYTES, SliceControl
from rebalance_tasks.store.pace import INTERVAL_MS, PaceStore
from rebalance_tasks.store.records import GroupRecord
from tests.support.engine import Engine, moves_between
from tests.support.fleets import Fleet, NodeSpec, made_up

if TYPE_CHECKING:
    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

RATE = 5_000_000
GROUP = GroupRecord(group_id="g", source="n1", target="n2", offset=0, size=1, total_bytes=1, queue="rebalance.data")


def fleet_of(fleet_config: FleetFactory, n1: dict[str, Any] | None = None, **options: Any) -> Fleet:
    nodes = {
        "n1": NodeSpec(capacity_bytes=10**9, settings=n1 or {}),
        "n2": NodeSpec(capacity_bytes=10**9, settings={}),
        "n3": NodeSpec(capacity_bytes=10**9, settings={}),
    }
    return fleet_config(nodes, options={"throttle_bytes_per_sec": "none", **options})


def fleet(fleet_config: FleetFactory, n1: dict[str, Any] | None = None, **options: Any) -> Engine:
    fleet_of(fleet_config, n1, **options)
    return Engine()


def control(engine: Engine, job_id: str = "j1") -> SliceControl:
    return SliceControl(lambda: "ok", bucket=Throttles(engine.context).of(job_id, GROUP, now=engine.context.now()))


def seconds(control: SliceControl, size_bytes: int) -> float:
    begun = time.monotonic()
    left = size_bytes
    while left:
        chunk = min(left, control.chunk_bytes)
        control.spend(chunk)
        left -= chunk
    return time.monotonic() - begun


def test_a_node_is_read_no_faster_than_its_limit_by_all_groups_together(fleet_config: FleetFactory) -> None:
    engine = fleet(fleet_config, {"read_bytes_per_sec": RATE})
    first, second = control(engine, job_id="j1"), control(engine, job_id="j2")
    begun = time.monotonic()
    for _ in range(4):
        seconds(first, RATE // 8)
        seconds(second, RATE // 8)
    # A tenth of a second's rate lies in the bucket at first, and 5 % over are paid back later.
    assert time.monotonic() - begun >= 0.85 * (1 - 0.1)


def test_a_limit_set_at_run_time_acts_on_what_runs_and_the_file_is_in_force_again_on_default(
    fleet_config: FleetFactory,
) -> None:
    engine = fleet(fleet_config)
    assert control(engine).chunk_bytes == CHUNK_BYTES
    assert set_node_throttle(engine.context, "n2", "write", RATE, by="test") == RATE
    [found] = node_throttles(engine.context)
    assert (found.node_id, found.direction, found.rate, found.reason) == ("n2", "write", RATE, "")
    running = control(engine)
    assert running.chunk_bytes == RATE // 10
    assert seconds(running, RATE // 2) >= 0.3
    assert set_node_throttle(engine.context, "n2", "write", "default") is None
    assert node_throttles(engine.context) == []
    event = engine.context.events.newest(10)
    assert any("n2" in str(entry) for entry in event)


def test_a_limit_that_makes_no_sense_is_refused_with_the_way_out(fleet_config: FleetFactory) -> None:
    engine = fleet(fleet_config)
    with pytest.raises(InvalidArgument, match="at least 1 a second; `rebalance pause --node n1` holds it"):
        set_node_throttle(engine.context, "n1", "read", 0)
    with pytest.raises(UnknownNode):
        set_node_throttle(engine.context, "nobody", "read", 1)


def test_copies_of_a_server_ask_for_requests_and_bytes_do_not(fleet_config: FleetFactory) -> None:
    engine = fleet(fleet_config)
    set_node_throttle(engine.context, "n2", "requests", 20)
    running = control(engine)
    assert running.chunk_bytes == CHUNK_BYTES
    assert running.requests_at_once() == 2
    assert running.requests_at_once(of_source=True) is None
    begun = time.monotonic()
    for _ in range(10):
        running.request()
    # Two are there at first.
    assert time.monotonic() - begun >= 0.85 * 8 / 20


def _turns(paces: PaceStore, engine: Engine, *latencies_ms: float, together: bool = False) -> None:
    """Notes as if an interval lay between any two of them."""
    key = engine.context.keys.pace("n2", "write", together=together)
    for latency_ms in latencies_ms:
        paces.note("n2", "write", seconds=latency_ms / 1000 * 10, calls=10, size_bytes=10_000_000, together=together)
        at = int(engine.context.connection.hget(key, "at") or 0)
        engine.context.connection.hset(key, {"at": at - INTERVAL_MS})


def test_a_node_whose_calls_slow_down_is_held_back_fleet_wide_says_why_and_recovers(fleet_config: FleetFactory) -> None:
    engine = fleet(fleet_config, adaptive_throttle=True)
    paces = engine.context.paces
    _turns(paces, engine, *[10.0] * 10)
    [pace] = paces.all(["n1", "n2"]).values()
    assert (pace.rate_bytes_per_s, pace.reason) == (0, "")
    _turns(paces, engine, *[200.0] * 6)
    [held] = node_throttles(engine.context)
    assert held.rate is None
    assert held.rate_now is not None
    assert held.reason.startswith("is held back: its calls take")
    assert held.why == "latency"
    tap = Throttles(engine.context).of("j1", GROUP, now=engine.context.now()).of_bytes[2]
    tap.take()
    assert tap.rate_bytes_per_s == held.rate_now
    assert any(held.reason in str(row) for row in [entry.reason for entry in Rebalancer().node_throttles()])
    [shown] = _limits(engine.context)["rebalance_node_latency_seconds"]
    assert shown == (("n2", "write"), held.pace.smoothed_ms / 1000 if held.pace else 0)
    _turns(paces, engine, *[10.0] * 60)
    [well] = node_throttles(engine.context)
    assert (well.rate_now, well.reason, well.why) == (None, "", "none")


def test_bursts_have_a_pace_of_their_own_that_holds_the_node_back_as_well(fleet_config: FleetFactory) -> None:
    engine = fleet(fleet_config, adaptive_throttle=True)
    paces, keys = engine.context.paces, engine.context.keys
    _turns(paces, engine, *[10.0] * 10)
    # A hundredth of what a call that goes alone takes, and then twenty times as long as usual.
    _turns(paces, engine, *[0.1] * 10, *[20.0] * 6, together=True)
    [held] = node_throttles(engine.context)
    assert held.reason.startswith("is held back: its calls take")
    tap = Throttles(engine.context).of("j1", GROUP, now=engine.context.now()).of_bytes[2]
    tap.take()
    assert tap.rate_bytes_per_s == held.rate_now
    assert engine.context.connection.hget(keys.pace("n2", "write"), "rate") == b"0"
    # Calls that go alone are as they were, and what they moved counts for the rate of both.
    _turns(paces, engine, 10.0)
    assert int(engine.context.connection.hget(keys.pace("n2", "write", together=True), "bytes") or 0) == 10_000_000
    _turns(paces, engine, *[0.1] * 60, together=True)
    [well] = node_throttles(engine.context)
    assert (well.rate_now, well.reason) == (None, "")


def test_notes_within_an_interval_are_added_up_and_a_long_silence_is_forgotten(fleet_config: FleetFactory) -> None:
    engine = fleet(fleet_config, adaptive_throttle=True)
    paces, key = engine.context.paces, engine.context.keys.pace("n2", "write")
    for _ in range(3):
        paces.note("n2", "write", seconds=0.1, calls=1, size_bytes=7)
    assert paces.all(["n2"]) == {}
    assert int(engine.context.connection.hget(key, "calls") or 0) == 3
    at = int(engine.context.connection.hget(key, "at") or 0)
    engine.context.connection.hset(key, {"at": at - 100 * INTERVAL_MS})
    paces.note("n2", "write", seconds=5.0, calls=1, size_bytes=7)
    assert paces.all(["n2"]) == {}
    assert int(engine.context.connection.hget(key, "calls") or 0) == 1


@pytest.mark.parametrize(("size", "bursting"), [(300_000, False), (3_000, True)], ids=["alone", "in a burst"])
def test_a_measured_job_moves_everything_and_every_byte_is_measured_on_both_nodes(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, size: int, bursting: bool
) -> None:
    made = fleet_of(fleet_config, adaptive_throttle=True)
    engine = Engine()
    sizes = {f"o/{number}": size for number in range(12)}
    for key in sizes:
        path = made.roots["n1"] / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made_up(key, size))
    noted: list[tuple[str, str, int]] = []
    together = Counter[tuple[str, str]]()
    monkeypatch.setattr("rebalance_tasks.migration.measured.TELL_EVERY_S", 0.0)
    monkeypatch.setattr(measured_burst, "LEAST_COUNTED", 1)
    original = PaceStore.note

    def note(self: PaceStore, node_id: str, direction: str, **more: Any) -> None:
        if more.get("together"):
            together[node_id, direction] += more["calls"]
        noted.append((node_id, direction, more["size_bytes"]))
        original(self, node_id, direction, **more)

    monkeypatch.setattr(PaceStore, "note", note)
    engine.start(moves_between("n1", "n2", sizes))
    engine.work()
    assert engine.finish().status is RebalanceStatus.COMPLETED
    assert sum(size for node, direction, size in noted if (node, direction) == ("n2", "write")) == sum(sizes.values())
    assert sum(size for node, direction, size in noted if (node, direction) == ("n1", "read")) == sum(sizes.values())
    # A burst leaves the first objects of a folder to the driver, which opens the folder.
    assert set(together) == ({("n1", "read"), ("n2", "write")} if bursting else set())
    assert all(len(sizes) - 2 <= calls < len(sizes) for calls in together.values())


def test_status_says_between_which_nodes_fewer_objects_are_in_flight_and_why(fleet_config: FleetFactory) -> None:
    paces = fleet(fleet_config).context.paces
    paces.note_in_flight("n1", "n2", "8 objects at once instead of 16: they take 90.0 ms, usually 20.0 ms")
    paces.note_in_flight("n2", "n1", "4 objects at once instead of 16: they take 99.0 ms, usually 20.0 ms")
    assert Rebalancer().in_flight() == {
        ("n1", "n2"): "8 objects at once instead of 16: they take 90.0 ms, usually 20.0 ms",
        ("n2", "n1"): "4 objects at once instead of 16: they take 99.0 ms, usually 20.0 ms",
    }
    for pair in (("n1", "n2"), ("n2", "n1")):
        paces.note_in_flight(*pair, "")
    assert Rebalancer().in_flight() == {}
