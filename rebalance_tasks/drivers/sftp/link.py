"""A line to an SFTP server for callers that block: one connection, kept, made anew when it breaks; many requests in flight on it.

asyncssh lives in an event loop of its own thread; what the driver asks for is a coroutine over the client, run there and waited for.
Connections belong to the process: none survives a fork (`runtime.Drivers` opens drivers anew there).
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncssh

from rebalance_tasks.drivers.sftp.bulk import BulkSession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

S = TypeVar("S")
T = TypeVar("T")

#: Tries of what a broken connection cut off; each makes a new connection.
TRIES: Final = 3
#: A server that says nothing for so long is gone.
TIMEOUT_S: Final = 60.0
#: The newest version of the protocol; servers that know less (OpenSSH: 3) say so.
VERSION: Final = 6
#: Tried first: AES in hardware is at both ends of most lines, and asyncssh's other cipher takes several times its processor time.
CIPHERS: Final = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
#: What tells that the line is broken, and not that a request was refused.
BROKEN: Final = (
    asyncssh.DisconnectError,
    asyncssh.ChannelOpenError,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    ConnectionError,
    TimeoutError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class SftpAddress:
    """Where a server is, and who asks; ``options`` are asyncssh's and hold the secrets."""

    host: str
    port: int
    options: dict[str, Any]

    def __repr__(self) -> str:
        """Without the options."""
        return f"sftp://{self.host}:{self.port}"


class LinkBroken(Exception):
    """The server cannot be reached, or does not let us in; says how the last try ended."""


class SftpLink:
    """One connection, made when it is first needed.

    Attributes:
        renames_once: the server renames a file by link and unlink, refusing a name that is taken in one step, as OpenSSH's does
            ("race-free rename of regular files", sftp-server.c).
    """

    def __init__(self, address: SftpAddress) -> None:
        """Connect to nothing yet."""
        self.address = address
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: asyncssh.SFTPClient | None = None
        self._bulk: BulkSession | None = None
        self._grants_bulk = True
        self._connecting: asyncio.Lock | None = None
        #: connections to be closed at the end
        self._open: list[asyncssh.SSHClientConnection] = []
        self._end: Callable[[], object] = lambda: None
        self.renames_once = False

    def run(self, ask: Callable[[asyncssh.SFTPClient], Awaitable[T]]) -> T:
        """Run a coroutine over the client and wait for it.

        Raises:
            LinkBroken: no try got an answer.
            asyncssh.SFTPError: the server's answer.
        """
        return asyncio.run_coroutine_threadsafe(self._asked(self._connected, ask), self._started()).result()

    def run_bulk(self, ask: Callable[[BulkSession], Awaitable[T]]) -> T:
        """Run a coroutine over the session for many requests at once, and wait for it.

        Raises:
            LinkBroken: no try got an answer, or the server grants no second session.
        """
        return asyncio.run_coroutine_threadsafe(self._asked(self._bulk_session, ask), self._started()).result()

    async def _asked(self, session: Callable[[], Awaitable[S]], ask: Callable[[S], Awaitable[T]]) -> T:
        last = ""
        for _ in range(TRIES):
            try:
                ready = await session()
                async with asyncio.timeout(TIMEOUT_S):
                    return await ask(ready)
            except asyncssh.PermissionDenied as exc:
                msg = f"{self.address!r} does not let us in: {exc.reason}"
                raise LinkBroken(msg) from exc
            except asyncssh.HostKeyNotVerifiable as exc:
                msg = (
                    f"{self.address!r}: its host key is not the one that known_hosts has ({exc.reason}); if the server was set up "
                    "anew, put its new key there, else somebody stands between"
                )
                raise LinkBroken(msg) from exc
            except BROKEN as exc:
                last = str(exc) or type(exc).__name__
                self._client = self._bulk = None
        msg = f"{self.address!r} does not answer: {last} ({TRIES} tries)"
        raise LinkBroken(msg)

    async def _connected(self) -> asyncssh.SFTPClient:
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._client is None:
                connection = await asyncssh.connect(
                    self.address.host,
                    self.address.port,
                    connect_timeout=TIMEOUT_S,
                    **{"encryption_algs": CIPHERS, **self.address.options},
                )
                self._open.append(connection)
                self.renames_once = "OpenSSH" in connection.get_extra_info("server_version", "")
                self._client = await connection.start_sftp_client(sftp_version=VERSION)
            return self._client

    async def _bulk_session(self) -> BulkSession:
        await self._connected()
        if self._bulk is None:
            connection = self._open[-1]
            try:
                if self._grants_bulk:
                    async with asyncio.timeout(TIMEOUT_S):
                        self._bulk = await BulkSession.open(connection, version=VERSION)
            except asyncssh.ChannelOpenError:
                if connection.is_closed():
                    raise
                self._grants_bulk = False
        if self._bulk is None:
            msg = f"{self.address!r} grants one session only"
            raise LinkBroken(msg)
        return self._bulk

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._loop.run_forever, name="rebalance-sftp", daemon=True)
                thread.start()
                self._end = weakref.finalize(self, _stop, self._loop, thread, self._open)
            return self._loop

    def close(self) -> None:
        """Close the connection and end the loop; a later call begins anew."""
        with self._lock:
            self._end()
            self._loop = self._client = self._bulk = self._connecting = None
            self._open = []


def _stop(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, connections: list[asyncssh.SSHClientConnection]
) -> None:
    async def finish() -> None:
        for connection in connections:
            connection.close()
        await asyncio.gather(*(connection.wait_closed() for connection in connections), return_exceptions=True)

    asyncio.run_coroutine_threadsafe(finish(), loop).result(TIMEOUT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(TIMEOUT_S)
    loop.close()
