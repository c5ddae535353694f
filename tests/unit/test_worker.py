"""Our worker's consumer outlives a connection that cannot even be closed, and its requests say how long they took."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name

from rebalance_tasks.celery import make_app
from rebalance_tasks.core.pacing.turns import Shares
from rebalance_tasks.settings import Settings
from rebalance_tasks.task_line import LoggedTask
from rebalance_tasks.worker import SteadyConsumer, TimedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class HalfGone:
    """What kombu's Redis connection is like after its channels were collected and the server is away."""

    connection_errors = channel_errors = (OSError,)
    closed = False

    def collect(self, **_: Any) -> None:
        msg = "Connection refused"
        raise ConnectionRefusedError(msg)

    def close(self) -> None:
        self.closed = True
        msg = "'NoneType' object has no attribute 'hostname'"
        raise AttributeError(msg)


def test_a_connection_that_cannot_be_closed_does_not_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery.worker.consumer.consumer.bound_open_broker_sockets", lambda *_: None, raising=False)
    consumer: Any = SteadyConsumer.__new__(SteadyConsumer)
    connection = HalfGone()
    consumer.connection = connection
    consumer.app = SimpleNamespace(
        conf=SimpleNamespace(
            worker_cancel_long_running_tasks_on_connection_loss=True, worker_enable_prefetch_count_reduction=False
        )
    )
    consumer.on_connection_error_after_connected(OSError("lost"))
    assert connection.closed
    assert consumer.connection is None


def test_a_message_of_a_connection_that_is_gone_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can acknowledge it: with this among the errors Celery logs that, or connects anew."""
    monkeypatch.setattr(
        "celery.worker.consumer.Consumer.__init__", lambda self, **_: setattr(self, "connection_errors", (OSError,))
    )
    assert SteadyConsumer().connection_errors == (OSError, AttributeError)


# -- how long a turn took ---------------------------------------------------------------------------------------------
def request_of(app: Any, clock: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> TimedRequest:
    """One that a process has begun with."""
    monkeypatch.setattr("rebalance_tasks.worker.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(Request, "on_accepted", lambda *_: None)
    request: Any = TimedRequest.__new__(TimedRequest)
    request._app, request._delivery_info = app, {"routing_key": "rebalance.data@media"}
    request._on_ack = request._on_reject = lambda *_: None
    request._connection_errors, request._eventer = (), None
    request.on_accepted(1, 0.0)
    return cast("TimedRequest", request)


@pytest.mark.parametrize("end", [TimedRequest.acknowledge, TimedRequest.reject])
def test_a_request_tells_the_shares_once_how_long_it_took(
    end: Callable[[TimedRequest], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []
    shares = Shares({"media": 2, "archive": 1})
    monkeypatch.setattr(shares, "end", lambda queue, took_ms: told.append((queue, took_ms)))
    with make_app(Settings()) as app:
        app.conf.broker_transport_options = {"queue_order_strategy": shares}
        request = request_of(app, iter([10.0, 12.5]), monkeypatch)
        end(request)
        # What comes late finds it ended.
        request.acknowledge()
    assert told == [("rebalance.data@media", 2_500)]


def test_a_request_of_a_worker_of_one_fleet_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_app(Settings()) as app:
        request_of(app, iter([10.0]), monkeypatch).acknowledge()


def test_our_tasks_are_timed_in_anybodys_app() -> None:
    assert symbol_by_name(LoggedTask.Request) is TimedRequest  # type: ignore[no-untyped-call]


def test_a_worker_takes_messages_without_waiting_for_what_its_neighbours_have_revoked() -> None:
    with make_app(Settings()) as app:
        # As the command line builds it; without ours the step is among them.
        options = {"worker_options": {"without_mingle": False, "without_gossip": False}, "app": app}
        steps = {
            kind: [
                type(step).__name__
                for step in kind(print, controller=SimpleNamespace(use_eventloop=False), **options).steps
            ]
            for kind in (Consumer, SteadyConsumer)
        }
    assert [name for name in steps[Consumer] if name != "Mingle"] == steps[SteadyConsumer] != steps[Consumer]


def test_our_app_uses_it() -> None:
    with make_app(Settings()) as app:
        assert app.conf.worker_consumer == "rebalance_tasks.worker:SteadyConsumer"


def test_what_was_loaded_is_looked_through_once_before_the_first_fork_and_never_again() -> None:
    """In a process of its own: it concerns all of its memory."""
    program = (
        "import gc, rebalance_tasks.celery; from celery.signals import worker_before_create_process as forks\n"
        "forks.send(sender=None); frozen = gc.get_freeze_count()\n"
        "made = [[] for _ in range(1_000)]; forks.send(sender=None)\n"
        "print(frozen > 10_000, gc.get_freeze_count() == frozen)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert shown.stdout.split() == ["True", "True"]
