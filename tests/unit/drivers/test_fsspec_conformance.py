"""The fsspec driver passes the shared suite on fsspec's own file system for local files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fsspec_harness import FsspecHarness
from tests.unit.drivers.conformance import DriverConformance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FsspecHarness]:
    root = tmp_path / "root"
    made = FsspecHarness(root, f"fsspec+file://{root}", {"sole_writer": True})
    yield made
    made.close()


class TestFsspecDriver(DriverConformance):
    pass
