"""A fleet of disks and buckets balances itself with a real worker: planned, carried out, and every byte still there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks import Rebalancer, RebalanceStatus
from rebalance_tasks.core.errors import ConfigurationError
from tests.support import azurite, checker
from tests.support.fleets import NodeSpec, made_up
from tests.support.places import AzurePlace, FsspecPlace, LocalPlace, Place, S3Place
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.ftp import Ftp
    from tests.support.weed import Weed
    from tests.support.workers import ProcessFactory

pytestmark = pytest.mark.integration

OBJECTS = {f"o/{number:02d}": 20_000 + number for number in range(40)}


@pytest.fixture
def places(
    weed: Weed, ftp: Ftp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> dict[str, Place]:
    options = weed.options() | {"secret_access_key": "${TEST_S3_SECRET}"}
    monkeypatch.setenv("TEST_S3_SECRET", weed.options()["secret_access_key"])
    monkeypatch.setenv("TEST_FTP_SECRET", ftp.options()["password"])
    served = tmp_path / "nodes/ftp1"
    blobs: dict[str, Place] = {}
    if azurite.binary() is not None:
        blobs["blobs1"] = AzurePlace("objects", "mixed", azurite.options(request.getfixturevalue("azure_port")))
    return blobs | {
        "ftp1": FsspecPlace(served, ftp.url(str(served)), ftp.options() | {"password": "${TEST_FTP_SECRET}"}),
        "disk1": LocalPlace(tmp_path / "nodes/disk1"),
        "disk2": LocalPlace(tmp_path / "nodes/disk2"),
        "bucket1": S3Place(weed.bucket(), "a/b", options),
        "bucket2": S3Place(weed.bucket(), "", options),
    }


def nodes_of(places: dict[str, Place], **settings: Any) -> dict[str, NodeSpec]:
    return {
        node: NodeSpec(settings={"url": place.url(), **place.settings()}, **{"capacity_bytes": 1_000_000, **settings})
        for node, place in places.items()
    }


def test_a_job_balances_disks_and_buckets_and_every_byte_is_still_there(
    places: dict[str, Place], fleet_config: FleetFactory, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    options = {"throttle_bytes_per_sec": "none", "imbalance_threshold": 0.05, "target_imbalance": 0.02}
    fleet_config(nodes_of(places), options=options)
    processes: ProcessFactory = request.getfixturevalue("processes")
    for number, (key, size) in enumerate(OBJECTS.items()):
        # Most on one disk and one bucket: every kind of pair has something to move.
        places["disk1" if number % 2 else "bucket1"].put(key, made_up(key, size))
    rebalancer = Rebalancer()
    rebalancer.adopt()
    written = checker.record(mirrors(places, tmp_path))
    plan = rebalancer.plan()
    processes.worker()
    started = rebalancer.start(plan)
    wait_until(lambda: rebalancer.status(started.job_id).status.terminal, 60, "the job is over")
    job = rebalancer.status(started.job_id)
    assert (job.status, job.completed_moves, dict(job.failures)) == (RebalanceStatus.COMPLETED, len(plan.moves), {})
    assert job.imbalance_after is not None
    assert job.imbalance_after < 0.05
    checker.check(mirrors(places, tmp_path), written, job)
    assert {"disk1 > ftp1", "bucket1 > ftp1"} & plan.not_carried.keys()
    for secret in ("test-secret", "ftp-secret"):
        assert secret not in repr(rebalancer.settings) + processes.logs()


def test_a_pool_of_disks_and_an_ftp_server_is_refused_where_times_must_travel(
    places: dict[str, Place], fleet_config: FleetFactory
) -> None:
    fleet_config(nodes_of(places), options={"min_object_age": 0}, fleet={"must_carry": ["mtime"]})
    with pytest.raises(ConfigurationError, match=r"to 'ftp1' .* loses mtime; give one of them another pool"):
        Rebalancer().plan()


def test_a_bucket_whose_capacity_is_not_stated_is_refused_with_the_way_out(
    places: dict[str, Place], fleet_config: FleetFactory
) -> None:
    fleet_config(nodes_of({"bucket1": places["bucket1"]}, capacity_bytes=None))
    with pytest.raises(ConfigurationError, match="node bucket1 has no natural capacity: state capacity_bytes"):
        Rebalancer().plan()


def mirrors(places: dict[str, Place], tmp_path: Path) -> dict[str, Path]:
    return {node: place.mirror(tmp_path / f"mirror-{node}") for node, place in places.items()}
