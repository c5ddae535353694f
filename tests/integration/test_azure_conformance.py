"""The object-store driver passes the shared suite through obstore, on Azurite, where one is installed."""

from __future__ import annotations

import pytest

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.gcs_azure.options import open_obstore_bucket
from tests.support import azurite
from tests.unit.drivers.test_memory_conformance import ObstoreConformance, ObstoreHarness

pytestmark = pytest.mark.integration


@pytest.fixture
def harness(azure_port: int) -> ObstoreHarness:
    node = NodeDescriptor(node_id="n", url="az://objects", storage_options=azurite.options(azure_port))
    return ObstoreHarness(lambda: open_obstore_bucket(node)[0])


class TestAzureNode(ObstoreConformance):
    pass
