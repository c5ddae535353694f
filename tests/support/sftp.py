"""A real SFTP server for tests: asyncssh's own, in a process of its own, on a free port, serving the machine's files to one user."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from rebalance_tasks.drivers.sftp.link import SftpAddress, SftpLink
from rebalance_tasks.embedded import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

USER, PASSWORD = "tester", "sftp-secret"


class OneUser(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class Grudging(asyncssh.SFTPServer):
    """The files of this machine, as long as there is no file ``.grudge`` in the folder that is written to: it says what is refused."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        super().__init__(channel)
        self._paths: dict[int, str] = {}

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        file = super().open(path, pflags, attrs)
        self._paths[id(file)] = os.fsdecode(path)
        return file

    def open56(self, path: bytes, desired_access: int, flags: int, attrs: asyncssh.SFTPAttrs) -> object:
        file = super().open56(path, desired_access, flags, attrs)
        self._paths[id(file)] = os.fsdecode(path)
        return file

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        grudge = Path(self._paths[id(file_obj)]).parent / ".grudge"
        if grudge.exists():
            refusal, why = GRUDGES[grudge.read_text()], "said no"
            raise refusal(why)
        return super().write(file_obj, offset, data)  # type: ignore[return-value]


def _as_made(folder: bytes, name: bytes) -> bytes:
    """How a folder spells a name that it holds in some case; else as it was given."""
    if os.path.lexists(os.path.join(folder, name)) or not os.path.isdir(folder):  # noqa: PTH112, PTH118  bytes
        return name
    wanted = os.fsdecode(name).casefold()
    return next((each for each in os.listdir(folder) if os.fsdecode(each).casefold() == wanted), name)  # noqa: PTH208


class Folding(Grudging):
    """Names are found in whatever case they are asked for, and keep the one in which they were made, as on Windows and macOS."""

    def map_path(self, path: bytes) -> bytes:
        found = b"/"
        for component in os.path.normpath(super().map_path(path)).split(b"/"):
            found = os.path.join(found, _as_made(found, component)) if component else found  # noqa: PTH118
        return found


GRUDGES = {
    "quota": asyncssh.SFTPQuotaExceeded,
    "full": asyncssh.SFTPNoSpaceOnFilesystem,
    "denied": asyncssh.SFTPPermissionDenied,
}


def serve(host_key: str, told: Connection, files: type[Grudging]) -> None:
    """Serve until killed; tell the port."""

    async def main() -> None:
        server = await asyncssh.listen(
            HOST, 0, server_factory=OneUser, server_host_keys=[host_key], sftp_factory=files, sftp_version=6
        )
        told.send(server.sockets[0].getsockname()[1])
        await server.wait_closed()

    asyncio.run(main())


class Sftp:
    """A running server."""

    def __init__(self, directory: Path, files: type[Grudging] = Grudging) -> None:
        key = directory / "host_key"
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(str(key), theirs, files), daemon=True)
        self._process.start()
        if not ours.poll(60):
            sys.exit("the SFTP server did not start")
        self.port: int = ours.recv()
        ours.close()
        theirs.close()
        public = asyncssh.read_private_key(key).export_public_key().decode()
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text(f"[{HOST}]:{self.port} {public}")

    def options(self) -> dict[str, Any]:
        """``storage_options`` of a node on this server."""
        return {"username": USER, "password": PASSWORD, "known_hosts": str(self.known_hosts)}

    def link(self) -> SftpLink:
        """A line of one's own."""
        more = {"config": None, "client_keys": None, "agent_path": None}
        return SftpLink(SftpAddress(HOST, self.port, {**self.options(), **more}))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()


@contextlib.contextmanager
def sftp_server(directory: Path, files: type[Grudging] = Grudging) -> Iterator[Sftp]:
    """A server that ends with the context."""
    server = Sftp(directory, files)
    try:
        yield server
    finally:
        server.kill()
