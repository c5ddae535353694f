"""The SFTP driver passes the shared suite on a real server (asyncssh's, protocol 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.sftp_harness import SftpHarness
from tests.unit.drivers.conformance import DriverConformance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.sftp import Sftp

pytestmark = pytest.mark.integration


@pytest.fixture
def harness(tmp_path: Path, sftp: Sftp) -> Iterator[SftpHarness]:
    made = SftpHarness(tmp_path / "root", sftp)
    yield made
    made.close()


class TestSftpDriver(DriverConformance):
    pass
