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
from rebalance_tasks.runtime import runtimes_for
from rebalance_tasks.store.presence import Presence
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from rebalance_tasks.control.context import FleetContext

log = get_logger(__name__)

#: How often a worker says so.
EVERY_S: Final = 5.0
#: A fleet whose server does not answer is told so seldom by a worker that serves others too: each try holds up their messages.
RESTS_S: Final = 30.0


class Beacon:
    """Publishes the presence of this process' worker while it lives."""

    def __init__(self) -> None:
        """Begin silent."""
        self._next = 0.0
        #: fleets whose server's settings were warned of
        self._warned: set[str] = set()
        #: fleet → until when it is left alone
        self._rests: dict[str, float] = {}

    def publish(self, sender: Any, **_: object) -> None:  # noqa: ANN401  Celery passes a consumer or a heart
        """Say to each fleet that it serves that it is there, if it has not said so just now."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        queues = sorted(_app(sender).amqp.queues.consume_from)

        def say(context: FleetContext) -> None:
            own = context.settings.broker_queues.own(queues)
            if not set(own).isdisjoint(every_queue(context.settings.nodes)):
                self._publish(context, _name(sender), tuple(own))

        self._in_each_fleet(sender, say, "presence.not_published")

    def _publish(self, context: FleetContext, worker: str, queues: tuple[str, ...]) -> None:
        now_ms = context.connection.now_ms()
        skew_ms = int(time.time() * 1000) - now_ms
        context.presence.publish(Presence(worker, context.settings.digest(), now_ms, skew_ms, queues))
        if context.settings.fleet not in self._warned:
            self._warned.add(context.settings.fleet)
            for warning in context.connection.warnings():
                log.warning("redis.settings", warning=warning)

    def withdraw(self, sender: Any, **_: object) -> None:  # noqa: ANN401  the worker
        """Take the entries of a worker that ends in order along."""
        self._next = float("inf")
        self._in_each_fleet(sender, lambda context: context.presence.forget(_name(sender)), "presence.not_withdrawn")

    def _in_each_fleet(self, sender: Any, act: Callable[[FleetContext], None], failed: str) -> None:  # noqa: ANN401  as above
        """Act in each fleet of a worker; one that is out of reach keeps it from no other."""
        try:
            contexts = [runtime.context for runtime in runtimes_for(_app(sender)).values()]
        except RebalanceError as exc:
            log.warning(failed, error=str(exc))
            return
        for context in contexts:
            fleet = context.settings.fleet
            if self._rests.get(fleet, 0.0) > time.monotonic():
                continue
            try:
                act(context)
            except (RebalanceError, RedisError, OSError) as exc:
                log.warning(failed, fleet=fleet, error=str(exc))
                if len(contexts) > 1:
                    self._rests[fleet] = time.monotonic() + RESTS_S


def _app(sender: Any) -> Celery:  # noqa: ANN401  a consumer, a heart or a worker
    found: Celery = getattr(sender, "app", None) or sender.eventer.app
    return found


def _name(sender: Any) -> str:  # noqa: ANN401  likewise
    return str(getattr(sender, "hostname", None) or sender.eventer.hostname)


_beacon: Final = Beacon()
worker_ready.connect(_beacon.publish)
heartbeat_sent.connect(_beacon.publish)
worker_shutdown.connect(_beacon.withdraw)
