"""Nodes that are too large for one task, of every kind: cut by folders, each object once, whoever dies, whatever release takes the message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control.check import conclude_check, run_check
from rebalance_tasks.control.survey import look
from rebalance_tasks.control.surveying import parts
from rebalance_tasks.control.surveying import round as survey_round
from rebalance_tasks.control.surveying.round import CHECK_LOCK_MS, redrive, survey_nodes
from tests.support import azurite
from tests.support.arena import context_of, rebalancer_of
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec, made_up
from tests.support.places import AzurePlace, FsspecPlace, GcsPlace, LocalPlace, S3Place, SftpPlace
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rebalance_tasks.control.survey import Look
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet
    from tests.support.ftp import Ftp
    from tests.support.places import Place
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

#: More than one task lists, most of it below two folders; names that a server may list in an order of its own.
FOLDERS = [f"{top}/{middle}/{number}.bin" for top in ("d", "d-x") for middle in "123" for number in range(4)]
UPPER = ["flat-1", "flat.2", "d/f1", "d/f2", "d/1-x"]
SIZE = 1_000
ALL_BYTES = SIZE * len(FOLDERS + UPPER)
KINDS = ("disk", "bucket", "sftp", "ftp")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_round, "MOST_OBJECTS", 20)
    monkeypatch.setattr(survey_round, "FIRST_PARTS", 4)
    monkeypatch.setattr(parts, "PART_OBJECTS", 8)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    root = tmp_path / "nodes/large"
    if request.param == "bucket":
        weed: Weed = request.getfixturevalue("weed")
        return S3Place(weed.bucket(), "a/b", weed.options())
    if request.param == "gcs":
        return GcsPlace(request.getfixturevalue("weed").bucket(), "a/b", request.getfixturevalue("gcs").options())
    if request.param == "azure":
        return AzurePlace("objects", f"parts/{tmp_path.name}", azurite.options(request.getfixturevalue("azure_port")))
    if request.param == "sftp":
        sftp: Sftp = request.getfixturevalue("sftp")
        return SftpPlace(root, sftp.port, sftp.options())
    if request.param == "ftp":
        ftp: Ftp = request.getfixturevalue("ftp")
        return FsspecPlace(root, ftp.url(str(root)), ftp.options())
    return LocalPlace(root)


def fleet_of(place: Place, fleet_config: FleetFactory, keys: Iterable[str]) -> Fleet:
    settings = {"url": place.url(), **place.settings()}
    nodes = {"large": NodeSpec({}, 10**6, settings), "b": NodeSpec({"x": SIZE}, 10**6), "c": NodeSpec({}, 10**6)}
    fleet = fleet_config(nodes, fleet={"surveys": "tasks", "mode": "observe"})
    for key in keys:
        place.put(key, made_up(key, SIZE))
    return fleet


def asked_for(engine: Engine) -> list[str]:
    """Names of the large node and its parts that messages are out for."""
    return sorted(name for _, names, _ in engine.messages.surveys for name in names if name.startswith("large"))


def checked(engine: Engine) -> list[str]:
    """One check from its beginning to its end; return what the large node was asked for by."""
    run_check(engine.context, by="test", by_tasks=True, force=True)
    asked: list[str] = []
    while engine.messages.surveys:
        asked += asked_for(engine)
        surveys, engine.messages.surveys[:] = list(engine.messages.surveys), []
        for token, names, _ in surveys:
            survey_nodes(engine.context, token, names)
    [token] = engine.messages.concludes
    assert conclude_check(engine.context, token) is not None
    engine.messages.concludes.clear()
    return asked


PARTS = [f"large@{number}of4" for number in range(4)]
RANGES = [f"large~{number}of4" for number in range(4)]


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_each_object_of_a_large_node_is_counted_once_in_every_check(place: Place, fleet_config: FleetFactory) -> None:
    fleet_of(place, fleet_config, FOLDERS + UPPER)
    engine = Engine()
    assert checked(engine) == ["large", *PARTS], "nobody knew how large it is"
    assert engine.context.fleet.usage()["large"] == ALL_BYTES
    assert checked(engine) == PARTS, "now it is known"
    assert engine.context.fleet.usage()["large"] == ALL_BYTES
    snapshot = engine.context.snapshots.newest(1)[0]
    assert (snapshot.objects, snapshot.left_out) == (len(FOLDERS + UPPER) + 1, {})


@pytest.mark.parametrize("place", ["bucket", "gcs"], indirect=True)
def test_a_flat_bucket_that_lists_in_order_is_cut_into_ranges_of_keys(place: Place, fleet_config: FleetFactory) -> None:
    fleet_of(place, fleet_config, [f"flat/{number:02}" for number in range(30)])
    engine = Engine()
    first = checked(engine)
    assert first[0] == "large"
    assert len(first) > 2
    assert all("~" in name for name in first[1:])
    found = {finding.node_id: finding for finding in engine.context.surveys.findings()}
    assert sum(found[name].objects for name in first[1:]) == 30
    assert engine.context.fleet.usage()["large"] == 30 * SIZE
    place.put("flat/15-new", made_up("x", SIZE))
    assert checked(engine) == RANGES, "now it is known how it lies"
    assert engine.context.fleet.usage()["large"] == 31 * SIZE
    counts = [finding.objects for finding in engine.context.surveys.findings() if finding.node_id in RANGES]
    assert max(counts) <= 31 // 2
    assert len(counts) == 4


@pytest.mark.parametrize("place", ["azure"], indirect=True)
def test_a_flat_container_whose_server_does_not_know_where_to_begin_is_one_tasks(
    place: Place, fleet_config: FleetFactory
) -> None:
    """Azurite ignores what Azure has known since version 2026-02-06 of its API, ``startFrom``: each range would read everything."""
    fleet_of(place, fleet_config, [f"flat/{number:02}" for number in range(30)])
    engine = Engine()
    for _ in range(2):
        assert checked(engine) == ["large"]
        assert engine.context.fleet.usage()["large"] == 30 * SIZE


@pytest.mark.parametrize("place", ["bucket", "gcs"], indirect=True)
def test_a_flat_bucket_that_lists_in_another_order_is_one_tasks_for_good(
    place: Place, fleet_config: FleetFactory
) -> None:
    """SeaweedFS lists what is in a folder where the folder's name belongs, whatever a slash is among bytes."""
    keys = [f"d-{number:02}" for number in range(30)] + [f"d/{number}" for number in range(3)]
    fleet_of(place, fleet_config, keys)
    engine = Engine()
    checked(engine)
    for _ in range(2):
        assert checked(engine) == ["large"]
        assert engine.context.fleet.usage()["large"] == len(keys) * SIZE
        assert engine.context.snapshots.newest(1)[0].left_out == {}


@pytest.mark.parametrize("place", ["bucket"], indirect=True)
@pytest.mark.parametrize("noted", [None, '["flat/05", "flat/02", "flat/09"]', '["flat/02"]'])
def test_ranges_of_which_nobody_knows_where_they_are_cut_leave_the_node_out(
    place: Place, fleet_config: FleetFactory, noted: str | None
) -> None:
    fleet_of(place, fleet_config, [f"flat/{number:02}" for number in range(30)])
    engine = Engine()
    checked(engine)
    run_check(engine.context, by="test", by_tasks=True, force=True)
    token = engine.messages.surveys[0][0]
    client, key = engine.context.connection.client, engine.context.keys.survey_cuts
    client.delete(key)
    if noted is not None:
        client.hset(key, f"{token}/large", noted)
    survey_nodes(engine.context, token, ["b", "c", *RANGES])
    assert conclude_check(engine.context, token) is not None
    assert "where its ranges of keys are cut" in engine.context.snapshots.newest(1)[0].left_out["large"]
    engine.messages.surveys.clear()
    engine.messages.concludes.clear()
    checked(engine)
    assert engine.context.fleet.usage()["large"] == 30 * SIZE


@pytest.mark.parametrize("place", ["sftp"], indirect=True)
def test_a_flat_node_of_which_every_part_would_read_everything_is_listed_whole_each_time(
    place: Place, fleet_config: FleetFactory
) -> None:
    fleet_of(place, fleet_config, [f"flat/{number}" for number in range(30)])
    engine = Engine()
    for _ in range(2):
        assert checked(engine) == ["large"]
        assert engine.context.fleet.usage()["large"] == 30 * SIZE


@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_a_flat_directory_is_shared_by_the_names_in_it(place: Place, fleet_config: FleetFactory) -> None:
    fleet_of(place, fleet_config, [f"flat/{number}" for number in range(40)])
    engine = Engine()
    assert checked(engine) == ["large", *PARTS]
    found = {finding.node_id: finding.objects for finding in engine.context.surveys.findings()}
    assert sum(found[part] for part in PARTS) == 40
    assert all(found[part] for part in PARTS), "each of them looked at some"


@pytest.mark.parametrize("place", ["bucket", "sftp"], indirect=True)
def test_a_part_whose_runner_dies_is_listed_by_another(
    place: Place, fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_of(place, fleet_config, FOLDERS + UPPER)
    engine = Engine()
    checked(engine)
    run_check(engine.context, by="test", by_tasks=True, force=True)
    token = engine.messages.surveys[0][0]

    class Killed(BaseException):
        pass

    def dying(*args: Any, name: str, **more: Any) -> Look:
        found = look(*args, name=name, **more)
        if name == PARTS[2]:
            raise Killed
        return found

    with monkeypatch.context() as struck:
        struck.setattr(survey_round, "look", dying)
        for name in ("b", "c", *PARTS[:2], PARTS[3]):
            survey_nodes(engine.context, token, [name])
        with pytest.raises(Killed):
            survey_nodes(engine.context, token, [PARTS[2]])
    engine.messages.surveys.clear()
    assert survey_nodes(engine.context, token, [PARTS[2]]) == 0, "its claim has not run out"
    engine.context.connection.client.hdel(engine.context.keys.survey_claims, PARTS[2])
    monkeypatch.setattr(survey_round, "IDLE_MS", -1)
    assert redrive(engine.context) == 1
    assert asked_for(engine) == [PARTS[2]]
    assert survey_nodes(engine.context, token, [PARTS[2]]) == 1
    assert conclude_check(engine.context, token) is not None
    assert engine.context.fleet.usage()["large"] == ALL_BYTES


# -- two releases side by side ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_parts_that_the_older_release_asks_for_are_cut_as_it_cuts_them(
    place: Place, fleet_config: FleetFactory
) -> None:
    """Some are listed by its own workers; together they are the node."""
    fleet_of(place, fleet_config, FOLDERS + UPPER)
    engine = Engine()
    run_check(engine.context, by="test", by_tasks=True, force=True)
    token = engine.messages.surveys[0][0]
    older = [f"large#{number}of4" for number in range(4)]
    assert engine.context.surveys.cut(token, "large", older, lock_ms=CHECK_LOCK_MS) == 6
    assert survey_nodes(engine.context, token, ["b", "c", *older]) == 6
    assert conclude_check(engine.context, token) is not None
    assert engine.context.fleet.usage()["large"] == ALL_BYTES
    found = {finding.node_id: finding.objects for finding in engine.context.surveys.findings()}
    in_folder = [sum(1 for key in UPPER if key.startswith("d/")), 2]
    assert any(found[part] >= in_folder[0] for part in older), "the objects of one folder are in one part"


@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_a_worker_of_the_older_release_takes_no_part_that_it_would_cut_otherwise(
    place: Place, fleet_config: FleetFactory, processes: ProcessFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleet_of(place, fleet_config, FOLDERS + UPPER)
    checked(Engine())
    rebalancer = rebalancer_of(fleet)
    context = context_of(rebalancer)
    before = len(rebalancer.checks())
    older = processes.worker(concurrency=1, app="tests.support.older")
    assert run_check(context, by="test", by_tasks=True, force=True).verdict == "surveying"

    def awaited() -> frozenset[str]:
        survey = context.surveys.current()
        return frozenset() if survey is None else survey.awaited

    wait_until(lambda: awaited() == frozenset(PARTS), 60, "the older one has looked at what it knows")
    monkeypatch.setattr(survey_round, "IDLE_MS", -1)
    assert redrive(context) > 0
    older.terminate()
    processes.worker(concurrency=1)
    redrive(context)
    wait_until(lambda: len(rebalancer.checks()) > before, 60, "the check has decided")
    assert context.fleet.usage()["large"] == ALL_BYTES
