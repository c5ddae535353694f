"""Answers of HTTP servers, well and badly made, as a line reads them: whole and right, or an error."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance_tasks.drivers.s3.http_line import LINE_BYTES, MOST_HEADERS, Garbled, HttpLine

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def line_to(*replies: bytes) -> Iterator[tuple[HttpLine, list[bytes]]]:
    """A line to a server that takes one request after the other, and the requests as they came."""
    seen: list[bytes] = []
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for reply in replies:
                    seen.append(connection.recv(1 << 20))
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        line = HttpLine(HOST, server.getsockname()[1])
        try:
            yield line, seen
        finally:
            line.close()
            thread.join(10)


def ask(*replies: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes, bool]:
    with line_to(*replies) as (line, _):
        return line.ask(method, "/x", {"host": "h"}, b"")


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;more=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"


def test_a_request_is_written_as_it_was_given_and_its_length_is_the_bodys() -> None:
    with line_to(OK + b"Content-Length: 0\r\n\r\n") as (line, seen):
        line.ask("PUT", "/b/a%20b?q=1", {"host": "h", "x-meta": "v"}, b"body")
    assert seen == [b"PUT /b/a%20b?q=1 HTTP/1.1\r\nhost: h\r\nx-meta: v\r\ncontent-length: 4\r\n\r\nbody"]


@given(body=st.binary(max_size=5000), size=st.integers(1, 700))
def test_a_body_comes_whole_by_its_length_in_chunks_or_until_the_end(body: bytes, size: int) -> None:
    by_length = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    in_chunks = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, size)
    with line_to(by_length, in_chunks, OK + b"\r\n" + body) as (line, _):
        replies = [line.ask("GET", "/", {"host": "h"}, b"") for _ in range(3)]
    assert [(reply.body, reply.keeps) for reply in replies] == [(body, True), (body, True), (body, False)]


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_an_answer_that_has_no_body_is_not_waited_for(status: bytes) -> None:
    assert ask(b"HTTP/1.1 " + status + b"\r\n\r\n")[2] == b""


def test_the_answer_to_a_head_tells_a_length_and_has_no_body() -> None:
    status, headers, body, keeps = ask(OK + b"Content-Length: 70\r\n\r\n", method="HEAD")
    assert (status, headers, body, keeps) == (200, {"content-length": "70"}, b"", True)


def test_a_word_that_the_server_goes_on_is_no_answer_yet() -> None:
    assert ask(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nContent-Length: 1\r\n\r\n!")[:3:2] == (403, b"!")


def test_headers_are_found_by_their_lower_case_name_and_several_of_one_name_are_joined() -> None:
    headers = ask(OK + b'X-A: 1\r\nx-a:  2 \r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')[1]
    assert headers == {"x-a": "1,2", "etag": '"e"', "content-length": "0"}


@pytest.mark.parametrize("told", [b"HTTP/1.0 200 OK\r\n", OK + b"Connection: close\r\n"])
def test_a_line_that_the_server_closes_is_not_used_again(told: bytes) -> None:
    assert ask(told + b"Content-Length: 0\r\n\r\n")[3] is False


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK",
        OK,
        OK + b"Content-Length: 3\r\n",
        OK + b"Content-Length: 3\r\n\r\nab",
        OK + b"Content-Length: -3\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"no header\r\n\r\n",
        OK + b"a: b\r\n" * (MOST_HEADERS + 1) + b"\r\n",
        OK + b"a: " + b"b" * LINE_BYTES + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_an_answer_that_is_cut_off_or_is_none_is_an_error_and_never_a_shorter_answer(reply: bytes) -> None:
    with pytest.raises(Garbled):
        ask(reply)


def test_a_line_that_was_closed_while_it_lay_idle_says_so() -> None:
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask()


def test_a_header_that_would_smuggle_in_another_is_refused_before_it_is_sent() -> None:
    with line_to() as (line, seen), pytest.raises(ValueError, match="line break"):
        line.ask("GET", "/", {"host": "h", "x": "1\r\ny: 2"}, b"")
    assert seen == []
