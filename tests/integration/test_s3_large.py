"""Large objects on a real S3 server: uploads in parts that a later attempt takes up, and that nobody leaves behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.errors import InvalidArgument
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import ObjectMetadata
from rebalance_tasks.drivers.object_stores import files as object_files
from rebalance_tasks.drivers.object_stores.files import LEAST_PART_BYTES
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from tests.unit.drivers.conformance import _drain
from tests.unit.drivers.object_harness import ObjectHarness

if TYPE_CHECKING:
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

M1 = MoveId("job-1.0")
DATA = os.urandom(2 * LEAST_PART_BYTES + 700_000)


@pytest.fixture
def harness(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> ObjectHarness:
    monkeypatch.setattr(object_files, "PART_BYTES", LEAST_PART_BYTES)
    bucket = weed.bucket()
    return ObjectHarness(lambda: S3Bucket(weed.endpoint, bucket))


def interrupted(harness: ObjectHarness, size: int) -> None:
    writer = harness.driver.stage(M1)
    writer.write(memoryview(DATA)[:size])
    writer.close()


def read_staged(harness: ObjectHarness) -> bytes:
    with harness.driver.open_staged(M1) as source:
        return _drain(source)


def leftovers(harness: ObjectHarness) -> list[str]:
    folder = f"{harness.prefix}/.rebalance/tmp/"
    names = [item.name for page in harness.bucket.pages(folder) for item in page]
    return names + [upload.name for upload in harness.bucket.uploads(folder)]


@pytest.mark.parametrize("cut", [300_000, LEAST_PART_BYTES, LEAST_PART_BYTES + 300_000, len(DATA)])
def test_a_copy_cut_off_anywhere_is_taken_up_by_another_process(harness: ObjectHarness, cut: int) -> None:
    interrupted(harness, cut)
    other = harness.another("node-1")
    staged = other.staged(M1)
    assert staged is not None
    assert (staged.size_bytes, staged.etag) == (cut, "")
    writer = other.stage(M1, offset=cut)
    writer.write(memoryview(DATA)[cut:])
    writer.finish(ObjectMetadata(mtime_ns=5, xattrs={"user.rebalance.content-type": b"text/x"}))
    assert read_staged(harness) == DATA
    whole = other.staged(M1)
    assert whole is not None
    assert whole.mtime_ns == 5
    published = other.publish(M1, "k", expected=whole)
    assert published == other.stat("k")
    assert harness.get("k") == DATA
    found = harness.bucket.head(f"{harness.prefix}/k")
    assert found is not None
    assert found.attributes["content-type"] == "text/x"
    assert leftovers(harness) == []


def test_what_was_sent_after_the_place_that_is_journalled_is_sent_again(harness: ObjectHarness) -> None:
    interrupted(harness, len(DATA))
    writer = harness.driver.stage(M1, offset=LEAST_PART_BYTES)
    writer.write(memoryview(DATA)[LEAST_PART_BYTES:])
    writer.finish(ObjectMetadata())
    assert read_staged(harness) == DATA
    assert harness.driver.publish(M1, "k").size_bytes == len(DATA)
    assert leftovers(harness) == []


def test_an_offset_inside_of_a_part_is_refused_rather_than_guessed(harness: ObjectHarness) -> None:
    interrupted(harness, len(DATA))
    with pytest.raises(InvalidArgument, match="begin at 0"):
        harness.driver.stage(M1, offset=LEAST_PART_BYTES - 1)


@pytest.mark.parametrize("cut", [300_000, LEAST_PART_BYTES + 300_000, len(DATA)])
def test_an_unfinished_upload_is_listed_and_leaves_nothing_behind_once_discarded(
    harness: ObjectHarness, cut: int
) -> None:
    interrupted(harness, cut)
    assert [move_id for move_id, _ in harness.driver.list_staged()] == [M1]
    assert harness.driver.list_objects().keys == []
    harness.driver.discard(M1)
    assert leftovers(harness) == []
    assert harness.driver.staged(M1) is None


def test_beginning_anew_drops_what_an_interrupted_copy_left(harness: ObjectHarness) -> None:
    interrupted(harness, len(DATA))
    assert harness.driver.staged(M1) is not None
    writer = harness.driver.stage(M1)
    writer.write(memoryview(b"short"))
    writer.finish(ObjectMetadata())
    assert read_staged(harness) == b"short"
    harness.driver.publish(M1, "k")
    assert leftovers(harness) == []
