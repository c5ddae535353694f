"""What belongs to an object besides its bytes travels with it: through a worker, through a disk, and copied by the server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.object_stores.files import PART_BYTES, WINDOW_BYTES
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.migration.control import SliceControl
from rebalance_tasks.migration.copying import Copier
from tests.unit.drivers.conformance import expected_at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rebalance_tasks.drivers.base import Driver
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

M1 = MoveId("job-1.0")
GIVEN = {
    "content-type": "text/x-poem",
    "cache-control": "max-age=60",
    "content-disposition": "attachment",
    "content-encoding": "identity",
    "content-language": "de",
    "meta:author": "somebody",
    "tags": "colour=green&kind=a%20b",
}


def node(weed: Weed, node_id: str) -> ObjectStoreDriver:
    made = ObjectStoreDriver(node_id, S3Bucket(weed.endpoint, weed.bucket()))
    made.adopt()
    return made


def carry(source: Driver, target: Driver, key: str) -> None:
    with source.open_source(key) as reader:
        writer = target.stage(M1)
        buffer = memoryview(bytearray(1000))
        while count := reader.readinto(buffer):
            writer.write(buffer[:count])
        writer.finish(reader.metadata)
    target.publish(M1, key)


def kept(driver: ObjectStoreDriver, key: str) -> Mapping[str, str]:
    found, _ = driver.bucket.get(key, 0, 10)
    return {name: value for name, value in found.attributes.items() if name in GIVEN}


@pytest.fixture
def source(weed: Weed) -> ObjectStoreDriver:
    made = node(weed, "n1")
    made.bucket.put("k", b"some bytes", GIVEN, new=True)
    return made


def test_attributes_travel_from_bucket_to_bucket_through_a_worker(weed: Weed, source: ObjectStoreDriver) -> None:
    target = node(weed, "n2")
    carry(source, target, "k")
    assert kept(target, "k") == GIVEN
    assert expected_at(target, "k").mtime_ns == expected_at(source, "k").mtime_ns


def test_attributes_of_a_large_object_travel_through_a_worker(weed: Weed, source: ObjectStoreDriver) -> None:
    target, size = node(weed, "n2"), PART_BYTES + WINDOW_BYTES + 7
    source.bucket.put("large", os.urandom(size), GIVEN, new=True)
    copier = Copier(SliceControl(lambda: "ok", bucket=None))
    copier.stage(source, target, "large", M1, size_bytes=size, resume=None, progress=lambda _: None)
    target.publish(M1, "large")
    assert kept(target, "large") == GIVEN
    assert expected_at(target, "large").mtime_ns == expected_at(source, "large").mtime_ns


def test_attributes_travel_through_a_disk_and_back(weed: Weed, source: ObjectStoreDriver, tmp_path: Path) -> None:
    disk, target = LocalDriver("disk", str(tmp_path)), node(weed, "n2")
    disk.adopt()
    carry(source, disk, "k")
    (tmp_path / "k").chmod(0o640)
    mtime_ns = (tmp_path / "k").stat().st_mtime_ns
    carry(disk, target, "k")
    assert kept(target, "k") == GIVEN
    assert expected_at(target, "k").mtime_ns == mtime_ns
    with target.open_source("k") as reader:
        assert reader.metadata.mode == 0o640
    disk.close()


def test_attributes_travel_with_a_copy_that_the_server_makes(weed: Weed, source: ObjectStoreDriver) -> None:
    target = node(weed, "n2")
    [version] = source.versions(["k"]).values()
    target.copy_from(source, "k", version, M1)
    assert kept(target, "k") == GIVEN


def test_a_storage_class_and_an_expiry_travel_through_a_worker_and_through_a_disk(
    weed: Weed, source: ObjectStoreDriver, tmp_path: Path
) -> None:
    given = {"storage-class": "STANDARD_IA", "expires": "Thu, 01 Dec 2033 16:00:00 GMT"}
    source.bucket.put("cold", b"some bytes", given, new=True)
    disk, first, second = LocalDriver("disk", str(tmp_path)), node(weed, "n2"), node(weed, "n3")
    disk.adopt()
    carry(source, first, "cold")
    carry(first, disk, "cold")
    carry(disk, second, "cold")
    for target in (first, second):
        found = target.bucket.head("cold")
        assert found is not None
        assert {name: found.attributes.get(name) for name in given} == given
    disk.close()
