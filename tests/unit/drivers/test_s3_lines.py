"""Ways that are under way at once in one thread: all to their end, in order, never too many, and each broken line its own trouble."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.drivers.s3.lines import carried

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rebalance_tasks.drivers.s3.lines import Asked, Way


@dataclass
class Server:
    """Answers some of the requests that are under way, whenever it is looked at."""

    #: numbers of requests whose line breaks: (way, request) of each
    broken: frozenset[tuple[int, int]] = frozenset()
    refused: frozenset[tuple[int, int]] = frozenset()
    under_way: set[int] = field(default_factory=set)
    most: int = 0
    lines: list[socket.socket] = field(default_factory=list)
    far_ends: list[socket.socket] = field(default_factory=list)

    def way(self, number: int, requests: int) -> Way[str]:
        said = [0] * requests
        for request in range(requests):
            said[request] = cast("int", (yield cast("Asked", Request(self, number, request))))
        return f"{number}:{said}"

    def hang_up(self) -> None:
        for end in self.far_ends:
            end.close()

    def open_lines(self) -> int:
        return sum(line.fileno() >= 0 for line in self.lines)


@dataclass
class Request:
    server: Server
    number: int
    request: int

    def begin(self) -> Any:
        if (self.number, self.request) in self.server.refused:
            msg = "refused"
            raise ConnectionRefusedError(msg)
        return Sent(self)


class Sent:
    def __init__(self, request: Request) -> None:
        self.line, self._far = socket.socketpair()
        self._request, server = request, request.server
        server.lines.append(self.line)
        server.far_ends.append(self._far)
        server.under_way.add(request.number)
        server.most = max(server.most, len(server.under_way))
        self._far.send(b"x")

    def answer(self) -> Any:
        request = self._request
        request.server.under_way.discard(request.number)
        self.line.close()
        self._far.close()
        if (request.number, request.request) in request.server.broken:
            msg = "reset"
            raise ConnectionResetError(msg)
        return request.request


def expected(server: Server, number: int, requests: int) -> str | None:
    lost = server.broken | server.refused
    return None if any((number, request) in lost for request in range(requests)) else f"{number}:{[*range(requests)]}"


PAIRS = st.frozensets(st.tuples(st.integers(0, 11), st.integers(0, 3)), max_size=6)


@given(
    lengths=st.lists(st.integers(0, 4) | st.none(), max_size=12),
    at_once=st.integers(1, 6),
    broken=PAIRS,
    refused=PAIRS,
)
def test_every_way_comes_to_its_end_in_order_and_never_too_many_are_under_way(
    lengths: list[int | None], at_once: int, broken: frozenset[tuple[int, int]], refused: frozenset[tuple[int, int]]
) -> None:
    server = Server(broken, refused)
    ways = (None if length is None else server.way(number, length) for number, length in enumerate(lengths))
    assert list(carried(ways, at_once=at_once)) == [
        None if length is None else expected(server, number, length) for number, length in enumerate(lengths)
    ]
    assert server.most <= at_once
    assert server.open_lines() == 0


@given(stops_at=st.integers(0, 10), at_once=st.integers(1, 6))
def test_what_stops_the_ways_is_raised_when_those_that_were_begun_are_at_their_end(stops_at: int, at_once: int) -> None:
    server = Server()

    def ways() -> Iterator[Way[str]]:
        for number in range(stops_at):
            yield server.way(number, 2)
        raise RuntimeError

    came: list[str | None] = []
    with pytest.raises(RuntimeError):
        came.extend(carried(ways(), at_once=at_once))
    assert came == [f"{number}:[0, 1]" for number in range(stops_at)]
    assert server.open_lines() == 0


def test_whoever_leaves_early_leaves_no_line_open() -> None:
    server = Server()
    with closing(
        cast("Generator[str | None]", carried((server.way(number, 3) for number in range(9)), at_once=4))
    ) as results:
        assert next(results) == "0:[0, 1, 2]"
        assert server.open_lines() > 0
    assert server.open_lines() == 0
    server.hang_up()
