"""The object-store driver passes the shared suite through obstore, on a store in memory."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.base import FreeOutcome, ObjectMetadata
from rebalance_tasks.drivers.gcs_azure.options import open_obstore_bucket
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.object_stores.files import PART_BYTES
from rebalance_tasks.migration.undo import undo
from rebalance_tasks.migration.ways import as_published, held_copy
from tests.unit.drivers.conformance import M1, M2, DriverConformance, read_all, stage
from tests.unit.drivers.object_harness import ObjectHarness

if TYPE_CHECKING:
    from pathlib import Path


class ObstoreHarness(ObjectHarness):
    def holds(self, key: str) -> bool:
        """Obstore refuses control characters in names."""
        return super().holds(key) and not any(ord(char) < 32 or ord(char) == 127 for char in key)


def disk(tmp_path: Path) -> LocalDriver:
    """An adopted source that holds the object ``k``."""
    driver = LocalDriver("disk", str(tmp_path))
    driver.adopt()
    (tmp_path / "k").write_bytes(b"bytes")
    return driver


@pytest.fixture
def harness() -> ObstoreHarness:
    node = NodeDescriptor(node_id="n", url=f"memory://bucket-{uuid.uuid4().hex}")
    return ObstoreHarness(lambda: open_obstore_bucket(node)[0])


class ObstoreConformance(DriverConformance):
    """What obstore's buckets do besides."""

    def test_a_large_object_goes_in_parts_and_is_taken_up_by_another_process(self, harness: ObstoreHarness) -> None:
        data = os.urandom(2 * PART_BYTES + 12_345)
        half = PART_BYTES + 100
        writer = harness.driver.stage(M1)
        writer.write(memoryview(data[:half]))
        writer.close()
        other = harness.another("node-1")
        left = other.staged(M1)
        assert left is not None
        assert left.size_bytes == half
        again = other.stage(M1, offset=half)
        again.write(memoryview(data[half:]))
        attributes = {"user.rebalance.content-type": b"image/png", "user.rebalance.meta:owner": b"me"}
        again.finish(ObjectMetadata(mtime_ns=1_234_567_890_123_456_789, xattrs=attributes))
        published = other.publish(M1, "large")
        assert read_all(other, "large") == data
        with other.open_source("large") as source:
            assert source.metadata.xattrs == attributes
            assert source.metadata.mtime_ns == 1_234_567_890_123_456_789
        assert other.free("large", M2, published) is FreeOutcome.FREED
        assert other.purge(M2, published)
        assert list(other.list_staged()) == []
        assert [found.name for page in other.bucket.pages(f"{harness.prefix}/") for found in page] == [
            f"{harness.prefix}/.rebalance/node-id"
        ]

    def test_an_upload_that_was_cut_off_is_found_and_thrown_away(self, harness: ObstoreHarness) -> None:
        writer = harness.driver.stage(M1)
        writer.write(memoryview(os.urandom(PART_BYTES + 1)))
        writer.close()
        [(move_id, found)] = list(harness.driver.list_staged())
        assert (move_id, found.size_bytes) == (M1, PART_BYTES + 1)
        harness.driver.discard(M1)
        assert list(harness.driver.list_staged()) == []

    def test_a_copy_that_was_published_is_taken_back_although_its_version_has_changed(
        self, harness: ObstoreHarness, tmp_path: Path
    ) -> None:
        source = disk(tmp_path)
        copied = stage(harness.driver, M1, b"bytes", ObjectMetadata(mtime_ns=1_700_000_000_123_456_789))
        published = harness.driver.publish(M1, "k")
        assert as_published(harness.driver, "k", copied) == published
        assert undo(source, harness.driver, "k", M1, copied)
        assert harness.get("k") is None
        assert harness.driver.trashed(M1) is None

    def test_a_copy_that_a_dead_worker_took_back_half_way_is_found_in_the_trash(
        self, harness: ObstoreHarness, tmp_path: Path
    ) -> None:
        source = disk(tmp_path)
        copied = stage(harness.driver, M1, b"bytes", ObjectMetadata(mtime_ns=1_700_000_000_123_456_789))
        harness.driver.free("k", M1, harness.driver.publish(M1, "k"))
        assert held_copy(harness.driver, M1, copied) is not None
        assert undo(source, harness.driver, "k", M1, copied)
        assert harness.driver.trashed(M1) is None

    def test_what_a_stranger_has_written_over_a_copy_is_left_to_them(
        self, harness: ObstoreHarness, tmp_path: Path
    ) -> None:
        source = disk(tmp_path)
        copied = stage(harness.driver, M1, b"bytes", ObjectMetadata(mtime_ns=1_700_000_000_123_456_789))
        harness.driver.publish(M1, "k")
        harness.put("k", b"theirs")
        assert as_published(harness.driver, "k", copied) is None
        assert undo(source, harness.driver, "k", M1, copied)
        assert harness.get("k") == b"theirs"


class TestMemoryNode(ObstoreConformance):
    pass
