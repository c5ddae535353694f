"""The fleet's messages on Celery: a group's header is a pure function of (fleet, job, group).

Because the ids that a chord counts are deterministic, publishing for the first time, waking after a pause and re-driving
a lost message are one and the same call; a duplicate meets a held lease, or a finished group, and drops itself (invariant 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import ChannelError, OperationalError
from kombu.transport.redis import Channel as RedisChannel
from redis.exceptions import RedisError

from rebalance_tasks.core.routes import CONTROL_QUEUE
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery, Signature

    from rebalance_tasks.core.routes import BrokerQueues
    from rebalance_tasks.store.records import GroupRecord

log = get_logger(__name__)

#: Header of a monitor whose group was counted when it ended.
COUNTED: Final = "rebalance_counted"
#: The sweep asks again every few seconds, cleanup every minute.
CHORE_EXPIRES_S: Final = {"sweep": 10.0, "cleanup": 60.0}


def queue_depths(app: Celery, queues: Sequence[str]) -> dict[str, int]:
    """Count the messages that wait on the broker; a broker that does not answer says nothing of any queue."""
    found: dict[str, int] = {}
    try:
        with app.pool.acquire(block=True) as connection:
            channel = connection.default_channel
            for queue in queues:
                try:
                    found[queue] = _waiting(channel, queue)
                except (
                    ChannelError
                ):  # nothing was ever sent to it, or all was taken: a Redis list that is empty is gone
                    found[queue] = 0
    except (OperationalError, RedisError, OSError) as exc:
        log.warning("metrics.broker_away", error=str(exc))
        return {}
    return found


def _waiting(channel: Any, queue: str) -> int:  # noqa: ANN401  a channel of any transport
    """Messages in one queue. Raises: ChannelError where the transport knows no such queue."""
    if isinstance(channel, RedisChannel):
        # Whether there is such a queue kombu would ask without the prefix of its keys, and be told that there is none.
        return int(channel._size(queue))  # type: ignore[no-untyped-call]  # noqa: SLF001
    return int(channel.queue_declare(queue=queue, passive=True).message_count)


def worker_queues(app: Celery, *, timeout_s: float = 1.5) -> dict[str, list[str]]:
    """Ask the workers that answer within a time which queues each takes messages from."""
    answers = app.control.inspect(timeout=timeout_s).active_queues() or {}
    return {str(worker): sorted(str(queue["name"]) for queue in queues) for worker, queues in answers.items()}


class CeleryMessenger:
    """Publishes through a Celery app: ours, or the stock app of a service that includes our tasks."""

    def __init__(self, app: Celery, *, fleet: str, queues: BrokerQueues) -> None:
        """Bind to an app, and to a fleet with the names of its queues there."""
        self._app = app
        self._fleet = fleet
        self._queues = queues

    def open_chord(self, job_id: str, groups: int) -> None:
        """Tell the result backend how many groups the job's chord counts."""
        self._app.backend.set_chord_size(self._chord_id(job_id), groups)

    def publish_group(self, job_id: str, group: GroupRecord) -> None:
        """Publish chain(migrate, monitor); the monitor is a header of the job's chord, whose body is finalize."""
        monitor = self._monitor(job_id, group.group_id)
        # What `chain(migrate, monitor)` would put into the message, without cloning and freezing it each time.
        # Its id is new each time: one that was revoked must not take those that re-drive the group with it.
        migrate = self._task("migrate", {"job_id": job_id, "group_id": group.group_id}, queue=group.queue)
        migrate.apply_async(chain=[monitor])

    def publish_extra(self, job_id: str, group: GroupRecord) -> None:
        """Publish one more slice of a busy pair: a plain message, no header of the chord."""
        arguments = {"job_id": job_id, "group_id": group.group_id, "extra": True}
        self._task("migrate", arguments, queue=group.queue).apply_async()

    def publish_monitor(self, job_id: str, group_id: str, *, counted: bool = False) -> None:
        """Publish a group's monitor alone, for a group that was carried without a migrate message of its own.

        A job of small groups sends one of these for each, so it goes straight to the producer: routing, merging of options
        and a result nobody asks for are a fifth of what `apply_async` costs. A group that its runner has ``counted`` the monitor need not
        count again; said in a header, which an older release does not read, and counts.
        """
        monitor = self._monitor(job_id, group_id)
        app, options = self._app, dict(monitor["options"])
        queue, serializer = options.pop("queue"), options.pop("serializer")
        message = app.amqp.create_task_message(
            **options,
            name=monitor["task"],
            kwargs=monitor["kwargs"],
            create_sent_event=app.conf.task_send_sent_event,
        )
        with app.producer_or_acquire() as producer:
            # A Redis list need not be declared to be pushed to.
            app.amqp.send_task_message(
                producer,
                monitor["task"],
                message,
                queue=queue,
                serializer=serializer,
                declare=(),
                headers={COUNTED: True} if counted else None,
            )

    def publish_finalize(self, job_id: str) -> None:
        """Publish the job's finalize."""
        self._finalize(job_id).apply_async()

    def publish_start(self, plan_id: str, job_id: str) -> None:
        """Publish a start; its id makes a doubled message one job."""
        self._task("start", {"plan_id": plan_id, "job_id": job_id}, queue=CONTROL_QUEUE).apply_async()

    def publish_chore(self, name: str, queue: str) -> None:
        """Have the hosts of a queue do their part of a chore; one that waits for long is one too many."""
        self._task(name, {"queue": queue}, queue=queue, expires=CHORE_EXPIRES_S[name]).apply_async()

    def queue_depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Count the messages that wait on queues of the fleet; see the function."""
        named = {self._queues.named(queue): queue for queue in queues}
        return {named[queue]: count for queue, count in queue_depths(self._app, list(named)).items()}

    def worker_queues(self) -> dict[str, list[str]]:
        """Ask the workers that answer which queues of the fleet each takes messages from; through a broker that is away nobody does."""
        try:
            answers = worker_queues(self._app)
            return {worker: own for worker, queues in answers.items() if (own := self._queues.own(queues))}
        except (OperationalError, RedisError, OSError) as exc:
            log.warning("workers.not_asked", error=str(exc))
            return {}

    def publish_survey(self, token: int, node_ids: Sequence[str], *, queue: str) -> None:
        """Publish the survey of some nodes, for the check that holds this token."""
        self._task("survey", {"token": token, "node_ids": list(node_ids)}, queue=queue).apply_async()

    def publish_conclude(self, token: int) -> None:
        """Publish the rest of a check whose nodes are all in; as often as one likes."""
        self._task("conclude", {"token": token}, queue=CONTROL_QUEUE).apply_async()

    # -- building -------------------------------------------------------------------------------------------------
    def _id(self, job_id: str, *parts: str) -> str:
        return ".".join((self._fleet, job_id, *parts))

    def _chord_id(self, job_id: str) -> str:
        return self._id(job_id, "groups")

    def _monitor(self, job_id: str, group_id: str) -> Signature[Any]:
        """A header of the job's chord; its id is what the chord counts."""
        return self._task(
            "monitor",
            {"job_id": job_id, "group_id": group_id},
            queue=CONTROL_QUEUE,
            task_id=self._id(job_id, group_id, "monitor"),
            group_id=self._chord_id(job_id),
            chord=self._finalize(job_id),
        )

    def _finalize(self, job_id: str) -> Signature[Any]:
        """The chord's body; the same task is its errback, so that every way to the end leads there."""
        errback = self._task("finalize", {"job_id": job_id}, queue=CONTROL_QUEUE)
        return self._task(
            "finalize",
            {"job_id": job_id},
            queue=CONTROL_QUEUE,
            task_id=self._id(job_id, "finalize"),
            link_error=[errback],
        )

    def _task(self, name: str, arguments: dict[str, Any], *, queue: str, **options: Any) -> Signature[Any]:  # noqa: ANN401
        # Nobody waits for these results; saying so spares the sender a subscription for each.
        options |= {"queue": self._queues.named(queue), "serializer": "json", "ignore_result": True}
        kwargs = {**arguments, "fleet": self._fleet}
        # What Flower shows; said here, it need not be worked out for each message.
        options |= {"argsrepr": "()", "kwargsrepr": " ".join(f"{key}={value}" for key, value in kwargs.items())}
        return self._app.signature(f"rebalance.{name}", kwargs=kwargs, immutable=True, options=options)
