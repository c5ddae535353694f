"""A second SFTP session on a line, for many requests at once: written together, and awaited together.

asyncssh's own client makes an SSH packet, a future and several calls of each request, which is most of what a small file costs a
worker. Here the requests of many files go out in one piece, and their answers are noted as they come. Requests about one file are
carried out in the order in which they were sent (draft-ietf-secsh-filexfer-02 §7), so that a file is written, synced, dated, read
back and closed without waiting in between.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

import asyncssh

from rebalance_tasks.drivers.sftp.packets import (
    Answer,
    Answers,
    Dialect,
    Garbled,
    extensions_of,
    hello,
    is_hello,
    request,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBERS: Final = 2**32


class BulkSession(asyncssh.SSHClientSession[bytes]):
    """One session; used by one coroutine at a time."""

    def __init__(self) -> None:
        """Not open yet."""
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._answers = Answers()
        self._next = 0
        #: by number, those that are awaited; the hello's number is not known before
        self._awaited: dict[int, Answer | None] = {}
        self._missing = 0
        self._done: asyncio.Future[None] | None = None
        self._hello: asyncio.Future[Dialect] = asyncio.get_running_loop().create_future()
        self._turn = asyncio.Lock()
        self.dialect: Dialect

    @classmethod
    async def open(cls, connection: asyncssh.SSHClientConnection, *, version: int) -> Self:
        """Open a session and agree on a version. Raises: asyncssh.ChannelOpenError, asyncssh.SFTPConnectionLost."""
        session = cls()
        channel, _ = await connection.create_session(lambda: session, subsystem="sftp", encoding=None)
        channel.write(hello(version))
        session.dialect = await session._hello
        return session

    async def ask(self, requests: Sequence[tuple[int, bytes]]) -> list[Answer]:
        """Send requests (kind, body), and wait for all answers. Raises: asyncssh.SFTPConnectionLost."""
        async with self._turn:
            if not requests or self._channel is None:
                return self._broken(requests)
            numbers = [(self._next + at) % _NUMBERS for at in range(len(requests))]
            self._next = (self._next + len(requests)) % _NUMBERS
            self._awaited = dict.fromkeys(numbers)
            self._missing = len(numbers)
            self._done = asyncio.get_running_loop().create_future()
            self._channel.write(b"".join(request(n, *one) for n, one in zip(numbers, requests, strict=True)))
            await self._done
            return [answer for answer in self._awaited.values() if answer is not None]

    async def ask_of_each(self, groups: Sequence[Sequence[tuple[int, bytes]]]) -> list[list[Answer]]:
        """Send the requests of all groups together, and return the answers of each group. Raises: as `ask`."""
        answers = iter(await self.ask([one for group in groups for one in group]))
        return [list(islice(answers, len(group))) for group in groups]

    @staticmethod
    def _broken(requests: Sequence[tuple[int, bytes]]) -> list[Answer]:
        if requests:
            msg = "the session has ended"
            raise asyncssh.SFTPConnectionLost(msg)
        return []

    # -- asyncssh calls these -------------------------------------------------------------------------------------
    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Note the channel."""
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002  stderr is none of ours
        """Note answers."""
        try:
            found = self._answers.feed(data)
        except Garbled as exc:
            self._lose(str(exc))
            return
        for number, answer in found:
            if number in self._awaited and self._awaited[number] is None:
                self._awaited[number] = answer
                self._missing -= 1
            elif is_hello(answer) and not self._hello.done():
                self._hello.set_result(Dialect(number, dict(extensions_of(answer.body))))
        if self._missing == 0 and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let those who wait know."""
        self._lose(str(exc or "the server has ended the session"))

    def eof_received(self) -> bool:
        """End with the server."""
        return False

    def _lose(self, why: str) -> None:
        if self._channel is not None:
            self._channel.abort()
        self._channel = None
        for waiting in (self._hello, self._done):
            if waiting is not None and not waiting.done():
                waiting.set_exception(asyncssh.SFTPConnectionLost(why))
