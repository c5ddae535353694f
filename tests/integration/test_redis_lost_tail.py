"""Redis comes back without the end of its append-only file; the nodes did not go back. Nothing is lost, counts add up.

The server logs every second (``everysec``), so a power cut loses its last writes for ever. Here the file is cut at many
places, from right after the job was created to its very end, and the rest of the way is gone again.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.cleanup import run_cleanup
from rebalance_tasks.migration import slice as slices
from tests.support.checker import check, record
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, write_fleet
from tests.support.hooks import DAY_MS, SIZES, WorkerDiedError, die_at
from tests.support.servers import FragileServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration

#: Where the worker was when the power went: in the middle of its second batch, at each step that writes to Redis or frees; or done.
STEPS = ("manifest", "flip", "free", "settle", "")
#: Places at which the file is cut, as parts of what was written since the job was created.
CUTS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FragileServer]:
    with FragileServer(tmp_path / "redis") as made:
        yield made


@pytest.fixture
def fleet(tmp_path: Path, server: FragileServer, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    nodes = {"n1": NodeSpec(SIZES), "n2": NodeSpec({"resident": 10})}
    made = write_fleet(
        tmp_path,
        redis_url=server.url,
        nodes=nodes,
        options={"throttle_bytes_per_sec": "none"},
        fleet={"locator": "crush"},
    )
    monkeypatch.setenv("REBALANCE_CONFIG", str(made.config))
    return made


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step or "done")
def test_whatever_end_of_the_file_is_lost_every_object_is_whole_and_counted_once(
    fleet: Fleet, server: FragileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(slices, "BATCH_OBJECTS", 2)
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    created = server.log.stat().st_size
    work_up_to(engine, step)
    engine.context.connection.client.close()
    server.kill()
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "nodes", kept / "nodes", symlinks=True)
    shutil.copytree(server.directory, kept / "redis")
    size = server.log.stat().st_size
    assert size > created
    for part in CUTS:
        put_back(kept / "nodes", tmp_path / "nodes")
        put_back(kept / "redis", server.directory)
        with server.log.open("r+b") as log:
            log.truncate(created + int((size - created) * part))
        server.back()
        again = Engine()
        again.messages.publish_group("j1", again.context.jobs.groups("j1")["g0000"])
        job = again.finish()
        for _ in range(2):
            again.cleanup(later_ms=DAY_MS)
        run_cleanup(again.context)
        assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {}), part
        check(fleet.roots, written, job, trash=True)
        for key in SIZES:
            assert again.context.locations.lookup(key)[1] == "n2", (key, part)
        assert again.context.fleet.usage().get("n1", 0) == 0, part
        server.kill()


def work_up_to(engine: Engine, step: str) -> None:
    """Work until the step is reached for the second time (the second batch), or until all is done."""
    seen: list[int] = []

    def second() -> bool:
        seen.append(1)
        return len(seen) == 2

    if not step:
        engine.finish()
        return
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step, when=second)
        with pytest.raises(WorkerDiedError):
            engine.work()


def put_back(kept: Path, place: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(kept, place, symlinks=True)


def test_a_job_whose_very_creation_is_lost_leaves_every_object_where_it_can_be_found(
    fleet: Fleet, server: FragileServer
) -> None:
    """Half of it was moved, and nobody remembers that there was a job: a new plan takes the rest from where it is."""
    written = record(fleet.roots)
    engine = Engine()
    engine.context.connection.client.ping()
    before = server.log.stat().st_size
    engine.start(moves_between("n1", "n2", SIZES))
    work_up_to(engine, "")
    server.kill()
    with server.log.open("r+b") as log:
        log.truncate(before)
    server.back()
    again = Engine()
    assert again.context.jobs.ids() == []
    again.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written)
    again.start(moves_between("n2", "n1", SIZES), job_id="j2")
    job = again.finish("j2")
    for _ in range(2):
        again.cleanup(later_ms=DAY_MS)
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    check(fleet.roots, written, trash=True)
