"""The burst of small objects between two kinds of nodes, put together from what each end does with many of them at once.

An end (`Many`) knows one node: it reads, looks at and frees many objects, or stages and publishes many copies. A burst decides nothing
(`drivers.burst`): what an end declines goes the drivers' own way, which also says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import xxhash

from rebalance_tasks.drivers.burst import NoBurst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import ObjectMetadata

T = TypeVar("T")
R = TypeVar("R")

#: Largest object that goes so: of what the engine hands over in one piece, all.
MOST_BYTES: Final = 1024 * 1024
#: Objects handed over together: flags are looked at before each of them is read, and those before it may be on their way …
AT_ONCE: Final = 64
#: … or so many bytes, whichever comes first.
LOT_BYTES: Final = 2 * 1024 * 1024


class Small(NamedTuple):
    """One small object, read.

    Attributes:
        key: of the object.
        move_id: of its move.
        data: all of its bytes.
        source: the version that was read.
        metadata: what travels with the bytes.
    """

    key: str
    move_id: MoveId
    data: bytes
    source: Fingerprint
    metadata: ObjectMetadata


class Many(Protocol):
    """One end of a burst. Each method answers for its objects in their order, and raises nothing that is wrong with one of them."""

    def read(self, objects: Sequence[tuple[str, MoveId, int]]) -> Sequence[Small | None]:
        """Read whole objects (key, move id, size in bytes); ``None`` where one is not what it was planned as."""
        ...

    def unchanged(self, versions: Sequence[tuple[str, Fingerprint]]) -> Sequence[bool]:
        """Tell which objects are still the version that was read."""
        ...

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """See `Burst.free`."""
        ...

    def put(self, copies: Sequence[Small]) -> Sequence[bool]:
        """Copy objects aside; nothing is left of one that is not there whole."""
        ...

    def read_back(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a copy that `put` has read back and found right; ``None``: it is yet to be read."""
        ...

    def publish(self, copies: Sequence[tuple[str, MoveId, Fingerprint]]) -> Sequence[bool]:
        """Give staged copies (key, move id, version of the copy) their keys, never overwriting."""
        ...


class SmallBurst(NoBurst):
    """`Burst` from one end to another."""

    def __init__(self, source: Many, target: Many, *, alone: bool) -> None:
        """Ask nothing yet; ``alone`` as in `Burst`."""
        self._source, self._target, self.alone = source, target, alone

    def stage(
        self, objects: Iterable[tuple[str, MoveId, int] | None], spend: Callable[[int], None]
    ) -> Iterator[tuple[Fingerprint, str] | None]:
        """Copy each object aside, metadata included; see `Burst.stage`."""
        small = (one if one is not None and 0 < one[2] <= MOST_BYTES else None for one in objects)
        for lot in lots(small, weigh=lambda one: 0 if one is None else one[2]):
            for one in lot:
                if one is not None:
                    spend(one[2])
            copies = spread(lot, self._source.read)
            for copy, is_there in zip(copies, spread(copies, self._target.put), strict=True):
                done = copy is not None and is_there
                yield (copy.source, xxhash.xxh3_128_hexdigest(copy.data)) if copy is not None and done else None

    def read_back(self, copies: Iterable[tuple[MoveId, int, str] | None]) -> Iterator[Fingerprint | None]:
        """Say what the target has read back."""
        for copy in copies:
            yield None if copy is None else self._target.read_back(copy[0])

    def publish(self, copies: Iterable[tuple[str, MoveId, Fingerprint, Fingerprint] | None]) -> Iterator[bool]:
        """Give the copies their keys, each if its source is still what was copied; see `Burst.publish`."""
        for lot in lots(copies):
            same = spread([None if one is None else (one[0], one[2]) for one in lot], self._source.unchanged)
            ready = [
                (one[0], one[1], one[3]) if one is not None and is_same else None
                for one, is_same in zip(lot, same, strict=True)
            ]
            for done in spread(ready, self._target.publish):
                yield bool(done)

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """Move sources into the trash; see `Burst.free`."""
        return self._source.free(objects)


def lots(things: Iterable[T], *, weigh: Callable[[T], int] = lambda _: 0) -> Iterator[list[T]]:
    """Cut into lists of at most `AT_ONCE` things and `LOT_BYTES`; ``weigh`` tells the bytes of one."""
    lot: list[T] = []
    weight = 0
    for one in things:
        if lot and (len(lot) == AT_ONCE or weight + weigh(one) > LOT_BYTES):
            yield lot
            lot, weight = [], 0
        lot.append(one)
        weight += weigh(one)
    if lot:
        yield lot


def spread(things: Sequence[T | None], act: Callable[[Sequence[T]], Sequence[R]]) -> list[R | None]:
    """Act on those that are there, all at once, and put each result in its place; ``None`` in the places of the others."""
    there = [one for one in things if one is not None]
    done = iter(act(there) if there else ())
    return [None if one is None else next(done) for one in things]
