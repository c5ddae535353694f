"""Where the host's catalogue says where objects are: it hears of each write through the fleet, and is asked before a copy is taken off.

Keeps: what a writer changed is where the catalogue sends readers. Where the object is there already, the catalogue is told before it
is changed, so that no move commits it elsewhere meanwhile; what is new or gone it is told after (docs/invariants.md, "Writes through
the fleet").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.catalogue import Flip
from rebalance_tasks.core.errors import CatalogueUnreachable
from rebalance_tasks.migration.committing import Host
from rebalance_tasks.store.claims import ClaimStore, WriteInDoubt

if TYPE_CHECKING:
    from rebalance_tasks.control.catalogue import Catalogue
    from rebalance_tasks.control.context import PlacesContext
    from rebalance_tasks.store.claims import Claim
    from rebalance_tasks.store.connection import Connection
    from rebalance_tasks.store.keys import FleetKeys
    from rebalance_tasks.store.locations import LocationStore


class HostClaims(ClaimStore):
    """Claims of a fleet with a host's catalogue."""

    def __init__(
        self, connection: Connection, keys: FleetKeys, locations: LocationStore, *, catalogue: Catalogue
    ) -> None:
        """Bind to a fleet's keys and its catalogue."""
        super().__init__(connection, keys, locations)
        self._catalogue = catalogue

    def mark(self, claim: Claim, node: str, *, ttl_ms: int) -> bool:
        """As `ClaimStore.mark`; False also when the catalogue has the key elsewhere now. Raises: CatalogueUnreachable."""
        if not super().mark(claim, node, ttl_ms=ttl_ms):
            return False
        [known] = self._catalogue.locate([claim.key])
        return known is None or self._flip(claim.key, known, node) == node

    def end(self, claim: Claim, node: str, *, there: bool, placed: bool, grown_bytes: int) -> bool:
        """As `ClaimStore.end`. Raises: WriteInDoubt when the catalogue could not be told."""
        del placed  # Redis keeps no places here
        wanted = node if there else None
        try:
            [known] = self._catalogue.locate([claim.key])
            told = self._flip(claim.key, known, wanted)
        except CatalogueUnreachable as exc:
            msg = f"object {claim.key!a} was changed on node {node!r}, and the host's catalogue may not know; write it again"
            raise WriteInDoubt(msg) from exc
        if told != wanted:
            return False
        return super().end(claim, node, there=there, placed=False, grown_bytes=grown_bytes)

    def _flip(self, key: str, source: str | None, target: str | None) -> str | None:
        return self._catalogue.flip([Flip(key, source, target, self._redis.now_ms())])[0]


def claims_of(context: PlacesContext) -> ClaimStore:
    """The claims of a fleet."""
    place = context.connection, context.keys, context.locations
    return ClaimStore(*place) if context.catalogue is None else HostClaims(*place, catalogue=context.catalogue)


def committed(context: PlacesContext, key: str, *, source: str, target: str) -> bool:
    """Whether the host's catalogue has sent readers to the copy of a move that nobody goes on with: then its source is what goes.

    If not, no runner of the move will have it do so late, and the copy may be taken off the target.

    Raises:
        CatalogueUnreachable: that cannot be said now, and neither may go.
    """
    if context.catalogue is None:
        return False
    host = Host(context.catalogue, source, target, context.connection.now_ms(), context.locations.marks)
    return host.committed(key)
