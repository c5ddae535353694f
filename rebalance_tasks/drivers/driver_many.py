"""Any node as one end of a burst (`drivers.small_burst`), through its driver: one object after the other, or some at once."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.drivers.lanes import each
from rebalance_tasks.drivers.small_burst import Small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver

    Freed = Iterable[tuple[str, MoveId, Fingerprint] | None]

T = TypeVar("T")
R = TypeVar("R")


class DriverMany:
    """`Many` on one node."""

    def __init__(self, driver: Driver, free: Callable[[Freed], Iterator[bool]], *, at_once: int = 1) -> None:
        """Stand on a driver, whose folders the caller of a burst holds.

        Args:
            driver: of the node.
            free: how it frees many; see `Burst.free`.
            at_once: calls that may be under way, where each is a round trip.
        """
        self._driver, self._at_once = driver, at_once
        self.free = free

    def _each(self, things: Sequence[T], act: Callable[[T], R], otherwise: R) -> list[R]:
        """Do something with each; what an error stops comes to ``otherwise``."""
        done = [otherwise] * len(things)

        def one(place: int) -> None:
            with suppress(RebalanceError):
                done[place] = act(things[place])

        each(range(len(things)), one, at_once=self._at_once)
        return done

    # -- as a source ----------------------------------------------------------------------------------------------
    def read(self, objects: Sequence[tuple[str, MoveId, int]]) -> list[Small | None]:
        """Read whole objects; see `Many.read`."""
        return self._each(objects, self._read, None)

    def _read(self, wanted: tuple[str, MoveId, int]) -> Small | None:
        key, move_id, size_bytes = wanted
        # One byte more, which an object that has grown has.
        buffer = memoryview(bytearray(size_bytes + 1))
        with self._driver.open_source(key) as reader:
            if reader.readinto(buffer) != size_bytes or reader.fingerprint.size_bytes != size_bytes:
                return None
            return Small(key, move_id, bytes(buffer[:size_bytes]), reader.fingerprint, reader.metadata)

    def unchanged(self, versions: Sequence[tuple[str, Fingerprint]]) -> list[bool]:
        """Tell which objects are still the version that was read."""
        return self._each(versions, lambda one: self._driver.unchanged(*one), otherwise=False)

    # -- as a target ----------------------------------------------------------------------------------------------
    def put(self, copies: Sequence[Small]) -> list[bool]:
        """Copy objects aside; they are synced together later, and read back after that."""
        return self._each(copies, self._put, otherwise=False)

    def _put(self, copy: Small) -> bool:
        try:
            writer = self._driver.stage(copy.move_id)
            try:
                writer.write(memoryview(copy.data))
                writer.finish(copy.metadata)
            except BaseException:
                writer.close()
                raise
        except RebalanceError:
            self._driver.discard(copy.move_id)
            raise
        return True

    def read_back(self, move_id: MoveId) -> None:
        """Nothing: what was read before the sync proves nothing of what is on the disk."""

    def publish(self, copies: Sequence[tuple[str, MoveId, Fingerprint]]) -> list[bool]:
        """Give staged copies their keys, where that leaves them the version that they have; see `Many.publish`."""
        with suppress(RebalanceError):
            if getattr(self._driver, "keeps_versions", True):
                return self._each(copies, self._publish, otherwise=False)
        return [False] * len(copies)

    def _publish(self, one: tuple[str, MoveId, Fingerprint]) -> bool:
        key, move_id, expected = one
        return self._driver.publish(move_id, key, expected=expected) == expected
