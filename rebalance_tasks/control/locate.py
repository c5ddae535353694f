"""Where is an object? forwarding → override or catalogue → CRUSH home → survey; a miss rescans once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rebalance_tasks.core.crush import CrushPlacementAlgorithm
from rebalance_tasks.core.errors import EmptyClusterError, NodeError, ObjectNotFound
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.core.models import NodeState, PlacementTarget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.control.context import FleetContext


class Location(str):
    """A node id that also says how it was found.

    Attributes:
        node_id: the node.
        url: the node's URL.
        via: ``forwarding``, ``override``, ``catalogue``, ``crush`` or ``survey``.
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


def locate(context: FleetContext, key: str) -> Location:
    """Find the node that holds an object whole at this instant.

    Raises:
        InvalidKey: the key is no object key.
        ObjectNotFound: no node that can be reached holds it.
    """
    validate_key(key)
    for _ in range(2):
        for node_id, via in _candidates(context, key):
            url = _holds(context, node_id, key)
            if url is not None:
                return Location(node_id, url=url, via=via)
    raise ObjectNotFound(key)


def _candidates(context: FleetContext, key: str) -> Iterator[tuple[str, str]]:
    locator = context.settings.locator
    forwarded, placed = context.locations.lookup(key)
    if forwarded is not None:
        yield forwarded, "forwarding"
    if placed is not None:
        yield placed, "catalogue" if locator == "catalogue" else "override"
    nodes = context.nodes()
    if locator == "crush":
        try:
            crush = CrushPlacementAlgorithm(rule=context.settings.placement_rule)
            home = crush.compute_placement(PlacementTarget(object_key=key), nodes)
            yield home.primary_node, "crush"
        except EmptyClusterError:
            pass
    for node in nodes:
        if node.state is not NodeState.MAINTENANCE:
            yield node.node_id, "survey"


def _holds(context: FleetContext, node_id: str, key: str) -> str | None:
    try:
        node = context.node(node_id)
        return node.url if context.driver(node_id).stat(key) is not None else None
    except NodeError:
        return None
