"""Small objects straight from bucket to bucket, and many freed by one request, on a real S3 server: few requests, nothing overwritten."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    NodeMissing,
    ObjectUnreadable,
    SourceChanged,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.lanes import MOST_AT_ONCE
from rebalance_tasks.drivers.object_stores.bucket import PartAbilities
from rebalance_tasks.drivers.object_stores.burst import ObjectBurst
from rebalance_tasks.drivers.object_stores.crossing import Crossing
from rebalance_tasks.drivers.object_stores.direct import COPIED_BYTES, SENT_BYTES
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.object_stores.files import LEAST_PART_BYTES
from rebalance_tasks.drivers.object_stores.key_uploads import KeyUploads
from rebalance_tasks.drivers.s3.bucket import DELETED_AT_ONCE, S3Bucket
from rebalance_tasks.drivers.s3.probe import Guard
from rebalance_tasks.drivers.s3.signing import Credentials
from rebalance_tasks.migration.control import SliceControl
from tests.support.bad_line import BadLine
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.places import S3Place
from tests.support.weed import ACCESS_KEY, OTHER_KEY, SECRET_KEY, weed_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.drivers.base import Fingerprint
    from tests.conftest import FleetFactory
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

GIVEN = {"content-type": "text/x-poem", "cache-control": "max-age=60", "meta:author": "somebody", "tags": "a=b"}
DATA = made_up("data", 50_000)
M1 = MoveId("job-1.0")


class Node:
    """A node, the line to it, and its bucket."""

    def __init__(self, weed: Weed, node_id: str, key: str = ACCESS_KEY, *, url: str = "", **more: Any) -> None:
        self.endpoint = BadLine(url or weed.url, credentials=lambda: Credentials(key, SECRET_KEY))
        self.bucket = S3Bucket(self.endpoint, weed.bucket())
        self.driver = ObjectStoreDriver(node_id, self.bucket, **more)
        self.driver.adopt()
        assert self.bucket.capabilities.deletes_versions
        self.endpoint.asked.clear()

    def version(self, key: str) -> Fingerprint:
        return self.driver.versions([key])[key]


@pytest.fixture
def source(weed: Weed) -> Node:
    made = Node(weed, "n1")
    made.bucket.put("k", DATA, GIVEN, new=True)
    return made


@pytest.fixture
def target(weed: Weed) -> Node:
    """Of another account, so that bytes go through the worker."""
    return Node(weed, "n2", OTHER_KEY)


def kept(node: Node, key: str) -> tuple[dict[str, str], bytes]:
    found, data = node.bucket.get(key, 0, 1 << 20)
    return {name: value for name, value in found.attributes.items() if name in GIVEN}, data


def test_a_small_object_of_another_account_takes_one_read_and_one_write_and_brings_what_belongs_to_it(
    source: Node, target: Node
) -> None:
    version = source.version("k")
    source.endpoint.asked.clear()
    assert target.driver.copy_from(source.driver, "k", version, M1) == version
    # Its tags are asked for apart.
    assert (source.endpoint.asked, target.endpoint.asked) == ({"GET": 2}, {"PUT": 1})
    assert kept(target, "k") == (GIVEN, DATA)
    found = target.driver.stat("k")
    assert found is not None
    assert found.same_file(version)
    assert found.mtime_ns == version.mtime_ns


LARGE = [os.urandom(LEAST_PART_BYTES), os.urandom(LEAST_PART_BYTES), b"and a little more"]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A server that keeps a part in one piece, so that a copied part shows the MD5 of its bytes, as on AWS; else it shows that of its pieces."""
    with weed_server(tmp_path_factory.mktemp("weed"), "-filer.maxMB=64") as server:
        yield server


@pytest.fixture
def uploader(uncut: Weed) -> Node:
    """Whose large object is copied."""
    return Node(uncut, "n1")


def uploaded(source: Node, parts: Sequence[bytes] = LARGE) -> Fingerprint:
    """An object that was uploaded in parts."""
    upload_id, _ = source.bucket.begin("large", GIVEN)
    etags = [(n, source.bucket.part("large", upload_id, n, data)) for n, data in enumerate(parts, 1)]
    source.bucket.complete("large", upload_id, etags)
    source.endpoint.asked.clear()
    return source.version("large")


@pytest.fixture(params=["in one request", "part by part"])
def of_account(request: pytest.FixtureRequest, uncut: Weed) -> Node:
    """A node whose server copies uploads in parts as they are; or would make one part of them, as AWS does, and is asked for each."""
    made = Node(uncut, "n3")
    able = made.bucket.in_parts
    assert able == PartAbilities(completes_new=True, copies_parts=True, copies_ranges=True)
    made.bucket.__dict__["in_parts"] = able._replace(copies_parts=request.param == "in one request")
    made.endpoint.asked.clear()
    return made


def left_of(node: Node) -> list[str]:
    below = [item.name for page in node.bucket.pages(".rebalance/tmp/") for item in page]
    return below + [upload.name for upload in node.bucket.uploads("")]


def test_an_object_that_was_uploaded_in_parts_is_copied_by_the_server_with_what_belongs_to_it(
    uploader: Node, of_account: Node
) -> None:
    version = uploaded(uploader)
    assert version.etag.endswith("-3")
    assert of_account.driver.copy_from(uploader.driver, "large", version, M1) == version
    assert of_account.driver.stat("large").same_file(version)  # type: ignore[union-attr]
    found, data = of_account.bucket.get("large", 0, None)
    assert data == b"".join(LARGE)
    assert {name: value for name, value in found.attributes.items() if name in GIVEN} == GIVEN
    assert left_of(of_account) == []


def test_of_what_goes_wrong_with_such_a_copy_nothing_is_left(uploader: Node, of_account: Node) -> None:
    version = uploaded(uploader)
    of_account.bucket.put("large", b"a stranger's", {}, new=True)
    with pytest.raises(TargetExists):
        of_account.driver.copy_from(uploader.driver, "large", version, M1)
    assert of_account.bucket.get("large", 0, None)[1] == b"a stranger's"
    of_account.bucket.delete("large")
    uploader.bucket.put("large", b"newer", {}, new=False)
    with pytest.raises(SourceChanged):
        of_account.driver.copy_from(uploader.driver, "large", version, M1)
    uploader.bucket.delete("large")
    with pytest.raises(SourceVanished):
        of_account.driver.copy_from(uploader.driver, "large", version, M1)
    assert of_account.driver.stat("large") is None
    assert left_of(of_account) == []


@pytest.mark.parametrize("of_account", ["part by part"], indirect=True)
def test_parts_of_many_sizes_are_not_copied_so_and_go_the_long_way(uploader: Node, of_account: Node) -> None:
    version = uploaded(uploader, [LARGE[0], LARGE[1] + b"longer", LARGE[2]])
    with pytest.raises(ChecksumMismatch, match="do not make the original's ETag"):
        of_account.driver.copy_from(uploader.driver, "large", version, M1)
    assert of_account.driver.stat("large") is None
    assert left_of(of_account) == []


@pytest.mark.parametrize("of_account", ["part by part"], indirect=True)
def test_an_upload_that_somebody_throws_away_in_the_middle_is_not_taken_for_a_source_that_is_gone(
    uploader: Node, of_account: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = uploaded(uploader)
    original = S3Bucket.copy_part

    def copy_part(self: S3Bucket, name: str, upload_id: str, *rest: Any) -> str:
        self.abort(name, upload_id)
        return original(self, name, upload_id, *rest)

    monkeypatch.setattr(S3Bucket, "copy_part", copy_part)
    with pytest.raises(ChecksumMismatch):
        of_account.driver.copy_from(uploader.driver, "large", version, M1)
    assert left_of(of_account) == []


@pytest.mark.parametrize("of_account", ["part by part"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (KeyUploads, "_mark"),
        (S3Bucket, "begin"),
        (S3Bucket, "copy_part"),
        (KeyUploads, "whole"),
        (S3Bucket, "complete"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_death_anywhere_in_such_a_copy_leaves_what_a_successor_finds(
    uploader: Node, of_account: Node, monkeypatch: pytest.MonkeyPatch, kind: type, step: str
) -> None:
    version = uploaded(uploader)
    original = getattr(kind, step)

    def die_after(*arguments: Any, **more: Any) -> None:
        original(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(kind, step, die_after)
        dying.setattr(KeyUploads, "forget_all", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            of_account.driver.copy_from(uploader.driver, "large", version, M1)
    successor = ObjectStoreDriver("n3", of_account.bucket)
    assert [move_id for move_id, _ in successor.list_staged()] == [M1]
    if successor.stat("large") is None:
        assert successor.copy_from(uploader.driver, "large", version, M1) == version
    else:
        assert step == "complete"
        successor.discard(M1)
    assert successor.stat("large").same_file(version)  # type: ignore[union-attr]
    assert left_of(of_account) == []


def test_an_empty_object_goes_straight_too(source: Node, target: Node) -> None:
    source.bucket.put("empty", b"", {}, new=True)
    target.driver.copy_from(source.driver, "empty", source.version("empty"), M1)
    assert kept(target, "empty")[1] == b""


def test_what_is_at_the_key_is_never_overwritten(source: Node, target: Node) -> None:
    target.bucket.put("k", b"a stranger's", {}, new=True)
    with pytest.raises(TargetExists):
        target.driver.copy_from(source.driver, "k", source.version("k"), M1)
    assert kept(target, "k")[1] == b"a stranger's"


def test_a_version_that_is_there_no_more_is_not_sent(source: Node, target: Node) -> None:
    version = source.version("k")
    source.bucket.put("k", b"newer", {}, new=False)
    with pytest.raises(SourceChanged):
        target.driver.copy_from(source.driver, "k", version, M1)
    source.bucket.delete("k")
    with pytest.raises(SourceVanished):
        target.driver.copy_from(source.driver, "k", version, M1)
    assert target.driver.stat("k") is None


def test_a_bit_that_flips_on_either_way_is_noticed_before_anything_is_at_the_key(source: Node, target: Node) -> None:
    version = source.version("k")
    source.endpoint.line.flips.append(("GET", "received"))
    target.endpoint.line.flips.append(("PUT", "sent"))
    target.driver.copy_from(source.driver, "k", version, M1)
    assert kept(target, "k")[1] == DATA
    target.bucket.delete("k")
    source.endpoint.line.flips.extend([("GET", "received")] * 10)
    with pytest.raises(ObjectUnreadable):
        target.driver.copy_from(source.driver, "k", version, M1)
    source.endpoint.line.flips.clear()
    target.endpoint.line.flips.extend([("PUT", "sent")] * 10)
    with pytest.raises(ChecksumMismatch):
        target.driver.copy_from(source.driver, "k", version, M1)
    assert target.driver.stat("k") is None


def test_what_is_put_is_held_against_the_originals_hash_by_the_server_or_by_us(source: Node, target: Node) -> None:
    """A read that nobody compared is refused by the server; where it would not look, we do."""
    version, able = source.version("k"), target.bucket.capabilities
    assert able.checks_md5
    for checks in (True, False):
        target.bucket.__dict__["_probed"] = (replace(able, checks_md5=checks), Guard.SHA256)
        target.endpoint.asked.clear()
        source.endpoint.line.flips.append(("GET", "received"))
        assert target.driver.copy_from(source.driver, "k", version, M1) == version
        assert kept(target, "k")[1] == DATA
        assert target.endpoint.asked["PUT"] == (2 if checks else 1)
        target.bucket.delete("k")


def test_a_put_whose_answer_is_lost_is_recognised_as_ours(source: Node, target: Node) -> None:
    version = source.version("k")
    target.endpoint.line.after.append(("PUT", ConnectionResetError()))
    assert target.driver.copy_from(source.driver, "k", version, M1) == version
    assert target.endpoint.asked["PUT"] == 2


def test_a_source_or_a_target_that_stays_away_is_a_missing_node_of_its_own_name(source: Node, target: Node) -> None:
    version = source.version("k")
    for node, name in ((source, "n1"), (target, "n2")):
        node.endpoint.line.down = True
        with pytest.raises(NodeMissing) as caught:
            target.driver.copy_from(source.driver, "k", version, M1)
        assert caught.value.node_id == name
        node.endpoint.line.down = False


def test_how_large_an_object_may_be_is_said_by_what_the_endpoint_was_found_to_do(
    weed: Weed, source: Node, target: Node
) -> None:
    of_account = Node(weed, "n3")
    assert target.driver.direct_bytes(source.driver) == SENT_BYTES
    assert target.driver.direct_bytes(source.driver, in_parts=True) == 0
    assert of_account.driver.direct_bytes(source.driver) == COPIED_BYTES
    assert of_account.driver.direct_bytes(source.driver, in_parts=True) == COPIED_BYTES
    target.bucket.__dict__["_probed"] = (replace(target.bucket.capabilities, checks_writes=False), None)
    of_account.bucket.__dict__["in_parts"] = of_account.bucket.in_parts._replace(completes_new=False)
    assert target.driver.direct_bytes(source.driver) == 0
    assert of_account.driver.direct_bytes(source.driver) == COPIED_BYTES
    assert of_account.driver.direct_bytes(source.driver, in_parts=True) == 0


def test_an_endpoint_whose_etags_are_no_md5_is_never_sent_to_directly(weed: Weed, source: Node) -> None:
    """As with server-side encryption by keys of one's own."""
    endpoint = BadLine(weed.url)
    endpoint.line.rewrite["PUT"] = lambda answer: replace(answer, headers={**answer.headers, "etag": '"opaque"'})
    opaque = ObjectStoreDriver("n2", S3Bucket(endpoint, weed.bucket()))
    assert not opaque.bucket.capabilities.etags_are_md5
    assert opaque.direct_bytes(source.driver) == 0


def test_a_copy_that_shows_another_etag_is_taken_away_again(source: Node, target: Node) -> None:
    version = source.version("k")
    wrong = version._replace(etag="0" * 32)
    source.endpoint.line.rewrite["GET"] = lambda answer: answer
    with pytest.raises(SourceChanged):
        target.driver.copy_from(source.driver, "k", wrong, M1)
    target.endpoint.line.rewrite["PUT"] = lambda answer: replace(
        answer, headers={**answer.headers, "etag": answer.headers["etag"].replace(version.etag[:4], "ffff")}
    )
    target.endpoint.line.rewrite["DELETE"] = lambda answer: answer
    with pytest.raises((ChecksumMismatch, TargetExists)):
        target.driver.copy_from(source.driver, "k", version, M1)


# -- many freed at once -----------------------------------------------------------------------------------------------
def free_all(node: Node, versions: dict[str, Fingerprint]) -> list[bool]:
    moves = [(key, MoveId(f"j1.{number}"), version) for number, (key, version) in enumerate(versions.items())]
    return list(ObjectBurst(node.driver, node.driver).free([*moves, None]))


@pytest.mark.parametrize("trash", [False, True], ids=["delete", "trash"])
def test_many_are_freed_by_few_requests_and_what_changed_or_is_gone_is_left_to_be_settled(
    weed: Weed, trash: bool
) -> None:
    node = Node(weed, "n1", trash=trash)
    keys = [f"o/{number:03d}" for number in range(DELETED_AT_ONCE + 4)] + ["o/<&>\"' é"]
    for key in keys:
        node.bucket.put(key, key.encode(), {}, new=True)
    versions = node.driver.versions(keys)
    node.bucket.put("o/000", b"a stranger's", {}, new=False)
    node.bucket.delete("o/001")
    node.endpoint.asked.clear()
    freed = free_all(node, versions)
    assert freed == [False, False] + [True] * (len(keys) - 2) + [False]
    assert node.endpoint.asked["POST"] == 2
    assert node.endpoint.asked["DELETE"] == 0
    assert node.driver.list_objects().keys == ["o/000"]
    held = {entry.same_file(versions[keys[int(move[3:])]]) for move, entry, _ in node.driver.list_trash()}
    assert held == ({True} if trash else set())
    assert node.driver.free("o/000", MoveId("j1.0"), versions["o/000"]).value == "changed"
    assert node.driver.free("o/001", MoveId("j1.1"), versions["o/001"]).value == "gone"


def test_a_deletion_whose_answer_is_lost_leaves_nothing_undecided(source: Node) -> None:
    versions = source.driver.versions(["k"])
    source.endpoint.line.after.append(("POST", ConnectionResetError()))
    [freed, _] = free_all(source, versions)
    # The second try finds nothing, and so cannot say that it was this one.
    assert not freed
    assert source.driver.stat("k") is None
    bare = ObjectStoreDriver("n1", source.bucket, trash=False)
    assert bare.free("k", MoveId("j1.0"), versions["k"]).value == "gone"


def test_an_endpoint_that_deletes_whatever_version_is_there_is_not_asked_to_delete_many(weed: Weed) -> None:
    endpoint = BadLine(weed.url)
    plain = weed.endpoint.request

    def careless(answer: Any) -> Any:
        return replace(answer, body=answer.body.replace(b"<Error>", b"<Deleted>").replace(b"</Error>", b"</Deleted>"))

    endpoint.line.rewrite["POST"] = careless
    bucket = S3Bucket(endpoint, weed.bucket())
    assert not bucket.capabilities.deletes_versions
    assert plain("GET", bucket.name).ok
    driver = ObjectStoreDriver("n1", bucket)
    driver.adopt()
    bucket.put("k", DATA, {}, new=True)
    assert list(ObjectBurst(driver, driver).free([("k", MoveId("j1.0"), driver.versions(["k"])["k"])])) == [False]


# -- a job ------------------------------------------------------------------------------------------------------------
def test_the_throttle_is_asked_right_before_each_object_and_not_for_a_batch_beforehand(
    weed: Weed, fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {f"o/{number:02d}": 1000 for number in range(3 * MOST_AT_ONCE)}
    places = {"n1": S3Place(weed.bucket(), "", weed.options())}
    places["n2"] = S3Place(weed.bucket(), "", weed.options(access_key=OTHER_KEY))
    nodes = {
        name: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for name, place in places.items()
    }
    for key, size in sizes.items():
        places["n1"].put(key, made_up(key, size))
    fleet_config(nodes, options={"throttle_bytes_per_sec": "10MiB", "max_egress_bytes_per_cycle": 10**9})
    events: list[str] = []

    def noted(kind: Any, name: str) -> None:
        original = getattr(kind, name)

        def method(self: Any, *arguments: Any) -> Any:
            events.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(kind, name, method)

    noted(SliceControl, "spend")
    noted(Crossing, "_sent")
    engine = Engine()
    engine.start(moves_between("n1", "n2", sizes))
    job = engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(sizes), {})
    assert events.count("spend") == events.count("_sent") == len(sizes)
    ahead = [sum(1 if event == "spend" else -1 for event in events[:end]) for end in range(len(events) + 1)]
    assert min(ahead) >= 0
    assert max(ahead) == 1


def test_a_job_has_the_server_copy_what_was_uploaded_in_parts(weed: Weed, fleet_config: FleetFactory) -> None:
    places = {name: S3Place(weed.bucket(), "", weed.options()) for name in ("n1", "n2")}
    fleet_config(
        {
            name: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
            for name, place in places.items()
        },
        options={"max_egress_bytes_per_cycle": 10**9},
    )
    buckets = {name: S3Bucket(weed.endpoint, place.bucket) for name, place in places.items()}
    upload_id, _ = buckets["n1"].begin("large", GIVEN)
    etags = [(n, buckets["n1"].part("large", upload_id, n, data)) for n, data in enumerate(LARGE, 1)]
    etag = buckets["n1"].complete("large", upload_id, etags)
    engine = Engine()
    engine.start(moves_between("n1", "n2", {"large": sum(map(len, LARGE))}))
    job = engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (1, {})
    found, data = buckets["n2"].get("large", 0, None)
    # Through a worker it would have become one part.
    assert (found.etag, data) == (etag, b"".join(LARGE))
    assert buckets["n1"].head("large") is None
