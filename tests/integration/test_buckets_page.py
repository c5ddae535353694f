"""docs/how-to/buckets.md: its settings are read, and its rights are all that a fleet of buckets asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import ObjectMetadata
from rebalance_tasks.drivers.object_stores import files as object_files
from rebalance_tasks.drivers.object_stores.burst import ObjectBurst
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.object_stores.files import LEAST_PART_BYTES
from rebalance_tasks.drivers.registry import open_driver, validate_roots
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.settings import load_settings
from tests.support.bad_line import BadLine
from tests.unit.drivers.conformance import stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rebalance_tasks.drivers.s3.http import Answer
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[2] / "docs/how-to/buckets.md").read_text(encoding="utf-8")
M1, M2 = MoveId("job-1.0"), MoveId("job-1.1")

#: AWS' names of the rights: (method, whether an object is named, parameter of the query) -> action.
ACTIONS = {
    ("GET", False, "list-type"): "s3:ListBucket",
    ("GET", False, "uploads"): "s3:ListBucketMultipartUploads",
    ("GET", False, "versioning"): "s3:GetBucketVersioning",
    ("GET", False, "object-lock"): "s3:GetBucketObjectLockConfiguration",
    ("GET", True, ""): "s3:GetObject",
    ("HEAD", True, ""): "s3:GetObject",
    ("GET", True, "tagging"): "s3:GetObjectTagging",
    ("GET", True, "uploadId"): "s3:ListMultipartUploadParts",
    ("PUT", True, ""): "s3:PutObject",
    ("PUT", True, "uploadId"): "s3:PutObject",
    ("POST", True, "uploads"): "s3:PutObject",
    ("POST", True, "uploadId"): "s3:PutObject",
    ("POST", False, "delete"): "s3:DeleteObject",
    ("DELETE", True, ""): "s3:DeleteObject",
    ("DELETE", True, "uploadId"): "s3:AbortMultipartUpload",
}
PARAMETERS = ("list-type", "uploads", "versioning", "object-lock", "tagging", "uploadId", "delete")


class Recording(BadLine):
    """Notes which rights a request takes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.taken: set[str] = set()

    def request(
        self, method: str, bucket: str, name: str = "", *, query: Mapping[str, str] | None = None, **more: Any
    ) -> Answer:
        parameter = next((one for one in PARAMETERS if one in (query or {})), "")
        self.taken.add(ACTIONS[method, bool(name), parameter])
        headers = more.get("headers") or {}
        if "x-amz-tagging" in headers:
            self.taken.add("s3:PutObjectTagging")
        return super().request(method, bucket, name, query=query, **more)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_settings_of_the_page_make_two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = blocks("toml")
    (tmp_path / "rebalance.toml").write_text(text)
    for name in ("S3_KEY", "S3_SECRET"):
        monkeypatch.setenv(name, "x")
    fleet = load_settings(tmp_path / "rebalance.toml")
    validate_roots(fleet.nodes)
    drivers = [open_driver(node) for node in fleet.nodes]
    assert [driver.node_id for driver in drivers] == ["one", "two"]


def test_the_rights_of_the_page_are_all_that_a_fleet_of_buckets_takes_and_none_is_idle(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_files, "PART_BYTES", LEAST_PART_BYTES)
    line = Recording(weed.url)
    first, second = (ObjectStoreDriver(name, S3Bucket(line, weed.bucket())) for name in ("n1", "n2"))
    for driver in (first, second):
        driver.probe()
        driver.adopt()
    first.bucket.put("k", b"data", {"tags": "a=b"}, new=True)
    version = first.versions(["k"])["k"]
    second.copy_from(first, "k", version, M1)
    assert list(ObjectBurst(first, second).free([("k", M1, version)])) == [True]
    with second.open_source("k") as source:
        writer = first.stage(M2)
        writer.write(memoryview(b"data"))
        writer.finish(source.metadata)
    first.publish(M2, "again")
    first.purge(M1, version)
    large = first.stage(M1)
    large.write(memoryview(bytes(LEAST_PART_BYTES + 1)))
    large.close()
    resumed = ObjectStoreDriver("n1", S3Bucket(line, first.bucket.name)).stage(M1, offset=LEAST_PART_BYTES + 1)
    resumed.finish(ObjectMetadata())
    assert first.publish(M1, "large").size_bytes == LEAST_PART_BYTES + 1
    stage(first, M2, b"x")
    first.discard(M2)
    given = {action for part in json.loads(blocks("json")[0])["Statement"] for action in part["Action"]}
    # An upload that is given up; the discard above found none to abort.
    cut = first.stage(M2)
    cut.write(memoryview(bytes(LEAST_PART_BYTES)))
    cut.close()
    first.discard(M2)
    assert line.taken == given
