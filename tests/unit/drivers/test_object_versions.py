"""Versions of a batch's objects: all of them, whatever else is in the bucket and in whichever order it is listed, for few entries and looks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.drivers.object_stores.bucket import Stored
from rebalance_tasks.drivers.object_stores.versions import versions_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.drivers.object_stores.bucket import Bucket

#: Few letters, so that names share beginnings; "-" sorts before "/".
NAMES = st.lists(st.text("ab-/", min_size=1, max_size=5), unique=True, max_size=60)


SOME = st.frozensets(st.text("ab", min_size=1, max_size=2))


@dataclass
class Listed:
    """A bucket that counts what it shows."""

    names: list[str]
    #: names of objects that were uploaded in parts
    in_parts: frozenset[str] = frozenset()
    #: … and of those whose ETag is no hash
    opaque: frozenset[str] = frozenset()
    #: lists a folder's objects before those beside it, as SeaweedFS does
    by_folder: bool = False
    shown: int = 0
    looks: list[str] = field(default_factory=list)

    def stored(self, name: str) -> Stored:
        etag = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        shown = "opaque" if name in self.opaque else f"{etag}-2" if name in self.in_parts else etag
        return Stored(name, len(name), shown, 7)

    def head(self, name: str) -> Stored | None:
        self.looks.append(name)
        return self.stored(name) if name in self.names else None

    def pages(self, prefix: str, *, after: str = "", most: int | None = None) -> Iterator[Sequence[Stored]]:
        order = sorted(self.names, key=(lambda name: name.split("/")) if self.by_folder else None)
        wanted = [name for name in order if name.startswith(prefix) and name > after]
        for start in range(0, len(wanted), most or 1000):
            page = [self.stored(name) for name in wanted[start : start + (most or 1000)]]
            self.shown += len(page)
            yield page


@given(there=NAMES, wanted=NAMES, in_parts=SOME, opaque=SOME, by_folder=st.booleans())
def test_what_is_there_and_proves_itself_is_returned_and_nothing_else(
    there: list[str], wanted: list[str], in_parts: frozenset[str], opaque: frozenset[str], by_folder: bool
) -> None:
    bucket = Listed(there, in_parts, opaque, by_folder)
    found = versions_of(cast("Bucket", bucket), wanted)
    assert found.keys() == (set(there) & set(wanted)) - opaque
    assert {name: version.etag for name, version in found.items()} == {name: bucket.stored(name).etag for name in found}


def test_neighbours_cost_as_many_entries_as_there_are_of_them() -> None:
    bucket = Listed([f"o/{number:05d}" for number in range(5000)])
    wanted = [f"o/{number:05d}" for number in range(1248, 1560)]
    assert len(versions_of(cast("Bucket", bucket), wanted)) == len(wanted)
    assert bucket.looks == []
    assert bucket.shown <= len(wanted) + 16


def test_objects_far_apart_are_looked_at_one_by_one_after_one_page() -> None:
    bucket = Listed([f"o/{number:05d}" for number in range(5000)])
    wanted = [f"o/{number:05d}" for number in range(0, 5000, 100)]
    assert len(versions_of(cast("Bucket", bucket), wanted)) == len(wanted)
    assert bucket.shown <= len(wanted) + 16
    assert len(bucket.looks) == len(wanted) - 1
