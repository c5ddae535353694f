"""A real FTP server for tests: aioftp's, in a process of its own, on a free port, serving a folder to one user."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import sys
from typing import TYPE_CHECKING, Any

import aioftp

from rebalance_tasks.embedded import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

USER, PASSWORD = "tester", "ftp-secret"


def serve(told: Connection) -> None:
    """Serve the machine's files until killed; tell the port."""

    async def main() -> None:
        server = aioftp.Server([aioftp.User(USER, PASSWORD, base_path="/", home_path="/")])
        await server.start(HOST, 0)
        told.send(server.server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


class Ftp:
    """A running server."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        if not ours.poll(60):
            sys.exit("the FTP server did not start")
        self.port: int = ours.recv()
        ours.close()
        theirs.close()

    def options(self) -> dict[str, Any]:
        """``storage_options`` of a node on this server."""
        return {"username": USER, "password": PASSWORD, "sole_writer": True}

    def url(self, path: str) -> str:
        """URL of a folder of this machine on this server."""
        return f"ftp://{HOST}:{self.port}{path}"

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()


@contextlib.contextmanager
def ftp_server() -> Iterator[Ftp]:
    """A server that ends with the context."""
    server = Ftp()
    try:
        yield server
    finally:
        server.kill()
