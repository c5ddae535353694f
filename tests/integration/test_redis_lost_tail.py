"""Redis comes back without the end of its append-only file; the nodes did not go back. Nothing is lost, counts add up.

The server logs every second (``everysec``), so a power cut loses its last writes for ever. Here the file is cut at many
places, from right after the job was created to its very end, and the rest of the way is gone again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
CUTS = (0.0, 0.4, 0.8)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FragileServer]:
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


@pytest.mark.parametrize("part", CUTS)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step or "done")
def test_whatever_end_of_the_file_is_lost_every_object_is_whole_and_counted_once(
    fleet: Fleet, server: FragileServer, monkeypatch: pytest.MonkeyPatch, step: str, part: float
) -> None:
    monkeypatch.setattr(slices, "BATCH_OBJECTS", 2)
    written = record(fleet.roots)
    engine = Engine()
    engine.context.fleet.set_usage({"n1": sum(SIZES.values()), "n2": 10})
    engine.start(moves_between("n1", "n2", SIZES))
    created = server.log.stat().st_size
    work_up_to(engine, step)
    cut(server, created, part)
    again = Engine()
    job = again.finish()
    for _ in range(2):
        again.cleanup(later_ms=DAY_MS)
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    check(fleet.roots, written, job, trash=True)
    for key in SIZES:
        assert again.context.locations.lookup(key).placed == "n2"
    assert again.context.fleet.usage() == {"n1": 0, "n2": 10 + sum(SIZES.values())}


def cut(server: FragileServer, start: int, part: float) -> None:
    """Kill the server and start it with only so much of what it has written since."""
    server.kill()
    size = server.log.stat().st_size
    assert size > start
    with server.log.open("r+b") as log:
        log.truncate(start + int((size - start) * part))
    server.back()


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
    cut(server, before, 0.0)
    again = Engine()
    assert again.context.jobs.ids() == []
    again.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written)
    again.start(moves_between("n2", "n1", SIZES), job_id="j2")
    job = again.finish("j2")
    for _ in range(2):
        again.cleanup(later_ms=DAY_MS)
    assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    # The trash of the forgotten job waits a day for somebody who remembers it.
    check(fleet.roots, written)


def test_a_manifest_of_a_run_that_redis_forgot_is_not_replaced_by_the_next_run(
    fleet: Fleet, server: FragileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs go back with the tail: a manifest named by them alone would be replaced by a smaller batch's, and its moves forgotten."""
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    created = server.log.stat().st_size
    work_up_to(engine, "")
    for size in (2, 1):
        monkeypatch.setattr(slices, "BATCH_OBJECTS", size)
        cut(server, created, 0.0)
        engine = Engine()
        job = engine.finish()
        assert (job.completed_moves, dict(job.failures)) == (len(SIZES), {})
    engine.cleanup(later_ms=DAY_MS)
    check(fleet.roots, written, job)
