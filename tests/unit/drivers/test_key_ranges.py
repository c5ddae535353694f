"""Ranges of keys: where a server lists in order they hold every object once, and where it does not that is found out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore
from xxhash import xxh3_64_intdigest

from rebalance_tasks.drivers.gcs_azure.bucket import ObstoreBucket
from rebalance_tasks.drivers.key_ranges import KeyRange, OutOfOrder, _Scale, cut_points, pages_in, probed, proven
from rebalance_tasks.drivers.object_stores.bucket import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rebalance_tasks.drivers.key_ranges import Ranged
    from rebalance_tasks.drivers.object_stores.bucket import Bucket


def by_bytes(name: str) -> Any:
    return name.encode()


def by_folders(name: str) -> Any:
    """As a server on a tree of files lists: a folder where its name belongs, whatever a slash is among bytes."""
    return [part.encode() for part in name.split("/")]


def backwards(name: str) -> Any:
    return [-ord(char) for char in name], -len(name)


def shuffled(name: str) -> Any:
    return xxh3_64_intdigest(name.encode())


class Listed:
    """A bucket that lists, and nothing else."""

    url = "s3://listed"

    def __init__(
        self, names: set[str], *, page: int = 3, order: Callable[[str], Any] = by_bytes, deaf: bool = False
    ) -> None:
        self.names = sorted(names, key=order)
        self.page, self.order, self.deaf = page, order, deaf
        self.looks = 0

    def pages(self, prefix: str, *, after: str = "") -> Iterator[Sequence[Stored]]:
        begin = self.order(after) if after and not self.deaf else None
        left = [n for n in self.names if n.startswith(prefix) and (begin is None or self.order(n) > begin)]
        for first in range(0, max(1, len(left)), self.page):
            self.looks += 1
            yield [Stored(name, 1, "e", 0) for name in left[first : first + self.page]]


def bucket(names: set[str], **more: Any) -> Bucket:
    return cast("Bucket", Listed({f"root/{name}" for name in names}, **more))


def test_the_object_of_the_root_itself_is_in_the_first_range() -> None:
    """S3's console leaves such a thing for a folder."""
    place = bucket({"", "a", "b"})
    assert found(place, KeyRange("", "a")) == ["", "a"]


def ranges(cuts: list[str]) -> list[KeyRange]:
    return [KeyRange(after, upto) for after, upto in zip(["", *cuts], [*cuts, None], strict=True)]


def found(place: Bucket, keys: KeyRange) -> list[str]:
    return [one.name.removeprefix("root/") for page in pages_in(place, "root/", keys) for one in page]


NAMES = st.sets(st.text("ab/-.é~", min_size=1, max_size=6), max_size=40)


@settings(max_examples=100, deadline=None)
@given(names=NAMES, cuts=st.sets(st.text("ab/-.é~", min_size=1, max_size=4), max_size=4), page=st.integers(1, 5))
def test_ranges_hold_every_object_once_in_order(names: set[str], cuts: set[str], page: int) -> None:
    place = bucket(names, page=page)
    assert [key for keys in ranges(sorted(cuts)) for key in found(place, keys)] == sorted(names)


@settings(max_examples=150, deadline=None)
@given(names=NAMES, count=st.integers(2, 8), page=st.integers(2, 5))
def test_a_bucket_that_is_looked_through_is_cut_where_it_has_keys(names: set[str], count: int, page: int) -> None:
    place = bucket(names, page=page)
    cuts = probed(place, "root/", count)
    assert cuts == sorted(set(cuts) & names)
    assert len(cuts) < count
    assert [key for keys in ranges(cuts) for key in found(place, keys)] == sorted(names)


@settings(max_examples=150, deadline=None)
@given(
    names=NAMES,
    cuts=st.sets(st.text("ab/-.é~", min_size=1, max_size=4), max_size=4),
    page=st.integers(1, 5),
    order=st.sampled_from([by_folders, backwards, shuffled]),
    deaf=st.booleans(),
)
def test_a_server_that_lists_otherwise_is_found_out_or_lists_every_object_once(
    names: set[str], cuts: set[str], page: int, order: Callable[[str], Any], deaf: bool
) -> None:
    place = bucket(names, page=page, order=order, deaf=deaf)
    try:
        listed = [key for keys in ranges(sorted(cuts)) for key in found(place, keys)]
    except OutOfOrder:
        return
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize(
    "patterns",
    [
        ["{:012d}.bin"],
        ["2026-11-{:06d}"],
        ["logs/production/server/{:08x}"],
        ["{:03o}"],
        ["a-{:06d}", "z/last"],
        ["{:06d}", "x{:03d}", "xyz/{:09d}"],
    ],
)
def test_a_bucket_that_nobody_knows_is_cut_evenly(patterns: list[str]) -> None:
    names = {pattern.format(number) for pattern in patterns for number in range(0, 50_000, 17)}
    place = bucket(names, page=100)
    cuts = probed(place, "root/", 16)
    assert cast("Listed", place).looks < 450, "the ranges are hundreds of thousands of requests where this is needed"
    sizes = [len(found(place, keys)) for keys in ranges(cuts)]
    assert len(sizes) == 16
    assert max(sizes) < 3 * len(names) / 16


# -- through obstore --------------------------------------------------------------------------------------------------
#: What may be in a name, and what may not.
ODD = st.text('ab//-..é~%#"[| \x01\x7f', min_size=1, max_size=6)


def may_be(name: str) -> bool:
    return name.replace(" ", "_").isprintable() and not {"", ".", ".."} & set(name.split("/"))


def in_memory(names: set[str], store: Any = None) -> ObstoreBucket:
    place = ObstoreBucket(store or MemoryStore(), url="memory://listed", name="listed")
    for name in names:
        place.put(f"root/{name}", b"", {}, new=True)
    return place


@settings(max_examples=100, deadline=None)
@given(
    names=st.sets(ODD.filter(may_be), max_size=20),
    after=ODD,
    most=st.none() | st.integers(1, 3),
)
def test_a_listing_through_obstore_begins_after_any_name(names: set[str], after: str, most: int | None) -> None:
    pages = in_memory(names).pages("root/", after=f"root/{after}", most=most)
    assert [one.name.removeprefix("root/") for page in pages for one in page] == sorted(
        name for name in names if name > after
    )


@pytest.mark.parametrize("deaf", [False, True])
def test_a_flat_container_is_cut_unless_its_server_begins_from_the_beginning_each_time(
    deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server does not know the parameter: each range would read everything, though it would leave the same out."""
    names = {f"{number:03}" for number in range(30)}
    place = in_memory(names)
    if deaf:
        listing = obstore.list
        monkeypatch.setattr(obstore, "list", lambda *args, **more: listing(*args, **{**more, "offset": None}))
    driver = cast("Ranged", SimpleNamespace(bucket=place, prefix="root/", node_id="n"))
    cuts = cut_points(driver, 4, ["010", "020"])
    assert cuts == ([] if deaf else ["010", "020"])
    assert [key for keys in ranges(cuts) for key in found(place, keys)] == sorted(names)


def test_a_server_that_begins_anywhere_is_not_cut() -> None:
    """It does not know start-after and lists from the beginning."""
    names = {f"{number:03}" for number in range(30)}
    assert probed(bucket(names, deaf=True), "root/", 4) == []
    assert proven(bucket(names, deaf=True), "root/", ["010"]) == []
    assert proven(bucket(names), "root/", ["010", "011x", "029"]) == ["010", "011x"], (
        "at the end there is nothing to cut"
    )


def test_what_would_fall_between_two_ranges_is_noticed() -> None:
    """A server on a tree of files lists what is in `b` before `b-`: the range up to `b.` ends there, and the one after it begins with `ba`."""
    place = bucket({"a", "b/", "b-", "b.", "ba", "~"}, page=2, order=by_folders)
    assert found(place, KeyRange("b.", None)) == ["ba", "~"]
    with pytest.raises(OutOfOrder, match="goes on differently"):
        found(place, KeyRange("", "b."))


def test_what_comes_and_goes_at_the_end_of_a_range_is_no_gap() -> None:
    place = cast("Any", bucket({"a", "b", "c", "d"}, page=1))
    pages, looks = place.pages, []

    def busy(prefix: str, *, after: str = "") -> Iterator[Sequence[Stored]]:
        looks.append(after)
        if len(looks) in {2, 3}:
            place.names = sorted({*place.names, "root/bb"} if len(looks) == 2 else {*place.names} - {"root/bb"})
        return cast("Iterator[Sequence[Stored]]", pages(prefix, after=after))

    place.pages = busy
    assert found(place, KeyRange("", "b")) == ["a", "b"]
    assert len(looks) > 3, "it looked once more"


@given(keys=st.lists(st.text("ab/-.é~019f", max_size=8), min_size=2, max_size=30, unique=True))
def test_numbers_of_keys_rise_with_them(keys: list[str]) -> None:
    """Also of those of which characters were not seen before."""
    keys.sort()
    scale = _Scale(keys[0], keys[-1], keys[::3])
    numbers = [scale.number(key) for key in keys]
    assert numbers == sorted(numbers)
    assert scale.number(scale.key(numbers[0])) == numbers[0]
