"""A target that is full, a node that goes away, a budget that is spent: clear outcomes, nothing lost, nothing in the wrong place."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import NodeFull, NodeMissing
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.drivers.local.driver import LocalDriver
from rebalance_tasks.drivers.local.files import LocalWriter
from rebalance_tasks.migration import copying
from rebalance_tasks.migration.batch import Batch
from rebalance_tasks.migration.slice import SliceOutcome
from tests.support.checker import check, record
from tests.support.engine import Engine, killed_carry, move, moves_between
from tests.support.fleets import NodeSpec
from tests.support.hooks import (
    DAY_MS,
    MOMENTS,
    SIZES,
    after,
    before,
    corrupt,
    mount_again,
    slices_of_one_object,
    unmount,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


#: The node that fills up.
FULL = "n2"


# -- a full target ----------------------------------------------------------------------------------------------------
def test_a_target_whose_capacity_is_used_up_takes_what_fits_and_fails_the_rest(fleet_config: FleetFactory) -> None:
    fleet = fleet_config(
        {"n1": SIZES, "n2": NodeSpec(capacity_bytes=9000)},
        options={"throttle_bytes_per_sec": "none", "max_utilisation": 1.0},
    )
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_full": 1})
    check(fleet.roots, written, job)
    assert set(fleet.objects("n1")) == {"b/three"}


def test_room_that_one_group_has_filled_is_not_reserved_once_more(fleet_config: FleetFactory) -> None:
    fleet = fleet_config(
        {"n1": {"a": 4000, "later": 0}, "n2": {"b": 4000}, "n3": NodeSpec(capacity_bytes=8000)},
        options={"throttle_bytes_per_sec": "none", "max_utilisation": 1.0},
    )
    written = record(fleet.roots)
    engine = Engine()
    engine.start([move("a", "n1", "n3", 4000), move("later", "n1", "n3", 0), move("b", "n2", "n3", 4000)])
    # The first group has flipped "a" and still has an object to do while the second one asks for its room.
    with slices_of_one_object():
        assert engine.slice("g0000") is SliceOutcome.AGAIN
    assert engine.slice("g0001") is SliceOutcome.TERMINAL
    assert engine.job().failures == {}
    check(fleet.roots, written, engine.finish())


@pytest.mark.parametrize("where", ["expect", "write", "sync", "finish"])
def test_a_file_system_that_fills_up_under_a_copy_fails_the_object_and_leaves_nothing(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    written = record(fleet.roots)
    original = getattr(LocalWriter, where)

    def full(self: LocalWriter, *args: Any) -> Any:
        wanted = [arg if isinstance(arg, int) else len(arg) for arg in args if isinstance(arg, int | memoryview)]
        if self._position + sum(wanted) >= 7000:
            raise NodeFull(FULL, f"{where}: No space left on device")
        return original(self, *args)

    monkeypatch.setattr(LocalWriter, where, full)
    monkeypatch.setattr(copying, "PART_BYTES", 2048)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"target_full": 1})
    check(fleet.roots, written, job)


@pytest.mark.parametrize("call", ["sync", "write_manifest"])
def test_a_target_that_fills_up_after_publishing_takes_its_unflipped_copies_back(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    published = [False]
    after(monkeypatch, Batch, "_publish", lambda _: published.__setitem__(0, True))

    def full(*_: Any) -> None:
        if published[0]:
            raise NodeFull(FULL, f"{call}: No space left on device")

    before(monkeypatch, LocalDriver, call, full, times=1000)
    written = record(fleet.roots)
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert (job.status, job.failures) == (RebalanceStatus.FAILED, {"target_full": 5})
    check(fleet.roots, written, job)
    assert not list((fleet.roots["n2"] / ".rebalance/trash").iterdir())


def test_a_file_size_limit_concerns_the_object_and_not_the_target(fleet: Fleet, tmp_path: Path) -> None:
    written = record(fleet.roots)
    engine = Engine()
    engine.start(moves_between("n1", "n2", SIZES))
    assert not killed_carry(tmp_path, faults_text="", file_size_limit=6000)
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {"too_large": 1})
    check(fleet.roots, written, job)


# -- a node goes away -------------------------------------------------------------------------------------------------
def test_a_node_unmounted_between_two_slices_fails_what_is_left_and_its_mount_point_stays_empty(
    fleet: Fleet, engine: Engine
) -> None:
    engine.start(moves_between("n1", "n2", SIZES))
    with slices_of_one_object():
        assert engine.slice() is SliceOutcome.AGAIN
    unmount(fleet.roots["n2"])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (1, {"node_missing": 4})
    assert "not mounted" in engine.outcome(1)
    assert list(fleet.roots["n2"].iterdir()) == []
    assert len(fleet.objects("n1")) == 4


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_target_unmounted_in_the_middle_of_a_batch_loses_nothing_and_its_mount_point_stays_empty(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, method, hook = MOMENTS[moment]
    written = record(fleet.roots)
    hook(monkeypatch, owner, method, lambda *_: unmount(fleet.roots["n2"]))
    engine.start(moves_between("n1", "n2", SIZES))
    job = engine.finish()
    assert list(fleet.roots["n2"].iterdir()) == []
    mount_again(fleet.roots["n2"])
    engine.cleanup()
    check(fleet.roots, written, job)


def test_a_source_unmounted_after_the_flip_is_freed_when_it_is_back(
    fleet: Fleet, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = record(fleet.roots)

    def gone(*_: Any, **__: Any) -> None:
        node = "n1"
        raise NodeMissing(node, "free: Stale file handle")

    with monkeypatch.context() as patch:
        before(patch, LocalDriver, "free", gone, times=1000)
        engine.start(moves_between("n1", "n2", SIZES))
        job = engine.finish()
    assert (job.completed_moves, job.failed_moves) == (5, 0)
    assert len(fleet.objects("n1")) == 5
    assert engine.cleanup().freed_late == 5
    check(fleet.roots, written, job)
    assert engine.cleanup(later_ms=DAY_MS).purged == 5
    check(fleet.roots, written, job, trash=True)
    assert engine.context.fleet.awaiting()["n1"] == 0


# -- budgets ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("option", "value", "cause"),
    [
        ("max_egress_bytes_per_cycle", 8001, "budget_egress"),
        ("max_cost_per_cycle", "0.00008001", "budget_cost"),
        ("max_cost_per_day", "0.00008001", "budget_cost_day"),
    ],
)
def test_a_budget_that_a_plan_overruns_binds_while_it_is_carried_out(
    fleet_config: FleetFactory, option: str, value: object, cause: str
) -> None:
    fleet = fleet_config({"n1": SIZES, "n2": {}}, options={"throttle_bytes_per_sec": "none", option: value})
    written = record(fleet.roots)
    engine = Engine()
    # 0.01 for 10⁶ bytes
    engine.start([move(key, "n1", "n2", size, cost=Decimal(size) / 10**8) for key, size in SIZES.items()])
    job = engine.finish()
    assert (job.completed_moves, job.failures) == (4, {cause: 1})
    assert set(fleet.objects("n1")) == {"b/three"}
    check(fleet.roots, written, job)


def test_copies_made_again_are_booked_again(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = fleet_config({"n1": {"a": 3000}, "n2": {}}, options={"max_egress_bytes_per_cycle": 5999})
    corrupt(monkeypatch, times=1)
    written = record(fleet.roots)
    engine = Engine()
    engine.start([move("a", "n1", "n2", 3000)])
    job = engine.finish()
    assert job.failures == {"budget_egress": 1}
    check(fleet.roots, written, job)
