"""The host's catalogue as a process uses it: opened once, its answers checked, whatever goes wrong told as one of our errors."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeVar, cast

from rebalance_tasks.control.providers import load_provider
from rebalance_tasks.core.errors import CatalogueUnreachable, ConfigurationError, InvalidKey
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rebalance_tasks.core.catalogue import Flip, HostCatalogue
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.settings import Settings

T = TypeVar("T")

log = get_logger(__name__)

SETTING: Final = "[fleet] catalogue"
#: Reason to pause a job that waits for the catalogue; set by the runner that missed it, lifted by the sweep.
AWAY: Final = "catalogue"
_METHODS: Final = ("locate", "flip", "entries")


class Catalogue:
    """A `HostCatalogue` that fails in two ways only: `ConfigurationError` for a wrong provider, `CatalogueUnreachable` for the rest."""

    def __init__(self, source: str, nodes: Sequence[NodeDescriptor]) -> None:
        """Name the provider (``provider:`` and a name); nothing is loaded before it is used."""
        self._source, self._nodes = source, nodes
        self._lock = threading.Lock()
        self._opened: tuple[int, HostCatalogue] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The catalogue of a fleet; ``None`` where Redis keeps it."""
        return None if settings.catalogue == "redis" else cls(settings.catalogue, settings.nodes)

    def open(self) -> HostCatalogue:
        """Load the provider, once per process and never shared with a fork.

        Raises:
            ConfigurationError: it is not installed, cannot be loaded, or is no catalogue.
            CatalogueUnreachable: it cannot be opened now.
        """
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._load()
            return self._opened[1]

    def _load(self) -> HostCatalogue:
        provider = load_provider(self._source, setting=SETTING)
        if not callable(provider):
            self._refuse(f"is a {type(provider).__name__}, not a callable that takes the nodes")
        catalogue = self._asked("open", lambda: provider(self._nodes))
        lacking = [name for name in _METHODS if not callable(getattr(catalogue, name, None))]
        if lacking:
            self._refuse(f"returned a {type(catalogue).__name__} without {', '.join(lacking)}")
        return cast("HostCatalogue", catalogue)

    def _refuse(self, what: str) -> NoReturn:
        msg = f"{SETTING} = {self._source!r}: it {what}; a catalogue has {', '.join(_METHODS)} (docs/how-to/host-catalogue.md)"
        raise ConfigurationError(msg)

    def _asked(self, what: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except Exception as exc:
            raise CatalogueUnreachable(self._source, f"{what}: {type(exc).__name__}: {exc}") from exc

    def _places(self, what: str, ask: Callable[[], Sequence[str | None]], expected: int) -> list[str | None]:
        places = self._asked(what, lambda: list(ask()))
        if len(places) != expected or not all(place is None or isinstance(place, str) for place in places):
            raise CatalogueUnreachable(self._source, f"{what}: answered {places!r:.200} for {expected} keys")
        return places

    def locate(self, keys: Sequence[str]) -> list[str | None]:
        """As `HostCatalogue.locate`. Raises: ConfigurationError, CatalogueUnreachable."""
        catalogue = self.open()
        return self._places("locate", lambda: catalogue.locate(keys), len(keys))

    def flip(self, flips: Sequence[Flip]) -> list[str | None]:
        """As `HostCatalogue.flip`. Raises: ConfigurationError, CatalogueUnreachable (it may have been made)."""
        catalogue = self.open()
        return self._places("flip", lambda: catalogue.flip(flips), len(flips))

    def entries(self) -> Iterator[tuple[str, str]]:
        """As `HostCatalogue.entries`, without keys that are none. Raises: ConfigurationError, CatalogueUnreachable."""
        for key, node in self._asked("entries", lambda: list(self.open().entries())):
            try:
                yield validate_key(key), node
            except InvalidKey as exc:
                log.warning("catalogue.invalid_key", error=str(exc))

    def answers(self) -> bool:
        """Whether it is there, and takes flips: asked for no key at all."""
        try:
            self.locate([])
            self.flip([])
        except CatalogueUnreachable:
            return False
        return True
