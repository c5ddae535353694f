"""A small fleet and an engine in this process, for tests that strike between two steps of a move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.drivers.s3 import probe as s3_probe
from rebalance_tasks.drivers.s3 import probe_parts as s3_probe_parts
from tests.support.engine import Engine
from tests.support.hooks import SIZES

if TYPE_CHECKING:
    from tests.conftest import FleetFactory
    from tests.support.fleets import Fleet


@pytest.fixture
def fleet(fleet_config: FleetFactory) -> Fleet:
    """Two nodes, five objects on the first."""
    return fleet_config({"n1": SIZES, "n2": {"resident": 10}}, options={"throttle_bytes_per_sec": "none"})


@pytest.fixture
def engine(fleet: Fleet) -> Engine:
    return Engine()


@pytest.fixture(autouse=True)
def _endpoints_are_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test believes of a server what another one has found out over another line."""
    monkeypatch.setattr(s3_probe, "_known", {})
    monkeypatch.setattr(s3_probe_parts, "_known", {})
