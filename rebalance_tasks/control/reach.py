"""Who reaches what: control runs wherever Redis is, but a node that names queues is reached only from their hosts.

Control therefore touches no such node itself. What takes reaching it (is it back? its trash, its orphans) is asked of the hosts
of its queues. A queue that nobody serves any more is *deserted*: what waits on it goes over another queue that reaches the
same nodes, and where there is none its nodes count as out of reach, as a disk that was unplugged does.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from rebalance_tasks.control.survey import adopt
from rebalance_tasks.core.errors import NodeError
from rebalance_tasks.core.routes import CONTROL_QUEUE, DATA_QUEUE, first_served, queues_reaching, shared_queues
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.store.records import GroupRecord

log = get_logger(__name__)


def within_reach(context: FleetContext, queue: str | None) -> frozenset[str]:
    """Return the nodes that the workers of a queue reach; ``None``: those that every host does."""
    return frozenset(
        node.node_id for node in context.settings.nodes if not node.queues or queue in queues_reaching(node)
    )


def far_queues(context: FleetContext) -> list[str]:
    """Return the queues that nodes name, and that somebody serves or may serve; sorted."""
    named = {queue for node in context.settings.nodes if node.queues for queue in queues_reaching(node)}
    if not named:
        return []
    served = context.presence.served(now_ms=context.connection.now_ms())
    return sorted(named if served is None else named & served)


class Routes:
    """Which queue carries what, as things stand now; one for a sweep, so that workers are asked once."""

    def __init__(self, context: FleetContext) -> None:
        """See who serves what; fleets whose nodes name no queues need not be asked about."""
        self._context = context
        self._nodes = {node.node_id: node for node in context.settings.nodes}
        self._named = {queue for node in self._nodes.values() if node.queues for queue in queues_reaching(node)}
        self._served: frozenset[str] | None = None
        self._deserted: set[str] = set()
        if self._named:
            self._look()

    def _look(self) -> None:
        context, now_ms = self._context, self._context.connection.now_ms()
        self._served = context.presence.served(now_ms=now_ms)
        unserved = set() if self._served is None else self._named - self._served
        self._deserted, ask = context.presence.doubt(unserved, now_ms=now_ms)
        if ask:
            answers = {queue for queues in context.messenger.worker_queues().values() for queue in queues}
            context.presence.answered(ask & answers, ask - answers, now_ms=now_ms)
            self._deserted |= ask - answers
            for queue in sorted(ask - answers):
                log.warning("queue.deserted", queue=queue)

    def out_of_reach(self, node_id: str) -> bool:
        """Whether nobody serves any of the queues that a node names."""
        node = self._nodes.get(node_id)
        return node is not None and bool(node.queues) and self._deserted.issuperset(queues_reaching(node))

    def to_ask(self, node_id: str) -> str | None:
        """The queue whose hosts can look at a node; ``None``: this one can, or nobody can."""
        node = self._nodes.get(node_id)
        if node is None or not node.queues:
            return None
        return first_served(queues_reaching(node), self._served)

    def is_far(self, node_id: str) -> bool:
        """Whether a node names queues, so that it takes one of their hosts to look at it."""
        node = self._nodes.get(node_id)
        return node is not None and bool(node.queues)

    @cached_property
    def busy(self) -> frozenset[str]:
        """Data queues on which messages wait for somebody who is there to take them."""
        unserved = set() if self._served is None else self._named - self._served
        depths = self._context.messenger.queue_depths([*({DATA_QUEUE, *self._named} - unserved - self._deserted)])
        return frozenset(queue for queue, messages in depths.items() if messages)

    def publish(self, job_id: str, group: GroupRecord) -> bool:
        """Publish a group's header again, where somebody is left to take it; False when that is nobody who reaches its nodes.

        Such a header goes to the control queue: whoever takes it finds the nodes held, or out of reach, and parks the group
        or, after the time that an outage is waited for, fails its moves.
        """
        queue = self._queue(group)
        deserted = queue is None
        if deserted:
            for node_id in (group.source, group.target):
                if self.out_of_reach(node_id):
                    self._context.holds.missing(node_id)
        self._context.messenger.publish_group(job_id, group.model_copy(update={"queue": queue or CONTROL_QUEUE}))
        return not deserted

    def _queue(self, group: GroupRecord) -> str | None:
        """The best queue for a group: one that is served, else one that may be again; ``None`` when all are deserted."""
        source, target = self._nodes.get(group.source), self._nodes.get(group.target)
        if source is None or target is None:
            return group.queue
        left = [queue for queue in shared_queues(source, target) if queue not in self._deserted]
        return first_served(left, self._served) or next(iter(left), None)


def adopt_here(
    context: FleetContext, job_id: str, group_id: str, *, queue: str, driver: Callable[[str], Driver] | None = None
) -> None:
    """Write the node-id of a group's nodes that name queues and never carried one: only hosts that reach them can, when a job first comes there.

    Args:
        context: the fleet.
        job_id: the job.
        group_id: the group.
        queue: what its message came over.
        driver: the drivers of that queue's hosts.
    """
    far = {node.node_id for node in context.settings.nodes if node.queues}
    group = context.jobs.group(job_id, group_id) if far else None
    if group is None:
        return
    reached = within_reach(context, queue) | {node.node_id for node in context.settings.nodes if node.remote_url}
    fresh = (far & reached & {group.source, group.target}) - context.fleet.adopted()
    try:
        if fresh:
            adopt(context, only=fresh, driver=driver)
    except NodeError as exc:  # the slice that follows meets it as well, and knows what to do
        log.warning("node.not_adopted", node=exc.node_id, error=str(exc))
