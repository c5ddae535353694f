"""Our Celery app, for `celery -A rebalance_tasks worker` and `celery -A rebalance_tasks beat`.

Delivery settings come from what was measured of Celery on Redis (docs/adr/0001). They stand on the app; what a single
task needs of them stands on the task as well, so that a stock app can include `rebalance_tasks.tasks`.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from celery.signals import worker_before_create_process, worker_init
from kombu.entity import Queue
from kombu.utils.objects import cached_property

from rebalance_tasks.core.pacing.turns import Shares
from rebalance_tasks.core.routes import CONTROL_QUEUE, DATA_QUEUE, PLAIN_QUEUES, BrokerQueues
from rebalance_tasks.migration.shutdown import SHUTTING_DOWN
from rebalance_tasks.settings import Settings, load_fleets
from rebalance_tasks.settings.redis import celery_conf, redbeat_conf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.core.options import RebalancerOptions

#: Lease 10 s, sweep 4 s, and a second for messages: a dead worker's group runs again within 15 s.
SWEEP_EVERY_S: Final = 4.0
CLEANUP_EVERY_S: Final = 60.0
#: Beat looks at its schedule at least this often; a redbeat that waits for the lock asks for it as often. With a lock of five such
#: times, and the time since the last sweep, nobody sweeps for 22 s at most when the one that holds it dies.
BEAT_LOOP_S: Final = 3


def beat_schedule(options: RebalancerOptions, queues: BrokerQueues = PLAIN_QUEUES) -> dict[str, dict[str, Any]]:
    """Return a fleet's beat entries; a message that waited longer than its interval is worth nothing and expires.

    Args:
        options: the fleet's.
        queues: `Settings.broker_queues` of a fleet that shares workers: its entries name it.
    """
    intervals_s = {"check": options.check_interval.total_seconds(), "sweep": SWEEP_EVERY_S, "cleanup": CLEANUP_EVERY_S}
    return {
        queues.named(f"rebalance-{task}"): {
            "task": f"rebalance.{task}",
            "schedule": every_s,
            "kwargs": {"fleet": queues.fleet} if queues.fleet else {},
            "options": {"queue": queues.named(CONTROL_QUEUE), "expires": every_s},
        }
        for task, every_s in intervals_s.items()
    }


def turn_taking(fleets: Sequence[Settings]) -> dict[str, Any]:
    """Return the transport options by which workers of several fleets heed their priorities; none for a single fleet."""
    priorities = {settings.fleet: settings.priority or 1 for settings in fleets}
    return {"queue_order_strategy": Shares(priorities)} if len(fleets) > 1 else {}


class RebalanceCelery(Celery):
    """A Celery app whose workers end as soon as their slices have handed back."""

    @cached_property
    def Worker(self) -> Any:  # noqa: ANN401, N802  Celery's own name and type
        """The worker program; imported when a worker is started, since nobody else needs it."""
        return self.subclass_with_self("rebalance_tasks.worker:SoftWorker")


def make_app(*fleets: Settings) -> Celery:
    """Build the app of one fleet, or of several that share workers; the first one's is the default."""
    settings, *_ = fleets
    app = RebalanceCelery("rebalance", set_as_current=False, include=["rebalance_tasks.tasks"])
    app.rebalance_fleets = fleets
    transport = {
        "visibility_timeout": 300,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": 30,
        **turn_taking(fleets),
    }
    from_urls = celery_conf(settings)
    app.conf.update(
        **{**from_urls, "broker_transport_options": {**transport, **from_urls["broker_transport_options"]}},
        broker_connection_retry_on_startup=True,
        # A full Redis refuses the write by which a worker takes a message: it is to come back, as after an outage, not die.
        broker_channel_error_retry=True,
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_time_limit=120,
        task_default_queue=settings.broker_queues.named(CONTROL_QUEUE),
        task_queues=[
            Queue(fleet.broker_queues.named(queue))  # type: ignore[no-untyped-call]
            for fleet in fleets
            for queue in (CONTROL_QUEUE, DATA_QUEUE)
        ],
        task_create_missing_queues=True,
        task_track_started=False,
        worker_consumer="rebalance_tasks.worker:SteadyConsumer",
        worker_prefetch_multiplier=1,
        worker_eta_task_limit=100,
        worker_soft_shutdown_timeout=30,
        # We send no ETA messages, so an idle worker holds nothing that it would have to give back.
        worker_enable_soft_shutdown_on_idle=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        result_expires=86_400,
        timezone="UTC",
        enable_utc=True,
        beat_schedule={
            name: entry for fleet in fleets for name, entry in beat_schedule(fleet.options, fleet.broker_queues).items()
        },
        beat_max_loop_interval=BEAT_LOOP_S,
        # For `beat -S redbeat.RedBeatScheduler`, which else guesses from the broker's settings.
        **redbeat_conf(settings),
        redbeat_key_prefix=f"rebalance:{{{settings.fleet}}}:redbeat:",
        redbeat_lock_timeout=5 * BEAT_LOOP_S,
    )
    return app


@worker_before_create_process.connect
def _settle_memory(**_: object) -> None:
    """Keep what was loaded before the first fork out of every later collection (and, in the children, out of copy-on-write).

    In the parent, since Celery collects there before each fork: a child then starts a sixth of a second sooner.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@worker_init.connect
def _begin(**_: object) -> None:
    """A worker begins; one that is embedded in a test or a program may not be the first of its process."""
    SHUTTING_DOWN.clear()


app: Celery = make_app(*load_fleets())
