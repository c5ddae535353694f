"""Look into a folder of the fleet: what all nodes hold there, as one; an object that moves meanwhile is in it once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import InvalidKey, ObjectNotFound
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.core.models import NodeState
from rebalance_tasks.drivers.local.listing import key_filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.context import PlacesContext
    from rebalance_tasks.control.locate import Locator
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.doors import Door

#: Nodes looked into at a time.
SIDE_BY_SIDE: Final = 8


class Browser:
    """Looks into folders of one fleet."""

    def __init__(self, context: PlacesContext, locator: Locator, door: Callable[[str], Door]) -> None:
        """Bind to a fleet."""
        self._c, self._locator, self._door = context, locator, door

    def list(self, folder: str) -> dict[str, Fingerprint | None]:
        """Return what is right below a folder ('' is the root) by name; a folder has no version.

        Raises:
            NodeError: a node cannot be asked; what it holds must not be taken for missing.
        """
        prefix = f"{folder}/" if folder else ""
        began_ms = self._c.connection.now_ms()
        nodes = [node for node in self._c.nodes() if node.state is not NodeState.MAINTENANCE]
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, max(1, len(nodes)))) as pool:
            seen = list(pool.map(lambda node: self._look(node, folder, prefix), nodes))
        found: dict[str, Fingerprint | None] = {}
        doubtful: set[str] = set()
        for entries in seen:
            for name, version in entries.items():
                if version is not None and found.get(name) is not None:
                    doubtful.add(prefix + name)
                found[name] = version if found.get(name) is None else found[name]
        # Moved from a node that was not looked into yet to one that had been; or the moves' own copies.
        doubtful |= {key for key in self._c.locations.moved_since(began_ms) if key.startswith(prefix)}
        doubtful |= {key for key in self._c.locations.written() if key.startswith(prefix)}
        for key in doubtful:
            self._settle(found, key, prefix)
        return found

    def holds_any(self, folder: str) -> bool:
        """Whether an object is anywhere below a folder: disks keep folders whose last object has left. Raises: as `list`."""
        folders = [folder]
        while folders:
            here = folders.pop()
            found = self.list(here)
            if any(version is not None for version in found.values()):
                return True
            folders += [f"{here}/{name}" if here else name for name in found]
        return False

    def _look(self, node: NodeDescriptor, folder: str, prefix: str) -> dict[str, Fingerprint | None]:
        passes = key_filter(node.include, node.exclude)
        found: dict[str, Fingerprint | None] = {}
        for name, version in self._door(node.node_id).browse(folder):
            try:
                key = validate_key(prefix + name)
            except InvalidKey:
                continue
            if version is None:
                found.setdefault(name, None)
            elif passes is None or passes(key):
                found[name] = version
        return found

    def _settle(self, found: dict[str, Fingerprint | None], key: str, prefix: str) -> None:
        """Say of one key what a reader would find at this instant."""
        name, slash, _ = key.removeprefix(prefix).partition("/")
        try:
            version, _, _ = self._locator.find(key, lambda node_id: self._door(node_id).stat(key))
        except ObjectNotFound:
            if not slash:
                found.pop(name, None)
            return
        found[name] = found.get(name) if slash else version
