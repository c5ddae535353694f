"""The object-store driver passes the shared suite on a real S3 server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.drivers.s3.bucket import S3Bucket
from tests.unit.drivers.conformance import DriverConformance
from tests.unit.drivers.object_harness import ObjectHarness

if TYPE_CHECKING:
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bucket_name(weed: Weed) -> str:
    return weed.bucket()


@pytest.fixture
def harness(weed: Weed, bucket_name: str) -> ObjectHarness:
    return ObjectHarness(lambda: S3Bucket(weed.endpoint, bucket_name))


class TestS3Driver(DriverConformance):
    pass
