"""A hold keeps folders open between calls: nothing else changes, and what a rename under our hands misled is taken back."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.errors import SourceVanished, TargetExists
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import FreeOutcome
from tests.unit.drivers.conformance import expected_at, read_all, stage
from tests.unit.drivers.local_harness import CALLS, LocalHarness

if TYPE_CHECKING:
    from collections.abc import Iterator

MOVES = [MoveId(f"j.{number}") for number in range(5)]
KEYS = [f"a/b/k{number}" for number in range(5)]


@pytest.fixture(params=sorted(CALLS))
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalHarness]:
    made = LocalHarness(tmp_path / "root", CALLS[request.param])
    yield made
    made.close()


def trash(harness: LocalHarness) -> list[str]:
    return sorted(path.name for path in (harness.root / ".rebalance/trash").iterdir())


def rename_folder(harness: LocalHarness) -> None:
    """A stranger renames the folder and makes a new one of its name."""
    (harness.root / "a/b").rename(harness.root / "a/elsewhere")
    (harness.root / "a/b").mkdir()


def test_within_a_hold_every_call_does_what_it_does_without(harness: LocalHarness) -> None:
    driver = harness.driver
    for move_id in MOVES:
        stage(driver, move_id, move_id.encode())
    with driver.hold() as hold:
        published = [driver.publish(move_id, key) for move_id, key in zip(MOVES, KEYS, strict=True)]
        assert [driver.stat(key) for key in KEYS] == published
        assert [read_all(driver, key) for key in KEYS] == [move_id.encode() for move_id in MOVES]
        stage(driver, MOVES[0], b"again")
        with pytest.raises(TargetExists):
            driver.publish(MOVES[0], KEYS[0])
    assert hold.strays == set()
    with driver.hold(set(MOVES)) as hold:
        for move_id, key, version in zip(MOVES, KEYS, published, strict=True):
            assert driver.free(key, move_id, version) is FreeOutcome.FREED
            assert driver.free(key, move_id, version) is FreeOutcome.FREED
            assert driver.stat(key) is None
            with pytest.raises(SourceVanished):
                driver.open_source(key)
        assert driver.restore(MOVES[1], KEYS[1])
    assert hold.strays == set()
    assert harness.get(KEYS[1]) == MOVES[1].encode()
    assert trash(harness) == sorted(set(MOVES) - {MOVES[1]})


def test_a_folder_that_was_removed_and_made_again_within_a_hold_is_found_again(harness: LocalHarness) -> None:
    driver = harness.driver
    for key in KEYS[:3]:
        harness.put(key, b"old")
    with driver.hold():
        versions = [expected_at(driver, key) for key in KEYS[:3]]
        for key in KEYS[:3]:
            harness.remove(key)
        (harness.root / "a/b").rmdir()
        harness.put(KEYS[0], b"new")
        assert read_all(driver, KEYS[0]) == b"new"
        assert driver.free(KEYS[0], MOVES[0], versions[0]) is FreeOutcome.CHANGED
        assert driver.free(KEYS[1], MOVES[1], versions[1]) is FreeOutcome.GONE
        stage(driver, MOVES[2], b"published")
        driver.publish(MOVES[2], KEYS[2])
    assert harness.get(KEYS[0]) == b"new"
    assert harness.get(KEYS[2]) == b"published"


def test_what_was_published_into_a_folder_renamed_meanwhile_is_taken_back(harness: LocalHarness) -> None:
    driver = harness.driver
    harness.put("c/d/other", b"x")
    for move_id in MOVES:
        stage(driver, move_id, move_id.encode())
    with driver.hold() as hold:
        for number, (move_id, key) in enumerate(zip(MOVES, KEYS, strict=True)):
            if number == 3:
                rename_folder(harness)
            driver.publish(move_id, key)
    # The first was published before anything was held, and the stranger took it along.
    assert hold.strays == set(MOVES[1:])
    assert sorted(driver.list_objects().keys) == ["a/elsewhere/k0", "c/d/other"]
    for move_id, key in zip(MOVES[1:], KEYS[1:], strict=True):
        driver.publish(move_id, key)
        assert harness.get(key) == move_id.encode()


def test_a_strangers_file_in_the_place_of_a_misled_copy_is_left_to_them(harness: LocalHarness) -> None:
    driver = harness.driver
    for move_id in MOVES[:3]:
        stage(driver, move_id, b"ours")
    with driver.hold() as hold:
        for move_id, key in zip(MOVES[:3], KEYS[:3], strict=True):
            driver.publish(move_id, key)
        rename_folder(harness)
        harness.put("a/elsewhere/k1", b"theirs")
    assert harness.get("a/elsewhere/k1") == b"theirs"
    assert MOVES[2] in hold.strays


def test_what_was_freed_out_of_a_folder_renamed_meanwhile_is_put_back_there(harness: LocalHarness) -> None:
    driver = harness.driver
    for key in KEYS:
        harness.put(key, key.encode())
    versions = [expected_at(driver, key) for key in KEYS]
    with driver.hold(set(MOVES)) as hold:
        for number, (move_id, key, version) in enumerate(zip(MOVES, KEYS, versions, strict=True)):
            if number == 3:
                rename_folder(harness)
            driver.free(key, move_id, version)
    assert hold.strays == set(MOVES[1:])
    assert trash(harness) == [MOVES[0]]
    for key in KEYS[1:]:
        assert harness.get(key.replace("a/b", "a/elsewhere")) == key.encode()


def test_what_cannot_be_put_back_stays_in_the_trash(harness: LocalHarness) -> None:
    driver = harness.driver
    for key in KEYS[:3]:
        harness.put(key, b"old")
    versions = [expected_at(driver, key) for key in KEYS[:3]]
    with driver.hold(set(MOVES)) as hold:
        for move_id, key, version in zip(MOVES, KEYS, versions, strict=False):
            driver.free(key, move_id, version)
        rename_folder(harness)
        harness.put("a/elsewhere/k1", b"new")
    assert hold.strays == {MOVES[2]}
    assert trash(harness) == MOVES[:2]
    assert harness.get("a/elsewhere/k1") == b"new"


def test_a_fresh_move_whose_object_is_in_the_trash_all_the_same_is_freed(harness: LocalHarness) -> None:
    """Redis may forget its last second, and so that this move was attempted."""
    driver = harness.driver
    harness.put("k", b"x")
    version = expected_at(driver, "k")
    driver.free("k", MOVES[0], version)
    with driver.hold({MOVES[0]}):
        assert driver.free("k", MOVES[0], version) is FreeOutcome.FREED


def test_a_hold_lets_go_of_every_descriptor_and_belongs_to_one_thread(harness: LocalHarness) -> None:
    def count() -> int:
        gc.collect()  # what other tests left open must not close while we count
        return len(list(Path("/dev/fd").iterdir()))

    driver = harness.driver
    for number in range(200):
        harness.put(f"d{number % 100}/k{number}", b"x")
    driver.stat("d0/k0")
    before = count()
    for _ in range(2):
        with driver.hold():
            for number in range(200):
                driver.stat(f"d{number % 100}/k{number}")
            assert 0 < count() - before <= 64
        assert count() <= before
    with pytest.raises(ZeroDivisionError), driver.hold():
        driver.stat("d1/k1"), driver.stat("d1/k101"), 1 / 0
    assert count() <= before


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_folders_are_renamed_during_a_hold_no_object_is_lost(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / os.urandom(4).hex()
    harness = LocalHarness(root, CALLS["native"])
    keys = [f"{folder}/{number}" for number in range(4) for folder in ("x", "y")]
    for key in keys:
        harness.put(key, key.encode())
    versions = {key: expected_at(harness.driver, key) for key in keys}
    with harness.driver.hold({MoveId(f"f.{number}") for number in range(len(keys))}) as hold:
        for number, key in enumerate(keys):
            if data.draw(st.booleans()):
                folder = data.draw(st.sampled_from([path.name for path in root.iterdir() if path.name != ".rebalance"]))
                (root / folder).rename(root / f"{folder}{number}")
            harness.driver.free(key, MoveId(f"f.{number}"), versions[key])
    visible = {harness.get(key) for key in harness.driver.list_objects().keys}
    held = {path.read_bytes() for path in (root / ".rebalance/trash").iterdir()}
    assert visible | held == {key.encode() for key in keys}
    assert not visible & held
    assert all(move_id not in trash(harness) for move_id in hold.strays)
    harness.close()
