"""What an S3 endpoint is asked before it is believed, on a real server: once for all that it does, and each bucket for its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.drivers.object_stores.bucket import PartAbilities
from rebalance_tasks.drivers.s3 import probe_parts as probes
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.drivers.s3.http import Answer, S3Endpoint
from rebalance_tasks.drivers.s3.probe import probe_bucket
from rebalance_tasks.drivers.s3.probe_parts import probe_parts
from rebalance_tasks.drivers.s3.signing import Credentials
from tests.support.weed import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.weed import Weed

pytestmark = pytest.mark.integration


class Counting(S3Endpoint):
    """An endpoint that notes what it is asked, and may play a bucket whose etags are no hashes."""

    def __init__(self, weed: Weed) -> None:
        super().__init__(weed.url, region="us-east-1", credentials=lambda: Credentials(ACCESS_KEY, SECRET_KEY))
        self.asked: list[str] = []
        self.encrypted = ""
        self.closed = ""
        #: completes uploads whatever the condition says
        self.careless = False

    def request(self, method: str, bucket: str, name: str = "", **more: Any) -> Answer:
        self.asked.append(f"{method} {bucket}")
        if self.careless and method == "POST":
            more["headers"] = {}
        if bucket == self.closed and method == "DELETE":
            return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        answer = super().request(method, bucket, name, **more)
        if bucket == self.encrypted and method == "PUT":
            return Answer(answer.status, {**answer.headers, "etag": f'"{"0" * 32}"'}, answer.body)
        return answer


@pytest.fixture
def endpoint(weed: Weed) -> Iterator[Counting]:
    endpoint = Counting(weed)
    yield endpoint
    endpoint.close()


def names_in(weed: Weed, bucket: str) -> str:
    return weed.endpoint.request("GET", bucket, query={"list-type": "2"}).text("KeyCount")


def test_of_a_further_bucket_of_an_endpoint_only_its_own_is_asked(weed: Weed, endpoint: Counting) -> None:
    first, second = weed.bucket(), weed.bucket()
    found = probe_bucket(endpoint, first)
    assert found[0].copies_new
    assert len(endpoint.asked) > 10
    endpoint.asked.clear()
    assert probe_bucket(endpoint, second, prefix="below/") == found
    assert endpoint.asked == [f"PUT {second}", f"DELETE {second}"]
    assert (names_in(weed, first), names_in(weed, second)) == ("0", "0")


def test_whether_etags_are_hashes_is_each_buckets_own(weed: Weed, endpoint: Counting) -> None:
    first, endpoint.encrypted = weed.bucket(), weed.bucket()
    assert probe_bucket(endpoint, first)[0].etags_are_md5
    able, _ = probe_bucket(endpoint, endpoint.encrypted)
    assert able.copies_new
    assert not able.etags_are_md5
    assert S3Bucket(endpoint, endpoint.encrypted).in_parts == PartAbilities()


def test_what_one_bucket_does_not_allow_is_not_taken_for_the_endpoints_own(weed: Weed, endpoint: Counting) -> None:
    endpoint.closed, open_one = weed.bucket(), weed.bucket()
    assert not probe_bucket(endpoint, endpoint.closed)[0].deletes_version
    assert probe_bucket(endpoint, open_one)[0].deletes_version
    assert not probe_bucket(endpoint, endpoint.closed)[0].deletes_version


def test_whether_completing_an_upload_overwrites_is_found_out(weed: Weed, endpoint: Counting) -> None:
    bucket, further = weed.bucket(), weed.bucket()
    assert probe_parts(endpoint, bucket, prefix="below/") == PartAbilities(
        completes_new=True, copies_parts=True, copies_ranges=True
    )
    assert names_in(weed, bucket) == "0"
    assert weed.endpoint.request("GET", bucket, query={"uploads": ""}).text("UploadId") == ""
    endpoint.asked.clear()
    assert probe_parts(endpoint, further).completes_new
    assert endpoint.asked == []
    probes._known.clear()
    endpoint.careless = True
    assert not probe_parts(endpoint, bucket).completes_new
    assert names_in(weed, bucket) == "0"
