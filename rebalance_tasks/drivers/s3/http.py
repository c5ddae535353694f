"""Signed requests to one S3 endpoint: connections kept open, answers read whole, passing trouble tried again.

Resets, cut answers, 5xx and slow-down replies are retried with growing, random waits; a clock that is off is corrected by the
server's; everything else is the caller's (`drivers.s3.bucket`). Connections belong to the process: none survives a fork
(`runtime.Drivers` opens drivers anew there).
"""

from __future__ import annotations

import hashlib
import random
import ssl
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, ParseError, fromstring

from rebalance_tasks.drivers.s3.http_line import HttpLine
from rebalance_tasks.drivers.s3.signing import EMPTY_SHA256, query_text, quoted, signed_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebalance_tasks.drivers.s3.signing import Credentials

#: Tries of one request; the waits between them add up to about three seconds.
TRIES: Final = 6
#: The first wait is at most this long, each further one at most twice the one before.
FIRST_WAIT_S: Final = 0.1
#: Answers that another try may mend.
_PASSING: Final = frozenset({500, 502, 503, 504, 429})
_PASSING_CODES: Final = frozenset({"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"})
_CLOCK_CODES: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint said.

    Attributes:
        headers: by lower-case name.
        retried: an earlier try of the same request may have been carried out although its answer was lost.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    retried: bool = False

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300  # noqa: PLR2004  HTTP's own numbers

    @property
    def code(self) -> str:
        """S3's word for what is wrong, from the body (a HEAD has none)."""
        return self.text("Code") if self.body.startswith(b"<") else ""

    def text(self, name: str) -> str:
        """Text of an XML element directly below the root."""
        return child_text(self.xml(), name)

    def xml(self) -> Element:
        """The body as XML; an empty element when it is none."""
        try:
            # expat resolves no external entity, and since 2.4.1 it stops entities that explode.
            root = fromstring(self.body)  # noqa: S314
        except ParseError:
            return Element("none")
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root


def child_text(element: Element, name: str) -> str:
    """Text of a child, empty when there is none."""
    return element.findtext(name) or ""


class EndpointUnreachable(Exception):
    """All tries failed; says how the last one did."""


class Begun(NamedTuple):
    """A request whose answer is still to be read; its line can be waited on."""

    line: HttpLine
    method: str
    #: where the line goes afterwards
    idle: deque[HttpLine]

    def answer(self) -> Answer:
        """Read it, waiting for it where it has not come. Raises: OSError."""
        try:
            reply = self.line.receive(self.method)
        except BaseException:
            self.line.close()
            raise
        if reply.keeps:
            self.idle.append(self.line)
        else:
            self.line.close()
        return Answer(reply.status, reply.headers, reply.body)


class S3Endpoint:
    """One endpoint, one region, one set of credentials."""

    def __init__(
        self,
        url: str,
        *,
        region: str,
        credentials: Callable[[], Credentials],
        virtual_hosts: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: ``https://host[:port]``.
            region: what is signed for.
            credentials: asked before each request, so that they may be renewed.
            virtual_hosts: name the bucket in the host, as AWS prefers; else in the path.
            clock: aware UTC time.
            sleep: waits, in seconds.
        """
        parts = urlsplit(url)
        self.url = url
        self.secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port or (443 if self.secure else 80)
        self._host_suffix = f":{parts.port}" if parts.port else ""
        self._region = region
        self._credentials = credentials
        self._virtual_hosts = virtual_hosts
        self._clock, self._sleep = clock, sleep
        #: the server's time minus ours
        self._skew = timedelta(0)
        self._idle: dict[str, deque[HttpLine]] = {}
        # A process that ends, or a driver that is dropped, leaves no connection to be found by the collector.
        weakref.finalize(self, _close_all, self._idle)
        self._tls = ssl.create_default_context() if self.secure else None

    def request(
        self,
        method: str,
        bucket: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        payload_sha256: str | None = None,
    ) -> Answer:
        """Sign, send, read the answer whole; try again what may pass.

        Args:
            method: HTTP method.
            bucket: which bucket.
            name: of the object, not encoded.
            query: parameters.
            headers: lower-case names.
            body: sent as it is.
            payload_sha256: instead of the body's own hash (to find out whether anybody looks).

        Raises:
            EndpointUnreachable: no try got an answer that stands.
        """
        host, path = self._address(bucket, name)
        digest = payload_sha256 or _sha256(body)
        line = query_text(query or {})
        last = ""
        for attempt in range(TRIES):
            if attempt:
                self._sleep(random.uniform(0, FIRST_WAIT_S * 2**attempt))  # noqa: S311  jitter is no secret
            sent = self._signed(method, host, path, line, headers or {}, digest)
            try:
                answer = self._exchange(method, host, f"{path}?{line}" if line else path, sent, body)
            except OSError as exc:
                last = str(exc) or type(exc).__name__
                continue
            code = answer.code if not answer.ok and method != "HEAD" else ""
            if code in _CLOCK_CODES and self._correct_clock(answer):
                continue
            if answer.status in _PASSING or code in _PASSING_CODES:
                last = f"{answer.status} {code}"
                continue
            return Answer(answer.status, answer.headers, answer.body, retried=attempt > 0)
        msg = f"{self.url}: {last} ({TRIES} tries)"
        raise EndpointUnreachable(msg)

    def begin(
        self,
        method: str,
        bucket: str,
        name: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        payload_sha256: str | None = None,
    ) -> Begun:
        """Send a request, once, and leave its answer to be read. Raises: OSError."""
        host, path = self._address(bucket, name)
        sent = self._signed(method, host, path, "", headers, payload_sha256 or _sha256(body))
        idle = self._idle.setdefault(host, deque())
        line, _ = self._line(idle, host)
        try:
            line.send(method, path, sent, body)
        except BaseException:
            line.close()
            raise
        return Begun(line, method, idle)

    def _signed(
        self, method: str, host: str, path: str, query: str, headers: Mapping[str, str], digest: str
    ) -> dict[str, str]:
        return signed_headers(
            method,
            path,
            query,
            {"host": f"{host}{self._host_suffix}", **headers},
            payload_sha256=digest,
            credentials=self._credentials(),
            region=self._region,
            now=self._clock() + self._skew,
        )

    def same_account(self, other: S3Endpoint) -> bool:
        """Tell whether the other asks the same server in the same name."""
        return self.url == other.url and self._credentials().access_key == other._credentials().access_key

    def _address(self, bucket: str, name: str) -> tuple[str, str]:
        path = "/" + quoted(name, safe="/")
        return (f"{bucket}.{self._host}", path) if self._virtual_hosts else (self._host, f"/{bucket}{path}")

    def _exchange(self, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        idle = self._idle.setdefault(host, deque())
        line, used = self._line(idle, host)
        while True:
            try:
                line.send(method, target, headers, body)
                return Begun(line, method, idle).answer()
            except (BrokenPipeError, ConnectionResetError):
                line.close()
                if not used:
                    raise
                # The server has closed a connection that lay idle: no try is spent on it.
                line, used = self._line(idle, host)
            except BaseException:
                line.close()
                raise

    def _line(self, idle: deque[HttpLine], host: str) -> tuple[HttpLine, bool]:
        with suppress(IndexError):
            return idle.pop(), True
        return HttpLine(host, self._port, tls=self._tls), False

    def _correct_clock(self, answer: Answer) -> bool:
        """Take over the server's time; False when it does not tell, or we have it already."""
        try:
            skew = parsedate_to_datetime(answer.headers.get("date", "")) - self._clock()
        except (TypeError, ValueError):
            return False
        changed = abs(skew - self._skew) > timedelta(seconds=5)
        self._skew = skew
        return changed

    def close(self) -> None:
        """Close all connections that lie idle."""
        _close_all(self._idle)


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256


def _close_all(connections: Mapping[str, deque[HttpLine]]) -> None:
    for idle in connections.values():
        while idle:
            idle.pop().close()
