"""The object-store driver passes the shared suite through obstore's client of GCS, against a real server behind a front that speaks its API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.obstore_options import open_obstore_bucket
from tests.unit.drivers.test_memory_conformance import ObstoreConformance, ObstoreHarness

if TYPE_CHECKING:
    from tests.support.gcs import Gcs
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration


class GcsHarness(ObstoreHarness):
    def holds(self, key: str) -> bool:
        """SeaweedFS makes a slash of a backslash; GCS does not."""
        return super().holds(key) and "\\" not in key


@pytest.fixture
def harness(gcs: Gcs, weed: Weed) -> GcsHarness:
    node = NodeDescriptor(node_id="n", url=f"gs://{weed.bucket()}", storage_options=gcs.options())
    return GcsHarness(lambda: open_obstore_bucket(node)[0])


class TestGcsNode(ObstoreConformance):
    pass
