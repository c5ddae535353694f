"""The object-store driver passes the shared suite through obstore, on a store in memory."""

from __future__ import annotations

import uuid

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.obstore_options import open_obstore_bucket
from tests.unit.drivers.conformance import DriverConformance
from tests.unit.drivers.object_harness import ObjectHarness


class ObstoreHarness(ObjectHarness):
    def holds(self, key: str) -> bool:
        """Obstore refuses control characters in names."""
        return super().holds(key) and not any(ord(char) < 32 or ord(char) == 127 for char in key)


@pytest.fixture
def harness() -> ObstoreHarness:
    node = NodeDescriptor(node_id="n", url=f"memory://bucket-{uuid.uuid4().hex}")
    return ObstoreHarness(lambda: open_obstore_bucket(node)[0])


class TestMemoryNode(DriverConformance):
    pass
