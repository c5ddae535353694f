"""Which nodes hold a key right now, the one whose copy is the object first; and where a new object belongs.

Readers may go by the first copy they find: until a flip both are the same. A writer may not: what it writes to a copy that is
taken back later would be lost. So while things move, a copy that nothing in Redis vouches for counts only if no move is bringing
it (invariant 1).
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final, NamedTuple

from rebalance_tasks.core.errors import NodeError, RetryableError
from rebalance_tasks.core.models import PlacementTarget
from rebalance_tasks.core.placement.filter import target_filters
from rebalance_tasks.store.records import UndoRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.context import PlacesContext
    from rebalance_tasks.control.locate import Locator
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.doors import Door
    from rebalance_tasks.store.locations import Where

#: What Redis says of one key, as against where a key would be looked for by default.
_VOUCHED: Final = frozenset({"written", "forwarding", "override", "catalogue"})


class Holder(NamedTuple):
    """A node and the version that it holds."""

    node_id: str
    version: Fingerprint


class Holders:
    """Looks for the holders of keys of one fleet."""

    def __init__(self, context: PlacesContext, locator: Locator, door: Callable[[str], Door]) -> None:
        """Bind to a fleet."""
        self._c, self._locator, self._door = context, locator, door

    def likeliest(self, key: str, where: Where) -> Holder | None:
        """The first holder that a reader would find. Nodes that cannot be asked are passed over."""
        for found in self._locator.candidates(key, where):
            try:
                version = self._door(found.node_id).stat(key)
            except NodeError:
                continue
            if version is not None:
                return Holder(found.node_id, version)
        return None

    def all(self, key: str, where: Where) -> list[Holder]:
        """All holders, the one whose copy is the object first.

        Args:
            key: object key, claimed by the caller.
            where: what was known when it was claimed.

        Raises:
            NodeError: a node that may hold it cannot be asked, and no other holds it, or things move.
            RetryableError: several nodes hold it and nothing says which copy is the object.
        """
        holders: list[Holder] = []
        trouble: NodeError | None = None
        for found in self._locator.candidates(key, where):
            try:
                version = self._door(found.node_id).stat(key)
            except NodeError as exc:
                trouble = exc
                continue
            if version is None:
                continue
            holders.append(Holder(found.node_id, version))
            if found.via in _VOUCHED and where.moving and trouble is None:
                return holders
        if trouble is not None and (where.moving or not holders):
            raise trouble
        if where.moving and len(holders) > 1:
            return self._original(key, holders)
        return holders

    def _original(self, key: str, holders: list[Holder]) -> list[Holder]:
        """Leave out copies that moves are bringing, or have left behind and not yet taken back."""
        active = self._c.jobs.active()
        pairs = {(group.source, group.target) for group in self._c.jobs.groups(active).values()} if active else set()
        for raw in self._c.connection.hgetall(self._c.keys.undos).values():
            record = UndoRecord.model_validate_json(raw)
            if record.key == key:
                pairs.add((record.source, record.target))
        nodes = {holder.node_id for holder in holders}
        brought = {target for source, target in pairs if source in nodes and target in nodes}
        original = [holder for holder in holders if holder.node_id not in brought]
        if len(original) != 1:
            named = ", ".join(sorted(nodes))
            msg = f"object {key!a} is on nodes {named}, and nothing says which copy is the object; run `rebalance reindex`"
            raise RetryableError(msg)
        return original

    def placed(self, key: str, where: Where) -> str:
        """The node on which a new object belongs: CRUSH, over the nodes that the fleet's rules allow. Raises: EmptyClusterError."""
        cluster = self._locator.cluster(where)
        target = self._target(key)
        return str(cluster[cluster.place(key, 1, target_filters(target, None))[0]].node_id)

    def _target(self, key: str) -> PlacementTarget:
        """What the rules say of a key; the first that says something of a matter decides it."""
        regions: tuple[str, ...] = ()
        storage_class = None
        tags: dict[str, str] = {}
        for rule in self._c.settings.rules:
            if fnmatch.fnmatchcase(key, rule.pattern):
                regions = regions or rule.regions
                storage_class = storage_class or rule.storage_class
                tags = tags or dict(rule.tags)
        return PlacementTarget(
            object_key=key, compliance_regions=regions, required_storage_class=storage_class, required_tags=tags
        )
