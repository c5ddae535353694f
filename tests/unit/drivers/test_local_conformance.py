"""The local driver passes the shared suite, on Linux's own system calls and on the portable ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.drivers.conformance import DriverConformance
from tests.unit.drivers.local_harness import CALLS, LocalHarness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=sorted(CALLS))
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalHarness]:
    made = LocalHarness(tmp_path / "root", CALLS[request.param])
    yield made
    made.close()


class TestLocalDriver(DriverConformance):
    pass
