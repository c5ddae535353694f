"""The SFTP driver on OpenSSH's own server, where the machine has one: the shared suite over protocol 3, and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rebalance_tasks.drivers.sftp import SftpDriver
from tests.support.openssh import OpenSsh, openssh_server, sshd_binary
from tests.unit.drivers.conformance import DriverConformance
from tests.unit.drivers.local_harness import LocalHarness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sshd_binary() is None, reason="there is no sshd (Debian: openssh-server)"),
]


class OpenSshHarness(LocalHarness):
    """The server's files lie on this machine, so the back door is the local one."""

    def __init__(self, root: Path, server: OpenSsh) -> None:
        self._server = server
        super().__init__(root)

    def another(self, node_id: str) -> SftpDriver:  # type: ignore[override]
        driver = SftpDriver(node_id, self._server.link(), str(self.root))
        self._drivers.append(driver)  # type: ignore[arg-type]
        return driver


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    with openssh_server(tmp_path_factory.mktemp("openssh")) as server:
        yield server


@pytest.fixture
def harness(tmp_path: Path, openssh: OpenSsh) -> Iterator[OpenSshHarness]:
    made = OpenSshHarness(tmp_path / "root", openssh)
    yield made
    made.close()


class TestOpenSsh(DriverConformance):
    pass
