"""The SFTP driver passes the shared suite on a real server (asyncssh's, protocol 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.drivers.sftp import SftpDriver
from tests.unit.drivers.conformance import DriverConformance
from tests.unit.drivers.local_harness import LocalHarness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.sftp import Sftp

pytestmark = pytest.mark.integration


class SftpHarness(LocalHarness):
    """The server's files lie on this machine, so the back door is the local one."""

    def __init__(self, root: Path, server: Sftp) -> None:
        self._server = server
        super().__init__(root)

    def another(self, node_id: str) -> SftpDriver:  # type: ignore[override]
        driver = SftpDriver(node_id, self._server.link(), str(self.root))
        self._drivers.append(driver)  # type: ignore[arg-type]
        return driver


@pytest.fixture
def harness(tmp_path: Path, sftp: Sftp) -> Iterator[SftpHarness]:
    made = SftpHarness(tmp_path / "root", sftp)
    yield made
    made.close()


class TestSftpDriver(DriverConformance):
    pass
