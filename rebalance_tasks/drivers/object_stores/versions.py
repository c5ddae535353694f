"""Versions of many objects for few requests: what lies close together is read off a listing, the rest is asked for singly.

A page of a listing shows a hundred objects at the price of ten looks at a single one, theirs and ours together; the objects of a
batch are mostly neighbours. A page is as long as what is asked for: an entry that nobody wants costs as much as one that is. Only
versions whose ETag is the MD5 of their bytes, or the MD5 of their parts' with the number of parts after a dash, are returned: a copy with
the same ETag proves itself, and which of the two a store's copies keep is for `object_stores.direct`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rebalance_tasks.drivers.base import Fingerprint
from rebalance_tasks.drivers.lanes import MOST_AT_ONCE, each

if TYPE_CHECKING:
    from collections.abc import Collection

    from rebalance_tasks.drivers.object_stores.bucket import Bucket, Stored

#: Fewer are asked for singly.
_LEAST: Final = 4
#: A page that shows fewer of the wanted objects than one in so many is not worth its price.
_SPARSE: Final = 8
#: A page has no fewer entries than this, since it costs a request, and no more than S3 gives.
_PAGE: Final = (32, 1000)
#: Entries that come before the first object that is wanted: those that differ from it in their last letter only.
_AHEAD: Final = 16
_MD5: Final = re.compile(r"[0-9a-f]{32}(?:-[0-9]+)?")


def versions_of(bucket: Bucket, names: Collection[str]) -> dict[str, Fingerprint]:
    """Return name → version of the objects that are there and whose etag is the MD5 of their bytes, or of their parts. Raises: BucketError."""
    wanted = sorted(names)
    found: dict[str, Stored] = {}
    if len(wanted) >= _LEAST:
        _from_listing(bucket, wanted, found)

    def look(name: str) -> None:
        stored = bucket.head(name)
        if stored is not None:
            found[name] = stored

    # Also what a listing passed over: not every server lists in order of names.
    each([name for name in wanted if name not in found], look, at_once=MOST_AT_ONCE)
    return {name: _version(stored) for name, stored in found.items() if _tells(stored)}


def _from_listing(bucket: Bucket, wanted: list[str], found: dict[str, Stored]) -> None:
    """Note what a listing shows of the wanted objects, as long as it pays."""
    names, first, last = set(wanted), wanted[0], wanted[-1]
    prefix = _common(first, last)
    most = min(max(len(wanted) + _AHEAD, _PAGE[0]), _PAGE[1])
    # Right before the first: a name is what comes after all of its own beginnings.
    for page in bucket.pages(prefix, after=first[:-1] if len(first) - 1 > len(prefix) else "", most=most):
        hits = {stored.name: stored for stored in page if stored.name in names}
        found.update(hits)
        if not page or page[-1].name >= last or len(hits) * _SPARSE < len(page):
            break


def _common(first: str, last: str) -> str:
    """The longest beginning that both share."""
    length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return first if length is None else first[:length]


def _tells(stored: Stored) -> bool:
    return _MD5.fullmatch(stored.etag) is not None


def _version(stored: Stored) -> Fingerprint:
    # When it was written, not the time that travels with it: a listing shows no other.
    return Fingerprint(stored.size_bytes, mtime_ns=stored.modified_ns, etag=stored.etag)
