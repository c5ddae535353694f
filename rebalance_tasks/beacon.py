"""A worker says that it is there: with which configuration, and which queues it serves.

Connected by importing it, which `rebalance_tasks.tasks` does, so that workers of a stock app speak as ours do. By this a check
refuses to plan while configurations differ, and the sweep knows which queues nobody serves (`control.reach`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from celery.signals import heartbeat_sent, worker_ready, worker_shutdown
from redis.exceptions import RedisError

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.routes import every_queue
from rebalance_tasks.runtime import runtime_for
from rebalance_tasks.store.presence import Presence
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from celery import Celery

    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)

#: How often a worker says so.
EVERY_S: Final = 5.0


class Beacon:
    """Publishes the presence of this process' worker while it lives."""

    def __init__(self) -> None:
        """Begin silent."""
        self._next = 0.0
        self._warned = False

    def publish(self, sender: Any, **_: object) -> None:  # noqa: ANN401  Celery passes a consumer or a heart
        """Say that it is there, if it serves the fleet at all and has not said so just now."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        app = _app(sender)
        try:
            context = runtime_for(app).context
            queues = tuple(sorted(app.amqp.queues.consume_from))
            if not set(queues).isdisjoint(every_queue(context.settings.nodes)):
                self._publish(context, _name(sender), queues)
        except (RebalanceError, RedisError, OSError) as exc:
            log.warning("presence.not_published", error=str(exc))

    def _publish(self, context: FleetContext, worker: str, queues: tuple[str, ...]) -> None:
        now_ms = context.connection.now_ms()
        skew_ms = int(time.time() * 1000) - now_ms
        context.presence.publish(Presence(worker, context.settings.digest(), now_ms, skew_ms, queues))
        if not self._warned:
            self._warned = True
            for warning in context.connection.warnings():
                log.warning("redis.settings", warning=warning)

    def withdraw(self, sender: Any, **_: object) -> None:  # noqa: ANN401  the worker
        """Take the entry of a worker that ends in order along."""
        self._next = float("inf")
        try:
            runtime_for(_app(sender)).context.presence.forget(_name(sender))
        except (RebalanceError, RedisError, OSError) as exc:
            log.warning("presence.not_withdrawn", error=str(exc))


def _app(sender: Any) -> Celery:  # noqa: ANN401  a consumer, a heart or a worker
    found: Celery = getattr(sender, "app", None) or sender.eventer.app
    return found


def _name(sender: Any) -> str:  # noqa: ANN401  likewise
    return str(getattr(sender, "hostname", None) or sender.eventer.hostname)


_beacon: Final = Beacon()
worker_ready.connect(_beacon.publish)
heartbeat_sent.connect(_beacon.publish)
worker_shutdown.connect(_beacon.withdraw)
