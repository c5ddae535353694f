"""The object-store driver passes the shared suite through obstore's client of GCS, against a real server behind a front that speaks its API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.gcs_azure.options import open_obstore_bucket
from tests.unit.drivers.test_memory_conformance import ObstoreConformance, ObstoreHarness

if TYPE_CHECKING:
    from tests.support.gcs import Gcs
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration


@pytest.fixture
def harness(gcs: Gcs, weed: Weed) -> ObstoreHarness:
    node = NodeDescriptor(node_id="n", url=f"gs://{weed.bucket()}", storage_options=gcs.options())
    return ObstoreHarness(lambda: open_obstore_bucket(node)[0])


class TestGcsNode(ObstoreConformance):
    pass
