"""Small objects of a batch from bucket to bucket in one thread, on a real S3 server: as one by one, or declined with nothing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import NodeMissing
from rebalance_tasks.core.pacing import choice as choices
from rebalance_tasks.core.pacing.choice import Choice
from rebalance_tasks.drivers.object_stores import crossing as object_crossing
from rebalance_tasks.drivers.object_stores.burst import ObjectBurst
from rebalance_tasks.drivers.object_stores.crossing import SMALL_BYTES, Crossing
from rebalance_tasks.drivers.s3.answers import bare_etag
from rebalance_tasks.embedded import HOST
from rebalance_tasks.migration.control import Interrupt, SliceInterrupted
from tests.integration.test_s3_direct import GIVEN, Node, kept
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.places import S3Place
from tests.support.tls import Authority, Front
from tests.support.weed import ACCESS_KEY, OTHER_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rebalance_tasks.drivers.s3.http import Answer
    from tests.conftest import FleetFactory
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

AT_ONCE = 5
KEYS = [f"o/{number:02d}" for number in range(24)]
ACCOUNTS = pytest.mark.parametrize("account", [ACCESS_KEY, OTHER_KEY], ids=["one account", "two accounts"])


@pytest.fixture
def source(weed: Weed) -> Node:
    made = Node(weed, "n1")
    for key in KEYS:
        made.bucket.put(key, made_up(key, 3000), {**GIVEN, "tags": ""}, new=True)
    return made


def copy(
    source: Node,
    target: Node,
    keys: list[str],
    spend: Callable[[int], None] = lambda _: None,
    *,
    then: Callable[[], object] = lambda: None,
) -> list[bool]:
    """Copy what is there, and meanwhile something happened."""
    found = source.driver.versions(keys)
    then()
    burst = ObjectBurst(source.driver, target.driver)
    return list(burst.copy([(key, found[key]) for key in keys], spend, at_once=AT_ONCE))


@ACCOUNTS
def test_what_crosses_is_whole_and_has_what_belongs_to_it(weed: Weed, source: Node, account: str) -> None:
    target = Node(weed, "n2", account)
    spent: list[int] = []
    assert copy(source, target, KEYS, spent.append) == [True] * len(KEYS)
    for key in KEYS:
        attributes, data = kept(target, key)
        assert data == made_up(key, 3000)
        assert attributes == {name: value for name, value in GIVEN.items() if name != "tags"}
    assert spent == [3000] * len(KEYS)
    assert target.endpoint.asked["PUT"] == len(KEYS)


@ACCOUNTS
def test_what_cannot_cross_is_declined_and_nothing_of_it_changes(weed: Weed, source: Node, account: str) -> None:
    target = Node(weed, "n2", account)
    source.bucket.put("o/large", made_up("large", SMALL_BYTES + 1), {}, new=True)
    target.bucket.put("o/03", b"a stranger's", {}, new=True)
    keys = [*KEYS, "o/large"]

    def meanwhile() -> None:
        source.bucket.put("o/01", b"newer", {}, new=False)
        source.bucket.delete("o/02")

    copied = copy(source, target, keys, then=meanwhile)
    assert [key for key, done in zip(keys, copied, strict=True) if not done] == ["o/01", "o/02", "o/03", "o/large"]
    assert kept(target, "o/03")[1] == b"a stranger's"
    assert sorted(target.driver.list_objects().keys) == sorted({*KEYS, "o/03"} - {"o/01", "o/02"})


def test_tags_are_not_left_behind(weed: Weed, source: Node) -> None:
    target = Node(weed, "n2", OTHER_KEY)
    source.bucket.put("o/tagged", b"data", GIVEN, new=True)
    assert copy(source, target, ["o/tagged"]) == [False]
    assert target.driver.stat("o/tagged") is None


@pytest.mark.parametrize("way", [("GET", "received"), ("PUT", "sent")], ids=["from the source", "to the target"])
def test_a_bit_that_flips_on_either_way_is_refused_by_the_store(weed: Weed, source: Node, way: tuple[str, str]) -> None:
    target = Node(weed, "n2", OTHER_KEY)
    line = (source if way[0] == "GET" else target).endpoint.line
    copied = copy(source, target, KEYS, then=lambda: line.flips.append(way))
    assert copied.count(False) == 1
    assert target.driver.list_objects().keys == [key for key, done in zip(KEYS, copied, strict=True) if done]


@ACCOUNTS
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_line_that_breaks_is_the_trouble_of_one_object_alone(
    weed: Weed, source: Node, account: str, when: str
) -> None:
    target = Node(weed, "n2", account)
    getattr(target.endpoint.line, when).append(("PUT", ConnectionResetError()))
    copied = copy(source, target, KEYS)
    assert copied.count(False) == 1
    # Where only the answer was lost it is at its key all the same, as its journal said that it would be.
    at_key = [key for key, done in zip(KEYS, copied, strict=True) if done or when == "after"]
    assert target.driver.list_objects().keys == at_key


@ACCOUNTS
def test_a_copy_that_shows_another_etag_is_taken_away_again(weed: Weed, source: Node, account: str) -> None:
    target = Node(weed, "n2", account)
    [key] = keys = KEYS[:1]
    etag = source.version(key).etag

    def replaced_meanwhile(answer: Answer) -> Answer:
        target.endpoint.line.rewrite.clear()
        shown = target.bucket.put(key, made_up("other", 3000), {}, new=False)
        body = answer.body.replace(etag.encode(), shown.encode())
        return replace(answer, headers={**answer.headers, "etag": f'"{shown}"'}, body=body)

    target.endpoint.line.rewrite["PUT"] = replaced_meanwhile
    assert copy(source, target, keys) == [False]
    assert target.driver.stat(key) is None


class Clock:
    """Tells a time that passes with each request of a server, by what it costs there."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs, self.now = costs, 0.0

    def __call__(self) -> float:
        return self.now

    def watch(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let time pass with what a node's endpoint is asked."""
        begin = node.endpoint.begin

        def begin_and_pass(method: str, *arguments: Any, **more: Any) -> Any:
            copies = "x-amz-copy-source" in more["headers"]
            self.now += self.costs["COPY" if copies else method]
            return begin(method, *arguments, **more)

        monkeypatch.setattr(node.endpoint, "begin", begin_and_pass)


@pytest.mark.parametrize(("copying", "reads"), [(9.0, 1), (1.0, 0)], ids=["a copy costs more", "a copy costs less"])
def test_between_buckets_of_one_account_whole_stretches_show_which_way_takes_less(
    weed: Weed, source: Node, monkeypatch: pytest.MonkeyPatch, copying: float, reads: int
) -> None:
    target = Node(weed, "n2")
    monkeypatch.setattr(choices, "LEAST_TRIED", 4)
    monkeypatch.setattr(choices, "TRIED", 4)
    clock = Clock({"COPY": copying, "GET": 1.0, "PUT": 1.0})
    for node in (source, target):
        clock.watch(node, monkeypatch)
    crossing = Crossing(source.bucket, target.bucket, clock=clock)
    versions = source.driver.versions(KEYS)
    named = [(source.driver.name_of(key), target.driver.name_of(key), versions[key]) for key in KEYS]
    source.endpoint.asked.clear()
    assert list(crossing.carry(named, lambda _: None, at_once=AT_ONCE)) == [True] * len(KEYS)
    # Four by each way, then the rest by the better one.
    assert source.endpoint.asked["GET"] == 4 + reads * (len(KEYS) - 8)
    assert {key: kept(target, key)[1] for key in KEYS} == {key: made_up(key, 3000) for key in KEYS}
    known = object_crossing._choices[target.endpoint.url, source.bucket.name, target.bucket.name]
    assert (known.better, known.since) == (reads, len(KEYS) - 8)


def test_a_stretch_that_waited_for_the_throttle_tells_nothing_of_the_ways(
    weed: Weed, source: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Node(weed, "n2")
    monkeypatch.setattr(choices, "LEAST_TRIED", 4)
    monkeypatch.setattr(choices, "TRIED", 4)
    clock = Clock({"COPY": 9.0, "GET": 1.0, "PUT": 1.0})
    for node in (source, target):
        clock.watch(node, monkeypatch)

    def spend(_: int) -> None:
        clock.now += 100.0

    crossing = Crossing(source.bucket, target.bucket, clock=clock)
    versions = source.driver.versions(KEYS)
    named = [(source.driver.name_of(key), target.driver.name_of(key), versions[key]) for key in KEYS]
    assert list(crossing.carry(named, spend, at_once=AT_ONCE)) == [True] * len(KEYS)
    known = object_crossing._choices[target.endpoint.url, source.bucket.name, target.bucket.name]
    assert known == Choice(since=len(KEYS) - 8)


def test_flags_are_looked_at_before_each_object_and_what_is_under_way_is_finished(weed: Weed, source: Node) -> None:
    target = Node(weed, "n2", OTHER_KEY)
    left = [9]

    def spend(_: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise SliceInterrupted(Interrupt.PAUSED)

    with pytest.raises(SliceInterrupted):
        copy(source, target, KEYS, spend)
    assert target.driver.list_objects().keys == KEYS[:9]


@ACCOUNTS
def test_a_job_moves_everything_whatever_the_burst_declines(
    weed: Weed, fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """Each fourth answer of a crossing is lost."""
    sizes = dict.fromkeys(KEYS, 1000)
    places = {"n1": S3Place(weed.bucket(), "", weed.options())}
    places["n2"] = S3Place(weed.bucket(), "", weed.options(access_key=account))
    nodes = {
        name: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for name, place in places.items()
    }
    for key, size in sizes.items():
        places["n1"].put(key, made_up(key, size))
    fleet_config(nodes, options={"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9})
    answers = [0]

    def lost_at_times(etag: str) -> str:
        answers[0] += 1
        if answers[0] % 4 == 0:
            raise ConnectionResetError
        return bare_etag(etag)

    monkeypatch.setattr("rebalance_tasks.drivers.object_stores.crossing.bare_etag", lost_at_times)
    engine = Engine()
    engine.start(moves_between("n1", "n2", sizes))
    job = engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(sizes), {})
    assert answers[0] == len(sizes)
    assert {key: places["n2"].get(key) for key in KEYS} == {key: made_up(key, 1000) for key in KEYS}


def test_objects_cross_by_tls_and_a_server_that_nobody_vouches_for_is_not_spoken_to(
    weed: Weed, source: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.make(tmp_path)
    with Front(weed.port, authority.server()) as front:
        url = f"https://{HOST}:{front.port}"
        with pytest.raises(NodeMissing, match="certificate verify failed"):
            Node(weed, "n2", OTHER_KEY, url=url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        target = Node(weed, "n2", OTHER_KEY, url=url)
        assert copy(source, target, KEYS) == [True] * len(KEYS)
        assert front.by_tls
        assert {key: kept(target, key)[1] for key in KEYS} == {key: made_up(key, 3000) for key in KEYS}
        target.endpoint.close()
