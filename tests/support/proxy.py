"""A TCP proxy in front of a server that drops, delays, stalls, tears and resets connections when it is told to.

It runs in a thread of its own and passes bytes on untouched until a test changes the weather. What a client behind it sees
is what a bad network shows: a request that never arrived, or one that was carried out and whose answer got lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from tests.support.servers import abort_transports

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

HOST: Final = "127.0.0.1"
CHUNK: Final = 1 << 16
LOOK_S: Final = 0.05
#: Closing with this sends a reset instead of a polite end.
LINGER_NOT: Final = struct.pack("ii", 1, 0)


class ChaosProxy:
    """A proxy to a local port, by a port or a socket of its own; a context manager that closes it.

    Attributes:
        port: where clients connect to; 0 for a socket.
        resets: connections that were reset so far.
    """

    def __init__(self, upstream_port: int, *, path: Path | None = None) -> None:
        self._upstream = upstream_port
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._refuse_until = self._stall_until = self._delay_until = 0.0
        self._delay_s = 0.0
        self._tear = {"request": 0, "reply": 0}
        self.resets = 0
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(10), "the proxy did not come up"

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0" if self._path is None else f"unix://{self._path}?db=0"

    # -- weather --------------------------------------------------------------------------------------------------
    def reset_all(self) -> None:
        """Cut every connection there is, now."""
        self._call(self._abort_all)

    def refuse(self, for_s: float) -> None:
        """Turn new connections away for a while."""
        self._refuse_until = time.monotonic() + for_s

    def stall(self, for_s: float) -> None:
        """Pass nothing on for a while, either way, without a word."""
        self._stall_until = time.monotonic() + for_s

    def delay(self, by_s: float, for_s: float) -> None:
        """Hold everything back by so much for a while."""
        self._delay_s, self._delay_until = by_s, time.monotonic() + for_s

    def tear(self, direction: str, times: int) -> None:
        """Pass only half of the next requests (or replies) on, and reset their connections."""
        self._tear[direction] = times

    def calm(self) -> None:
        """Fair weather."""
        self._refuse_until = self._stall_until = self._delay_until = 0.0
        self._tear = {"request": 0, "reply": 0}

    # -- the thread -----------------------------------------------------------------------------------------------
    def _call(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._listen())
        if self._path is None:
            self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._abort_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(abort_transports())
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        if self._path is not None:
            return await asyncio.start_unix_server(self._serve, self._path)
        return await asyncio.start_server(self._serve, HOST, 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            if time.monotonic() < self._refuse_until:
                return
            back, onward = await asyncio.open_connection(HOST, self._upstream)
            self._open.add(onward)
            pumps = [
                asyncio.ensure_future(self._pump("request", reader, onward)),
                asyncio.ensure_future(self._pump("reply", back, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is down, or we are being closed: the client sees its connection end
        finally:
            for end in (writer, onward):
                if end is not None:
                    self._open.discard(end)
                    self._abort(end)

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                while (left := self._stall_until - time.monotonic()) > 0:  # noqa: ASYNC110  another thread ends it, or the time does
                    await asyncio.sleep(min(left, LOOK_S))
                if time.monotonic() < self._delay_until:
                    await asyncio.sleep(self._delay_s)
                if self._tear[direction] > 0:
                    self._tear[direction] -= 1
                    self.resets += 1
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()

    def _abort_all(self) -> None:
        self.resets += len(self._open) // 2
        for writer in list(self._open):
            self._abort(writer)

    @staticmethod
    def _abort(writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        writer.transport.abort()

    def close(self) -> None:
        """End it and all its connections."""
        self._call(self._loop.stop)
        self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
