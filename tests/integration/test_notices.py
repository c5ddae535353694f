"""Notices: signed, in order, at least once, each receiver apart; secrets stay where they are."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr, ValidationError

from rebalance_tasks import signals
from rebalance_tasks.control import lifecycle, notices, webhooks
from rebalance_tasks.control.sweep import run_sweep
from rebalance_tasks.core.events import NOTICES, EventKind
from rebalance_tasks.core.signature import is_signed
from rebalance_tasks.settings.model import Webhook
from rebalance_tasks.store.notices import Mark, NoticeStore
from tests.support.arena import JOB_TIMEOUT_S, arena_of, objects
from tests.support.engine import moves_between
from tests.support.hooks import SIZES
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.core.events import Event
    from tests.support.engine import Engine

pytestmark = pytest.mark.integration

SECRET = "a secret of the receiver"  # noqa: S105  of this test


class Receiver:
    """A web server that keeps what it is sent, and answers what it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.hang = threading.Event()
        self.hang.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.hang.wait(JOB_TIMEOUT_S)
                receiver.got.append((dict(self.headers), body))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook/T0KEN?key=abc"

    def kinds(self) -> list[str]:
        return [json.loads(body)["kind"] for _, body in self.got]

    def close(self) -> None:
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def hook(receiver: Receiver, events: tuple[EventKind, ...] = NOTICES) -> Webhook:
    return Webhook(url=SecretStr(receiver.url), secret=SecretStr(SECRET), events=events)


def listen(engine: Engine, *hooks: Webhook) -> None:
    object.__setattr__(engine.context, "settings", engine.context.settings.model_copy(update={"webhooks": hooks}))


def deliver(engine: Engine) -> notices.NoticeReport:
    return notices.deliver(engine.context, signal=lambda _: None)


def come_due(engine: Engine) -> None:
    """Let the time until the next attempt pass."""
    store = NoticeStore(engine.context.connection, engine.context.keys)
    for webhook in engine.context.settings.webhooks:
        name = webhooks.receiver_id(webhook)
        mark = store.mark(name)
        store.set_mark(name, Mark(mark.cursor, mark.attempts, 0))


def test_a_notice_is_signed_and_says_what_the_history_says(engine: Engine, receiver: Receiver) -> None:
    listen(engine, hook(receiver))
    engine.start(moves_between("n1", "n2", SIZES))
    assert deliver(engine) == notices.NoticeReport(signalled=1, delivered=1)
    ((headers, body),) = receiver.got
    (event,) = engine.context.events.newest(job_id="j1")
    assert json.loads(body) == event.model_dump(mode="json")
    assert is_signed(headers["Rebalance-Signature"], SECRET, body, now_s=int(time.time()))
    assert not is_signed(headers["Rebalance-Signature"], SECRET + "x", body, now_s=int(time.time()))
    assert (headers["Rebalance-Event"], headers["Rebalance-Event-Id"]) == ("job.started", event.event_id)
    assert not notices.behind(engine.context)


def test_all_that_is_noticed_arrives_in_order_once_and_nothing_else_does(engine: Engine, receiver: Receiver) -> None:
    listen(engine, hook(receiver))
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.pause(engine.context, "j1", by="ann")
    lifecycle.resume(engine.context, "j1", by="ann")
    engine.slice()
    for _ in range(2):
        run_sweep(engine.context)
        deliver(engine)
    assert receiver.kinds() == ["job.started", "job.paused", "job.completed"]


def test_a_refused_notice_is_tried_again_later_and_what_follows_waits_for_it(
    engine: Engine, receiver: Receiver
) -> None:
    listen(engine, hook(receiver))
    engine.start(moves_between("n1", "n2", SIZES))
    lifecycle.pause(engine.context, "j1")
    receiver.answers = [500, 302, 204]
    assert deliver(engine).failed == 1
    assert not notices.behind(engine.context), "it is not due yet"
    assert deliver(engine) == notices.NoticeReport()
    come_due(engine)
    assert notices.behind(engine.context)
    assert deliver(engine).failed == 1, "a redirect is followed by nobody"
    come_due(engine)
    assert deliver(engine).delivered == 2
    assert receiver.kinds() == ["job.started"] * 3 + ["job.paused"]
    assert engine.context.counters.totals()["notices:failed"] == 2


def test_after_many_attempts_it_is_given_up_and_the_history_says_so(engine: Engine, receiver: Receiver) -> None:
    listen(engine, hook(receiver))
    engine.start(moves_between("n1", "n2", SIZES))
    receiver.answers = [500] * notices.MOST_ATTEMPTS
    for _ in range(notices.MOST_ATTEMPTS):
        come_due(engine)
        deliver(engine)
    (event,) = [event for event in engine.context.events.newest() if event.kind == "notice.given_up"]
    assert event.data["problem"] == "it answered 500"
    assert "T0KEN" not in json.dumps(event.data)
    lifecycle.pause(engine.context, "j1")
    deliver(engine)
    assert receiver.kinds()[-1] == "job.paused"


def test_one_receiver_that_is_away_holds_up_no_other(engine: Engine, receiver: Receiver) -> None:
    away = Webhook(url=SecretStr("http://127.0.0.1:9/none"), secret=SecretStr(SECRET))
    listen(engine, away, hook(receiver, (EventKind.JOB_STARTED,)))
    engine.start(moves_between("n1", "n2", SIZES))
    report = deliver(engine)
    assert (report.failed, report.delivered) == (1, 1)
    assert receiver.kinds() == ["job.started"]


def test_only_one_process_delivers_at_a_time(engine: Engine, receiver: Receiver) -> None:
    listen(engine, hook(receiver))
    engine.start(moves_between("n1", "n2", SIZES))
    receiver.hang.clear()
    first = threading.Thread(target=deliver, args=(engine,))
    first.start()
    lock = engine.context.keys.notices_lock
    wait_until(lambda: engine.context.connection.get(lock), JOB_TIMEOUT_S, "the first one delivers")
    assert deliver(engine) == notices.NoticeReport()
    receiver.hang.set()
    first.join()
    assert receiver.kinds() == ["job.started"]


def test_each_notice_has_a_signal_and_a_receiver_that_raises_stops_nobody(engine: Engine) -> None:
    assert set(signals.SIGNALS) == {kind.value for kind in NOTICES}
    heard: list[Event] = []

    def broken(**_: Any) -> None:
        raise RuntimeError

    def hears(event: Event, **_: Any) -> None:
        heard.append(event)

    signals.job_started.connect(broken, weak=False)
    signals.job_started.connect(hears, weak=False)
    try:
        engine.start(moves_between("n1", "n2", SIZES))
        report = notices.deliver(engine.context, signal=signals.send)
    finally:
        signals.job_started.disconnect(broken)
        signals.job_started.disconnect(hears)
    assert report.signalled == 1
    assert [event.job_id for event in heard] == ["j1"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "file:///etc/passwd"},
        {"url": "ftp://x/"},
        {"url": "https://"},
        {"secret": "short"},
        {"events": ["job.nothing"]},
    ],
)
def test_a_wrong_webhook_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Webhook.model_validate({"url": "https://hooks.example/x", "secret": SECRET, **wrong})


def test_a_hanging_receiver_holds_up_no_job_and_no_secret_is_shown(tmp_path: Path, receiver: Receiver) -> None:
    receiver.hang.clear()
    with arena_of(
        tmp_path,
        nodes=("a", "b"),
        capacity_bytes=50_000,
        log_level="INFO",
        tables={"webhooks": [{"url": receiver.url, "secret": SECRET}]},
        concurrency=2,
    ) as arena:
        arena.fill({"a": objects(40, 1000)})
        first = arena.start("j1")
        arena.app.send_task("rebalance.sweep", queue="rebalance.control")
        arena.wait(first.job_id)
        assert receiver.got == []
        receiver.hang.set()
        wait_until(lambda: receiver.got or None, JOB_TIMEOUT_S, "the notice arrives")
        shown = (
            arena.worker.log_path.read_text()
            + repr(arena.rebalancer.settings)
            + arena.rebalancer.settings.model_dump_json()
            + json.dumps(arena.rebalancer.settings.public())
        )
        assert SECRET not in shown
        assert "T0KEN" not in shown
