"""The session for many requests at once, over a line that the test plays: out of order, late, garbled, ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from rebalance_tasks.drivers.sftp import link as sftp_link
from rebalance_tasks.drivers.sftp.bulk import BulkSession
from rebalance_tasks.drivers.sftp.packets import Answer, Dialect, hello, request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOK = Dialect(3, {}).look(b"/k")
STATUS = 101


class Channel:
    """A channel whose other end is the test: `server` is given what is written."""

    def __init__(self, session: BulkSession, server: Callable[[BulkSession, bytes], None]) -> None:
        self.session, self.server, self.aborted = session, server, False

    def write(self, data: bytes) -> None:
        if data == hello(6):
            self.session.data_received(bytes.fromhex("00000005 02 00000003"), None)
        else:
            self.server(self.session, data)

    def abort(self) -> None:
        self.aborted = True


class Connection:
    """A connection that grants any session."""

    def __init__(self, server: Callable[[BulkSession, bytes], None]) -> None:
        self.server = server
        self.channel: Channel

    async def create_session(self, factory: Callable[[], BulkSession], **_: object) -> tuple[Channel, BulkSession]:
        session = factory()
        self.channel = Channel(session, self.server)
        session.connection_made(self.channel)  # type: ignore[arg-type]
        return self.channel, session


def asked(
    server: Callable[[BulkSession, bytes], None], ask: Callable[[BulkSession], Awaitable[Any]]
) -> tuple[Any, Channel]:
    """What a session says that is opened at this server."""

    async def play() -> tuple[Any, Channel]:
        connection = Connection(server)
        session = await BulkSession.open(connection, version=6)  # type: ignore[arg-type]
        return await ask(session), connection.channel

    return asyncio.run(play())


def numbers_in(data: bytes) -> list[int]:
    size = len(request(0, *LOOK))
    return [int.from_bytes(data[at + 5 : at + 9], "big") for at in range(0, len(data), size)]


def echo_backwards(session: BulkSession, data: bytes) -> None:
    """Answer each request with its own number, the last one first, and one that nobody has asked for."""
    for number in [*reversed(numbers_in(data)), 4_000_000_000]:
        session.data_received(request(number, STATUS, number.to_bytes(4, "big")), None)


def test_answers_come_back_in_the_order_of_the_requests() -> None:
    async def twice(session: BulkSession) -> list[list[Answer]]:
        assert session.dialect.version == 3
        return [await session.ask([LOOK] * 3), await session.ask([]), await session.ask([LOOK] * 2)]

    (first, nothing, second), channel = asked(echo_backwards, twice)
    assert [int.from_bytes(answer.body, "big") for answer in first + second] == [0, 1, 2, 3, 4]
    assert nothing == []
    assert not channel.aborted


def test_what_is_late_for_one_request_is_no_answer_to_the_next() -> None:
    held: list[int] = []

    def late(session: BulkSession, data: bytes) -> None:
        [number] = numbers_in(data)
        held.append(number)
        if len(held) > 1:
            for each in held:
                session.data_received(request(each, STATUS, bytes([each])), None)

    async def ask(session: BulkSession) -> list[Answer]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.ask([LOOK]), 0.001)
        return await session.ask([LOOK])

    [answer], _ = asked(late, ask)
    assert answer.body == b"\1"


@pytest.mark.parametrize("garbled", [True, False], ids=["garbled", "ended"])
def test_a_session_that_breaks_says_so_to_who_waits_and_to_who_comes_later(garbled: bool) -> None:
    def broken(session: BulkSession, _: bytes) -> None:
        if garbled:
            session.data_received(b"\xff" * 9, None)
        else:
            session.connection_lost(None)

    async def ask(session: BulkSession) -> None:
        for _ in range(2):
            with pytest.raises(asyncssh.SFTPConnectionLost):
                await session.ask([LOOK])

    _, channel = asked(broken, ask)
    assert channel.aborted


def test_a_session_that_the_server_grants_and_says_nothing_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Channel):
        def write(self, data: bytes) -> None:
            assert data == hello(6)

    class Granting(Connection):
        async def create_session(self, factory: Callable[[], BulkSession], **_: object) -> tuple[Channel, BulkSession]:
            session = factory()
            self.channel = Silent(session, self.server)
            session.connection_made(self.channel)  # type: ignore[arg-type]
            return self.channel, session

    async def connected() -> None:
        """There is a line."""

    monkeypatch.setattr(sftp_link, "TIMEOUT_S", 0.01)
    link = sftp_link.SftpLink(sftp_link.SftpAddress("nowhere", 22, {}))
    monkeypatch.setattr(link, "_connected", connected)
    link._open.append(Granting(echo_backwards))  # type: ignore[arg-type]
    with pytest.raises(sftp_link.LinkBroken, match="does not answer"):
        link.run_bulk(lambda session: session.ask([LOOK]))
    link._open.clear()
    monkeypatch.undo()
    link.close()
