"""OpenSSH's own server for tests, where it is on the machine: the protocol's version 3, its extensions, keys instead of passwords.

It runs as the user who runs the tests, on a free port, with a host key of its own; no service of the system is touched.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from rebalance_tasks.drivers.sftp.link import SftpAddress, SftpLink
from rebalance_tasks.embedded import HOST, die_with_parent, free_port
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where distributions put a program that is not for everybody's PATH.
_PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
CONFIG = """
ListenAddress {host}:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
"""


def sshd_binary() -> str | None:
    """The server, if the machine has it."""
    return shutil.which("sshd", path=_PLACES)


class OpenSsh:
    """A running server."""

    def __init__(self, directory: Path, *more: str) -> None:
        binary = sshd_binary()
        assert binary is not None
        if os.geteuid() == 0:
            # The folder that it locks itself into; a service would have made it.
            Path("/run/sshd").mkdir(exist_ok=True)
        self.port = free_port()
        self.key = directory / "user_key"
        for name in ("host_key", "user_key"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(directory / name)
            (directory / name).chmod(0o600)
            key.write_public_key(directory / f"{name}.pub")
        config = directory / "sshd_config"
        config.write_text("\n".join([CONFIG.format(host=HOST, port=self.port, directory=directory), *more, ""]))
        with (directory / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(
                die_with_parent([binary, "-D", "-e", "-f", str(config)], sig=signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        public = (directory / "host_key.pub").read_text()
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text(f"[{HOST}]:{self.port} {public}")
        self._log = directory / "sshd.log"
        wait_until(self._serves, 30, "sshd answers")

    def _serves(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 5):
            return True
        return False

    def options(self) -> dict[str, Any]:
        """``storage_options`` of a node on this server."""
        return {"username": getpass.getuser(), "client_key": str(self.key), "known_hosts": str(self.known_hosts)}

    def link(self) -> SftpLink:
        """A line of one's own."""
        options = {"username": getpass.getuser(), "client_keys": [str(self.key)], "known_hosts": str(self.known_hosts)}
        return SftpLink(SftpAddress(HOST, self.port, {**options, "config": None, "agent_path": None}))

    def kill(self) -> None:
        """End it, and the processes that serve its connections."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def openssh_server(directory: Path, *more: str) -> Iterator[OpenSsh]:
    """A server that ends with the context; ``more`` are lines of its configuration."""
    server = OpenSsh(directory, *more)
    try:
        yield server
    finally:
        server.kill()
