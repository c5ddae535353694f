"""Ranges of keys: parts of a flat bucket, where its server lists in order of keys and begins where it is told to.

S3, GCS, Azure and what follows them closely do; SeaweedFS lists ``a/x`` before ``a-x``, so nothing is assumed (ADR 36). Who lists a range looks whether each name comes after
the one before, and, at its end, whether the next range begins with what comes after this one. So ranges join without a gap, whatever else the server does. All of it only reads.
"""

from __future__ import annotations

import string
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

from rebalance_tasks.core.keys import is_reserved
from rebalance_tasks.drivers.object_stores.bucket import BucketError
from rebalance_tasks.drivers.object_stores.errors import node_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.core.ids import NodeId
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.drivers.object_stores.bucket import Bucket, Stored

#: Characters of the last key that are looked for, with up to nine looks each; where that does not find it, the last range is larger than the others.
_LOOKS: Final = 48
#: Looks for each range while an unknown bucket is cut.
_LOOKS_EACH: Final = 6
#: Looks at the end of a range, while objects may come and go there.
_TRIES: Final = 3
#: The largest character that it may be looked for by.
_LAST: Final = 0x7E
#: Characters of a key that count for how far it lies between the first and the last, behind those that both begin with.
_LENGTH: Final = 12


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys after one and up to another, in the order of their UTF-8 bytes, which is that of Python's strings.

    Attributes:
        after: not in the range; empty: it begins with the first key.
        upto: in the range; None: it ends with the last key.
    """

    after: str
    upto: str | None


class Ranged(Protocol):
    """A driver whose node may be listed in ranges (`drivers.object_stores.driver`)."""

    node_id: NodeId
    bucket: Bucket

    @property
    def prefix(self) -> str:
        """What the names of its objects begin with: empty, or ending in a slash."""
        ...


class OutOfOrder(BucketError):
    """The server does not list in the order of keys, so ranges might leave objects out."""


def ranged(driver: Driver) -> Ranged | None:
    """Return the driver as one whose node's server begins a listing where it is told to, if it is one."""
    bucket = getattr(driver, "bucket", None)
    return cast("Ranged", driver) if bucket is not None and bucket.starts_anywhere else None


def cut_points(driver: Ranged, count: int, known: Sequence[str] = ()) -> list[str]:
    """Return keys, rising, at which a node may be cut into ``count`` ranges or fewer; empty where it may not.

    Args:
        driver: of the node.
        count: of ranges, ≥ 2.
        known: keys of an earlier listing, rising, at which it would be cut well; without any the bucket is looked through.

    Raises:
        NodeMissing: the store cannot be asked.
    """
    bucket, root = driver.bucket, driver.prefix
    try:
        cuts = proven(bucket, root, known) if known else probed(bucket, root, count)
    except BucketError as exc:
        raise node_error(driver.node_id, exc, "look for keys at which to cut it") from exc
    # What the looks have found out: where a server reads everything each time, ranges would spare nothing.
    return cuts if bucket.starts_anywhere else []


def pages_in(bucket: Bucket, root: str, keys: KeyRange) -> Iterator[Sequence[Stored]]:
    """Yield the objects of a range, some at a time.

    Args:
        bucket: which begins where it is told to.
        root: the node's own prefix, ending at a slash, or empty.
        keys: below the root.

    Raises:
        OutOfOrder: a name came before one that it belongs after.
        BucketError: as `Bucket.pages`.
    """
    last, end = root + keys.after if keys.after else "", None if keys.upto is None else root + keys.upto
    for page in bucket.pages(root, after=last):
        inside: list[Stored] = []
        for found in page:
            if found.name <= last:
                msg = f"{bucket.url} lists {found.name!r} after {last!r}: not in order of keys, so it cannot be listed in ranges"
                raise OutOfOrder(msg)
            if end is not None and found.name > end:
                yield inside
                _require_joined(bucket, root, last, end)
                return
            inside.append(found)
            last = found.name
        yield inside


def _require_joined(bucket: Bucket, root: str, last: str, end: str) -> None:
    """Look whether the next range begins with what comes after this one: then nothing lies between them, whatever the server's order.

    Objects come and go meanwhile, so it is looked a few times. Raises: OutOfOrder.
    """
    for _ in range(_TRIES):
        beyond, next_one = (_page(bucket, root, name)[:1] for name in (last, end))
        if [found.name for found in beyond] == [found.name for found in next_one]:
            return
        last = max([last, *(found.name for found in beyond if found.name <= end)])
    msg = f"{bucket.url} goes on differently after {last!r} and after {end!r}: it cannot be listed in ranges of keys"
    raise OutOfOrder(msg)


def proven(bucket: Bucket, root: str, keys: Sequence[str]) -> list[str]:
    """Return those of some keys, rising, at which the bucket may be cut: a listing from there on begins with what comes next.

    A key that is gone proves as much. Raises: BucketError.
    """
    return [key for key in keys if _continues(bucket, root, root + key)]


def _continues(bucket: Bucket, root: str, name: str) -> bool:
    """Whether a listing after a name goes on in order, and one after the name that it begins with goes on as the first did."""
    page = _page(bucket, root, name)
    names = [found.name for found in page]
    if not all(before < after for before, after in pairwise([name, *names])):
        return False
    if len(names) < 2:  # noqa: PLR2004  at the very end there is nothing to cut
        return False
    again = _page(bucket, root, names[0])
    return [found.name for found in again][: len(names) - 1] == names[1:]


def probed(bucket: Bucket, root: str, count: int) -> list[str]:
    """Look a bucket through for keys that cut it into ranges of about as many objects; rising, fewer than ``count``.

    Between the first and the last key it looks into the middle of whatever seems to hold most, judged by how close the keys lie that it sees there. The listing
    of the ranges then tells how to cut better next time.

    Raises:
        BucketError.
    """
    looks = _Looks(bucket, root)
    first = [key for key in looks.after("") if not is_reserved(key.partition("/")[0])]
    if not first:
        return []
    scale = _Scale(first[0], _last(looks, first[0]), looks.seen)
    stretches = [_Stretch.seen(first, scale, scale.end, page=looks.page)]
    for _ in range(_LOOKS_EACH * count):
        largest = max(stretches, key=lambda stretch: stretch.objects)
        middle = (largest.begin + largest.end) // 2
        found = looks.after(scale.key(middle))
        if found and found[0] > largest.key and middle <= scale.number(found[0]) < largest.end:
            stretches.append(_Stretch.seen(found, scale, largest.end, page=looks.page))
        largest.end = middle
    return proven(bucket, root, _cuts_of(sorted(stretches, key=lambda stretch: stretch.begin), count))


@dataclass(slots=True)
class _Stretch:
    """Keys from one on, as far as is known, in places on a scale."""

    key: str
    begin: int
    end: int
    #: objects to each place on the scale, where it begins
    density: float

    @classmethod
    def seen(cls, keys: Sequence[str], scale: _Scale, end: int, *, page: int) -> Self:
        """A stretch that begins with some keys, and ends with them where they are fewer than a ``page`` or reach its end."""
        inside = [place for place in map(scale.number, keys) if place < end] or [scale.number(keys[0])]
        span = inside[-1] - inside[0] + 1
        return cls(keys[0], inside[0], inside[0] + span if len(inside) < page else end, len(inside) / span)

    @property
    def objects(self) -> float:
        """About how many there are."""
        return (self.end - self.begin) * self.density


def _cuts_of(stretches: Sequence[_Stretch], count: int) -> list[str]:
    """Keys at which stretches begin that are nearest to what would be even."""
    before = [0.0, *accumulate(stretch.objects for stretch in stretches)]
    nearest = {
        min(range(1, len(stretches)), key=lambda at: abs(before[at] - before[-1] * number / count), default=0)
        for number in range(1, count)
    }
    return [stretches[at].key for at in sorted(nearest - {0})]


class _Looks:
    """Looks into a bucket, a page each; remembers the keys that it saw."""

    def __init__(self, bucket: Bucket, root: str) -> None:
        self._bucket, self._root = bucket, root
        self.seen: list[str] = []
        #: keys of the longest one
        self.page = 0

    def after(self, key: str) -> list[str]:
        """The first keys after one, or of all."""
        page = _page(self._bucket, self._root, self._root + key if key else "")
        found = [stored.name[len(self._root) :] for stored in page]
        self.seen += found
        self.page = max(self.page, len(found))
        return found


def _last(looks: _Looks, low: str) -> str:
    """Return the last key, or one that is near it: character by character, the largest after which something comes."""
    bottom, begun = low, ""

    def something_after(text: str) -> bool:
        nonlocal bottom
        found = looks.after(text)
        bottom = max(bottom, found[-1]) if found else bottom
        return bool(found)

    for _ in range(_LOOKS):
        if not something_after(bottom) or not bottom.startswith(begun) or len(bottom) == len(begun):
            break
        known, top = ord(bottom[len(begun)]), _LAST
        # Most often it goes on as it is.
        if known < top and something_after(begun + chr(known + 1)):
            known += 1
            while known < top:
                middle = (known + top + 1) // 2
                known, top = (middle, top) if something_after(begun + chr(middle)) else (known, middle - 1)
        begun += chr(known)
    return bottom


def _filled(chars: set[str]) -> list[str]:
    """Characters in order, with all others of their kind: more than were seen come later."""
    kinds = [string.digits, string.ascii_uppercase, string.ascii_lowercase]
    if chars & set(string.digits) and not chars & set(string.ascii_lowercase[6:]):
        kinds[2] = string.hexdigits[10:16]
    return sorted(chars.union(*(kind for kind in kinds if chars & set(kind))))


class _Scale:
    """Keys between two as numbers that rise with them, in digits that are the characters seen at each place."""

    def __init__(self, low: str, high: str, seen: Sequence[str]) -> None:
        shared = next(
            (at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
        )
        self._begin = low[:shared]
        alike = [key[shared : shared + _LENGTH] for key in seen if key.startswith(self._begin)]
        places = (_filled({key[at] for key in alike if len(key) > at}) for at in range(_LENGTH))
        self._digits = [place for place in places if place]
        #: behind the last key
        self.end = self.number(high) + 1

    def number(self, key: str) -> int:
        """Return the number of a key; of one with characters that were not seen, that of the next key without."""
        number, rest, below, above = 0, key[len(self._begin) :], False, False
        for at, digits in enumerate(self._digits):
            char = rest[at] if at < len(rest) else ""
            digit = bisect_left(digits, char)
            if below or above:
                digit = len(digits) - 1 if above else 0
            elif digit == len(digits):
                digit, above = digit - 1, True
            else:
                below = digits[digit] != char
            number = number * len(digits) + digit
        return number

    def key(self, number: int) -> str:
        """Return the key that has a number."""
        chars: list[str] = []
        for digits in reversed(self._digits):
            number, digit = divmod(number, len(digits))
            chars.append(digits[digit])
        return self._begin + "".join(reversed(chars))


def _page(bucket: Bucket, root: str, after: str) -> Sequence[Stored]:
    return next((page for page in bucket.pages(root, after=after) if page), ())
