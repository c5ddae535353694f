"""The kill matrix: ``kill -9`` right after each step that changes a node or Redis, then a fresh process takes over.

The list of steps is read from the code: every ``reached(Step.…)`` in it has a case here, every case a call, and no write
stands between two fault points without one. The killed process is a real one, killed by SIGKILL; its successor runs in the
test's process. After every death: each object whole, once, counted once; after the cleanup nothing is left behind.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rebalance_tasks
from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle
from rebalance_tasks.core.catalogue import HostCatalogue
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.base import Driver, ServerSide
from rebalance_tasks.drivers.local import burst as local_burst
from rebalance_tasks.migration import copying, faults
from rebalance_tasks.migration.copying import Copier
from rebalance_tasks.migration.faults import Step
from rebalance_tasks.store.moves import MoveStore
from rebalance_tasks.store.trash import TrashStore
from tests.support import checker, killing
from tests.support.engine import Engine, copied_bytes, count_copied, killed_carry, moves_between
from tests.support.fleets import NodeSpec
from tests.support.forgetting import forget, forget_from, remember
from tests.support.hooks import DAY_MS, mount_again
from tests.support.killing import PART_BYTES, killed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebalance_tasks.core.models import RebalanceJob
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("kill_matrix")]

SMALL = {f"small/{number}": 2000 + number for number in range(6)}
#: Large enough to go around the page cache.
LARGE = {"large": 16 * PART_BYTES + 77}
SIZES = {**SMALL, **LARGE}
SOURCES = Path(rebalance_tasks.__file__).parent


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    monkeypatch.setattr(copying, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(Copier, "_part", Copier._part)  # counted below, and restored
    monkeypatch.setattr(local_burst, "write_at", local_burst.write_at)
    count_copied(tmp_path / "copied")
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9}
    nodes = {"n1": NodeSpec(SIZES, capacity_bytes=10**7), "n2": NodeSpec({"resident": 3}, capacity_bytes=10**7)}
    return fleet_config(nodes, options=options)


def start() -> Engine:
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    return engine


# -- the list, from the code ----------------------------------------------------------------------------------------------
def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls in a piece of code, in order, without those in functions defined inside it."""
    pending = list(ast.iter_child_nodes(tree))
    found: list[ast.Call] = []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Call):
            found.append(node)
        pending += ast.iter_child_nodes(node)
    yield from sorted(found, key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0))


@cache
def functions() -> list[tuple[str, ast.FunctionDef]]:
    """Every function of the package with its module."""
    return [
        (path.relative_to(SOURCES).as_posix(), node)
        for path in sorted(SOURCES.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]


def is_fault_point(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "reached"


def only_fault_points() -> set[str]:
    """Methods that are nothing but a fault point, which several ways to a step share."""
    return {
        function.name
        for _, function in functions()
        if [
            is_fault_point(node.value)
            for node in function.body
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ]
        == [True] * len(function.body)
    }


def reaches(call: ast.Call, shared: set[str]) -> bool:
    """Whether this is a fault point, or a call of a method that is nothing else."""
    own = (
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "self"
    )
    return is_fault_point(call) or (own and call.func.attr in shared)  # type: ignore[attr-defined]


def fault_points() -> list[str]:
    """The step of every ``reached(Step.…)`` in the package."""
    found: list[str] = []
    for module, function in functions():
        for call in calls(function):
            if is_fault_point(call):
                step = call.args[0]
                assert isinstance(step, ast.Attribute), f"{module}:{call.lineno} does not name its step"
                found.append(Step[step.attr])
    return found


#: Steps of a fleet whose catalogue is its host's.
HOST_STEPS = {
    *(Step.HOST_FLIP, Step.HOST_BACK, Step.HOST_ASKED),
    *(Step.LATER, Step.FLIP_LATE, Step.EXPECTED_LATE),
}
#: Of a reindex, whose deaths are test_kill_matrix_reindex.py's.
INDEX_STEPS = {step for step in Step if step.name.startswith("INDEX_")}
#: What only looks. Whatever else a driver or a store offers changes something, also what it will offer one day.
READS = {
    Driver: {
        *("probe", "check_identity", "free_bytes", "list_objects", "stat", "open_source", "staged", "open_staged"),
        *("trashed", "list_trash", "list_staged", "read_manifests", "close", "hold", "unchanged"),
    },
    ServerSide: {"direct_bytes", "versions"},
    MoveStore: set(),
    HostCatalogue: {"locate", "entries"},
    TrashStore: {"due", "known_ids"},
}
#: Not a step of an object: adopting a node.
NO_STEPS = {"adopt"}
#: Modules that write without fault points of their own, and what is done instead.
TESTED_ELSEWHERE = {
    "migration/copying.py": "what it stages is a step of its callers, who journal its parts",
    "control/catalogue.py": "hands on what it is asked",
    "control/access/accesses.py": "counts reads and writes; no object's way leads there",
    "control/access/writing.py": "writers through the fleet: test_fleet_writes.py dies at each of their steps",
    "control/access/host_claims.py": "tells the host's catalogue for those writers, and for the strays, who do it again",
}
#: What these are called where objects are moved, freed and purged.
RECEIVERS = {"source", "target", "store", "driver", "trash", "catalogue"}


@cache
def writes() -> set[str]:
    """Names of the methods that change a node or Redis."""
    public = {name for kind, reads in READS.items() for name in vars(kind) if name[0] != "_" and name not in reads}
    return public - NO_STEPS


def is_write(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in writes():
        return False
    if call.args and isinstance(call.args[0], ast.List) and not call.args[0].elts:
        return False  # a list of no moves changes none
    owner = call.func.value
    if isinstance(owner, ast.Call):
        owner = owner.func  # the driver that something has opened
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return name.lstrip("_") in RECEIVERS


@cache
def modules_that_write() -> frozenset[str]:
    """Modules that have a node or Redis changed by those who can do it."""
    able = ("drivers", "store", "core")
    return frozenset(
        module
        for module, function in functions()
        if module.partition("/")[0] not in able and any(map(is_write, calls(function)))
    )


def test_every_step_is_a_fault_point_at_exactly_one_place_in_the_code() -> None:
    found = Counter(fault_points())
    assert {step: found[step] for step in Step if found[step] != 1} == {}


def test_every_step_has_a_case_in_the_matrix() -> None:
    # Only stores copy by themselves (test_kill_matrix_stores.py), and only a host's catalogue commits (test_kill_matrix_host.py).
    assert {case.step for case in CASES} == set(Step) - {Step.COPY, *HOST_STEPS, *INDEX_STEPS}


def test_no_write_stands_between_two_fault_points_without_one() -> None:
    """In any module: one that begins to write tomorrow is looked at as well."""
    bare: list[str] = []
    shared = only_fault_points()
    for module, function in functions():
        if module not in modules_that_write() - TESTED_ELSEWHERE.keys():
            continue
        steps = [call for call in calls(function) if is_write(call) or reaches(call, shared)]
        bare += [
            f"{module}:{call.lineno} {ast.unparse(call.func)} in {function.name}"
            for call, following in pairwise([*steps, None])
            if call is not None and not reaches(call, shared) and (following is None or not reaches(following, shared))
        ]
    assert bare == []


def test_what_writes_without_fault_points_is_known_and_nothing_else_does() -> None:
    assert modules_that_write() > TESTED_ELSEWHERE.keys()
    assert {f"migration/{name}.py" for name in ("batch", "committing", "endings", "recognising", "slice", "undo")} | {
        f"control/{name}.py" for name in ("cleanup", "cleaning/orphans", "reindex", "cleaning/strays")
    } <= modules_that_write(), "this test looks for the wrong names"


#: What a reindex asks of Redis without changing it, but for the lock of checks.
INDEX_READS = {"pending_frees", "adopted", "usage", "acquire_check", "release_check", "known_ids", "list_trash"}


def test_no_write_of_a_reindex_stands_without_a_fault_point() -> None:
    """Whatever it asks of locations, the fleet's state, the trash or a node and is not known to be a look."""
    bare = []
    for module, function in functions():
        if module != "control/reindex.py":
            continue
        steps = [call for call in calls(function) if is_fault_point(call) or writes_redis(call) or is_write(call)]
        bare += [
            ast.unparse(call.func)
            for call, following in pairwise([*steps, None])
            if call is not None and not is_fault_point(call) and (following is None or not is_fault_point(following))
        ]
    assert bare == []


def writes_redis(call: ast.Call) -> bool:
    called = call.func
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Attribute):
        return False
    return called.value.attr in {"locations", "fleet"} and called.attr not in INDEX_READS


# -- the cases ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A death: at the n-th time that a process, while it acts, reaches a step."""

    step: Step
    act: Any = killing.carry
    nth: int = 1
    #: deaths before it: (step, how often), each of a process that carries
    before: tuple[tuple[Step, int], ...] = ()
    #: acts that go well before it
    prelude: tuple[Any, ...] = ()
    #: what it leaves behind on purpose, for the step to find
    leave: Any = None
    sizes: dict[str, int] = field(default_factory=lambda: SIZES)

    def __str__(self) -> str:
        left = f"-{self.leave.__name__}" if self.leave else ""
        return f"{self.step}-{self.nth}-{self.act.__name__}{left}"


def a_stray_copy(fleet: Fleet, engine: Engine) -> None:
    """A copy aside that a stalled worker of the job made too late."""
    (fleet.roots["n2"] / ".rebalance/tmp/j1.0").write_bytes(b"too late")


def old_manifests(fleet: Fleet, engine: Engine) -> None:
    """The manifests were written long ago."""
    for path in (fleet.roots["n2"] / ".rebalance/manifests").iterdir():
        path.write_text(re.sub(r'"at":"\d{4}', '"at":"2001', path.read_text()))


def a_bit_flipped_at_rest(fleet: Fleet, engine: Engine) -> None:
    """A disk lost a bit of a copy that has its key, to which no reader was sent yet."""
    faults.corrupt(fleet.roots["n2"] / "small/0")


def a_forgotten_trash(fleet: Fleet, engine: Engine) -> None:
    """Redis has lost what it knew of one object's trash."""
    connection, due_at, trash = engine.context.connection, engine.context.keys.trash_due, engine.context.trash
    for member in connection.zrange_due(due_at, 2**52, 10):
        connection.client.zadd(due_at, {member: 0})
    [due] = trash.due(limit=1)
    trash.purged(due, left=due.records.keys() - {MoveId("j1.0")}, delay_ms=0)


def forgotten_copies(fleet: Fleet, engine: Engine) -> None:
    """Copies that Redis forgot stand beside their originals, and their job was cancelled."""
    forget_from(engine, "flip")


def forgotten_sources(fleet: Fleet, engine: Engine) -> None:
    """Redis forgot that sources were freed, and their job was cancelled."""
    forget_from(engine, "free")


def a_forgotten_copy_that_grew(fleet: Fleet, engine: Engine) -> None:
    """Somebody wrote to such a copy, which no manifest lists."""
    forget_from(engine, "publish")
    with (fleet.roots["n2"] / "small/0").open("ab") as file:
        file.write(b"from a stranger")


def both_ends_in_the_trash(fleet: Fleet, engine: Engine) -> None:
    """A frozen runner freed the source of a forgotten copy after that was taken off."""
    forget_from(engine, "flip")
    for node in ("n1", "n2"):
        driver = engine.context.driver(node)
        version = driver.stat("small/0")
        assert version is not None
        driver.free("small/0", MoveId("j1.0"), version)


PLAIN = [
    *(Step.ACQUIRE, Step.BEGIN, Step.PART, Step.STAGE, Step.SYNC_STAGED, Step.VERIFY, Step.JOURNAL, Step.PUBLISH),
    *(Step.SYNC_PUBLISHED, Step.MANIFEST, Step.FLIP, Step.FREE, Step.SETTLE, Step.RELEASE),
    *(Step.FINISH, Step.FINALIZE, Step.RETIRE),
]
#: The step strikes at its n-th time too, in the middle of a batch or of an object.
IN_THE_MIDDLE = [(Step.PART, 3), (Step.STAGE, 4), (Step.PUBLISH, 4), (Step.FREE, 4)]
ONE = {"small/0": SIZES["small/0"]}
WRITING, PAUSED, CANCELLED = (
    killing.carry_while_a_stranger_writes,
    killing.carry_until_paused,
    killing.carry_until_cancelled,
)
NO_SOURCE, NO_TARGET = killing.carry_and_lose_the_source, killing.carry_and_lose_the_target
CASES = [
    *(Case(step, nth=nth) for step, nth in (*((step, 1) for step in PLAIN), *IN_THE_MIDDLE)),
    *(Case(step, WRITING) for step in (Step.FREE, Step.RETRACT, Step.UNPUBLISH, Step.REMOVE, Step.AGAIN)),
    *(Case(step, killing.carry_and_corrupt) for step in (Step.DISCARD, Step.AGAIN)),
    Case(Step.PARK, PAUSED),
    *(Case(step, CANCELLED) for step in (Step.DISCARD, Step.FINALIZE, Step.RETIRE)),
    *(
        Case(step, killing.carry_until_cancelled_early, before=((Step.STAGE, 1), (Step.STAGE, 1)))
        for step in (Step.WIND_UP, Step.COUNT)
    ),
    *(Case(step, before=((Step.SYNC_PUBLISHED, 1),)) for step in (Step.RECOGNISE, Step.READ_AGAIN)),
    *(
        Case(step, before=((Step.SYNC_PUBLISHED, 1),), leave=a_bit_flipped_at_rest)
        for step in (Step.READ_AGAIN, Step.RETRACT, Step.UNPUBLISH, Step.REMOVE, Step.AGAIN)
    ),
    Case(Step.FORGET_COPY, before=((Step.UNPUBLISH, 1),), sizes=ONE),
    *(
        Case(step, before=((Step.SYNC_PUBLISHED, 3),), sizes=ONE)
        for step in (Step.UNDO, Step.UNPUBLISH, Step.REMOVE, Step.COUNT)
    ),
    *(Case(step, NO_TARGET, sizes=ONE) for step in (Step.HOLD, Step.NOTE_UNDO, Step.COUNT)),
    *(Case(step, killing.tidy, prelude=(killing.carry,)) for step in (Step.PURGE, Step.PURGED)),
    Case(Step.OLD_MANIFEST, killing.tidy, prelude=(killing.carry,), leave=old_manifests),
    *(Case(step, killing.tidy, prelude=(NO_SOURCE,)) for step in (Step.FREE_LATE, Step.TRASH_LATE, Step.FREED_LATE)),
    *(Case(step, killing.tidy, prelude=(NO_TARGET,)) for step in (Step.UNDO_LATE, Step.UNDONE_LATE)),
    Case(Step.ORPHAN_COPY, killing.tidy, prelude=(killing.carry,), leave=a_stray_copy),
    Case(Step.ORPHAN_TRASH, killing.tidy, prelude=(killing.carry,), leave=a_forgotten_trash),
    *(
        Case(step, killing.tidy, leave=forgotten_copies)
        for step in (Step.STRAY_OFF, Step.STRAY_PLACED, Step.SEARCHED, Step.ORPHAN_TRASH)
    ),
    *(Case(step, killing.tidy, leave=forgotten_sources) for step in (Step.STRAY_UNDONE, Step.STRAY_OFF)),
    *(
        Case(step, killing.tidy, leave=a_forgotten_copy_that_grew, sizes=ONE)
        for step in (Step.STRAY_LISTED, Step.STRAY_FREE, Step.STRAY_PLACED)
    ),
    *(
        Case(step, killing.tidy_while_the_source_is_freed, leave=forgotten_copies, sizes=ONE)
        for step in (Step.STRAY_OFF, Step.STRAY_BACK)
    ),
    Case(Step.RESTORE, killing.tidy, leave=both_ends_in_the_trash, sizes=ONE),
]


def remount(fleet: Fleet) -> None:
    """Whatever was unmounted is back."""
    for root in fleet.roots.values():
        if root.with_name(f"{root.name}-unmounted").exists():
            mount_again(root)


def strike(fleet: Fleet, tmp_path: Path, case: Case) -> Engine:
    """Bring about the death of a case."""
    engine = Engine()
    engine.start(moves_between("n1", "n2", case.sizes))
    number = 0
    for step, times in case.before:
        act = WRITING if step is Step.UNPUBLISH else killing.carry
        for _ in range(times):
            number += 1
            assert killed(tmp_path / f"{number}", act, fleet.roots, faults_text=f"{step}=kill"), (
                f"{step} was not reached"
            )
            engine.hurry()
    for act in case.prelude:
        number += 1
        killed(tmp_path / f"{number}", act, fleet.roots, faults_text="")
        remount(fleet)
    if case.leave is not None:
        case.leave(fleet, engine)
    assert killed(tmp_path, case.act, fleet.roots, faults_text=f"{case.step}=kill:{case.nth}"), (
        f"{case.step} was not reached"
    )
    return engine


@pytest.mark.parametrize("case", CASES, ids=str)
def test_after_a_death_at_any_step_every_object_is_whole_counted_once_and_nothing_is_left_behind(
    fleet: Fleet, tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    engine = strike(fleet, tmp_path, case)
    remount(fleet)
    half_way = checker.look(fleet.roots).objects
    hidden = {"small/0"} if (case.act, case.step) == (killing.tidy_while_the_source_is_freed, Step.STRAY_OFF) else set()
    assert written.digests.keys() - hidden <= half_way.keys(), "an object was nowhere where a reader looks"
    if case.act is WRITING or Step.UNPUBLISH in dict(case.before) or case.leave is a_forgotten_copy_that_grew:
        nodes = [node for node, _ in half_way["small/0"]]
        written = written.changed("small/0", newest(fleet, nodes, "small/0"))
    lifecycle.resume(engine.context, "j1")
    job = engine.finish()
    assert job.completed_moves + job.failed_moves + job.skipped_moves == len(case.sizes)
    if case.act in {CANCELLED, killing.carry_until_cancelled_early}:
        assert job.status is RebalanceStatus.CANCELLED
    if case.act is killing.carry and not case.before:
        # Nobody interfered: each object has moved, and no byte was copied twice.
        assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
        assert job.bytes_moved == copied_bytes(tmp_path / "copied") == sum(SIZES.values())
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    for _ in range(3):
        engine.cleanup(later_ms=DAY_MS)
    # What was adopted has changed its node, and is counted as the cancel found it.
    adopted = case.leave is a_forgotten_copy_that_grew
    checker.check(fleet.roots, written, None if adopted else job, trash=True)
    assert_nothing_is_held(engine)


def newest(fleet: Fleet, nodes: list[str], key: str) -> bytes:
    """What a stranger made of an object."""
    contents = [(fleet.roots[node] / key).read_bytes() for node in nodes]
    return max(contents, key=len)


def assert_nothing_is_held(engine: Engine) -> None:
    """Permits, reservations, pending frees and undos, the journal, the trash: all empty."""
    context = engine.context
    redis, keys = context.connection.client, context.keys
    job = keys.job("j1")
    batches = (keys.frees_batches, keys.trash_batches)
    for name in (
        *batches,
        keys.permits,
        keys.frees,
        keys.undos,
        keys.trash,
        keys.trash_due,
        keys.active,
        job.journal,
        job.queue,
    ):
        assert not redis.exists(name), name
    for node in ("n1", "n2"):
        assert not any(map(int, context.connection.hgetall(keys.reserved(node)).values()))
    assert not any(context.fleet.awaiting().values())


def all_completed(fleet: Fleet, engine: Engine, written: checker.Written) -> RebalanceJob:
    """After the successor's turn: all that the design promises where nobody interfered."""
    job = engine.finish()
    assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    assert job.bytes_moved == sum(SIZES.values())
    checker.check(fleet.roots, written, job)
    assert engine.cleanup(later_ms=DAY_MS).purged == len(SIZES)
    checker.check(fleet.roots, written, job, trash=True)
    assert_nothing_is_held(engine)
    return job


@pytest.mark.parametrize("step", [step for step in PLAIN if step not in {Step.RELEASE, Step.FINALIZE, Step.RETIRE}])
def test_two_workers_killed_at_the_same_step_one_after_the_other_change_nothing_either(
    fleet: Fleet, tmp_path: Path, step: Step
) -> None:
    written = checker.record(fleet.roots)
    engine = start()
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        killed_carry(tmp_path / f"{number}", faults_text=f"{step}=kill", part_bytes=PART_BYTES)
        engine.hurry()
    assert engine.finish().failures == {}
    all_completed(fleet, engine, written)


@pytest.mark.parametrize("step", [Step.PUBLISH, Step.SYNC_PUBLISHED, Step.MANIFEST, Step.FLIP])
@pytest.mark.parametrize("forgotten", [False, True], ids=["", "and-redis-forgot"])
def test_what_strangers_wrote_to_both_copies_after_a_death_is_kept_on_both(
    fleet: Fleet, tmp_path: Path, step: Step, forgotten: bool
) -> None:
    """Found by chaos: the successor took the copy as it found it for its own, and took it back with what was written to it."""
    engine = Engine()
    engine.start(moves_between("n1", "n2", ONE))
    before = remember(engine)
    assert killed(tmp_path, killing.carry, fleet.roots, faults_text=f"{step}=kill")
    if forgotten:
        forget(engine, before)
    kept: dict[str, bytes] = {}
    for node in ("n1", "n2"):
        with (fleet.roots[node] / "small/0").open("ab") as file:
            file.write(f"written on {node}".encode())
        kept[node] = (fleet.roots[node] / "small/0").read_bytes()
    job = engine.finish()
    for _ in range(2):
        engine.cleanup(later_ms=DAY_MS)
    assert {node: (fleet.roots[node] / "small/0").read_bytes() for node in kept} == kept
    assert (job.failed_moves, set(job.failures)) == (1, {"target_exists" if forgotten else "conflict"})
    assert_nothing_is_held(engine)
