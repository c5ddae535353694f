"""Servers that a test may kill, freeze, fill and cut: a Redis that comes back, a Sentinel, a bad line, a TLS front.

Each belongs to one test (free ports, the test's own directory) and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import pytest
import redis

from rebalance_tasks.embedded import (
    HOST,
    EmbeddedServer,
    die_with_parent,
    find_server_binary,
    free_port,
    start_server,
)
from tests.support.tls import Front
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.support.tls import Authority


class FragileServer:
    """A real server that goes away and comes back on the same port with the same data."""

    def __init__(self, directory: Path, *, port: int | None = None, extra: Sequence[str] = ()) -> None:
        self.directory = directory
        self._extra = extra
        self.server: EmbeddedServer = start_server(directory, port=port, extra=extra)
        self.port = self.server.port

    @property
    def url(self) -> str:
        return self.server.url

    def client(self) -> redis.Redis:
        """A client of the administrator's, whatever users there are."""
        return redis.Redis(host=HOST, port=self.port, decode_responses=True)

    def kill(self) -> None:
        """``kill -9``."""
        self.server.kill()

    def back(self) -> None:
        """Start it again, on the same port and data."""
        self.server = start_server(self.directory, port=self.port, extra=self._extra)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP inside the block: connections stand, nobody answers."""
        os.kill(self.server.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.process.pid, signal.SIGCONT)

    @property
    def log(self) -> Path:
        """The part of the append-only file that grows."""
        return max((self.directory / "appendonlydir").glob("*.incr.aof"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.kill()


@dataclass
class Sentinels:
    """A master, a replica and Sentinels that watch them; with ``tls`` behind fronts, at which the Sentinels know them.

    Attributes:
        count: of Sentinels; more than half of them must agree that the master is gone.
        down_after_ms: so long a master is silent before a Sentinel takes it for dead.
    """

    directory: Path
    tls: Authority | None = None
    count: int = 1
    down_after_ms: int = 500
    fronts: list[Front] = field(default_factory=list)
    master: FragileServer = field(init=False)
    replica: FragileServer = field(init=False)
    ports: list[int] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    NAME = "mymaster"

    def __post_init__(self) -> None:
        self.master = FragileServer(self.directory / "master")
        port = free_port()
        announced = self._front(port)
        self.replica = FragileServer(
            self.directory / "replica",
            port=port,
            extra=("--replicaof", HOST, str(self.master.port), "--replica-announce-port", str(announced)),
        )
        watched = self._front(self.master.port)
        for number in range(self.count):
            self._watch(self.directory / f"sentinel-{number}", watched)
        wait_until(self._watched, 60, "the Sentinels know the replica and each other, and the replica is in step")

    def _watch(self, folder: Path, master_port: int) -> None:
        """Start a Sentinel."""
        folder.mkdir()
        port = free_port()
        self.ports.append(self._front(port))
        conf = folder / "sentinel.conf"
        conf.write_text(
            f"port {port}\nbind {HOST}\ndir {folder}\n"
            f"sentinel monitor {self.NAME} {HOST} {master_port} {self.count // 2 + 1}\n"
            f"sentinel down-after-milliseconds {self.NAME} {self.down_after_ms}\n"
            f"sentinel failover-timeout {self.NAME} {4 * self.down_after_ms}\n",
            encoding="utf-8",
        )
        with (folder / "log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    die_with_parent([str(find_server_binary()), str(conf), "--sentinel"], sig=signal.SIGKILL),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def kill_sentinel(self) -> None:
        """``kill -9`` of the first of those that live, the one that clients ask first."""
        process = self._processes.pop(0)
        process.kill()
        process.wait()

    def _front(self, port: int) -> int:
        """The port at which others know a server."""
        if self.tls is None:
            return port
        self.fronts.append(Front(port, self.tls.server()))
        return self.fronts[-1].port

    def _watched(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return all(map(self._knows_all, self.ports)) and (
                self.replica.client().info("replication")["master_link_status"] == "up"
            )
        return False

    def _knows_all(self, port: int) -> bool:
        with redis.Redis(host=HOST, port=port) as client:
            known = len(client.sentinel_slaves(self.NAME)), len(client.sentinel_sentinels(self.NAME))
            return known == (1, self.count - 1)

    @property
    def url(self) -> str:
        """A URL whose first Sentinel is dead."""
        places = ",".join(f"{HOST}:{port}" for port in (free_port(), *self.ports))
        place = f"{places}/{self.NAME}/0"
        return f"sentinel://{place}" if self.tls is None else f"sentinels://{place}?ssl_ca_certs={self.tls.ca}"

    def switch(self) -> None:
        """Have a Sentinel make the replica the master and the master, which lives on, a replica."""
        with redis.Redis(host=HOST, port=self.ports[-1]) as client:
            client.execute_command("SENTINEL", "FAILOVER", self.NAME)
        self.wait_failover()
        # The Sentinel would come to it after ten seconds.
        self.master.client().replicaof(HOST, self.replica.port)

    def wait_failover(self) -> None:
        """Wait until the replica has become the master."""
        wait_until(lambda: self.replica.client().info("replication")["role"] == "master", 20, "the replica is master")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._processes:
            self.kill_sentinel()
        self.replica.server.kill()
        self.master.server.kill()
        for front in self.fronts:
            front.__exit__(kind, error, trace)


class Line:
    """A line to a server that a test may slow down or cut; also a TLS front for a server that was built without.

    Attributes:
        delay_s: how long each answer takes on its way.
        loses: asked once for each answer; true: the connection ends instead, and the answer is lost.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.delay_s = 0.0
        self.loses: Callable[[], bool] = lambda: False
        self.lost = 0
        self._to = port
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, HOST, 0, ssl=self._tls)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            back, forth = await asyncio.open_connection(HOST, self._to)
        except OSError:
            writer.close()
            return
        ways = [asyncio.ensure_future(self._asked(reader, forth)), asyncio.ensure_future(self._answered(back, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            forth.transport.abort()
            writer.transport.abort()
            self._tasks.discard(task)

    @staticmethod
    async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.loses():
                self.lost += 1
                return
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await abort_transports()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def abort_transports() -> None:
    """Close whatever connections the running loop still has, those in the middle of a handshake too."""
    # The loop's own register: before Python 3.13 a server does not tell who is connected.
    for transport in list(getattr(asyncio.get_running_loop(), "_transports", {}).values()):
        transport.abort()
    # They close in the loop's next rounds.
    for _ in range(5):
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for one name, made for one test."""

    cert: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, name: str = "localhost") -> Certificate:
        """Make one with the openssl of the system."""
        program = shutil.which("openssl")
        if program is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no openssl to make a certificate with")
        made = cls(directory / f"{name}.pem", directory / f"{name}.key")
        subprocess.run(
            [
                *(str(program), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
                *("-keyout", str(made.key), "-out", str(made.cert)),
            ],
            check=True,
            capture_output=True,
        )
        return made

    def front(self) -> ssl.SSLContext:
        """What a server shows its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context
