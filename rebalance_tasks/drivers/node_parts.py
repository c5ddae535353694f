"""Parts of a node that is too large to be listed in one go: which part an object belongs to follows from its key alone.

Nothing has to be agreed upon, so tasks that know how many parts there are list disjoint parts which make up the whole, also of a tree
that changes meanwhile. A bucket is such a tree as well: its folders are prefixes, which every server lists exactly, in whatever order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import xxhash

if TYPE_CHECKING:
    from rebalance_tasks.drivers.base import Listing
    from rebalance_tasks.drivers.key_ranges import KeyRange

#: Names of a folder's path by which it belongs to a part: two, since many trees have but one folder in their root.
PART_DEPTH: Final = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One of the parts that a node is listed in.

    What lies below a folder's first two names is in one part. Every part reads the folders above for the folders in them; the objects there
    are parted by their names, so that a flat folder of very many is shared.

    Attributes:
        number: from 0.
        count: of all parts.
        by_name: False parts the objects of an upper folder by the folder, as releases before this one do.
    """

    number: int
    count: int
    by_name: bool = True

    def owns(self, path: str) -> bool:
        """Whether a path belongs to this part (``.`` for the root)."""
        return xxhash.xxh3_64_intdigest(path.encode("utf-8", "surrogatepass")) % self.count == self.number

    def enters(self, path: str) -> bool:
        """Whether something in this part may lie below a folder."""
        return path.count("/") != PART_DEPTH - 1 or self.owns(path)

    def holds(self, prefix: str) -> bool:
        """Whether objects directly in a folder that is entered may be in this part; ``prefix`` ends at a slash, or is empty for the root."""
        return self.by_name or _is_low(prefix) or self.owns(prefix.rstrip("/") or ".")

    def covers(self, prefix: str, key: str) -> bool:
        """Whether an object directly in a folder that it holds is in this part."""
        return self.covers_all(prefix) or self.owns(key)

    def covers_all(self, prefix: str) -> bool:
        """Whether every object directly in a folder that it holds is in this part."""
        return not self.by_name or _is_low(prefix)


def _is_low(prefix: str) -> bool:
    return prefix.count("/") >= PART_DEPTH


class TooManyObjects(Exception):
    """A listing was broken off, since there are more objects than it was to read.

    Attributes:
        flat: most of them lie so high that parts by folders would each read them; ranges of keys may help.
    """

    def __init__(self, *, flat: bool = False) -> None:
        """Say how they lie."""
        super().__init__("more objects than were to be read")
        self.flat = flat


class Parted(Protocol):
    """A driver that can list a part of its node; asked for by name, others list everything."""

    def list_part(
        self, part: Part | KeyRange | None, *, require_identity: bool = True, most: int | None = None
    ) -> Listing:
        """List as `Driver.list_objects` does, a part or everything.

        Args:
            part: None: everything; a range of keys where `key_ranges.ranged` says so.
            require_identity: as `Driver.list_objects`.
            most: objects to read, about, of a node that parts would make shorter; None: all.

        Raises:
            TooManyObjects: there are more.
            NodeMissing: as `Driver.list_objects`.
        """
        ...


class Limit:
    """Breaks a listing off that finds too much, if most of it lies where parts need not read what is another's."""

    def __init__(self, most: int | None, *, flat: bool = False) -> None:
        """Let so many objects pass, None: all; ``flat``: break off wherever they lie."""
        self._most, self._flat = most, flat
        self._found: Counter[bool] = Counter()

    def count(self, key: str) -> None:
        """Count an object. Raises: TooManyObjects."""
        if self._most is None:
            return
        self._found[_is_low(key)] += 1
        if self._found.total() > self._most:
            low = self._found[True] > self._found[False]
            if low or self._flat:
                raise TooManyObjects(flat=not low)
