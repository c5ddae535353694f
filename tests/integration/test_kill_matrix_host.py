"""The kill matrix of a fleet whose catalogue is its host's: a death after each step at which the two could come apart.

After every death: what test_kill_matrix.py promises, and the host sends readers to the very node that holds the object.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import cleanup as cleanups
from rebalance_tasks.control import lifecycle
from rebalance_tasks.control.locate import Locator
from rebalance_tasks.core.states import RebalanceStatus
from rebalance_tasks.migration.faults import Step
from tests.integration import test_kill_matrix
from tests.integration.test_kill_matrix import HOST_STEPS, ONE, SIZES, Case, newest, remount, strike
from tests.support import checker, host, killing, killing_host
from tests.support.fleets import NodeSpec
from tests.support.hooks import DAY_MS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.engine import Engine
    from tests.support.fleets import Fleet

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("kill_matrix_host")]

CASES = [
    *(Case(step) for step in (Step.MANIFEST, Step.HOST_FLIP, Step.FLIP)),
    *(Case(step, killing.carry_while_a_stranger_writes) for step in (Step.HOST_BACK, Step.RETRACT, Step.UNPUBLISH)),
    Case(Step.FREE, before=((Step.HOST_FLIP, 1),)),
    # An operator cancels when the host has committed and Redis does not know yet.
    Case(Step.HOST_FLIP, killing_host.cancel, before=((Step.HOST_FLIP, 1),)),
    Case(Step.LATER, killing_host.carry_while_a_writer_claims),
    # Workers died on it again and again, before and after the host had committed it.
    *(Case(step, before=((Step.SYNC_PUBLISHED, 3),), sizes=ONE) for step in (Step.HOST_ASKED, Step.UNPUBLISH)),
    Case(Step.FLIP_LATE, before=((Step.HOST_FLIP, 3),), sizes=ONE),
    *(
        Case(step, killing.tidy, prelude=(killing_host.carry_and_lose_the_answer,), sizes=ONE)
        for step in (Step.EXPECTED_LATE, Step.FREE_LATE)
    ),
]


@pytest.fixture
def fleet(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Fleet:
    host.install(tmp_path, monkeypatch)
    options = {"throttle_bytes_per_sec": "none", "max_egress_bytes_per_cycle": 10**9}
    nodes = {"n1": NodeSpec(SIZES, capacity_bytes=10**7), "n2": NodeSpec({"resident": 3}, capacity_bytes=10**7)}
    made = fleet_config(nodes, options=options, fleet=host.HOSTED)
    host.fill(made.roots)
    return made


def test_every_step_of_the_host_has_a_case() -> None:
    assert {case.step for case in CASES} >= HOST_STEPS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_after_a_death_the_host_and_the_nodes_agree_and_every_object_is_whole_and_counted_once(
    fleet: Fleet, tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checker.record(fleet.roots)
    engine = strike(fleet, tmp_path, case)
    remount(fleet)
    half_way = checker.look(fleet.roots).objects
    assert written.digests.keys() <= half_way.keys(), "an object was nowhere where a reader looks"
    for key, node in host.catalogue().entries():
        assert node in {holder for holder, _ in half_way[key]}, f"the host sends readers of {key} to a miss"
    if case.act is killing.carry_while_a_stranger_writes:
        nodes = [node for node, _ in half_way["small/0"]]
        written = written.changed("small/0", newest(fleet, nodes, "small/0"))
    lifecycle.resume(engine.context, "j1")
    job = engine.finish()
    assert job.completed_moves + job.failed_moves + job.skipped_moves == len(case.sizes)
    if case.act is killing.carry and not case.before:
        assert (job.status, job.completed_moves, job.failures) == (RebalanceStatus.COMPLETED, len(SIZES), {})
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    for _ in range(3):
        engine.cleanup(later_ms=DAY_MS)
    # What an operator cancelled while nobody could say whether the host had committed it is counted as skipped, and is moved.
    counts = None if case.act is killing.tidy else job
    checker.check(fleet.roots, written, counts, trash=True)
    test_kill_matrix.assert_nothing_is_held(engine)
    assert_agreed(fleet, engine)


def assert_agreed(fleet: Fleet, engine: Engine) -> None:
    """The host names the node of every object, readers find it by that, and Redis keeps no places of its own."""
    places = dict(host.catalogue().entries())
    assert places == {key: node for node in fleet.roots for key in fleet.objects(node)}
    locator = Locator(engine.context)
    assert {key: (found, found.via) for key in places if (found := locator.locate(key))} == {
        key: (node, "catalogue") for key, node in places.items()
    }
    assert not engine.context.connection.client.exists(engine.context.keys.locations)
