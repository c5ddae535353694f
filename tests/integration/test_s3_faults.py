"""A bad line to a real S3 server, and what else goes wrong with a bucket: clear errors, nothing torn, nothing left behind."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    ConfigurationError,
    InvalidKey,
    NodeMissing,
    NodeNotWritable,
    ObjectUnreadable,
    SourceChanged,
)
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.object_stores.files import WINDOW_BYTES
from rebalance_tasks.drivers.registry import open_driver, validate_roots
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.drivers.s3.http import TRIES, Answer
from rebalance_tasks.drivers.s3.http_line import Garbled
from rebalance_tasks.drivers.s3.signing import Credentials
from tests.support.bad_line import SLOW_DOWN, BadLine, Line
from tests.support.fleets import made_up
from tests.support.weed import ACCESS_KEY, SECRET_KEY
from tests.unit.drivers.conformance import read_all, stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

M1 = MoveId("job-1.0")
DATA = made_up("data", 50_000)


@pytest.fixture
def bucket(weed: Weed) -> str:
    return weed.bucket()


@pytest.fixture
def endpoint(weed: Weed) -> BadLine:
    return BadLine(weed.url)


@pytest.fixture
def driver(endpoint: BadLine, bucket: str) -> ObjectStoreDriver:
    made = ObjectStoreDriver("n1", S3Bucket(endpoint, bucket))
    made.adopt()
    return made


TROUBLES: dict[str, Callable[[Line, str], None]] = {
    "reset": lambda line, method: line.before.append((method, ConnectionResetError("reset by peer"))),
    "answer lost": lambda line, method: line.after.append((method, Garbled("cut off"))),
    "503": lambda line, method: line.answers.append((method, 503, b"")),
    # What has no body says it with its status.
    "slow down": lambda line, method: line.answers.append((method, 503 if method == "HEAD" else 400, SLOW_DOWN)),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_passing_trouble_on_any_request_is_tried_again_and_changes_nothing(
    driver: ObjectStoreDriver, endpoint: BadLine, trouble: str
) -> None:
    strike = TROUBLES[trouble]
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        strike(endpoint.line, method)
    stage(driver, M1, DATA)
    strike(endpoint.line, "HEAD")
    staged = driver.staged(M1)
    assert staged is not None
    strike(endpoint.line, "DELETE")
    published = driver.publish(M1, "k", expected=staged)
    strike(endpoint.line, "GET")
    assert read_all(driver, "k") == DATA
    strike(endpoint.line, "PUT")
    assert driver.free("k", MoveId("job-1.1"), published).value == "freed"
    strike(endpoint.line, "GET")
    assert driver.list_objects().keys == []


def test_a_copy_whose_answer_is_lost_is_found_at_its_key_by_the_engine_and_never_made_twice(
    driver: ObjectStoreDriver, endpoint: BadLine
) -> None:
    staged = stage(driver, M1, DATA)
    endpoint.line.after.append(("PUT", ConnectionResetError()))
    with pytest.raises(Exception, match="something else is at this key"):
        driver.publish(M1, "k", expected=staged)
    found = driver.stat("k")
    assert found is not None
    assert found.same_file(staged)


def test_a_server_that_stays_away_makes_the_node_missing_and_never_empty(
    driver: ObjectStoreDriver, endpoint: BadLine
) -> None:
    endpoint.line.down = True
    for call in (driver.list_objects, driver.check_identity, lambda: driver.stat("k"), lambda: stage(driver, M1, DATA)):
        with pytest.raises(NodeMissing, match=rf"does not answer: .*refused \({TRIES} tries\)"):
            call()


def test_a_bit_that_flips_on_the_way_in_is_refused_by_the_server_and_sent_again(
    driver: ObjectStoreDriver, endpoint: BadLine
) -> None:
    assert driver.checks_writes
    endpoint.line.flips.append(("PUT", "sent"))
    stage(driver, M1, DATA)
    driver.publish(M1, "k")
    assert read_all(driver, "k") == DATA
    assert not endpoint.line.flips


def test_bits_that_always_flip_on_the_way_in_fail_the_object_and_leave_nothing(
    driver: ObjectStoreDriver, endpoint: BadLine
) -> None:
    endpoint.line.flips.extend([("PUT", "sent")] * 10)
    with pytest.raises(ChecksumMismatch, match="BadDigest"):
        stage(driver, M1, DATA)
    assert driver.staged(M1) is None


def test_a_bit_that_flips_on_the_way_out_is_noticed_and_read_again(
    driver: ObjectStoreDriver, endpoint: BadLine
) -> None:
    stage(driver, M1, DATA)
    driver.publish(M1, "k")
    endpoint.line.flips.append(("GET", "received"))
    assert read_all(driver, "k") == DATA
    endpoint.line.flips.extend([("GET", "received")] * 10)
    with pytest.raises(ObjectUnreadable, match="other bytes than its ETag says"):
        driver.open_source("k")


def test_an_object_that_is_replaced_while_it_is_read_is_not_read_on(driver: ObjectStoreDriver, bucket: str) -> None:
    door = driver.bucket
    door.put("k", bytes(WINDOW_BYTES + 10), {}, new=False)
    with driver.open_source("k") as source:
        buffer = memoryview(bytearray(WINDOW_BYTES))
        assert source.readinto(buffer) == WINDOW_BYTES
        door.put("k", b"x" * (WINDOW_BYTES + 10), {}, new=False)
        with pytest.raises(SourceChanged):
            source.readinto(buffer)


def test_a_clock_that_is_off_is_put_right_by_the_servers(weed: Weed, bucket: str) -> None:
    late = BadLine(weed.url, clock=lambda: datetime.now(UTC) - timedelta(hours=2))
    made = ObjectStoreDriver("n1", S3Bucket(late, bucket))
    made.adopt()
    made.check_identity()


@pytest.mark.parametrize(
    "keys", [Credentials("nobody", SECRET_KEY), Credentials(ACCESS_KEY, "wrong")], ids=["unknown", "wrong"]
)
def test_credentials_that_do_not_fit_are_told_without_showing_them(
    weed: Weed, driver: ObjectStoreDriver, bucket: str, keys: Credentials
) -> None:
    stranger = ObjectStoreDriver("n1", S3Bucket(BadLine(weed.url, credentials=lambda: keys), bucket))
    for call in (stranger.probe, stranger.check_identity, stranger.list_objects):
        with pytest.raises(NodeNotWritable, match="check the credentials") as caught:
            call()
        assert keys.secret_key not in str(caught.value)
    assert keys.secret_key not in repr(keys)


def test_credentials_that_expire_are_asked_for_anew_with_each_request(weed: Weed, bucket: str) -> None:
    held = [Credentials(ACCESS_KEY, "expired"), Credentials(ACCESS_KEY, SECRET_KEY)]
    renewing = ObjectStoreDriver("n1", S3Bucket(BadLine(weed.url, credentials=lambda: held[0]), bucket))
    with pytest.raises(NodeNotWritable, match="renew them, if they expire"):
        renewing.probe()
    held.pop(0)
    renewing.probe()
    renewing.adopt()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_bucket_that_keeps_versions_is_refused_unless_it_is_wanted(weed: Weed, bucket: str, allowed: bool) -> None:
    enable = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    assert weed.endpoint.request("PUT", bucket, query={"versioning": ""}, body=enable).ok
    made = ObjectStoreDriver("n1", S3Bucket(weed.endpoint, bucket, allow_versions=allowed))
    if allowed:
        made.probe()
        return
    with pytest.raises(NodeNotWritable, match=r"keeps old versions.*storage_options\.allow_versions = true"):
        made.probe()


@pytest.mark.parametrize("about", [b"VersioningConfiguration", b"ObjectLockConfiguration"])
def test_a_bucket_that_may_not_be_asked_for_versions_and_locks_is_not_taken_for_one_without(
    weed: Weed, endpoint: BadLine, bucket: str, about: bytes
) -> None:
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    endpoint.line.rewrite["GET"] = lambda answer: Answer(403, {}, denied) if about in answer.body else answer
    with pytest.raises(NodeNotWritable, match=r"s3:GetBucketVersioning.*allow_versions = true"):
        ObjectStoreDriver("n1", S3Bucket(endpoint, bucket)).probe()
    ObjectStoreDriver("n1", S3Bucket(endpoint, bucket, allow_versions=True)).probe()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_bucket_that_locks_its_objects_is_refused_unless_it_is_wanted(weed: Weed, allowed: bool) -> None:
    name = f"locked-{uuid.uuid4().hex[:8]}"
    assert weed.endpoint.request("PUT", name, headers={"x-amz-bucket-object-lock-enabled": "true"}).ok
    made = ObjectStoreDriver("n1", S3Bucket(weed.endpoint, name, allow_versions=allowed))
    if not allowed:
        with pytest.raises(NodeNotWritable, match=r"storage_options\.allow_versions = true"):
            made.probe()
        return
    made.probe()
    made.adopt()
    made.bucket.put("k", DATA, {}, new=True)
    hold = b"<LegalHold><Status>ON</Status></LegalHold>"
    assert weed.endpoint.request("PUT", name, "k", query={"legal-hold": ""}, body=hold).ok
    version = made.stat("k")
    assert version is not None
    # Freed: readers see nothing at its key any more. The version under the lock stays, and takes its room.
    assert made.free("k", M1, version).value == "freed"
    assert made.stat("k") is None
    versions = weed.endpoint.request("GET", name, query={"versions": "", "prefix": "k"})
    assert versions.body.count(b"<Version>") == 1


@pytest.mark.parametrize("key", ["a//b", "a/./b", "a\\b", "x" * 1025, ".rebalance/x"])
def test_a_key_that_the_bucket_cannot_hold_is_refused_for_itself_alone(driver: ObjectStoreDriver, key: str) -> None:
    stage(driver, M1, DATA)
    with pytest.raises(InvalidKey):
        driver.publish(M1, key)
    assert driver.staged(M1) is not None
    driver.publish(M1, "k")
    assert driver.list_objects().keys == ["k"]


def test_a_bucket_that_is_not_there_is_a_missing_node(weed: Weed) -> None:
    made = ObjectStoreDriver("n1", S3Bucket(weed.endpoint, "no-such-bucket"))
    with pytest.raises(NodeMissing, match="no bucket 'no-such-bucket'"):
        made.probe()


# -- configuration ----------------------------------------------------------------------------------------------------
def node(url: str, node_id: str = "n1", **options: Any) -> NodeDescriptor:
    return NodeDescriptor(node_id=node_id, url=url, storage_options=options)


@pytest.mark.parametrize(
    ("url", "options", "way_out"),
    [
        ("s3://", {}, "write s3://bucket"),
        ("s3:///prefix", {}, "write s3://bucket"),
        ("s3://bucket/a/../b", {}, "write s3://bucket"),
        ("s3://bucket/a?b", {}, "%3F"),
        ("s3://bucket", {"endpoint": "http://x"}, r"endpoint: Extra inputs.*known: endpoint_url"),
        ("s3://bucket", {"endpoint_url": "s3.example"}, "https://s3.example"),
        ("s3://bucket", {"access_key_id": "AKIA"}, "both access_key_id and secret_access_key"),
        ("s3://bucket", {"free": "burn"}, "free"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(url: str, options: dict[str, Any], way_out: str) -> None:
    with pytest.raises(ConfigurationError, match=way_out):
        open_driver(node(url, **options))


def test_a_secret_is_not_shown_by_an_error_about_it() -> None:
    options: dict[str, Any] = {"secret_access_key": ["s3cr3t"]}
    with pytest.raises(ConfigurationError, match="secret_access_key: Input should be a valid string") as caught:
        open_driver(node("s3://bucket", **options))
    assert "s3cr3t" not in str(caught.value)


def test_two_nodes_below_one_prefix_are_refused_and_side_by_side_are_fine() -> None:
    keys = {"access_key_id": "a", "secret_access_key": "b", "region": "eu-west-1"}
    validate_roots([node("s3://bucket/a", "n1", **keys), node("s3://bucket/ab", "n2", **keys)])
    elsewhere = node("s3://bucket/a", "n2", **keys, endpoint_url="https://s3.example")
    validate_roots([node("s3://bucket/a", "n1", **keys), elsewhere])
    for url in ("s3://bucket/a/", "s3://bucket/a/b", "s3://bucket"):
        with pytest.raises(ConfigurationError, match="side by side"):
            validate_roots([node("s3://bucket/a", "n1", **keys), node(url, "n2", **keys)])
