"""What every driver must do, whatever it stands on.

A driver joins by subclassing `DriverConformance` in a test module and giving it a ``harness`` fixture: a fresh, adopted node and
a back door to it (`Harness`), which plays the strangers that write to a node behind the driver's back.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebalance_tasks.core.errors import (
    InvalidArgument,
    InvalidKey,
    NodeMissing,
    RebalanceError,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, Listing, ObjectMetadata
from rebalance_tasks.drivers.looks import UNSEEN, look_at
from rebalance_tasks.drivers.node_parts import Part, TooManyObjects

if TYPE_CHECKING:
    from rebalance_tasks.drivers.base import Driver, SourceHandle
    from rebalance_tasks.drivers.node_parts import Parted
    from rebalance_tasks.drivers.remembered import Remembers

M1, M2 = MoveId("job-1:0"), MoveId("job-1:1")

#: Keys that are easy to get wrong; each must move right.
ODD_KEYS = [
    "a",
    "deep/er/and/deeper",
    "new\nline",
    "tab\tand space ",
    "trailing.dot.",
    "trailing.dot./below.",
    "..hidden",
    "...",
    ".rebalance2/x",
    "sub/.rebalance/x",
    "-rf",
    "one+one two%20three",
    "~",
    "*?[a]",
    "back\\slash",
    "quote'\"",
    "%2e%2e/x",
    "ünïcødé/日本語/🪨",
    "e\u0301",
    "rtl\u202e",
    "x" * 255,
    "/".join(["k" * 127] * 8),
]

#: Keys that no driver may ever act on.
REFUSED_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/..",
    "..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "nul\0",
    "lone\udcff",
    "k" * 1025,
    "é" * 513,
    ".rebalance",
    ".rebalance/node-id",
    ".rebalance/trash/x",
    ".ReBalance/tmp/x",
    ".reba\u200dlance/tmp/x",
]

#: Names a case- and form-sensitive store keeps; a component has at most 60 characters, 240 bytes.
components = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in {".", ".."})
unicode_keys = st.lists(components, min_size=1, max_size=4).map("/".join)


class Harness(Protocol):
    """A fresh, adopted node and the back door to it."""

    driver: Driver

    def put(self, key: str, data: bytes) -> None:
        """Write an object as a stranger would, replacing what is there by a new version."""

    def get(self, key: str) -> bytes | None:
        """Read an object as a reader would; None when there is none."""

    def remove(self, key: str) -> None:
        """Delete an object as a stranger would."""

    def clear(self) -> None:
        """Remove every object and every folder that held one."""

    def lose_identity(self) -> None:
        """Make the root look like an unmounted disk."""

    def another(self, node_id: str) -> Driver:
        """Return a driver for the same place under another (or the same) node id."""

    def holds(self, key: str) -> bool:
        """Tell whether the place can hold a valid key at all; one that cannot must refuse it."""


def read_all(driver: Driver, key: str, *, chunk: int = 1 << 16) -> bytes:
    with driver.open_source(key) as source:
        return _drain(source, chunk)


def _seen(driver: Driver, key: str) -> tuple[str, int, int]:
    """What a look at one object says: cause of an error, size, time of change."""
    try:
        found = driver.stat(key)
    except RebalanceError as exc:
        return exc.cause, UNSEEN, 0
    return ("", UNSEEN, 0) if found is None else ("", found.size_bytes, found.mtime_ns)


def listed_part(driver: Driver, part: Part | None, *, most: int | None = None) -> Listing:
    """List a part of a node as a survey does: a disk from what is remembered, any other node anew."""
    if not hasattr(driver, "list_changed"):
        return cast("Parted", driver).list_part(part, most=most)
    found = cast("Remembers", driver).list_changed(None, part=part, most=most)
    return Listing(found.keys.to_pylist(), found.size_bytes, found.mtime_ns, found.left_out)


def _drain(source: SourceHandle, chunk: int = 1 << 16) -> bytes:
    parts, buffer = [], memoryview(bytearray(chunk))
    while count := source.readinto(buffer):
        parts.append(bytes(buffer[:count]))
    return b"".join(parts)


def stage(driver: Driver, move_id: MoveId, data: bytes, metadata: ObjectMetadata | None = None) -> Fingerprint:
    writer = driver.stage(move_id)
    writer.write(memoryview(data))
    writer.finish(metadata or ObjectMetadata())
    staged = driver.staged(move_id)
    assert staged is not None
    return staged


def keeps_versions(driver: Driver) -> bool:
    """What the driver says; true where it says nothing."""
    return bool(getattr(driver, "keeps_versions", True))


def expected_at(driver: Driver, key: str) -> Fingerprint:
    found = driver.stat(key)
    assert found is not None
    return found


class DriverConformance:
    """Inherit and define the ``harness`` fixture."""

    # -- identity -------------------------------------------------------------------------------------------------
    def test_adopting_twice_changes_nothing(self, harness: Harness) -> None:
        harness.driver.adopt()
        harness.driver.check_identity()
        assert harness.driver.probe().adopted

    def test_another_nodes_root_is_missing_and_named(self, harness: Harness) -> None:
        other = harness.another("other-node")
        for call in (other.probe, other.check_identity, other.adopt, other.list_objects):
            with pytest.raises(NodeMissing, match=f"belongs to node '{harness.driver.node_id}'"):
                call()
        harness.driver.check_identity()

    def test_a_root_without_identity_is_missing_never_empty(self, harness: Harness) -> None:
        harness.put("a", b"1")
        harness.lose_identity()
        with pytest.raises(NodeMissing, match="mount"):
            harness.driver.check_identity()
        with pytest.raises(NodeMissing, match="mount"):
            harness.driver.list_objects()

    def test_an_unadopted_root_can_be_listed_for_observing(self, harness: Harness) -> None:
        harness.put("a", b"1")
        harness.lose_identity()
        assert harness.driver.list_objects(require_identity=False).keys == ["a"]
        assert not harness.driver.probe().adopted

    def test_another_nodes_root_is_not_listed_even_for_observing(self, harness: Harness) -> None:
        with pytest.raises(NodeMissing):
            harness.another("other-node").list_objects(require_identity=False)

    # -- keys -----------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("key", REFUSED_KEYS)
    def test_a_key_that_cannot_be_confined_is_refused_by_every_call(self, harness: Harness, key: str) -> None:
        driver, nothing = harness.driver, Fingerprint(0)
        stage(driver, M1, b"x")
        for call in (
            lambda: driver.stat(key),
            lambda: driver.open_source(key),
            lambda: driver.publish(M1, key),
            lambda: driver.free(key, M2, nothing),
            lambda: driver.restore(M2, key),
        ):
            with pytest.raises(InvalidKey, match="refused"):
                call()
        assert driver.staged(M1) is not None

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_an_odd_key_goes_the_whole_way(self, harness: Harness, key: str) -> None:
        if harness.holds(key):
            _whole_way(harness, key)
        else:
            _refused(harness, key)

    # One fresh node a parameter and an instance without state: neither health check has a case here.
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(key=unicode_keys, data=st.binary(max_size=300))
    def test_any_unicode_key_goes_the_whole_way_or_is_refused(self, harness: Harness, key: str, data: bytes) -> None:
        harness.clear()  # a folder left empty by an earlier example may have this key's name
        try:
            validate_key(key)
        except InvalidKey:
            with pytest.raises(InvalidKey):
                harness.driver.stat(key)
            return
        if harness.holds(key):
            _whole_way(harness, key, data)
        else:
            _refused(harness, key)

    @pytest.mark.parametrize("move_id", ["", ".", "..", ".hidden", "a/b", "a\0b", "../x", "x" * 201, "é", "a b", "a\n"])
    def test_a_move_id_that_is_no_safe_name_is_refused(self, harness: Harness, move_id: str) -> None:
        driver, bad = harness.driver, MoveId(move_id)
        for call in (
            lambda: driver.stage(bad),
            lambda: driver.staged(bad),
            lambda: driver.open_staged(bad),
            lambda: driver.publish(bad, "k"),
            lambda: driver.discard(bad),
            lambda: driver.free("k", bad, Fingerprint(0)),
            lambda: driver.trashed(bad),
            lambda: driver.restore(bad, "k"),
            lambda: driver.purge(bad, None),
            lambda: driver.write_manifest(move_id, []),
            lambda: driver.remove_manifest(move_id),
        ):
            with pytest.raises(InvalidArgument):
                call()

    # -- listing and reading --------------------------------------------------------------------------------------
    def test_a_listing_holds_every_object_with_its_size_and_nothing_of_ours(self, harness: Harness) -> None:
        wanted = {"a": 0, "b/c": 5, "b/d/e": 70_000}
        for key, size in wanted.items():
            harness.put(key, os.urandom(size))
        stage(harness.driver, M1, b"staged")
        harness.put("gone", b"trash")
        harness.driver.free("gone", M2, expected_at(harness.driver, "gone"))
        harness.driver.write_manifest("m1", ["{}"])
        listing = harness.driver.list_objects()
        assert dict(zip(listing.keys, listing.size_bytes.tolist(), strict=True)) == wanted
        assert listing.size_bytes.dtype == listing.mtime_ns.dtype == "int64"
        for key, mtime_ns in zip(listing.keys, listing.mtime_ns.tolist(), strict=True):
            assert mtime_ns == expected_at(harness.driver, key).mtime_ns

    @pytest.mark.parametrize("by_name", [True, False])
    def test_parts_together_hold_every_object_once(self, harness: Harness, by_name: bool) -> None:
        """Also where names of a folder and its neighbours' stand in another order on the server than as keys."""
        # No name ends at a dot or is empty: what is odd on one kind of node is another test's.
        deep = [f"{top}/{middle}/{name}" for top in ("a", "b-x", "é") for middle in "123" for name in ("x", "y/z")]
        wanted = {*deep, "flat1", "flat2", "flat3", "a-b", "a.b", "a/f1", "a/f2", "a/1-x", "a/1.x", "+ &%/+ &%/+ &%"}
        for key in sorted(wanted):
            harness.put(key, key.encode())
        harness.driver.write_manifest("m1", ["{}"])
        found: list[str] = []
        for number in range(3):
            listing = listed_part(harness.driver, Part(number, 3, by_name=by_name))
            assert {len(key.encode()) for key in listing.keys} == set(listing.size_bytes.tolist())
            found += listing.keys
        assert sorted(found) == sorted(wanted)

    def test_a_node_with_too_many_objects_for_one_listing_says_so(self, harness: Harness) -> None:
        for number in range(6):
            harness.put(f"a/{number % 3}/{number}", b"1")
        assert len(listed_part(harness.driver, None, most=6).keys) == 6
        with pytest.raises(TooManyObjects):
            listed_part(harness.driver, None, most=5)

    def test_an_empty_node_lists_empty_columns(self, harness: Harness) -> None:
        listing = harness.driver.list_objects()
        assert (listing.keys, listing.size_bytes.shape, listing.mtime_ns.shape) == ([], (0,), (0,))

    def test_a_source_can_be_read_from_any_offset(self, harness: Harness) -> None:
        data = os.urandom(200_000)
        harness.put("k", data)
        with harness.driver.open_source("k") as source:
            assert source.fingerprint == harness.driver.stat("k")
            source.seek(150_000)
            assert _drain(source) == data[150_000:]

    def test_what_is_not_there_has_no_fingerprint_and_cannot_be_opened(self, harness: Harness) -> None:
        harness.put("file", b"x")
        for key in ("nothing", "no/folder/here"):
            assert harness.driver.stat(key) is None
            with pytest.raises(SourceVanished):
                harness.driver.open_source(key)

    def test_a_look_at_many_objects_sees_what_a_look_at_each_sees(self, harness: Harness) -> None:
        there = ["top", "f/one", "f/two", "f/g/deep", "f/empty"]
        for number, key in enumerate(there):
            harness.put(key, b"x" * number)
        keys = [*there, "f", "f/three", "nowhere/at/all", "top/below", "f/" + "n" * 300]
        sizes, times, why = look_at(harness.driver, keys)
        seen = [
            (why.get(place, ""), *pair) for place, pair in enumerate(zip(sizes.tolist(), times.tolist(), strict=True))
        ]
        assert seen == [_seen(harness.driver, key) for key in keys]

    def test_a_new_version_has_another_fingerprint(self, harness: Harness) -> None:
        harness.put("k", b"one")
        before = expected_at(harness.driver, "k")
        harness.put("k", b"two")
        assert harness.driver.stat("k") != before

    # -- staging --------------------------------------------------------------------------------------------------
    def test_a_staged_copy_is_invisible_until_published(self, harness: Harness) -> None:
        staged = stage(harness.driver, M1, b"data")
        assert harness.driver.list_objects().keys == []
        assert harness.driver.staged(M1) == staged
        assert list(harness.driver.list_staged()) == [(M1, staged)]
        with harness.driver.open_staged(M1) as source:
            assert _drain(source) == b"data"

    def test_an_interrupted_copy_is_kept_and_resumed_where_it_was_cut(self, harness: Harness) -> None:
        data = os.urandom(100_000)
        writer = harness.driver.stage(M1)
        writer.write(memoryview(data[:60_000]))
        writer.sync()
        writer.write(memoryview(b"unverified tail"))
        writer.close()
        again = harness.driver.stage(M1, offset=60_000)
        again.write(memoryview(data[60_000:]))
        again.finish(ObjectMetadata())
        harness.driver.publish(M1, "k")
        assert harness.get("k") == data

    def test_resuming_past_what_is_there_is_refused_rather_than_padded(self, harness: Harness) -> None:
        writer = harness.driver.stage(M1)
        writer.write(memoryview(b"12345"))
        writer.close()
        for move_id in (M1, M2):
            with pytest.raises(InvalidArgument, match="begin at 0"):
                harness.driver.stage(move_id, offset=6)

    def test_staging_again_from_the_start_drops_the_earlier_copy(self, harness: Harness) -> None:
        stage(harness.driver, M1, b"a longer first attempt")
        assert stage(harness.driver, M1, b"short").size_bytes == 5

    def test_discarding_is_idempotent(self, harness: Harness) -> None:
        stage(harness.driver, M1, b"x")
        harness.driver.discard(M1)
        harness.driver.discard(M1)
        assert harness.driver.staged(M1) is None
        with pytest.raises(SourceVanished):
            harness.driver.open_staged(M1)

    def test_the_mtime_travels_or_the_driver_says_that_it_does_not(self, harness: Harness) -> None:
        mtime_ns = 1_234_567_890_123_456_789
        if not getattr(harness.driver, "keeps_mtime", True):
            assert stage(harness.driver, M1, b"x", ObjectMetadata(mtime_ns=mtime_ns)).mtime_ns != mtime_ns
            return
        assert stage(harness.driver, M1, b"x", ObjectMetadata(mtime_ns=mtime_ns)).mtime_ns == mtime_ns
        assert harness.driver.publish(M1, "k").mtime_ns == mtime_ns
        assert expected_at(harness.driver, "k").mtime_ns == mtime_ns

    # -- publishing -----------------------------------------------------------------------------------------------
    def test_publishing_returns_what_is_then_at_the_key(self, harness: Harness) -> None:
        staged = stage(harness.driver, M1, b"data")
        published = harness.driver.publish(M1, "a/b/c")
        assert published == harness.driver.stat("a/b/c")
        assert published.same_file(staged) or not keeps_versions(harness.driver)
        assert (published.size_bytes, published.mtime_ns) == (staged.size_bytes, staged.mtime_ns)
        assert harness.get("a/b/c") == b"data"
        assert harness.driver.staged(M1) is None

    def test_publishing_never_overwrites(self, harness: Harness) -> None:
        harness.put("k", b"a stranger's")
        stage(harness.driver, M1, b"ours")
        with pytest.raises(TargetExists):
            harness.driver.publish(M1, "k")
        assert harness.get("k") == b"a stranger's"
        assert harness.driver.staged(M1) is not None

    def test_publishing_twice_says_that_nothing_is_staged(self, harness: Harness) -> None:
        stage(harness.driver, M1, b"x")
        harness.driver.publish(M1, "k")
        with pytest.raises(InvalidArgument, match="nothing is staged"):
            harness.driver.publish(M1, "k")
        assert harness.get("k") == b"x"

    # -- freeing --------------------------------------------------------------------------------------------------
    def test_freeing_moves_the_object_into_the_trash_and_again_says_so(self, harness: Harness) -> None:
        harness.put("a/k", b"data")
        expected = expected_at(harness.driver, "a/k")
        for _ in range(2):
            assert harness.driver.free("a/k", M1, expected) is FreeOutcome.FREED
        assert harness.get("a/k") is None
        assert harness.driver.trashed(M1) == expected
        [(move_id, held, when_ns)] = harness.driver.list_trash()
        assert (move_id, held) == (M1, expected)
        assert when_ns > 1_600_000_000 * 10**9

    def test_freeing_leaves_a_changed_object_alone(self, harness: Harness) -> None:
        harness.put("k", b"old")
        expected = expected_at(harness.driver, "k")
        harness.put("k", b"new and longer")
        assert harness.driver.free("k", M1, expected) is FreeOutcome.CHANGED
        assert harness.get("k") == b"new and longer"
        assert harness.driver.trashed(M1) is None

    def test_freeing_what_is_gone_says_gone(self, harness: Harness) -> None:
        harness.put("a/k", b"x")
        expected = expected_at(harness.driver, "a/k")
        harness.remove("a/k")
        assert harness.driver.free("a/k", M1, expected) is FreeOutcome.GONE
        assert harness.driver.free("no/such/folder", M1, expected) is FreeOutcome.GONE

    def test_freeing_again_does_not_touch_a_strangers_new_object(self, harness: Harness) -> None:
        harness.put("k", b"old")
        expected = expected_at(harness.driver, "k")
        harness.driver.free("k", M1, expected)
        harness.put("k", b"new")
        assert harness.driver.free("k", M1, expected) is FreeOutcome.FREED
        assert harness.get("k") == b"new"

    def test_what_the_same_move_freed_before_makes_way_for_what_it_frees_now(self, harness: Harness) -> None:
        harness.put("k", b"old")
        old = expected_at(harness.driver, "k")
        harness.driver.free("k", M1, old)
        harness.put("k", b"newer")
        new = expected_at(harness.driver, "k")
        assert harness.driver.free("k", M1, new, freed_before=lambda held: held == old) is FreeOutcome.FREED
        assert harness.get("k") is None
        assert harness.driver.purge(M1, new) is True

    def test_a_freed_object_can_be_restored(self, harness: Harness) -> None:
        harness.put("a/k", b"data")
        harness.driver.free("a/k", M1, expected_at(harness.driver, "a/k"))
        assert harness.driver.restore(M1, "a/k") is True
        assert harness.get("a/k") == b"data"
        assert harness.driver.trashed(M1) is None

    def test_restoring_never_overwrites(self, harness: Harness) -> None:
        harness.put("k", b"old")
        harness.driver.free("k", M1, expected_at(harness.driver, "k"))
        harness.put("k", b"new")
        assert harness.driver.restore(M1, "k") is False
        assert harness.get("k") == b"new"
        assert harness.driver.trashed(M1) is not None

    def test_restoring_what_is_nowhere_says_so(self, harness: Harness) -> None:
        with pytest.raises(SourceVanished):
            harness.driver.restore(M1, "k")

    def test_purging_deletes_only_the_expected_version(self, harness: Harness) -> None:
        harness.put("k", b"data")
        expected = expected_at(harness.driver, "k")
        harness.driver.free("k", M1, expected)
        assert harness.driver.purge(M1, Fingerprint(expected.size_bytes + 1)) is False
        assert harness.driver.trashed(M1) == expected
        assert harness.driver.purge(M1, expected) is True
        assert harness.driver.purge(M1, expected) is True
        assert harness.driver.trashed(M1) is None
        assert list(harness.driver.list_trash()) == []

    # -- manifests ------------------------------------------------------------------------------------------------
    def test_manifests_are_written_whole_read_back_and_removed(self, harness: Harness) -> None:
        lines = ['{"key": "a\\n"}', '{"key": "日本\u2028"}']
        harness.driver.write_manifest("job-1.0", lines)
        harness.driver.write_manifest("empty", [])
        harness.driver.write_manifest("job-1.0", lines[:1])
        assert dict(harness.driver.read_manifests()) == {"job-1.0": lines[:1], "empty": []}
        harness.driver.remove_manifest("job-1.0")
        harness.driver.remove_manifest("job-1.0")
        assert [name for name, _ in harness.driver.read_manifests()] == ["empty"]

    # -- life -----------------------------------------------------------------------------------------------------
    def test_sync_can_be_called_at_any_time(self, harness: Harness) -> None:
        harness.driver.sync()
        stage(harness.driver, M1, b"x")
        harness.driver.sync()
        harness.driver.publish(M1, "new/folder/k")
        harness.driver.sync()
        harness.remove("new/folder/k")
        harness.driver.sync()

    def test_closing_twice_is_fine(self, harness: Harness) -> None:
        harness.driver.check_identity()
        harness.driver.close()
        harness.driver.close()

    def test_a_second_driver_of_the_node_sees_what_the_first_left(self, harness: Harness) -> None:
        stage(harness.driver, M1, b"x")
        other = harness.another(harness.driver.node_id)
        assert other.staged(M1) == harness.driver.staged(M1)
        other.publish(M1, "k")
        assert harness.driver.staged(M1) is None
        other.close()


def _whole_way(harness: Harness, key: str, data: bytes = b"some bytes") -> None:
    """Publish, list, read, free, restore, free, purge; nothing is left of it."""
    driver = harness.driver
    stage(driver, M1, data)
    published = driver.publish(M1, key)
    assert driver.list_objects().keys == [key]
    assert harness.get(key) == data == read_all(driver, key)
    assert driver.free(key, M2, published) is FreeOutcome.FREED
    assert driver.stat(key) is None
    assert driver.restore(M2, key)
    restored = published if keeps_versions(driver) else expected_at(driver, key)
    assert driver.free(key, M2, restored) is FreeOutcome.FREED
    assert driver.purge(M2, restored)
    listing = driver.list_objects()
    assert (listing.keys, dict(listing.left_out)) == ([], {})


def _refused(harness: Harness, key: str) -> None:
    """A copy stays aside when its key does not fit the store."""
    staged = stage(harness.driver, M1, b"some bytes")
    with pytest.raises(InvalidKey, match="refused"):
        harness.driver.publish(M1, key)
    assert harness.driver.staged(M1) == staged
    harness.driver.discard(M1)
