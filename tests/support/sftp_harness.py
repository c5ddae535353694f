"""The back door to a node behind a real SFTP server on this machine, whichever server it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rebalance_tasks.drivers.sftp.driver import SftpDriver
from tests.unit.drivers.local_harness import LocalHarness

if TYPE_CHECKING:
    from pathlib import Path

    from rebalance_tasks.drivers.sftp.link import SftpLink


class Server(Protocol):
    """A running server."""

    def link(self) -> SftpLink:
        """A line of one's own."""


class SftpHarness(LocalHarness):
    """The server's files lie on this machine, so the back door is the local one."""

    def __init__(self, root: Path, server: Server) -> None:
        self._server = server
        super().__init__(root)

    def another(self, node_id: str) -> SftpDriver:  # type: ignore[override]
        driver = SftpDriver(node_id, self._server.link(), str(self.root))
        self._drivers.append(driver)  # type: ignore[arg-type]
        return driver
