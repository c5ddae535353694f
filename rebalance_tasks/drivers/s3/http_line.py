"""A line to an HTTP/1.1 server for requests whose answers are small or wanted whole: written and read with nothing in between.

http.client does the same at three times the processor time, most of it for parsing an answer's headers as if they were mail
([ADR 18](../../docs/adr/0018-small-objects-go-straight-to-their-keys.md)). What is read comes from the server and is bounded:
a line, the number of headers, and the body by what the server says of its length.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

#: A server that says nothing for so long is gone.
TIMEOUT_S: Final = 60.0
#: Longest line, and most headers, that an answer may have; as http.client has it.
LINE_BYTES: Final = 65536
MOST_HEADERS: Final = 100
#: A body up to this size goes out in the same packet as the headers; a larger one is not worth copying for that.
_TOGETHER_BYTES: Final = 65536
_BODILESS: Final = frozenset({204, 304})
_CONTINUE: Final = 100


class Garbled(OSError):
    """What came is no answer, or not all of one."""


class Reply(NamedTuple):
    """An answer, read whole.

    Attributes:
        headers: by lower-case name; of one that came several times, the values with commas between.
        keeps: whether the line can be used again.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    keeps: bool


class HttpLine:
    """One connection; used by one thread at a time. Raises OSError for all that goes wrong."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Connect."""
        plain = socket.create_connection((host, port), TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
        self._file = self._socket.makefile("rb")

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send a request and read its answer; see `send`."""
        self.send(method, target, headers, body)
        return self.receive(method)

    def fileno(self) -> int:
        """Descriptor that can be waited on: after `send` it is readable when the answer has begun to come."""
        return self._socket.fileno()

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send a request; nothing else may be sent before its answer is read.

        Args:
            method: HTTP method.
            target: percent-encoded path and query.
            headers: with ``host``; without the length, which is the body's.
            body: sent as it is.
        """
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if body or method in {"PUT", "POST"}:
            lines.append(f"content-length: {len(body)}")
        text = "\r\n".join(lines) + "\r\n\r\n"
        if not text.count("\r") == text.count("\n") == len(lines) + 1:
            msg = "a header of the request holds a line break"
            raise ValueError(msg)
        head = text.encode("latin-1")
        if len(body) <= _TOGETHER_BYTES:
            self._socket.sendall(head + body)
        else:
            self._socket.sendall(head)
            self._socket.sendall(body)

    def receive(self, method: str) -> Reply:
        """Read the answer to what was sent, whole."""
        status = _CONTINUE
        while status == _CONTINUE:
            lines = self._head()
            first = next(lines)
            version, _, rest = first.partition(" ")
            if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
                msg = f"what came is no HTTP answer: {first[:40]!r}"
                raise Garbled(msg)
            status = int(rest[:3])
            headers = _headers(lines)
        keeps = version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
        if method == "HEAD" or status in _BODILESS:
            return Reply(status, headers, b"", keeps)
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return Reply(status, headers, self._chunks(), keeps)
        if (length := headers.get("content-length")) is not None:
            return Reply(status, headers, self._exactly(length), keeps)
        return Reply(status, headers, self._file.read(), keeps=False)

    def _head(self) -> Iterator[str]:
        """Lines up to the empty one after the headers: mostly they have come together, and are taken apart together."""
        come = self._file.peek(1)
        if not come:
            msg = "the server has closed the connection"
            raise ConnectionResetError(msg)
        length = come.find(b"\r\n\r\n") + 4
        if length < 4 or come.count(b"\n", 0, length) != come.count(b"\r\n", 0, length):  # noqa: PLR2004  not found
            return iter(self._line, None)
        return iter(self._file.read(length).decode("latin-1")[:-2].split("\r\n"))

    def _line(self) -> str:
        line = self._file.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            msg = f"the answer was cut off, or a line of it is longer than {LINE_BYTES} bytes: {line[:40]!r}"
            raise Garbled(msg)
        return line.decode("latin-1").rstrip("\r\n")

    def _exactly(self, length: str) -> bytes:
        wanted = int(length) if length.isdecimal() and length.isascii() else -1
        body = self._file.read(wanted) if wanted >= 0 else b""
        if len(body) != wanted:
            msg = f"the answer was cut off: {len(body)} of {length} bytes came"
            raise Garbled(msg)
        return body

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            size_text = self._line().partition(";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                msg = f"the answer was cut off, or a chunk has no size: {size_text[:20]!r}"
                raise Garbled(msg) from None
            if size == 0:
                while self._line():
                    pass
                return bytes(body)
            body += self._exactly(str(size))
            self._line()

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


def _headers(lines: Iterator[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for _ in range(MOST_HEADERS + 1):
        line = next(lines)
        if not line:
            return found
        name, colon, value = line.partition(":")
        if not colon:
            break
        name, value = name.lower(), value.strip()
        found[name] = f"{found[name]},{value}" if name in found else value
    msg = f"the answer has a header that is none, or more than {MOST_HEADERS}"
    raise Garbled(msg)
