"""Read objects wherever they are, and follow them while they move.

While nothing moves, an object is where it was found last, and a reader may go there without asking Redis, for
`store.claims.STILL_MS` after Redis said so. While anything moves, Redis is asked each time: it knows of a flip before anybody may
write to the new place (docs/invariants.md, "Writes through the fleet"). A miss is never the answer before the key was looked
for again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from rebalance_tasks.core.errors import NodeError, ObjectNotFound, SourceChanged, SourceVanished
from rebalance_tasks.store.claims import STILL_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.locate import Found, Locator
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import SourceHandle
    from rebalance_tasks.drivers.doors import Door
    from rebalance_tasks.store.locations import Where

T = TypeVar("T")

#: A tenth is left for clocks that do not run alike.
STILL_S: Final = 0.9 * STILL_MS / 1000
#: Places that are remembered; forgotten all at once when there are so many.
MOST_PLACES: Final = 1 << 16
#: An object that is replaced each time while it is read is left to the caller.
TRIES: Final = 8


class Reader:
    """Opens objects of one fleet for reading; safe to use from several threads."""

    def __init__(
        self,
        locator: Locator,
        door: Callable[[str], Door],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind to a fleet.

        Args:
            locator: finds objects.
            door: node id → the way into it.
            clock: seconds, which never go back.
        """
        self._locator, self._door, self._clock = locator, door, clock
        self._places: dict[str, str] = {}
        self._still_until = 0.0

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> tuple[SourceHandle, str]:
        """Open an object; return it with its node.

        Args:
            key: object key.
            start: where reading will begin.
            length: how much will be read at first, as far as that is known.

        Raises:
            InvalidKey, ObjectUnreadable.
            ObjectNotFound: no node holds it; its cause is a `NodeError` where a node could not be asked.
        """

        def look(node_id: str) -> SourceHandle | None:
            try:
                return self._door(node_id).open_reader(key, start=start, length=length)
            except SourceVanished:
                return None

        return self._at(key, look)

    def stat(self, key: str) -> Fingerprint:
        """Return the version of an object. Raises: as `open`."""
        return self._at(key, lambda node_id: self._door(node_id).stat(key))[0]

    def _at(self, key: str, look: Callable[[str], T | None]) -> tuple[T, str]:
        """Look where the key was last, if nothing moves, else wherever it may be."""
        node_id = self._places.get(key)
        if node_id is not None and self._clock() < self._still_until:
            with suppress(NodeError):
                seen = look(node_id)
                if seen is not None:
                    return seen, node_id
            self.forget(key)
        asked = self._clock()
        found_there, found, where = self._locator.find(key, look)
        self.note(key, found, where, asked)
        return found_there, found.node_id

    def note(self, key: str, found: Found, where: Where, asked: float) -> None:
        """Remember a place.

        Args:
            key: object key.
            found: where the object was.
            where: what Redis knew before it was looked for there.
            asked: when Redis was asked.
        """
        if where.moving:
            self._still_until = 0.0
            return
        self._still_until = max(self._still_until, asked + STILL_S)
        if len(self._places) >= MOST_PLACES:
            self._places.clear()
        self._places[key] = found.node_id

    def forget(self, key: str) -> None:
        """Look for a key anew the next time."""
        self._places.pop(key, None)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a stretch of one version of an object.

        Args:
            key: object key.
            start: first byte, as in a slice: a negative one counts from the end.
            end: the byte after the last, likewise.

        Raises:
            As `open`; SourceChanged: it was replaced `TRIES` times while it was read.
        """
        first = start if start is not None and start > 0 else 0
        known = end is not None and end > first and (start is None or start >= 0)
        for attempt in range(TRIES):
            handle, _ = self.open(key, start=first, length=end - first if known and end is not None else None)
            try:
                with handle:
                    return stretch(handle, key, start, end)
            except (SourceVanished, SourceChanged):
                self.forget(key)
                if attempt == TRIES - 1:
                    raise
        raise ObjectNotFound(key)


def stretch(handle: SourceHandle, key: str, start: int | None = None, end: int | None = None) -> bytes:
    """Read a slice of an open object. Raises: SourceChanged when it has become shorter."""
    first, last, _ = slice(start, end).indices(handle.fingerprint.size_bytes)
    wanted = last - first
    if wanted <= 0:
        return b""
    if first:
        handle.seek(first)
    data = bytearray(wanted)
    view = memoryview(data)
    filled = handle.readinto(view)
    while filled < wanted:
        count = handle.readinto(view[filled:])
        if count == 0:
            raise SourceChanged(key, "the object became shorter while it was read")
        filled += count
    return bytes(data)
