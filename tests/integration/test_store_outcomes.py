"""What goes wrong with a bucket in the middle of a job: each object has an outcome of its own, and is at one place in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control.throttles import set_node_throttle
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.s3.bucket import S3Bucket
from rebalance_tasks.drivers.s3.signing import Credentials
from rebalance_tasks.migration import measured_burst
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.control import Interrupt, SliceControl, SliceInterrupted
from rebalance_tasks.store.pace import PaceStore
from tests.support import checker
from tests.support.bad_line import SLOW_DOWN, BadLine
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.hooks import DAY_MS
from tests.support.places import LocalPlace, Place, S3Place, SftpPlace
from tests.support.weed import ACCESS_KEY, OTHER_KEY, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rebalance_tasks.drivers.s3.http import Answer, Begun
    from tests.conftest import FleetFactory
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = pytest.mark.integration

SIZES = {f"o/{number}": 2000 + number for number in range(8)}


@dataclass
class World:
    """Two nodes, and the line to those that are buckets."""

    engine: Engine
    places: dict[str, Place]
    lines: dict[str, BadLine]
    folder: Path

    def spoil(self, node: str, url: str, **line: Any) -> BadLine:
        """Let the job reach a bucket by a bad line from now on."""
        self.lines[node] = made = BadLine(url, **line)
        self.bucket(node).endpoint = made
        return made

    def bucket(self, node: str) -> S3Bucket:
        return cast("S3Bucket", cast("ObjectStoreDriver", self.engine.context.driver(node)).bucket)

    def check(self, *, at: str) -> None:
        """After a cleanup every object is whole, once, where it is said to be, and nothing of ours is left."""
        self.engine.cleanup(later_ms=DAY_MS)
        roots = {node: place.mirror(self.folder / f"mirror-{node}") for node, place in self.places.items()}
        written = checker.Written({}, dict.fromkeys(SIZES, "n1"))
        for key, size in SIZES.items():
            written = written.changed(key, made_up(key, size))
        checker.check(roots, written, self.engine.job(), trash=True)
        assert {key for key in SIZES if self.places[at].get(key)} == set(SIZES)


def world_of(
    places: dict[str, Place], fleet_config: FleetFactory, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> World:
    """Adopted, asked what they can do, and with the objects on the first one."""
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    nodes = {
        node: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for node, place in places.items()
    }
    fleet_config(nodes, options={"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9, **options})
    engine = Engine()
    for key, size in SIZES.items():
        places["n1"].put(key, made_up(key, size))
    for node in places:
        driver = engine.context.driver(node)
        driver.adopt()
        if isinstance(driver, ObjectStoreDriver):
            assert driver.checks_writes
    return World(engine, places, {}, folder)


@pytest.fixture(params=[ACCESS_KEY, OTHER_KEY], ids=["one account", "two accounts"])
def world(
    request: pytest.FixtureRequest,
    weed: Weed,
    fleet_config: FleetFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    places: dict[str, Place] = {
        "n1": S3Place(weed.bucket(), "", weed.options()),
        "n2": S3Place(weed.bucket(), "", weed.options(access_key=request.param)),
    }
    return world_of(places, fleet_config, tmp_path, monkeypatch)


def expiring(times: int) -> Iterator[Credentials]:
    """Good for so many requests."""
    for _ in range(times):
        yield Credentials(ACCESS_KEY, SECRET_KEY)
    while True:
        yield Credentials(ACCESS_KEY, "expired")


def test_credentials_that_expire_while_objects_are_written_fail_each_with_the_way_out_and_renewed_ones_clear_up(
    world: World, weed: Weed
) -> None:
    held = expiring(6)
    line = world.spoil("n2", weed.url, credentials=lambda: next(held))
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.status, dict(job.failures)) == (RebalanceStatus.FAILED, {"node_not_writable": len(SIZES)})
    for index in range(len(SIZES)):
        assert "renew them, if they expire" in world.engine.outcome(index)
        assert SECRET_KEY not in world.engine.outcome(index)
    line._credentials = lambda: Credentials(ACCESS_KEY, SECRET_KEY)
    world.check(at="n1")


def test_credentials_that_may_not_delete_leave_each_object_where_it_was(world: World, weed: Weed) -> None:
    line = world.spoil("n1", weed.url)
    forbidden = b"<Error><Code>AccessDenied</Code></Error>"
    for method in ("POST", "DELETE"):
        line.line.answers.extend([(method, 403, forbidden)] * (1 if method == "POST" else len(SIZES)))
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert dict(job.failures) == {"unreadable": len(SIZES)}
    assert "the right to read and delete it" in world.engine.outcome(0)
    world.check(at="n1")


def test_a_clock_that_is_off_is_put_right_in_the_middle_of_a_batch(world: World, weed: Weed) -> None:
    late = [timedelta(0)]
    for node in world.places:
        world.spoil(node, weed.url, clock=lambda: datetime.now(UTC) - late[0])
    late[0] = timedelta(hours=2)
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    world.check(at="n2")


@pytest.mark.parametrize("trouble", ["slow down", "server error", "reset", "answer lost"])
def test_passing_trouble_on_a_request_of_each_kind_changes_no_outcome(world: World, weed: Weed, trouble: str) -> None:
    for node in world.places:
        line = world.spoil(node, weed.url).line
        for method in ("GET", "PUT", "POST", "DELETE"):
            match trouble:
                case "slow down":
                    line.answers.append((method, 503, SLOW_DOWN))
                case "server error":
                    line.answers.append((method, 500, b"<Error><Code>InternalError</Code></Error>"))
                case "reset":
                    line.before.append((method, ConnectionResetError()))
                case _:
                    line.after.append((method, ConnectionResetError()))
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    world.check(at="n2")


def test_an_object_that_arrives_cut_short_is_read_again_and_never_put_as_it_came(world: World, weed: Weed) -> None:
    """Cut by somebody in between who has put its length right."""
    sizes, cut = {*SIZES.values()}, list[int]()

    def shortened(answer: Answer) -> Answer:
        if cut or len(answer.body) not in sizes:
            return answer
        cut.append(len(answer.body))
        body = answer.body[:1000]
        return replace(answer, headers={**answer.headers, "content-length": str(len(body))}, body=body)

    for node in world.places:
        world.spoil(node, weed.url).line.rewrite["GET"] = shortened
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    # Between buckets of one account nothing comes through the worker.
    assert bool(cut) == (world.bucket("n2").copies_from(world.bucket("n1")) is False)
    world.check(at="n2")


@pytest.mark.parametrize("versioned", ["n1", "n2"])
def test_a_bucket_that_keeps_versions_gives_and_takes_objects_where_that_is_wanted(
    weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versioned: str
) -> None:
    buckets = {node: weed.bucket() for node in ("n1", "n2")}
    enable = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    assert weed.endpoint.request("PUT", buckets[versioned], query={"versioning": ""}, body=enable).ok
    places: dict[str, Place] = {
        node: S3Place(bucket, "", weed.options(allow_versions=node == versioned)) for node, bucket in buckets.items()
    }
    world = world_of(places, fleet_config, tmp_path, monkeypatch)
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    world.check(at="n2")
    versions = weed.endpoint.request("GET", buckets["n1"], query={"versions": "", "prefix": "o/"})
    assert versions.body.count(b"<Version>") == (len(SIZES) if versioned == "n1" else 0)


def test_a_bucket_that_locks_its_objects_gives_them_away_and_keeps_their_versions(
    weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = "locked-" + weed.bucket()
    assert weed.endpoint.request("PUT", locked, headers={"x-amz-bucket-object-lock-enabled": "true"}).ok
    places: dict[str, Place] = {
        "n1": S3Place(locked, "", weed.options(allow_versions=True, free="delete")),
        "n2": S3Place(weed.bucket(), "", weed.options()),
    }
    world = world_of(places, fleet_config, tmp_path, monkeypatch)
    hold = b"<LegalHold><Status>ON</Status></LegalHold>"
    assert weed.endpoint.request("PUT", locked, "o/0", query={"legal-hold": ""}, body=hold).ok
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    world.check(at="n2")
    versions = weed.endpoint.request("GET", locked, query={"versions": "", "prefix": "o/"})
    assert versions.body.count(b"<Version>") == len(SIZES)


def test_a_key_that_only_the_source_can_hold_fails_for_itself_alone(
    weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Place] = {"n1": LocalPlace(tmp_path / "n1"), "n2": S3Place(weed.bucket(), "", weed.options())}
    world = world_of(places, fleet_config, tmp_path, monkeypatch)
    odd = "o/back\\slash"
    places["n1"].put(odd, b"x")
    world.engine.start(moves_between("n1", "n2", {odd: 1, **SIZES}))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {"invalid_key": 1})
    assert "takes a backslash for a slash" in world.engine.outcome(0)
    assert places["n1"].get(odd) == b"x"


def test_a_store_that_does_not_look_at_what_it_is_sent_is_read_back_before_anything_is_at_a_key(
    weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits flip on their way in, and once nobody refuses them."""
    places: dict[str, Place] = {"n1": LocalPlace(tmp_path / "n1"), "n2": S3Place(weed.bucket(), "", weed.options())}
    world = world_of(places, fleet_config, tmp_path, monkeypatch)
    monkeypatch.setattr(ObjectStoreDriver, "checks_writes", property(lambda _: False))
    monkeypatch.setattr(S3Bucket, "_send", unguarded)
    line = world.spoil("n2", weed.url)
    line.line.flips.append(("PUT", "sent"))
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    assert not line.line.flips
    world.check(at="n2")


def test_objects_of_a_folder_that_is_unmounted_in_the_middle_wait_and_are_not_taken_for_deleted(
    sftp: Sftp, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Place] = {
        "n1": SftpPlace(tmp_path / "n1", sftp.port, sftp.options()),
        "n2": LocalPlace(tmp_path / "n2"),
    }
    for place in places.values():
        place.put("resident", b"x")
    world = world_of(places, fleet_config, tmp_path, monkeypatch)
    lost: list[bool] = []
    original = Batch._stage

    def unmounted(self: Batch) -> None:
        if not lost:
            lost.append(True)
            world.engine.context.driver("n1").close()
            places["n1"].lose()
        original(self)

    monkeypatch.setattr(Batch, "_stage", unmounted)
    world.engine.start(moves_between("n1", "n2", SIZES))
    world.engine.work()
    assert lost
    assert (world.engine.job().skipped_moves, dict(world.engine.job().failures)) == (0, {})
    places["n1"].back()
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})


def unguarded(self: S3Bucket, name: str, data: bytes, **more: Any) -> Any:
    """Send a body with nothing that says what it ought to be."""
    more.pop("md5", None)
    return self._ask("PUT", name, body=data, **more)


# -- throttles and adaptive throttling --------------------------------------------------------------------------------------------------
def asking(
    events: list[str], monkeypatch: pytest.MonkeyPatch, stop_after: tuple[str, int, Interrupt] | None = None
) -> None:
    """Note what leave is asked for ("target", "source"); stop the slice when that was asked for so often."""
    asked = SliceControl.request

    def request(self: SliceControl, count: int = 1, *, of_source: bool = False) -> None:
        side = "source" if of_source else "target"
        if (
            stop_after is not None
            and side == stop_after[0]
            and events.count(side) == stop_after[1]
            and "stopped" not in events
        ):
            events.append("stopped")
            raise SliceInterrupted(stop_after[2])
        events.extend([side] * count)
        asked(self, count, of_source=of_source)

    monkeypatch.setattr(SliceControl, "request", request)


def never_before_leave(events: list[str], done: str, leave: str) -> bool:
    return all(events[:end].count(leave) >= events[:end].count(done) for end in range(len(events) + 1))


def test_each_copy_of_a_job_asks_the_target_for_a_request_before_it_is_made(
    world: World, weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, events = world.spoil("n2", weed.url), list[str]()
    begun = line.begin

    def begin(*arguments: Any, **more: Any) -> Begun:
        events.append("sent")
        return begun(*arguments, **more)

    asking(events, monkeypatch)
    monkeypatch.setattr(line, "begin", begin)
    set_node_throttle(world.engine.context, "n2", "requests", 1000)
    world.engine.start(moves_between("n1", "n2", SIZES))
    assert world.engine.finish().completed_moves == len(SIZES)
    assert events.count("target") == events.count("sent") == len(SIZES)
    assert never_before_leave(events, "sent", "target")


def copying(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note what a store copies into its trash, and from aside to a key."""
    copied = S3Bucket.copy

    def copy(self: S3Bucket, source: str, name: str, **more: Any) -> str:
        events.append("trashed" if "/trash/" in name else "published")
        return copied(self, source, name, **more)

    monkeypatch.setattr(S3Bucket, "copy", copy)


def test_each_copy_into_the_trash_asks_the_source_for_a_request_a_tenth_of_a_second_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()
    asking(events, monkeypatch)
    copying(events, monkeypatch)
    set_node_throttle(world.engine.context, "n1", "requests", 30)
    world.engine.start(moves_between("n1", "n2", SIZES))
    assert world.engine.finish().completed_moves == len(SIZES)
    assert events.count("source") == events.count("trashed") == len(SIZES)
    assert never_before_leave(events, "trashed", "source")
    ahead = [events[:end].count("source") - events[:end].count("trashed") for end in range(len(events) + 1)]
    assert max(ahead) == 3
    world.check(at="n2")


def test_a_source_that_is_deleted_without_a_copy_asks_for_no_request(
    weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Place] = {node: S3Place(weed.bucket(), "", weed.options(free="delete")) for node in ("n1", "n2")}
    world = world_of(places, fleet_config, tmp_path, monkeypatch)
    events = list[str]()
    asking(events, monkeypatch)
    set_node_throttle(world.engine.context, "n1", "requests", 1)
    world.engine.start(moves_between("n1", "n2", SIZES))
    assert world.engine.finish().completed_moves == len(SIZES)
    assert "source" not in events
    world.check(at="n2")


@pytest.fixture
def between_buckets(weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    places: dict[str, Place] = {node: S3Place(weed.bucket(), "", weed.options()) for node in ("n1", "n2")}
    return world_of(places, fleet_config, tmp_path, monkeypatch)


@pytest.fixture
def from_a_disk(weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    places: dict[str, Place] = {"n1": LocalPlace(tmp_path / "n1"), "n2": S3Place(weed.bucket(), "", weed.options())}
    return world_of(places, fleet_config, tmp_path, monkeypatch)


def test_each_copy_that_gets_its_key_by_a_copy_asks_the_target_for_a_request(
    from_a_disk: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, events = from_a_disk, list[str]()
    asking(events, monkeypatch)
    copying(events, monkeypatch)
    set_node_throttle(world.engine.context, "n2", "requests", 30)
    world.engine.start(moves_between("n1", "n2", SIZES))
    assert world.engine.finish().completed_moves == len(SIZES)
    assert events.count("target") == events.count("published") == len(SIZES)
    assert never_before_leave(events, "published", "target")
    world.check(at="n2")


@pytest.mark.parametrize("why", [Interrupt.PAUSED, Interrupt.DEADLINE])
@pytest.mark.parametrize(
    ("side", "node", "fixture"), [("source", "n1", "between_buckets"), ("target", "n2", "from_a_disk")]
)
def test_what_there_was_no_leave_for_in_time_goes_on_in_a_later_slice(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, side: str, node: str, fixture: str, why: Interrupt
) -> None:
    world: World = request.getfixturevalue(fixture)
    events = list[str]()
    asking(events, monkeypatch, (side, 3, why))
    set_node_throttle(world.engine.context, node, "requests", 30)
    world.engine.start(moves_between("n1", "n2", SIZES))
    job = world.engine.finish()
    assert "stopped" in events
    assert (job.completed_moves, dict(job.failures), job.bytes_moved) == (len(SIZES), {}, sum(SIZES.values()))
    # Nothing is copied twice: what had leave was done, and is found to be.
    assert events.count(side) == len(SIZES)
    world.check(at="n2")


def test_after_a_cancel_what_readers_have_is_counted_and_its_source_is_freed_by_cleanup(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()
    asking(events, monkeypatch, ("source", 3, Interrupt.CANCELLED))
    set_node_throttle(world.engine.context, "n1", "requests", 30)
    world.engine.start(moves_between("n1", "n2", SIZES))
    world.engine.work()
    job = world.engine.finish()
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    assert len([key for key in SIZES if world.places["n1"].get(key)]) == len(SIZES) - 3
    world.engine.cleanup(later_ms=DAY_MS)
    world.check(at="n2")
    assert not [key for key in SIZES if world.places["n1"].get(key)]


def test_measured_buckets_of_one_account_still_copy_by_themselves_and_every_copy_is_measured(
    weed: Weed, fleet_config: FleetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Place] = {node: S3Place(weed.bucket(), "", weed.options(free="delete")) for node in ("n1", "n2")}
    world = world_of(places, fleet_config, tmp_path, monkeypatch, adaptive_throttle=True)
    lines = [world.spoil(node, weed.url) for node in places]
    monkeypatch.setattr(measured_burst, "LEAST_COUNTED", 1)
    noted: list[tuple[str, str, int]] = []
    monkeypatch.setattr(PaceStore, "note", lambda _, node, way, **more: noted.append((node, way, more["size_bytes"])))
    world.engine.start(moves_between("n1", "n2", SIZES))
    assert world.engine.finish().completed_moves == len(SIZES)
    # Not one byte of an object came to the worker: what is read is the node-id and a listing.
    assert lines[0].asked["GET"] < len(SIZES)
    assert lines[1].asked["PUT"] == len(SIZES) + 1, "each object, and a manifest"
    assert sum(size for node, way, size in noted if (node, way) == ("n2", "write")) == sum(SIZES.values())
    world.check(at="n2")
