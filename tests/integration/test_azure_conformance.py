"""The object-store driver passes the shared suite through obstore, on Azurite, where one is installed."""

from __future__ import annotations

import os

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.base import FreeOutcome, ObjectMetadata
from rebalance_tasks.drivers.object_files import PART_BYTES
from rebalance_tasks.drivers.obstore_options import open_obstore_bucket
from tests.support import azurite
from tests.unit.drivers.conformance import M1, M2, DriverConformance, read_all
from tests.unit.drivers.test_memory_conformance import ObstoreHarness

pytestmark = pytest.mark.integration


@pytest.fixture
def harness(azure_port: int) -> ObstoreHarness:
    node = NodeDescriptor(node_id="n", url="az://objects", storage_options=azurite.options(azure_port))
    return ObstoreHarness(lambda: open_obstore_bucket(node)[0])


class TestAzureNode(DriverConformance):
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
