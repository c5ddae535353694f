"""Our worker's consumer outlives a connection that cannot even be closed, and its requests say how long they took."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from celery.worker.request import Request
from kombu.utils.imports import symbol_by_name

from rebalance_tasks.celery import make_app
from rebalance_tasks.core.turns import Shares
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
        "celery.worker.consumer.Consumer.__init__", lambda self: setattr(self, "connection_errors", (OSError,))
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


def test_our_app_uses_it() -> None:
    with make_app(Settings()) as app:
        assert app.conf.worker_consumer == "rebalance_tasks.worker:SteadyConsumer"
