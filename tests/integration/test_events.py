"""The history: every transition once, in order, with who asked; bounded, followed, and read by job."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.cli.app import run
from rebalance_tasks.control import drain, fleetwide, lifecycle
from rebalance_tasks.control.check import run_check
from rebalance_tasks.control.survey import adopt
from rebalance_tasks.control.sweep import STUCK_AFTER_S, run_sweep
from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.events import EventKind
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.store import events as events_module
from rebalance_tasks.store.abandon import abandon
from rebalance_tasks.store.events import BEGINNING, EVENTS_KEPT
from tests.support.engine import moves_between
from tests.support.hooks import SIZES

if TYPE_CHECKING:
    from tests.support.engine import Engine
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

MOVES = moves_between("n1", "n2", SIZES)


def kinds(engine: Engine, job_id: str | None = "j1") -> list[str]:
    return [event.kind for event in engine.context.events.newest(job_id=job_id)]


def test_a_job_has_its_transitions_once_each_in_order_with_who_asked(engine: Engine) -> None:
    context = engine.context
    engine.start(MOVES)
    for _ in range(2):
        lifecycle.pause(context, "j1", by="ann@host")
    lifecycle.pause(context, "j1", reason="global", by="bob@host")
    for _ in range(2):
        lifecycle.resume(context, "j1", by="ann@host")
    lifecycle.resume(context, "j1", reason="global", by="bob@host")
    engine.slice()
    for _ in range(3):
        run_sweep(context)
    told = [(event.kind, event.by) for event in context.events.newest(job_id="j1")]
    assert told == [
        ("job.started", "test"),
        ("job.paused", "ann@host"),
        ("job.paused", "bob@host"),
        ("job.pause_lifted", "ann@host"),
        ("job.resumed", "bob@host"),
        ("job.completed", "finalize"),
    ]
    first, *_, last = context.events.newest(job_id="j1")
    assert first.data == {"plan_id": "p-j1", "moves": 5, "bytes": sum(SIZES.values()), "groups": 1}
    assert last.data == {"completed": 5, "failed": 0, "skipped": 0, "bytes": sum(SIZES.values())}


def test_a_cancelled_and_a_lost_job_say_so(engine: Engine) -> None:
    context = engine.context
    engine.start(MOVES)
    for _ in range(2):
        lifecycle.cancel(context, "j1", requested_by="ann")
    engine.slice()
    for _ in range(2):
        run_sweep(context)
    assert kinds(engine) == ["job.started", "job.cancel_requested", "job.cancelled"]
    engine.start(MOVES, job_id="j2")
    for _ in range(2):
        abandon(context.connection, context.keys, "j2", why="lost", now_ms=1)
    assert kinds(engine, "j2") == ["job.started", "job.failed"]


def test_a_job_that_stands_still_is_reported_once_until_it_comes_on(engine: Engine) -> None:
    context = engine.context
    engine.start(MOVES)
    base = context.keys.job("j1").base
    # A runner holds the lease and does nothing; time passes between two sweeps.
    context.connection.hset(base, {"status": "running"})

    def stand() -> None:
        run_sweep(context)
        now_ms = context.connection.now_ms()
        context.connection.hset(base, {"mark_ms": now_ms - STUCK_AFTER_S * 1000})

    for _ in range(4):
        stand()
    assert kinds(engine).count("job.stuck") == 1
    context.connection.hset(context.keys.job("j1").journal, {"0": "a part more"})
    run_sweep(context)
    for _ in range(2):
        stand()
    assert kinds(engine).count("job.stuck") == 2
    (stuck, *_) = [event for event in context.events.newest() if event.kind == "job.stuck"]
    assert stuck.data["idle_seconds"] >= STUCK_AFTER_S


def test_orders_to_the_fleet_and_its_nodes_are_kept_with_who_gave_them(engine: Engine) -> None:
    context = engine.context
    by: dict[str, Any] = {"by": "ann"}
    adopt(context)
    run_check(context, **by)
    fleetwide.pause_all(context, **by)
    fleetwide.resume_all(context, **by)
    fleetwide.resume_all(context, **by)
    fleetwide.set_limit(context, 2, **by)
    fleetwide.set_throttle(context, 100, **by)
    fleetwide.reset_throttle(context, **by)
    fleetwide.pause_node(context, "n1", **by)
    fleetwide.resume_node(context, "n1", **by)
    drain.set_state(context, "n1", NodeState.MAINTENANCE, **by)
    for _ in range(2):
        context.holds.missing("n2")
    run_sweep(context)
    events = context.events.newest()
    assert [event.kind for event in events] == [
        "check.decided",
        "fleet.paused",
        "fleet.resumed",
        "fleet.limit",
        "fleet.throttle",
        "fleet.throttle",
        "node.paused",
        "node.resumed",
        "node.state",
        "node.held",
        "node.back",
    ]
    assert {event.by for event in events} == {"ann", "runner", "sweep"}


# -- reading --------------------------------------------------------------------------------------------------------------
def test_reading_on_from_an_id_misses_nothing_and_repeats_nothing(engine: Engine) -> None:
    store = engine.context.events
    ids = [store.note(EventKind.FLEET_LIMIT, by=str(number)) for number in range(25)]
    seen: list[str] = []
    last = BEGINNING
    while found := store.after(last, limit=7):
        seen += [event.event_id for event in found]
        last = seen[-1]
    assert seen == ids
    assert [event.event_id for event in store.newest(3)] == ids[-3:]
    assert store.last_id() == ids[-1]


def test_following_yields_what_happens_and_stops_when_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    store = engine.context.events
    store.note(EventKind.FLEET_PAUSED, by="before")
    monkeypatch.setattr(time, "sleep", lambda _: store.note(EventKind.FLEET_RESUMED, by="while it waits"))
    followed = store.follow()
    assert [next(followed).by for _ in range(3)] == ["while it waits"] * 3
    assert next(store.follow(BEGINNING)).by == "before"
    assert [event.by for event in store.follow(BEGINNING, stop=lambda: True)] == []


@pytest.mark.parametrize("event_id", ["", "x", "1", "-", "+", "1-1\n", "(1-1", "1-1 2-2", "9" * 30 + "-0"])
def test_what_is_no_id_is_refused(engine: Engine, event_id: str) -> None:
    with pytest.raises(InvalidArgument, match="event id"):
        engine.context.events.after(event_id)


def test_the_history_is_bounded(engine: Engine) -> None:
    context = engine.context
    pipe = context.connection.client.pipeline(transaction=False)
    for _ in range(EVENTS_KEPT + 500):
        pipe.xadd(context.keys.events, {"kind": "x"})
    pipe.execute()
    context.events.note(EventKind.FLEET_PAUSED, by="")
    # "About": Redis trims whole nodes of its stream.
    assert context.connection.client.xlen(context.keys.events) <= EVENTS_KEPT + 200


def test_scripts_write_events_that_the_code_knows_and_bound_the_stream_alike() -> None:
    folder = Path(events_module.__file__).parent / "lua"
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.lua"))
    assert set(re.findall(r"'MAXLEN', '~', (\d+)", text)) == {str(EVENTS_KEPT)}
    written = set(re.findall(r"'kind', '([\w.]+)'", text)) | set(re.findall(r"tell\('([\w.]+)'\)", text))
    assert written - {"job."} <= {kind.value for kind in EventKind}


def test_what_somebody_else_wrote_into_the_stream_is_shown_not_believed(engine: Engine) -> None:
    context = engine.context
    context.connection.client.xadd(context.keys.events, {"kind": b"\xff\x00", "data": "[1"})
    (event,) = context.events.newest()
    assert (event.kind, event.data) == ("\ufffd\x00", {})


# -- the command ----------------------------------------------------------------------------------------------------------
def test_the_command_prints_lines_or_one_document(
    engine: Engine, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.start(MOVES)
    engine.context.events.note(EventKind.FLEET_LIMIT, by="[red]ann", data={"limit": 3})
    assert run(["events"]) == 0
    text = capsys.readouterr().out
    assert "job.started" in text
    assert "limit=3  by [red]ann" in text
    assert run(["events", "--job", "j1", "--json"]) == 0
    (event,) = json.loads(capsys.readouterr().out)
    assert sorted(event) == ["at", "by", "data", "event_id", "fleet", "job_id", "kind"]
    assert run(["events", "--after", event["event_id"], "--json"]) == 0
    assert [later["kind"] for later in json.loads(capsys.readouterr().out)] == ["fleet.limit"]
    assert run(["events", "--after", "yesterday"]) == 1
