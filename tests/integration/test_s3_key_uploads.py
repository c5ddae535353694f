"""Large copies on a real S3 server are uploaded at the very key they are for, and completing them publishes them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import ChecksumMismatch, InvalidArgument, NodeMissing, SourceChanged, TargetExists
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import Fingerprint, ObjectMetadata
from rebalance_tasks.drivers.object_stores import files as object_files
from rebalance_tasks.drivers.object_stores.bucket import Begun, NoBucket
from rebalance_tasks.drivers.object_stores.files import LEAST_PART_BYTES
from rebalance_tasks.drivers.object_stores.key_uploads import KeyUploads, etag_of_parts
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from tests.unit.drivers.object_harness import ObjectHarness

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

M1 = MoveId("job-1.0")
DATA = os.urandom(2 * LEAST_PART_BYTES + 700_000)
KEY = "a/k"
GIVEN = {
    "content-type": "text/x",
    "cache-control": "max-age=60",
    "content-disposition": "attachment",
    "content-language": "de",
    "meta:author": "somebody",
    "tags": "colour=green&kind=a%20b",
}


@dataclass
class Source:
    """What a copy is made of, as far as a target asks."""

    metadata: ObjectMetadata = field(
        default_factory=lambda: ObjectMetadata(
            mtime_ns=5_000_000_007, xattrs={f"user.rebalance.{name}": value.encode() for name, value in GIVEN.items()}
        )
    )
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint(len(DATA)))


SOURCE: Any = Source()


@pytest.fixture
def harness(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> ObjectHarness:
    for name in ("PART_BYTES", "AT_KEY_BYTES"):
        monkeypatch.setattr(object_files, name, LEAST_PART_BYTES)
    bucket = weed.bucket()
    return ObjectHarness(lambda: S3Bucket(weed.endpoint, bucket))


def staged(driver: ObjectStoreDriver, *, offset: int = 0, upto: int = len(DATA), whole: bool = True) -> None:
    """Stage the copy, or some of it."""
    writer = driver.stage(M1, offset=offset)
    writer.expect(len(DATA), KEY, SOURCE)
    writer.write(memoryview(DATA)[offset:upto])
    if whole:
        writer.finish(SOURCE.metadata)
    else:
        writer.close()


def uploads(harness: ObjectHarness) -> list[str]:
    return [upload.name.removeprefix(f"{harness.prefix}/") for upload in harness.bucket.uploads("")]


def leftovers(harness: ObjectHarness) -> list[str]:
    """Everything of a copy that lies about, wherever it is."""
    folder = f"{harness.prefix}/.rebalance/tmp/"
    return uploads(harness) + [item.name for page in harness.bucket.pages(folder) for item in page]


def version(driver: ObjectStoreDriver) -> Fingerprint:
    found = driver.staged(M1)
    assert found is not None
    return found


def published(harness: ObjectHarness) -> Fingerprint:
    """Publish what is staged, and look whether it is all there, and nothing else."""
    driver = harness.another("node-1")
    expected = version(driver)
    assert driver.publish(M1, KEY, expected=expected) == expected == driver.stat(KEY)
    assert harness.get(KEY) == DATA
    assert leftovers(harness) == []
    return expected


def test_a_copy_is_seen_nowhere_before_it_is_published_and_is_written_once(harness: ObjectHarness) -> None:
    staged(harness.driver)
    assert uploads(harness) == [KEY]
    assert harness.driver.list_objects().keys == []
    assert harness.driver.stat(KEY) is None
    assert [move_id for move_id, _ in harness.driver.list_staged()] == [M1]
    found = published(harness)
    assert (found.size_bytes, found.mtime_ns) == (len(DATA), SOURCE.metadata.mtime_ns)
    assert found.etag.endswith("-3")


def test_what_belongs_to_the_object_arrives_with_it(harness: ObjectHarness) -> None:
    staged(harness.driver)
    published(harness)
    found, _ = harness.bucket.get(f"{harness.prefix}/{KEY}", 0, 10)
    assert {name: value for name, value in found.attributes.items() if name in GIVEN} == GIVEN


@pytest.mark.parametrize("cut", [0, 300_000, LEAST_PART_BYTES, LEAST_PART_BYTES + 300_000, len(DATA)])
def test_a_copy_cut_off_anywhere_is_taken_up_by_another_process(harness: ObjectHarness, cut: int) -> None:
    staged(harness.driver, upto=cut, whole=False)
    other = harness.another("node-1")
    assert other.staged(M1) == (Fingerprint(cut) if cut else None)
    staged(other, offset=cut)
    assert uploads(harness) == [KEY]
    published(harness)


def test_what_a_longer_attempt_left_behind_the_whole_is_no_part_of_it(
    harness: ObjectHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(harness.driver, whole=False)
    # Larger parts from here on: one of the old ones stays behind the last.
    monkeypatch.setattr(object_files, "PART_BYTES", 2 * LEAST_PART_BYTES)
    other = harness.another("node-1")
    staged(other, offset=LEAST_PART_BYTES)
    assert version(other).etag.endswith("-2")
    published(harness)


def test_parts_of_two_attempts_are_no_whole_copy_whatever_they_sum_up_to(harness: ObjectHarness) -> None:
    staged(harness.driver, whole=False)
    there = harness.another("node-1").staged(M1)
    assert there == Fingerprint(len(DATA))  # and no etag: nobody said that it was whole
    with pytest.raises(InvalidArgument):
        harness.another("node-1").publish(M1, KEY)


@pytest.mark.parametrize(("upto", "whole"), [(0, False), (300_000, False), (len(DATA), False), (len(DATA), True)])
def test_nothing_is_left_behind_once_a_copy_is_discarded(harness: ObjectHarness, upto: int, *, whole: bool) -> None:
    staged(harness.driver, upto=upto, whole=whole)
    other = harness.another("node-1")
    assert [move_id for move_id, _ in other.list_staged()] == [M1]
    other.discard(M1)
    assert leftovers(harness) == []
    assert other.staged(M1) is None


def test_another_object_at_the_key_stays_and_the_copy_can_be_thrown_away(harness: ObjectHarness) -> None:
    staged(harness.driver)
    harness.put(KEY, b"somebody's")
    with pytest.raises(TargetExists):
        harness.driver.publish(M1, KEY, expected=version(harness.driver))
    assert harness.get(KEY) == b"somebody's"
    harness.driver.discard(M1)
    assert leftovers(harness) == []


def test_a_copy_is_published_at_the_key_it_is_for_and_nowhere_else(harness: ObjectHarness) -> None:
    staged(harness.driver)
    with pytest.raises(InvalidArgument, match="not for key 'b'"):
        harness.driver.publish(M1, "b")


def test_another_copy_than_the_one_that_was_verified_is_not_published(harness: ObjectHarness) -> None:
    staged(harness.driver)
    verified = version(harness.driver)
    harness.driver.discard(M1)
    with pytest.raises(ChecksumMismatch):
        harness.driver.publish(M1, KEY, expected=verified)
    assert harness.driver.stat(KEY) is None


def test_what_was_published_before_is_not_published_again(harness: ObjectHarness) -> None:
    staged(harness.driver)
    published(harness)
    assert harness.driver.staged(M1) is None
    with pytest.raises(InvalidArgument, match="published or discarded before"):
        harness.driver.publish(M1, KEY)


def test_a_source_whose_attributes_change_while_it_is_copied_is_copied_again(harness: ObjectHarness) -> None:
    writer = harness.driver.stage(M1)
    writer.expect(len(DATA), KEY, SOURCE)
    writer.write(memoryview(DATA))
    with pytest.raises(SourceChanged, match="what belongs to the object"):
        writer.finish(ObjectMetadata(mtime_ns=6))
    writer.close()
    harness.driver.discard(M1)
    assert leftovers(harness) == []


# -- deaths, and answers that were lost -------------------------------------------------------------------------------
def begins_and_then(act: Callable[[str], Begun]) -> Callable[..., Begun]:
    original = S3Bucket.begin

    def begin(self: S3Bucket, name: str, attributes: Any) -> Begun:
        return act(original(self, name, attributes).upload_id)

    return begin


@pytest.mark.parametrize("begun", [False, True])
def test_an_upload_whose_id_nobody_was_told_is_thrown_away_with_the_rest(
    harness: ObjectHarness, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    def lost(*_: Any) -> Begun:
        msg = "the line is cut"
        raise NoBucket(msg)

    monkeypatch.setattr(S3Bucket, "begin", begins_and_then(lost) if begun else lost)
    with pytest.raises(NodeMissing):
        staged(harness.driver)
    assert uploads(harness) == [KEY] * begun
    monkeypatch.undo()
    other = harness.another("node-1")
    assert [move_id for move_id, _ in other.list_staged()] == [M1]
    other.discard(M1)
    assert leftovers(harness) == []


def test_a_second_upload_that_a_lost_answer_left_is_thrown_away_at_once(
    harness: ObjectHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{harness.prefix}/{KEY}"
    endpoint = harness.bucket.endpoint  # type: ignore[attr-defined]

    def twice(upload_id: str) -> Begun:
        endpoint.request("POST", harness.bucket.name, name, query={"uploads": ""})
        return Begun(upload_id, twice=True)

    monkeypatch.setattr(S3Bucket, "begin", begins_and_then(twice))
    staged(harness.driver, upto=300_000, whole=False)
    assert uploads(harness) == [KEY]
    published_by = harness.another("node-1")
    staged(published_by, offset=300_000)
    published(harness)


def test_somebody_elses_upload_at_the_key_goes_on(harness: ObjectHarness) -> None:
    name = f"{harness.prefix}/{KEY}"
    theirs = harness.bucket.begin(name, {}).upload_id
    etag = harness.bucket.part(name, theirs, 1, b"theirs")
    staged(harness.driver, whole=False)
    harness.driver.discard(M1)
    assert uploads(harness) == [KEY]
    harness.bucket.complete(name, theirs, [(1, etag)])
    assert harness.get(KEY) == b"theirs"


def test_a_completion_whose_answer_was_lost_is_recognised(
    harness: ObjectHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = S3Bucket.complete

    def complete(self: S3Bucket, *arguments: Any, **more: Any) -> str:
        original(self, *arguments, **more)
        return original(self, *arguments, **more)  # which finds the name taken, or the upload gone

    staged(harness.driver)
    monkeypatch.setattr(S3Bucket, "complete", complete)
    published(harness)


def test_a_death_right_after_the_completion_leaves_a_marker_that_cleanup_removes(
    harness: ObjectHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    staged(harness.driver)
    expected = version(harness.driver)
    monkeypatch.setattr(KeyUploads, "forget", die)
    with suppress(KeyboardInterrupt):
        harness.driver.publish(M1, KEY, expected=expected)
    monkeypatch.undo()
    other = harness.another("node-1")
    assert other.stat(KEY) == expected
    assert other.staged(M1) is None
    assert [move_id for move_id, _ in other.list_staged()] == [M1]
    other.discard(M1)
    assert leftovers(harness) == []
    assert harness.get(KEY) == DATA


def test_two_workers_that_know_nothing_of_each_other_publish_one_copy(harness: ObjectHarness) -> None:
    stale, other = harness.driver, harness.another("node-1")
    staged(stale)
    expected = version(stale)
    staged(other)
    assert other.publish(M1, KEY, expected=version(other)) == expected
    with suppress(ChecksumMismatch, TargetExists, InvalidArgument):
        stale.publish(M1, KEY, expected=expected)
    assert harness.get(KEY) == DATA
    stale.discard(M1)
    assert leftovers(harness) == []


# -- what is not ours --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "said",
    [
        b"no JSON",
        b'{"name": 5}',
        {"name": "elsewhere/k"},
        {"name": ".rebalance/node-id"},
        {"etags": "x"},
        {"size_bytes": -1},
        {"upload_id": 7},
    ],
)
def test_a_marker_that_we_could_not_have_written_is_believed_in_nothing(
    harness: ObjectHarness, said: bytes | dict[str, Any]
) -> None:
    if isinstance(said, dict):
        name = said.get("name", KEY)
        told = {"size_bytes": 1, "attributes": {}, "upload_id": "x", **said}
        said = json.dumps({**told, "name": name if name == "elsewhere/k" else f"{harness.prefix}/{name}"}).encode()
    marker = f"{harness.prefix}/.rebalance/tmp/{M1}~upload-0"
    harness.bucket.put(marker, said, {}, new=True)
    assert harness.driver.staged(M1) is None
    harness.driver.discard(M1)
    assert leftovers(harness) == []


def test_the_etag_of_parts_is_known_before_they_are_one_object() -> None:
    # As S3 gives it to two parts of 5 MiB of zeros.
    part = "5f363e0e58a95f06cbe9bbc662c5dfb6"
    assert etag_of_parts([part, part]) == "a7d414b9133d6483d9a1c4e04e856e3b-2"
    assert etag_of_parts([]) == etag_of_parts([part, "no md5"]) == ""
