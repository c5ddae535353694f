"""The kill matrix over pairs of kinds of nodes: the same steps, the same promises, on a real S3 server.

The list of steps is the code's (test_kill_matrix.py holds that it is complete, and that no write stands without one). Here each
step that touches a node kills a process that moves objects from a disk into a bucket, back, or between two buckets. Other kinds of
nodes have those steps in which they differ; with ``KILL_MATRIX=whole`` (`make kills`) every kind has all of them.
"""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.object_stores import direct as object_direct
from rebalance_tasks.drivers.object_stores import files as object_files
from rebalance_tasks.migration import copying
from rebalance_tasks.migration.faults import Step
from tests.integration import test_kill_matrix
from tests.support import azurite, checker, killing, killing_stores
from tests.support.engine import Engine, moves_between
from tests.support.fleets import NodeSpec, made_up
from tests.support.forgetting import forget_from
from tests.support.hooks import DAY_MS
from tests.support.killing import PART_BYTES, killed
from tests.support.places import (
    MANIFESTS,
    TMP,
    AzurePlace,
    FsspecPlace,
    GcsPlace,
    LocalPlace,
    Place,
    S3Place,
    SftpPlace,
    append,
)
from tests.support.weed import OTHER_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.ftp import Ftp
    from tests.support.gcs import Gcs
    from tests.support.sftp import Sftp
    from tests.support.weed import Weed

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("kill_matrix_stores")]

SMALL = {f"small/{number}": 2000 + number for number in range(6)}
SIZES = {**SMALL, "large": 5 * PART_BYTES + 77}
ONE = {"small/0": SIZES["small/0"]}
LARGE = {"large": 2 * killing_stores.PART_BYTES + 77}
REAL = {**LARGE, "small/0": 2000}

CARRY, WRITING = killing.carry, killing_stores.carry_while_a_stranger_writes
CORRUPT, IN_PARTS = killing_stores.carry_and_corrupt, killing_stores.carry_in_parts
OTHER_PARTS, OTHER_PARTS_WRITTEN = (
    killing_stores.carry_in_other_parts,
    killing_stores.carry_in_other_parts_while_written,
)
NO_SOURCE, NO_TARGET = killing_stores.carry_and_lose_the_source, killing_stores.carry_and_lose_the_target
CANCELLED = {killing.carry_until_cancelled, killing.carry_until_cancelled_early}


@dataclass(frozen=True)
class World:
    """A fleet of two nodes, and their places."""

    places: dict[str, Place]
    tmp_path: Path
    #: nothing is put straight to its key
    aside: bool

    def killed(self, tmp_path: Path, act: Any, faults_text: str) -> bool:
        """Act in a process of its own; see `killing.killed`."""
        done = partial(killing_stores.aside, act) if self.aside else act
        return killed(tmp_path, done, self.places, faults_text=faults_text)  # type: ignore[arg-type]

    def roots(self) -> dict[str, Path]:
        """Directories for the checker."""
        return {node: place.mirror(self.tmp_path / f"mirror-{node}") for node, place in self.places.items()}


@dataclass(frozen=True)
class Case:
    """A death: at the n-th time that a process, while it acts, reaches a step; see test_kill_matrix.py."""

    step: Step
    act: Any = CARRY
    nth: int = 1
    before: tuple[tuple[Step, int], ...] = ()
    prelude: tuple[Any, ...] = ()
    leave: Any = None
    sizes: dict[str, int] = field(default_factory=lambda: SIZES)
    pairs: tuple[str, ...] = ("local-s3", "s3-local", "s3-aside")
    #: an operator cancels after the death
    cancel: bool = False

    def __str__(self) -> str:
        before = "".join(f"-after-{times}-{step}" for step, times in self.before)
        left = f"-{self.leave.__name__}" if self.leave else ""
        return f"{self.step}-{self.nth}-{self.act.__name__}{before}{left}{'-cancelled' if self.cancel else ''}"


def a_stray_copy(world: World, engine: Engine) -> None:
    """A copy aside that a stalled worker of the job made too late."""
    world.places["n2"].put(f"{TMP}/j1.0", b"too late")


def old_manifests(world: World, engine: Engine) -> None:
    """The manifests were written long ago."""
    place = world.places["n2"]
    for name in place.names(MANIFESTS):
        place.put(name, re.sub(rb'"at":"\d{4}', b'"at":"2001', place.get(name) or b""))


def a_forgotten_trash(world: World, engine: Engine) -> None:
    """Redis has lost what it knew of one object's trash."""
    test_kill_matrix.a_forgotten_trash(None, engine)  # type: ignore[arg-type]


def forgotten_copies(world: World, engine: Engine) -> None:
    """Copies that Redis forgot stand beside their originals, and their job was cancelled."""
    forget_from(engine, "flip")


def forgotten_sources(world: World, engine: Engine) -> None:
    """Redis forgot that sources were freed, and their job was cancelled."""
    forget_from(engine, "free")


def a_forgotten_copy_that_grew(world: World, engine: Engine) -> None:
    """Somebody wrote to such a copy, which no manifest lists."""
    forget_from(engine, "publish")
    append(world.places["n2"], "small/0", b"from a stranger")


#: Steps at which a node has just been written to, or is about to be.
PLAIN = [
    *(Step.PART, Step.JOURNAL, Step.PUBLISH, Step.MANIFEST, Step.FLIP, Step.FREE),
]
#: Where the two sides of a pair differ most.
EVERYWHERE = {Step.JOURNAL, Step.PUBLISH, Step.FREE}
#: "other" is a bucket of another account: between it and "s3" bytes go through the worker, straight to their keys, and to
#: "aside" by a copy that lies aside first. Between "s3" and "s3" the server copies.
BOTH, INTO, OUT, DIRECT, SENT = ("s3-aside",), ("local-s3", "s3-aside"), ("s3-local",), ("s3-s3",), ("s3-other",)
#: "bare" frees without a trash.
BARE = ("bare-s3",)
OPTIONS: dict[str, dict[str, Any]] = {
    "other": {"access_key": OTHER_KEY},
    "aside": {"access_key": OTHER_KEY},
    "bare": {"free": "delete"},
}
DIRECTLY = [Step.COPY, Step.MANIFEST, Step.FLIP, Step.FREE]
CASES = [
    *(Case(step, pairs=("local-s3", "s3-local", "s3-aside") if step in EVERYWHERE else BOTH) for step in PLAIN),
    *(Case(step, pairs=(*DIRECT, *SENT)) for step in DIRECTLY),
    *(Case(step, pairs=BARE) for step in (Step.FREE, Step.SETTLE)),
    Case(Step.FREE, WRITING, pairs=BARE),
    Case(Step.COPY, nth=4, pairs=(*DIRECT, *SENT)),
    *(Case(step, WRITING, pairs=(*DIRECT, *SENT)) for step in (Step.RETRACT, Step.UNPUBLISH)),
    Case(Step.RECOGNISE, before=((Step.COPY, 1),), pairs=(*DIRECT, *SENT)),
    *(Case(step, before=((Step.SYNC_PUBLISHED, 3),), sizes=ONE, pairs=DIRECT) for step in (Step.UNPUBLISH, Step.COUNT)),
    *(Case(step, pairs=("local-sftp", "sftp-local")) for step in (Step.JOURNAL, Step.PUBLISH, Step.FREE)),
    Case(Step.RETRACT, WRITING, pairs=("sftp-local",)),
    Case(Step.UNPUBLISH, WRITING, pairs=("local-sftp",)),
    # A folder of a server that is not mounted there looks empty.
    Case(Step.NOTE_UNDO, NO_TARGET, sizes=ONE, pairs=("local-sftp",)),
    Case(Step.FREE_LATE, killing.tidy, prelude=(NO_SOURCE,), pairs=("sftp-local",)),
    Case(Step.PURGE, killing.tidy, prelude=(CARRY,), pairs=("sftp-s3",)),
    # Where a copy gets a version of its own when it is published; skipped where there is no Azurite.
    *(
        Case(step, pairs=("local-az", "az-local"))
        for step in (Step.PART, Step.JOURNAL, Step.PUBLISH, Step.FLIP, Step.FREE)
    ),
    *(Case(step, WRITING, pairs=("local-az",)) for step in (Step.RETRACT, Step.UNPUBLISH, Step.REMOVE)),
    Case(Step.RECOGNISE, before=((Step.SYNC_PUBLISHED, 1),), pairs=("local-az",)),
    Case(Step.FORGET_COPY, before=((Step.UNPUBLISH, 1),), sizes=ONE, pairs=("local-az",)),
    *(
        Case(step, before=((Step.SYNC_PUBLISHED, 3),), sizes=ONE, pairs=("local-az",))
        for step in (Step.UNDO, Step.UNPUBLISH, Step.COUNT)
    ),
    *(Case(step, killing.tidy, prelude=(CARRY,), pairs=("az-local",)) for step in (Step.PURGE, Step.PURGED)),
    *(
        Case(step, IN_PARTS, nth=nth, sizes=REAL, pairs=("local-az",))
        for step, nth in ((Step.PART, 2), (Step.PUBLISH, 1))
    ),
    *(Case(step, pairs=("local-gs",)) for step in (Step.PART, Step.PUBLISH)),
    *(Case(step, pairs=("gs-local",)) for step in (Step.FREE, Step.FLIP)),
    Case(Step.RETRACT, WRITING, pairs=("gs-local",)),
    Case(Step.UNPUBLISH, WRITING, pairs=("local-gs",)),
    *(Case(step, pairs=("local-ftp",)) for step in (Step.PART, Step.JOURNAL, Step.PUBLISH)),
    *(Case(step, pairs=("ftp-local",)) for step in (Step.PUBLISH, Step.FREE)),
    Case(Step.RECOGNISE, before=((Step.SYNC_PUBLISHED, 1),), pairs=("local-ftp",)),
    Case(Step.FORGET_COPY, before=((Step.UNPUBLISH, 1),), sizes=ONE, pairs=("local-ftp",)),
    Case(Step.RETRACT, WRITING, pairs=("ftp-local",)),
    Case(Step.UNPUBLISH, WRITING, pairs=("local-ftp",)),
    Case(Step.PURGE, killing.tidy, prelude=(CARRY,), pairs=("ftp-s3",)),
    *(Case(step, nth=4, pairs=BOTH) for step in (Step.PUBLISH, Step.FREE)),
    *(Case(step, nth=nth, pairs=BOTH) for step, nth in ((Step.PART, 3), (Step.STAGE, 4))),
    *(Case(step, WRITING, pairs=BOTH) for step in (Step.FREE, Step.RETRACT, Step.UNPUBLISH, Step.REMOVE, Step.AGAIN)),
    *(Case(step, CORRUPT, pairs=OUT) for step in (Step.DISCARD, Step.AGAIN)),
    Case(Step.PARK, killing.carry_until_paused, pairs=BOTH),
    Case(Step.DISCARD, killing.carry_until_cancelled, pairs=BOTH),
    *(
        Case(step, killing.carry_until_cancelled_early, before=((Step.STAGE, 1), (Step.STAGE, 1)), pairs=BOTH)
        for step in (Step.WIND_UP, Step.COUNT)
    ),
    Case(Step.RECOGNISE, before=((Step.SYNC_PUBLISHED, 1),), pairs=BOTH),
    Case(Step.FORGET_COPY, before=((Step.UNPUBLISH, 1),), sizes=ONE, pairs=BOTH),
    *(
        Case(step, before=((Step.SYNC_PUBLISHED, 3),), sizes=ONE, pairs=BOTH)
        for step in (Step.UNDO, Step.UNPUBLISH, Step.REMOVE, Step.COUNT)
    ),
    *(Case(step, NO_TARGET, sizes=ONE, pairs=INTO) for step in (Step.HOLD, Step.NOTE_UNDO)),
    *(Case(step, killing.tidy, prelude=(CARRY,), pairs=BOTH) for step in (Step.PURGE, Step.PURGED)),
    Case(Step.OLD_MANIFEST, killing.tidy, prelude=(CARRY,), leave=old_manifests, pairs=BOTH),
    *(
        Case(step, killing.tidy, prelude=(NO_SOURCE,), pairs=BOTH)
        for step in (Step.FREE_LATE, Step.TRASH_LATE, Step.FREED_LATE)
    ),
    *(Case(step, killing.tidy, prelude=(NO_TARGET,), pairs=BOTH) for step in (Step.UNDO_LATE, Step.UNDONE_LATE)),
    Case(Step.ORPHAN_COPY, killing.tidy, prelude=(CARRY,), leave=a_stray_copy, pairs=BOTH),
    Case(Step.ORPHAN_TRASH, killing.tidy, prelude=(CARRY,), leave=a_forgotten_trash, pairs=BOTH),
    *(
        Case(step, IN_PARTS, nth=nth, sizes=REAL, pairs=("local-s3",))
        for step, nth in ((Step.PART, 1), (Step.PART, 2), (Step.PUBLISH, 1))
    ),
    # What was uploaded in parts shows another ETag at its key than aside.
    *(
        Case(Step.SYNC_PUBLISHED, OTHER_PARTS, sizes=REAL, pairs=("local-s3",), cancel=cancel)
        for cancel in (False, True)
    ),
    Case(Step.UNPUBLISH, OTHER_PARTS_WRITTEN, sizes=LARGE, pairs=("local-s3",)),
]

#: Each kind as a source and as a target of copies that lie aside first, as they do between any two kinds.
KINDS = (
    *("local-s3", "s3-local", "s3-aside", "local-sftp", "sftp-local"),
    *("local-ftp", "ftp-local", "local-az", "az-local", "local-gs", "gs-local"),
)
#: Cases that every kind has.
FOR_ALL = [
    *(case for case in CASES if case.act not in {CORRUPT, IN_PARTS, OTHER_PARTS, OTHER_PARTS_WRITTEN}),
    *(Case(step) for step in (Step.BEGIN, Step.STAGE, Step.SYNC_STAGED, Step.VERIFY, Step.SYNC_PUBLISHED, Step.SETTLE)),
    *(
        Case(step, killing.tidy, leave=forgotten_copies)
        for step in (Step.STRAY_OFF, Step.STRAY_PLACED, Step.SEARCHED, Step.ORPHAN_TRASH)
    ),
    *(Case(step, killing.tidy, leave=forgotten_sources) for step in (Step.STRAY_UNDONE, Step.STRAY_OFF)),
    *(
        Case(step, killing.tidy, leave=a_forgotten_copy_that_grew, sizes=ONE)
        for step in (Step.STRAY_LISTED, Step.STRAY_FREE, Step.STRAY_PLACED)
    ),
]


def whole() -> list[Case]:
    """Every case on every pair of kinds that can come to it."""

    def on(case: Case) -> Case:
        """The case on the pairs whose target can come to it."""
        targets = {pair.rpartition("-")[2] for pair in KINDS}
        if case.act is CORRUPT:
            # What a store checks on arrival cannot be spoiled behind its back.
            targets = {"local", "sftp", "ftp"}
        elif case.leave is a_forgotten_copy_that_grew:
            # Elsewhere times are whole seconds, and do not say which of two was written later.
            targets = {"local", "sftp"}
        return replace(case, pairs=tuple(pair for pair in KINDS if pair.rpartition("-")[2] in targets))

    directly = {*DIRECT, *SENT, *BARE}
    of_all_kinds = [*FOR_ALL, *(case for case in CASES if case.act is CORRUPT)]
    return [*(on(case) for case in of_all_kinds if not directly & {*case.pairs}), *CASES]


CHOSEN = {
    f"{pair}-{case}": (pair, case)
    for case in (whole() if os.environ.get("KILL_MATRIX") == "whole" else CASES)
    for pair in case.pairs
}


@pytest.fixture
def world(
    pair: str,
    weed: Weed,
    sftp: Sftp,
    request: pytest.FixtureRequest,
    fleet_config: FleetFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> World:
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    places: dict[str, Place] = {}
    for node, kind in zip(("n1", "n2"), pair.split("-"), strict=True):
        here = tmp_path / "nodes" / node
        match kind:
            case "local":
                places[node] = LocalPlace(here)
            case "az":
                port = request.getfixturevalue("azure_port")
                places[node] = AzurePlace("objects", f"its/{uuid.uuid4().hex}", azurite.options(port))
            case "gs":
                gcs: Gcs = request.getfixturevalue("gcs")
                places[node] = GcsPlace(weed.bucket(), "its/prefix", gcs.options())
            case "ftp":
                ftp: Ftp = request.getfixturevalue("ftp")
                places[node] = FsspecPlace(here, ftp.url(str(here)), ftp.options())
            case "sftp":
                places[node] = SftpPlace(here, sftp.port, sftp.options())
            case _:
                places[node] = S3Place(weed.bucket(), "its/prefix", weed.options(**OPTIONS.get(kind, {})))
    nodes = {
        node: NodeSpec(capacity_bytes=10**9, settings={"url": place.url(), **place.settings()})
        for node, place in places.items()
    }
    fleet_config(nodes, options={"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9})
    places["n2"].put("resident", b"abc")
    if pair in BOTH:
        monkeypatch.setattr(object_direct, "SENT_BYTES", 0)
    return World(places, tmp_path, aside=pair in BOTH)


def strike(world: World, tmp_path: Path, case: Case) -> Engine:
    """Bring about the death of a case."""
    engine = Engine()
    for key, size in case.sizes.items():
        world.places["n1"].put(key, made_up(key, size))
    engine.start(moves_between("n1", "n2", case.sizes))
    number = 0
    for step, times in case.before:
        act = WRITING if step is Step.UNPUBLISH else CARRY
        for _ in range(times):
            number += 1
            assert world.killed(tmp_path / f"{number}", act, f"{step}=kill"), f"{step} was not reached"
            engine.hurry()
    for act in case.prelude:
        number += 1
        world.killed(tmp_path / f"{number}", act, "")
        for place in world.places.values():
            place.back()
    if case.leave is not None:
        case.leave(world, engine)
    assert world.killed(tmp_path, case.act, f"{case.step}=kill:{case.nth}"), f"{case.step} was not reached"
    return engine


@pytest.mark.parametrize(("pair", "case"), [pytest.param(*chosen, id=name) for name, chosen in CHOSEN.items()])
def test_after_a_death_every_object_is_whole_counted_once_and_nothing_is_left(
    world: World, tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.act in {IN_PARTS, OTHER_PARTS, OTHER_PARTS_WRITTEN}:
        monkeypatch.setattr(copying, "PART_BYTES", killing_stores.PART_BYTES)
        monkeypatch.setattr(object_files, "PART_BYTES", killing_stores.PART_BYTES)
    engine = strike(world, tmp_path, case)
    for place in world.places.values():
        place.back()
    everything = {"resident": b"abc", **{key: made_up(key, size) for key, size in case.sizes.items()}}
    half_way = checker.look(world.roots()).objects
    assert everything.keys() <= half_way.keys(), "an object was nowhere where a reader looks"
    if case.act is OTHER_PARTS_WRITTEN:
        everything["large"] = max((place.get("large") or b"" for place in world.places.values()), key=len)
    adopted = case.leave is a_forgotten_copy_that_grew
    if case.act is WRITING or Step.UNPUBLISH in dict(case.before) or adopted:
        everything["small/0"] = max((place.get("small/0") or b"" for place in world.places.values()), key=len)
    lifecycle.resume(engine.context, "j1")
    if case.cancel:
        lifecycle.cancel(engine.context, "j1", requested_by="test")
    job = engine.finish()
    assert job.completed_moves + job.failed_moves + job.skipped_moves == len(case.sizes)
    if case.act in CANCELLED:
        assert job.status is RebalanceStatus.CANCELLED
    if case.act in {CARRY, IN_PARTS, OTHER_PARTS} and not case.before:
        # Nobody interfered: each object has moved.
        assert (job.status, job.completed_moves, job.failures) == (
            RebalanceStatus.COMPLETED,
            len(case.sizes),
            {},
        )
        assert job.bytes_moved == sum(case.sizes.values())
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    for _ in range(3):
        engine.cleanup(later_ms=DAY_MS)
    written = checker.Written({}, {key: "n2" if key == "resident" else "n1" for key in everything})
    for key, content in everything.items():
        written = written.changed(key, content)
    # What was adopted has changed its node, and is counted as the cancel found it.
    checker.check(world.roots(), written, None if adopted else job, trash=True)
