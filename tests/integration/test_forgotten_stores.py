"""What Redis forgot is found and mended on every kind of node: disks, buckets and SFTP; each case of test_forgotten.py has its reason there."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import cleanup as cleanups
from tests.support import checker
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.forgetting import forget, forgotten_job, remember
from tests.support.hooks import DAY_MS
from tests.support.places import LocalPlace, Place, S3Place, SftpPlace

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("kill_matrix_stores")]

SIZES = {"a/one": 3000, "a/two": 5000, "empty": 0}
#: Between two buckets the server copies.
PAIRS = ("local-s3", "s3-local", "s3-s3", "local-sftp", "sftp-local")


@dataclass(frozen=True)
class World:
    """Two nodes: their places, and what was on them."""

    places: dict[str, Place]
    written: checker.Written
    folder: Path

    def check(self, engine: Engine, job_id: str = "j1") -> None:
        """Every object once and whole, counted as it lies, and nothing of ours left."""
        roots = {node: place.mirror(self.folder / uuid.uuid4().hex) for node, place in self.places.items()}
        checker.check(roots, self.written, engine.job(job_id), trash=True)


@pytest.fixture(params=PAIRS)
def world(
    request: pytest.FixtureRequest,
    weed: Weed,
    sftp: Sftp,
    fleet_config: FleetFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> World:
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    monkeypatch.setattr(cleanups, "_durable", lambda _: True)  # as in test_forgotten.py
    places: dict[str, Place] = {}
    for node, kind in zip(("n1", "n2"), request.param.split("-"), strict=True):
        here = tmp_path / "nodes" / node
        match kind:
            case "local":
                places[node] = LocalPlace(here)
            case "sftp":
                places[node] = SftpPlace(here, sftp.port, sftp.options())
            case _:
                places[node] = S3Place(weed.bucket(), "its/prefix", weed.options())
    nodes = {
        node: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for node, place in places.items()
    }
    fleet_config(nodes, options={"throttle_bytes_per_sec": "none", "object_cooldown": "0s"})
    for key, size in SIZES.items():
        places["n1"].put(key, made_up(key, size))
    roots = {node: place.mirror(tmp_path / "before" / node) for node, place in places.items()}
    return World(places, checker.record(roots), tmp_path)


def tidy(engine: Engine) -> None:
    """Clean up until nothing is due."""
    for _ in range(4):
        engine.cleanup(later_ms=DAY_MS)


@pytest.mark.parametrize("step", ["manifest", "settle"])
def test_a_move_that_redis_forgot_is_undone(world: World, step: str) -> None:
    engine = Engine()
    forgotten_job(engine, moves_between("n1", "n2", SIZES), step)
    tidy(engine)
    world.check(engine)


def test_what_an_earlier_life_of_a_job_freed_is_in_nobodys_way(world: World) -> None:
    engine = Engine()
    nothing = remember(engine)
    for lives in range(2):
        for job_id, source, target in (("j1", "n1", "n2"), ("j2", "n2", "n1")):
            engine.start(moves_between(source, target, SIZES), job_id=job_id)
            assert engine.finish(job_id).completed_moves == len(SIZES)
        if not lives:
            forget(engine, nothing)
            engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES), job_id="j3")
    engine.finish("j3")
    tidy(engine)
    world.check(engine, "j3")
