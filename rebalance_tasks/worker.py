"""Our worker: ``QUIT`` (or ``TERM`` under ``REMAP_SIGTERM=SIGQUIT``) lets it end as soon as its slices have handed back.

Celery's soft shutdown sleeps through all of ``worker_soft_shutdown_timeout`` before it looks whether anything still runs,
tells nobody before it has slept, and cannot cancel what runs in a pool of threads. Our slices stop within 100 ms when they
are told to (`migration.shutdown`), so here the timeout is what it sounds like: tasks that ended are acknowledged as in a
warm shutdown, and what is left when the time is over, or when the signal comes again, is cancelled and delivered to
another worker (invariant 4 makes both harmless).

And its consumer outlives every loss of the broker's connection: Celery 5.7 ends the worker when kombu, closing a connection
that is half gone (a failover, a partition), meets one of its own parts that is gone already. It takes messages as soon as it
is connected, without asking its neighbours for a second what they have revoked (docs/adr/0044).

Requests for our tasks say how long a process was busy with them, by which fleets that share workers take turns (`core.pacing.turns`).
"""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final, cast

from billiard import current_process
from billiard.common import REMAP_SIGTERM
from celery import platforms, signals
from celery.apps.worker import Worker, safe_say
from celery.platforms import EX_OK
from celery.utils.log import in_sighandler
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request

from rebalance_tasks.core.pacing.turns import Shares
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

#: The signals on which Celery shuts down softly.
SOFT_SIGNALS: Final = ("SIGQUIT", "SIGTERM") if REMAP_SIGTERM == "SIGQUIT" else ("SIGQUIT",)


class SteadyConsumer(Consumer):
    """A consumer that connects anew whatever a lost connection raises (celery/kombu#582), and is at work at once.

    A message of a connection that is gone cannot be acknowledged: kombu's channel has no connection to look at, and says so with
    an `AttributeError`. It is a lost connection like any other; the message is delivered again (invariant 4).
    """

    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  Celery's own
        """Know one more sign of a lost connection, and wait for no neighbour."""
        super().__init__(*arguments, **{**options, "without_mingle": True})
        known: tuple[type[Exception], ...] = self.connection_errors
        self.connection_errors = (*known, AttributeError)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a connection that is lost; there is nothing left on it that could be lost as well."""
        close = self.connection.close

        def close_quietly() -> None:
            try:
                close()
            except Exception as error:  # noqa: BLE001  as Celery itself does around `collect`, a line before
                log.warning("broker.closed_badly", error=repr(error))

        self.connection.close = close_quietly
        super().on_connection_error_after_connected(exc)


class TimedRequest(Request):
    """A request that tells the shares of the fleets, where there are any, how long it took; also in an app that is not ours."""

    _accepted: float | None = None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A process has begun with it."""
        self._accepted = time.monotonic()
        super().on_accepted(pid, time_accepted)

    def acknowledge(self) -> None:
        """It has come to its end."""
        self._end_turn()
        super().acknowledge()

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  Celery's signature
        """It has come to an end, and is to be done again."""
        self._end_turn()
        super().reject(requeue=requeue)

    def _end_turn(self) -> None:
        shares = self.app.conf.broker_transport_options.get("queue_order_strategy")
        if isinstance(shares, Shares) and not self.acknowledged:
            took_s = 0.0 if self._accepted is None else time.monotonic() - self._accepted
            shares.end(self.delivery_info["routing_key"], round(took_s * 1000))


class SoftWorker(Worker):
    """A worker whose soft shutdown ends when its tasks have."""

    #: what the soft signals would have done: cancel everything
    _cold: Callable[[], Any] | None = None
    _softly = False

    def install_platform_tweaks(self, worker: Worker) -> None:
        """Take over the soft signals."""
        super().install_platform_tweaks(worker)
        self._cold = cast("Callable[[], Any]", signal.getsignal(signal.SIGQUIT))
        for name in SOFT_SIGNALS:
            platforms.signals[name] = self._on_soft_signal

    def _on_soft_signal(self, *_: object) -> None:
        if current_process()._name != "MainProcess":  # noqa: SLF001  as Celery tells them apart
            # A signal to the whole process group reaches the pool as well, which is ended from here.
            return
        if self._softly:
            self._on_time_over()
            return
        self._softly = True
        timeout_s = self.app.conf.worker_soft_shutdown_timeout
        try:
            with in_sighandler():
                safe_say(f"worker: Soft shutdown (MainProcess), {timeout_s:g} s at most", sys.__stdout__)
                signals.worker_shutting_down.send(sender=self.hostname, sig="SIGQUIT", how="Soft", exitcode=EX_OK)
            # An alarm, not a thread: a handler may have interrupted the very lock that starting a thread needs.
            platforms.signals["SIGALRM"] = self._on_time_over
            signal.setitimer(signal.ITIMER_REAL, max(timeout_s, 0.001))
        finally:
            state.should_stop = EX_OK

    def _on_time_over(self, *_: object) -> None:
        for name in SOFT_SIGNALS:
            platforms.signals[name] = self._cold
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._cold is not None:
            self._cold()

    def wait_for_soft_shutdown(self) -> None:
        """Called on the way to a cold shutdown: wait only if there was no soft one before."""
        if not self._softly:
            super().wait_for_soft_shutdown()
