"""Where is an object? the host's catalogue → forwarding → override or catalogue → CRUSH home → survey; a miss looks again while things move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar

from rebalance_tasks.core.crush import CompiledFleet
from rebalance_tasks.core.errors import CatalogueUnreachable, EmptyClusterError, NodeError, ObjectNotFound
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebalance_tasks.control.context import PlacesContext
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.store.locations import Where

T = TypeVar("T")

log = get_logger(__name__)

#: An object may move on while it is looked for; more often than its cooldown allows is not bad luck.
SCANS: Final = 3


class Location(str):
    """A node id that also says how it was found.

    Attributes:
        node_id: the node.
        url: the node's URL.
        via: ``written``, ``forwarding``, ``override``, ``catalogue``, ``crush`` or ``survey``.
        hops: forwardings that were followed: 0 or 1, since a chain of moves is collapsed into one entry.
    """

    __slots__ = ("url", "via")

    url: str
    via: str

    def __new__(cls, node_id: str, *, url: str, via: str) -> Self:
        """Make one."""
        self = super().__new__(cls, node_id)
        self.url = url
        self.via = via
        return self

    @property
    def node_id(self) -> str:
        """The node, as a plain string."""
        return str(self)

    @property
    def hops(self) -> int:
        """Forwardings that were followed."""
        return int(self.via == "forwarding")


class Found(NamedTuple):
    """A node, and how it was come by."""

    node_id: str
    via: str


class Locator:
    """Finds the objects of one fleet; keeps what it computes of the cluster map."""

    def __init__(self, context: PlacesContext) -> None:
        """Bind to a fleet."""
        self._c = context
        self._crush = context.settings.locator == "crush"
        self._placed_via = "catalogue" if context.settings.locator == "catalogue" else "override"
        self._maps: dict[tuple[tuple[str, str], ...], CompiledFleet] = {}

    def where(self, key: str) -> Where:
        """Return what Redis knows of a key. Raises: InvalidKey."""
        return self._c.locations.lookup(validate_key(key))

    def find(self, key: str, look: Callable[[str], T | None]) -> tuple[T, Found, Where]:
        """Look on one node after the other, the likeliest first.

        Args:
            key: object key.
            look: looks on a node; ``None`` is a miss.

        Returns:
            What was seen, where, and what Redis knew of the key right before.

        Raises:
            InvalidKey: the key is no object key.
            ObjectNotFound: no node holds it; its cause is a `NodeError` where a node could not be asked.
        """
        trouble: NodeError | None = None
        where = self.where(key)
        for _ in range(SCANS):
            for found in self.candidates(key, where):
                try:
                    seen = look(found.node_id)
                except NodeError as exc:
                    trouble = exc
                    continue
                if seen is not None:
                    return seen, found, where
            before, where = where, self.where(key)
            if not (before.moving or where.moving) and before.epoch == where.epoch:
                break
        raise ObjectNotFound(key) from trouble

    def locate(self, key: str) -> Location:
        """Find the node that holds an object whole at this instant.

        Raises:
            InvalidKey: the key is no object key.
            ObjectNotFound: no node that can be reached holds it.
        """
        driver = self._c.driver
        _, found, _ = self.find(key, lambda node_id: driver(node_id).stat(key))
        return Location(found.node_id, url=self._c.settings.node(found.node_id).url, via=found.via)

    def candidates(self, key: str, where: Where) -> Iterator[Found]:
        """Yield the nodes on which a key may be, the likeliest first, each once."""
        if where.written is not None:
            yield Found(where.written, "written")
            return
        seen: set[str] = set()
        for found in self._guesses(key, where):
            if found.node_id not in seen:
                seen.add(found.node_id)
                yield found

    def _guesses(self, key: str, where: Where) -> Iterator[Found]:
        hosted = self._hosted(key)
        if hosted is not None:
            yield Found(hosted, "catalogue")
        if where.forwarded is not None:
            yield Found(where.forwarded, "forwarding")
        if where.placed is not None:
            yield Found(where.placed, self._placed_via)
        cluster = self.cluster(where)
        home = self.home(key, where)
        if self._crush and home is not None:
            yield Found(home, "crush")
        # What was written through the fleet lies at its home, whatever the locator.
        surveyed = [node.node_id for node in cluster if node.state is not NodeState.MAINTENANCE]
        surveyed.sort(key=lambda node_id: node_id != home)
        leaving = self._c.locations.leaving(key, surveyed) if where.unfreed else frozenset()
        for node_id in surveyed:
            if node_id not in leaving:
                yield Found(node_id, "survey")

    def _hosted(self, key: str) -> str | None:
        """What the host's catalogue says; without it the nodes themselves are looked at, where both copies of a move are the same."""
        if self._c.catalogue is None:
            return None
        try:
            return self._c.catalogue.locate([key])[0]
        except CatalogueUnreachable as exc:
            log.warning("locate.catalogue_away", error=str(exc))
            return None

    def cluster(self, where: Where) -> CompiledFleet:
        """The cluster map, with the states that were set at run time."""
        found = self._maps.get(where.states)
        if found is None:
            states = {node_id: NodeState(state) for node_id, state in where.states}
            nodes = [_in_state(node, states.get(node.node_id)) for node in self._c.settings.nodes]
            self._maps.clear()
            found = self._maps[where.states] = CompiledFleet(nodes, rule=self._c.settings.placement_rule)
        return found

    def home(self, key: str, where: Where) -> str | None:
        """The node that placement computes for a key; ``None`` when no node takes anything."""
        cluster = self.cluster(where)
        try:
            return str(cluster[cluster.place(key)[0]].node_id)
        except EmptyClusterError:
            return None


def _in_state(node: NodeDescriptor, state: NodeState | None) -> NodeDescriptor:
    return node if state is None else node.model_copy(update={"state": state})
