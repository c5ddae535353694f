"""What a cancel leaves on the nodes after Redis lost its last seconds, where the host's catalogue says where objects are."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.control import cleanup as cleanups
from tests.support import checker, host
from tests.support.engine import Engine, moves_between
from tests.support.forgetting import forgotten_job
from tests.support.hooks import DAY_MS, SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(fleet_config: FleetFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fleet:
    monkeypatch.setattr(cleanups, "ORPHAN_AGE", timedelta(0))
    monkeypatch.setattr(cleanups, "_durable", lambda _: True)  # as in test_forgotten.py
    host.install(tmp_path, monkeypatch)
    made = fleet_config({"n1": SIZES, "n2": {}}, options={"throttle_bytes_per_sec": "none"}, fleet=host.HOSTED)
    host.fill(made.roots)
    return made


@pytest.mark.parametrize(
    ("step", "node"),
    [("publish", "n1"), ("manifest", "n1"), ("flip", "n2"), ("free", "n2"), ("settle", "n2")],
)
def test_the_hosts_word_decides_which_copy_is_the_object(fleet: Fleet, step: str, node: str) -> None:
    engine = Engine()
    written = checker.record(fleet.roots)
    forgotten_job(engine, moves_between("n1", "n2", SIZES), step)
    for _ in range(4):
        engine.cleanup(later_ms=DAY_MS)
    checker.check(fleet.roots, written, trash=True)
    assert dict(host.catalogue().entries()) == dict.fromkeys(SIZES, node)
    assert fleet.objects(node).keys() == SIZES.keys()
    assert not engine.context.connection.hgetall(engine.context.keys.claims)
