"""The commit of a batch: from here on readers are sent to its copies.

Where Redis says where objects are, its flip is the commit. Where the host's catalogue does, the host's flip is, and that of Redis
follows as the record of it (docs/invariants.md, "Where the host's catalogue commits"). What the host has committed is finished and
never undone; what it has not may be, once its answer says that it will not do so late.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.catalogue import Flip
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration.faults import Step, reached

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rebalance_tasks.core.catalogue import HostCatalogue
    from rebalance_tasks.migration.endings import Endings
    from rebalance_tasks.migration.item import BatchContext, Item

#: A writer's claim is looked at again so soon: it is held for one step only.
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Host:
    """The host's catalogue, as it is asked about moves from one node to another.

    Attributes:
        catalogue: raises `CatalogueUnreachable` when nobody knows what became of a call.
        source: node id.
        target: node id.
        fence: when whoever asks got the right to, in ms: of two runners the later one is heard.
        marks: object keys -> the only node of each, where a writer through the fleet said so (`store.locations`).
    """

    catalogue: HostCatalogue
    source: str
    target: str
    fence: int
    marks: Callable[[Sequence[str]], Sequence[str | None]]

    def commit(self, keys: Sequence[str]) -> Sequence[str | None]:
        """Have readers sent to the target; return where each key is then."""
        if not keys:
            return []
        places = self.catalogue.flip([Flip(key, self.source, self.target, self.fence) for key in keys])
        reached(Step.HOST_FLIP)
        return places

    def take_back(self, key: str) -> str | None:
        """Have readers sent to the source again; return where the key is then."""
        place = self.catalogue.flip([Flip(key, self.target, self.source, self.fence)])[0]
        reached(Step.HOST_BACK)
        return place

    def committed(self, key: str) -> bool:
        """Whether readers were sent to the target; if not, no runner before this one will do so late.

        A writer's mark elsewhere wins: the object is there, and readers are sent back.
        """
        mark = self.marks([key])[0]
        if mark is not None and mark != self.target:
            return self.take_back(key) == self.target
        place = self.catalogue.flip([Flip(key, self.source, self.source, self.fence)])[0]
        reached(Step.HOST_ASKED)
        return place == self.target


def commit(
    context: BatchContext, items: Sequence[Item], endings: Endings, leaving: Callable[[Sequence[Item]], None]
) -> None:
    """Send readers to the copies of published items; what must stay where it is has its copy taken off again.

    Args:
        context: of the batch.
        items: which.
        endings: of those that stay where they are.
        leaving: is told those before anything is done with them.

    Raises:
        StaleLease: another runner has taken over.
        CatalogueUnreachable: nobody knows which of them the host has committed; the next attempt asks again.
    """
    if context.host is not None:
        items = _at_host(context.host, items, endings)
    held = context.store.flip(
        [item.move for item in items],
        forwarding_ttl_ms=context.forwarding_ttl_ms,
        keep_locations=context.keep_locations,
        hosted=context.host is not None,
    )
    for item in items:
        if item.move.index not in held:
            item.state = MoveState.FLIPPED
    reached(Step.FLIP)
    stays = [item for item in items if item.move.index in held]
    if context.host is not None:
        stays = _marked(context.host, stays, endings)
    leaving(stays)
    for item in stays:
        endings.stay(item)


def _at_host(host: Host, items: Sequence[Item], endings: Endings) -> list[Item]:
    """Commit what no writer holds elsewhere; return what readers are sent to the target for."""
    marks = host.marks([item.move.key for item in items])
    going = [item for item, mark in zip(items, marks, strict=True) if mark in {None, host.target}]
    places = dict(zip((item.move.index for item in going), host.commit([item.move.key for item in going]), strict=True))
    committed: list[Item] = []
    for item in items:
        # An earlier runner may have committed what a writer has marked since.
        place = places[item.move.index] if item.move.index in places else host.take_back(item.move.key)
        if place == host.target:
            committed.append(item)
        elif item.move.index not in places or host.marks([item.move.key])[0] is not None:
            endings.stay(item)
        else:
            endings.refused(item, place)
    return committed


def _marked(host: Host, held: Sequence[Item], endings: Endings) -> list[Item]:
    """Of what Redis did not flip, return what a writer has changed elsewhere; what is only claimed is tried again later."""
    marks = host.marks([item.move.key for item in held])
    stays: list[Item] = []
    for item, mark in zip(held, marks, strict=True):
        if mark is not None and host.take_back(item.move.key) != host.target:
            stays.append(item)
        else:
            endings.later([item])
    if len(stays) < len(held):
        time.sleep(POLL_S)
    return stays
