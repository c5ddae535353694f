"""A small fleet and an engine in this process, for tests that strike between two steps of a move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
