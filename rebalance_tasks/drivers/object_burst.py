"""The burst of a node in a store: the sources of a batch are freed by few requests; everything else goes each object's own way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.drivers.burst import NoBurst

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.object_store import ObjectStoreDriver


class ObjectBurst(NoBurst):
    """Frees from one node; `Burst`."""

    def __init__(self, source: ObjectStoreDriver) -> None:
        """Free from ``source``."""
        self._source = source

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """Free all of them at once, each if it is still what was copied."""
        asked = list(objects)
        freed = iter(self._source.free_fresh([one for one in asked if one is not None]))
        return iter([one is not None and next(freed) for one in asked])
