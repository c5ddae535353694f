"""Which hosts reach which nodes, and so which queue a pair of nodes is carried on.

A queue is served by the workers of one or several hosts and stands for what those hosts reach. A node names the queues of
the hosts that reach it; one that names none (a bucket, say) is reached from everywhere. A pair goes over a queue that both
nodes name. Where they share none, the source's hosts push to the target's ``remote_url``, if it has one: straight from host
to host, around any gateway. Pushing, never pulling, so that a source is always read, compared and freed where it lies, by one
driver. Other nodes that share no queue are never paired.

Where several fleets share workers, the names of a fleet's queues on the broker end in its own (`BrokerQueues`); everywhere else
they go by the names that are used here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rebalance_tasks.core.models import NodeDescriptor

#: Tasks that decide; they run wherever Redis is reached.
CONTROL_QUEUE: Final = "rebalance.control"
#: Tasks that move bytes between nodes which every host reaches.
DATA_QUEUE: Final = "rebalance.data"
#: Between a queue's name and the fleet's; no name of either holds it.
_AT: Final = "@"


@dataclass(frozen=True, slots=True)
class BrokerQueues:
    """The names of a fleet's queues on the broker.

    Attributes:
        fleet: whose workers serve other fleets too; '' for one that has its broker, or its `message_prefix`, to itself.
    """

    fleet: str = ""

    def named(self, queue: str) -> str:
        """Return a queue's name on the broker: ``rebalance.data.h1@archive``."""
        return f"{queue}{_AT}{self.fleet}" if self.fleet else queue

    def own(self, queues: Iterable[str]) -> list[str]:
        """Return those of the broker's queues that are this fleet's, by the names that routes have for them."""
        end = self.named("")
        return [queue.removesuffix(end) for queue in queues if queue.endswith(end)]


#: Those of a fleet that shares no workers.
PLAIN_QUEUES: Final = BrokerQueues()


def fleet_of(queue: str) -> str:
    """Return whose queue it is by its name on the broker; '' where that does not say."""
    return queue.rpartition(_AT)[2] if _AT in queue else ""


def data_queue(name: str) -> str:
    """Return the Celery queue that stands for a queue name of a node ('' for a node that names none)."""
    return f"{DATA_QUEUE}.{name}" if name else DATA_QUEUE


def common_queues(source: NodeDescriptor, target: NodeDescriptor) -> tuple[str, ...]:
    """Return the Celery queues whose hosts reach both nodes at their own URLs, in the source's order."""
    if not source.queues and not target.queues:
        return (DATA_QUEUE,)
    if not source.queues or not target.queues:
        return tuple(map(data_queue, source.queues or target.queues))
    return tuple(data_queue(name) for name in source.queues if name in target.queues)


def share_a_host(one: NodeDescriptor, other: NodeDescriptor) -> bool:
    """Tell whether some host may reach both nodes at their own URLs, whatever the direction."""
    return bool(common_queues(one, other))


def shared_queues(source: NodeDescriptor, target: NodeDescriptor) -> tuple[str, ...]:
    """Return the Celery queues that carry objects from source to target, the preferred one first; empty: none can."""
    common = common_queues(source, target)
    return common if common or not target.remote_url else queues_reaching(source)


def are_linked(source: NodeDescriptor, target: NodeDescriptor) -> bool:
    """Tell whether objects can go from source to target."""
    return bool(shared_queues(source, target))


def seen_from(node: NodeDescriptor, queue: str) -> NodeDescriptor:
    """Return a node as the hosts of a Celery queue reach it: at its own URL, or else at its remote one."""
    if not node.remote_url or not node.queues or queue in queues_reaching(node):
        return node
    return node.model_copy(update={"url": node.remote_url})


def queues_reaching(node: NodeDescriptor) -> tuple[str, ...]:
    """Return the Celery queues whose hosts reach a node, the preferred one first."""
    return tuple(map(data_queue, node.queues)) or (DATA_QUEUE,)


def every_queue(nodes: Iterable[NodeDescriptor]) -> list[str]:
    """Return every Celery queue that a fleet's messages may wait on: control and data first, then the nodes' own, sorted."""
    named = {data_queue(name) for node in nodes for name in node.queues}
    return [CONTROL_QUEUE, DATA_QUEUE, *sorted(named)]


def first_served(queues: Iterable[str], served: Collection[str] | None) -> str | None:
    """Return the first queue that somebody serves; the first of all when nobody knows who serves what; None: nobody does."""
    return next((queue for queue in queues if served is None or queue in served), None)
