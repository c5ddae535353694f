"""TLS for servers that were built without: an authority of our own, and a front that takes TLS and plain on one port.

One port for both, since a Sentinel, which was built without TLS as well, tells clients the very address at which it watches a server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import pytest

from rebalance_tasks.embedded import HOST

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

#: First byte of a TLS handshake.
HANDSHAKE: Final = b"\x16"
CHUNK: Final = 1 << 16
_EC: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@dataclass(frozen=True)
class Authority:
    """A certificate authority of one test's own, and a certificate that it gave to this machine."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Authority:
        """Make both with the openssl of the system."""
        program = shutil.which("openssl")
        if program is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no openssl to make a certificate with")
        made = cls(directory / "ca.pem", directory / "server.pem", directory / "server.key")
        ca_key = directory / "ca.key"

        def run(*arguments: str) -> None:
            subprocess.run([str(program), "req", "-x509", *_EC, *arguments], check=True, capture_output=True)

        run("-subj", "/CN=test authority", "-keyout", str(ca_key), "-out", str(made.ca))
        run(
            *(
                "-subj",
                "/CN=server",
                "-addext",
                f"subjectAltName=IP:{HOST}",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ),
            *("-CA", str(made.ca), "-CAkey", str(ca_key), "-keyout", str(made.key), "-out", str(made.cert)),
        )
        return made

    def server(self) -> ssl.SSLContext:
        """What a server shows its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


class Front:
    """Listens before a local port; what comes by TLS is taken out of it.

    Attributes:
        port: where clients connect to, by TLS or plain.
        by_tls: connections that came by TLS so far.
    """

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self._to = port
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.by_tls = 0
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, name="front", daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection((HOST, self._to)) as server:
            self._open.update((client, server))
            if client.recv(1, socket.MSG_PEEK) != HANDSHAKE:
                self._both_ways(client, server)
                return
            with self._tls.wrap_socket(client, server_side=True) as unwrapped:
                self._open.add(unwrapped)
                self.by_tls += 1
                self._both_ways(unwrapped, server)

    @staticmethod
    def _both_ways(client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until either end is closed, then end both ways."""
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
