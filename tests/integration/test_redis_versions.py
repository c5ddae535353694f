"""What an older release stored is read; what a newer one stored is refused, and said so."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.core.models import RebalanceMove, RebalancePlan
from rebalance_tasks.migration.slice import SliceOutcome
from rebalance_tasks.store.connection import Connection, connect
from rebalance_tasks.store.keys import FleetKeys
from rebalance_tasks.store.plans import PlanStore
from rebalance_tasks.store.records import CheckRecord, Stamped, TrashRecord, UndoRecord
from rebalance_tasks.store.snapshots import Snapshot
from rebalance_tasks.store.versions import UPGRADES, VERSIONS, NewerVersion, require_known, upgraded
from tests.support import stored
from tests.support.engine import Engine, moves_between

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration

RECORDS: dict[str, type[Stamped]] = {
    "trash": TrashRecord,
    "undo": UndoRecord,
    "check": CheckRecord,
    "snapshot": Snapshot,
}


@pytest.fixture
def plans(redis_url: str) -> Iterator[PlanStore]:
    connection = Connection(connect(redis_url))
    yield PlanStore(connection, FleetKeys("test"))
    connection.client.close()


def put(plans: PlanStore, sample: Mapping[str, Any]) -> None:
    plans._redis.hset(plans._keys.plan("plan-1"), sample)


# -- stored samples ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sample",
    [stored.PLAN_1, stored.PLAN_1_STAMPED, stored.PLAN_2, stored.PLAN_3],
    ids=["1, unstamped", "1", "2", "3"],
)
def test_a_plan_of_any_form_is_read(plans: PlanStore, sample: Mapping[str, Any]) -> None:
    put(plans, sample)
    plan = plans.load("plan-1")
    assert (plan.plan_id, plan.epoch, plan.not_moved) == ("plan-1", 3, {"balanced": 4})
    assert plan.moves == (
        RebalanceMove(
            object_key="photos/cat.jpg",
            source_node="disk1",
            target_node="disk2",
            size_bytes=1000,
            priority=5,
            gravity=0.1,
            cost=Decimal("0.02"),
            reason="levels disk1",
        ),
    )


def test_a_plan_is_stored_with_its_stamp_and_comes_back_the_same(plans: PlanStore) -> None:
    put(plans, stored.PLAN_1)
    plan = plans.load("plan-1")
    plans.save(plan, fence=None)
    raw = plans._redis.hgetall(plans._keys.plan("plan-1"))
    assert json.loads(raw["meta"])["v"] == VERSIONS["plan"]
    assert plans.load("plan-1") == plan
    assert plans.load("plan-1") == RebalancePlan.model_validate_json(plan.model_dump_json())


@pytest.mark.parametrize("kind", RECORDS)
def test_records_of_form_1_are_read_with_and_without_a_stamp(kind: str) -> None:
    assert RECORDS[kind].kind == kind
    for text in stored.RECORDS_1[kind]:
        record = RECORDS[kind].model_validate_json(text)
        again = record.model_dump_json()
        stored_again = json.loads(again)
        stamp = stored_again[0] if isinstance(stored_again, list) else stored_again["v"]
        assert stamp == VERSIONS[kind]
        assert RECORDS[kind].model_validate_json(again) == record


# -- newer ------------------------------------------------------------------------------------------------------------
def test_a_plan_of_a_newer_release_is_refused_with_the_way_out(plans: PlanStore) -> None:
    put(plans, {**stored.PLAN_1, "meta": json.dumps({"v": 99, "something": "else"})})
    with pytest.raises(NewerVersion, match=r"a plan record of version 99 .* upgrade rebalance-tasks") as told:
        plans.load("plan-1")
    assert isinstance(told.value, RebalanceError)
    assert told.value.cause == "newer_version"


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_a_newer_release_is_refused_whatever_else_is_in_it(kind: str) -> None:
    with pytest.raises(NewerVersion, match=f"a {kind} record of version 2"):
        RECORDS[kind].model_validate_json('{"v": 2, "all": "new"}')


@pytest.mark.parametrize("stamp", [0, -1, 99, "x", b"99", 1.5j, []])
def test_a_stamp_that_is_no_known_version_is_refused(stamp: object) -> None:
    with pytest.raises(NewerVersion):
        require_known("job", stamp)


@pytest.mark.parametrize("stamp", [None, 1, "1", b"1"])
def test_a_stamp_is_read_as_it_lies_in_json_or_in_a_hash(stamp: object) -> None:
    assert require_known("job", stamp) == 1


# -- older ------------------------------------------------------------------------------------------------------------
def test_an_older_record_goes_up_one_step_at_a_time_and_is_not_changed_itself() -> None:
    steps = {
        1: lambda record: {**record, "node_id": record["node"], "steps": ["1"]},
        2: lambda record: {**record, "steps": [*record["steps"], "2"]},
    }
    old = {"node": "disk1"}
    versions, upgrades = {"trash": 3}, {"trash": steps}
    assert upgraded("trash", old, versions=versions, upgrades=upgrades) == {
        "node": "disk1",
        "node_id": "disk1",
        "steps": ["1", "2"],
        "v": 3,
    }
    assert old == {"node": "disk1"}
    from_2 = {"v": 2, "steps": []}
    assert upgraded("trash", from_2, versions=versions, upgrades=upgrades) == {"v": 3, "steps": ["2"]}
    with pytest.raises(NewerVersion):
        upgraded("trash", {"v": 4}, versions=versions, upgrades=upgrades)


def test_every_kind_has_a_way_up_from_its_first_form() -> None:
    assert UPGRADES.keys() == VERSIONS.keys()
    for kind, version in VERSIONS.items():
        assert set(UPGRADES[kind]) == set(range(1, version)), kind


def test_every_kind_of_record_is_written_in_the_form_that_is_declared() -> None:
    for kind, model in RECORDS.items():
        assert model.model_fields["v"].default == VERSIONS[kind]
    assert set(RECORDS) | {"plan", "job", "batch"} == set(VERSIONS)


@pytest.mark.parametrize("stamp", ["2", "later"])
def test_no_runner_takes_up_a_job_of_a_newer_release(fleet_config: FleetFactory, stamp: str) -> None:
    """Its moves and journals may be of another form; the newer workers carry it."""
    fleet_config({"n1": {"a": 10}, "n2": {}})
    engine = Engine()
    engine.start(moves_between("n1", "n2", {"a": 10}))
    engine.context.connection.hset(engine.context.keys.job("j1").base, {"version": stamp})
    assert engine.slice() is SliceOutcome.DROPPED
    engine.context.connection.hset(engine.context.keys.job("j1").base, {"version": "1"})
    assert engine.finish().completed_moves == 1
