"""Who goes straight to its key: what the source shows as one version of the planned size, and what has not failed so before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import MoveState
from rebalance_tasks.migration.direct import mark_direct
from rebalance_tasks.migration.item import NEVER, Item
from rebalance_tasks.store.records import JournalEntry, MoveRecord

MOST = 100


def item(key: str, size: int, entry: JournalEntry = NEVER) -> Item:
    move = MoveRecord(index=0, move_id=MoveId(f"j1.{key}"), key=key, size_bytes=size)
    return Item(move, MoveState.PENDING, entry)


def context(
    versions: dict[str, Fingerprint], most: int = MOST, slice_bytes: int | None = None, most_in_parts: int | None = None
) -> Any:
    def direct_bytes(_: Any, *, in_parts: bool = False) -> int:
        assert not in_parts or most_in_parts is not None, "nothing is there that was uploaded in parts"
        return most_in_parts or 0 if in_parts else most

    source = SimpleNamespace(versions=lambda keys: {key: versions[key] for key in keys if key in versions})
    control = SimpleNamespace(slice_bytes=slice_bytes)
    return SimpleNamespace(source=source, target=SimpleNamespace(direct_bytes=direct_bytes), control=control)


def version(size: int) -> Fingerprint:
    return Fingerprint(size, etag="0" * 32)


def marked(world: Any, *items: Item) -> list[bool]:
    mark_direct(world, items)
    return [one.direct for one in items]


def test_only_a_version_of_the_planned_size_and_small_enough_goes_straight() -> None:
    versions = {"fits": version(MOST), "large": version(MOST + 1), "grown": version(11)}
    items = [item("fits", MOST), item("large", MOST + 1), item("grown", 10), item("unseen", 5)]
    assert marked(context(versions), *items) == [True, False, False, False]
    assert [one.copy is not None for one in items] == [True, False, False, False]


def test_what_was_uploaded_in_parts_has_a_limit_of_its_own() -> None:
    versions = {
        "put": version(MOST),
        "fits": Fingerprint(50, etag=f"{'0' * 32}-2"),
        "large": Fingerprint(51, etag="a-2"),
    }
    items = [item(key, one.size_bytes) for key, one in versions.items()]
    assert marked(context(versions, most_in_parts=50), *items) == [True, True, False]
    assert marked(context(versions, most_in_parts=0), *items) == [True, False, False]


def test_a_target_that_takes_nothing_so_is_asked_for_no_versions() -> None:
    assert marked(context({}, most=0), item("k", 5)) == [False]
    plain: Any = SimpleNamespace(source=object(), target=object())
    assert marked(plain, item("k", 5)) == [False]


def test_what_failed_on_the_straight_way_takes_the_long_one_when_it_is_tried_again() -> None:
    again = item("k", 5, JournalEntry(tries=1))
    again.direct = True
    assert marked(context({"k": version(5)}), again) == [False]
    assert again.copy is None


def test_what_the_throttle_does_not_let_through_in_a_slice_goes_in_parts_that_can_be_taken_up() -> None:
    """It would be asked for from the start in each slice, and never go."""
    versions = {"small": version(10), "large": version(11)}
    assert marked(context(versions, slice_bytes=10), item("small", 10), item("large", 11)) == [True, False]
