"""A node that states more capacity than its file system has left gets no more than that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control.check import dry_run
from rebalance_tasks.drivers.local.driver import LocalDriver
from tests.support.arena import objects
from tests.support.engine import Engine
from tests.support.fleets import NodeSpec

if TYPE_CHECKING:
    from rebalance_tasks.drivers.base import NodeHealth
    from tests.conftest import FleetFactory

pytestmark = pytest.mark.integration


def test_no_more_is_planned_than_a_file_system_has_room_for(
    fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_config({"a": NodeSpec(objects(40, 1000), 50_000), "b": NodeSpec({}, 50_000)}, fleet={"mode": "observe"})
    probe = LocalDriver.probe

    def nearly_full(driver: LocalDriver) -> NodeHealth:
        return replace(probe(driver), free_bytes=5_000 if driver.node_id == "b" else 10**12)

    monkeypatch.setattr(LocalDriver, "probe", nearly_full)
    context = Engine().context
    plan, seen = dry_run(context)
    assert 4_000 <= plan.estimated_egress_bytes <= 5_000
    assert {node.node_id: node.reserved_bytes > 40_000 for node in seen.nodes} == {"a": False, "b": True}
    assert plan.cannot
