"""A fleet as the file system uses it: wired once per process and configuration, never shared with a fork."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.access.accesses import AccessSampler
from rebalance_tasks.control.access.browsing import Browser
from rebalance_tasks.control.access.holders import Holders
from rebalance_tasks.control.access.host_claims import claims_of
from rebalance_tasks.control.access.reading import Reader
from rebalance_tasks.control.access.writing import Writer
from rebalance_tasks.control.context import PlacesContext
from rebalance_tasks.control.locate import Locator
from rebalance_tasks.core.errors import ConfigurationError
from rebalance_tasks.drivers.doors import door_of
from rebalance_tasks.drivers.opened import Drivers
from rebalance_tasks.settings import load_settings
from rebalance_tasks.store.accesses import AccessStore

if TYPE_CHECKING:
    from rebalance_tasks.drivers.doors import Door
    from rebalance_tasks.settings import Settings


class OpenFleet:
    """What reads, writes, lists and counts for one fleet."""

    def __init__(self, settings: Settings, *, sample: int) -> None:
        """Wire a fleet; nothing is connected before it is used."""
        drivers = Drivers(settings)
        context = PlacesContext.reaching(settings, driver=drivers.reached)
        locator = Locator(context)
        claims = claims_of(context)
        self.settings = settings
        self._drivers = drivers
        self._doors: dict[str, Door] = {}
        self.reader = Reader(locator, self.door)
        self.writer = Writer(context, locator, Holders(context, locator, self.door), claims, self.door)
        self.browser = Browser(context, locator, self.door)
        self.accesses = AccessSampler(AccessStore(context.connection, context.keys), sample=sample)

    def door(self, node_id: str) -> Door:
        """The way into a node. Raises: UnknownNode, ConfigurationError."""
        door = self._doors.get(node_id)
        if door is None:
            door = self._doors[node_id] = door_of(self._drivers.reached(node_id))
        return door

    def require_writable(self) -> None:
        """Refuse to write where a flip would not tell. Raises: ConfigurationError."""
        if not self.settings.options.enable_read_forwarding:
            msg = (
                "[options] enable_read_forwarding = false: a writer would not see that an object has moved; "
                "set it to true to write through fleet://"
            )
            raise ConfigurationError(msg)


_fleets: dict[tuple[int, str, int], OpenFleet] = {}
_wiring: Final = threading.Lock()
os.register_at_fork(after_in_child=_wiring._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001  as threading does


def open_fleet(config: str | None, *, sample: int) -> OpenFleet:
    """Return this process' fleet of a configuration.

    Args:
        config: path of ``rebalance.toml``; by default what ``REBALANCE_CONFIG`` names.
        sample: one access in so many is counted.

    Raises:
        ConfigurationError: the configuration is wrong.
    """
    place = (os.getpid(), config or os.environ.get("REBALANCE_CONFIG", ""), sample)
    fleet = _fleets.get(place)
    if fleet is None:
        with _wiring:
            fleet = _fleets.get(place)
            if fleet is None:
                settings = load_settings(Path(config) if config else None)
                fleet = _fleets[place] = OpenFleet(settings, sample=sample)
    return fleet
