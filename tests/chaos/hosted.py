"""The storm over a fleet whose catalogue is its host's: what the host says must be true when it is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks import Flip
from tests.chaos.storm import Storm
from tests.support import host, strangers

if TYPE_CHECKING:
    from rebalance_tasks.core.models import RebalanceMove
    from tests.chaos.report import Result


class HostedStorm(Storm):
    """A round with a catalogue that outlives Redis."""

    def __post_init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        host.install(self.folder, self.patch)
        self.service = host.HOSTED
        super().__post_init__()

    def end(self) -> None:
        super().end()
        self.patch.undo()

    def random_moves(self) -> tuple[RebalanceMove, ...]:
        """The host hears of what strangers made before anything of it is moved."""
        places, catalogue = self.where(), host.catalogue()
        known = dict(catalogue.entries())
        now_ms = int(time.time() * 1000)
        catalogue.flip([Flip(key, None, nodes[0], now_ms) for key, nodes in places.items() if key not in known])
        return super().random_moves()

    def where(self) -> dict[str, list[str]]:
        """Object key -> nodes that hold it."""
        places: dict[str, list[str]] = {}
        for node, root in self.fleet.roots.items():
            for key in strangers.keys_on(root):
                places.setdefault(key, []).append(node)
        return places

    def judge(self) -> Result:
        result = super().judge()
        places = self.where()
        result.violations += [
            f"the host sends readers of {key} to {node}, it is on {places[key]}"
            for key, node in host.catalogue().entries()
            if key in places and node not in places[key]
        ]
        return result
