"""A line to a real S3 server that resets, cuts, answers in the server's place, flips bits, and counts what is asked."""

from __future__ import annotations

import hashlib
import socket
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rebalance_tasks.drivers.s3.http import Answer, S3Endpoint
from rebalance_tasks.drivers.s3.signing import Credentials
from tests.support.weed import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebalance_tasks.drivers.s3.http import Begun
    from rebalance_tasks.drivers.s3.http_line import HttpLine

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass
class Line:
    """What happens to the next exchanges of one method; each entry strikes once."""

    before: deque[tuple[str, Exception]] = field(default_factory=deque)
    after: deque[tuple[str, Exception]] = field(default_factory=deque)
    answers: deque[tuple[str, int, bytes]] = field(default_factory=deque)
    flips: deque[tuple[str, str]] = field(default_factory=deque)
    down: bool = False
    #: what is made of each answer to a method
    rewrite: dict[str, Callable[[Answer], Answer]] = field(default_factory=dict)


class BadLine(S3Endpoint):
    """An endpoint whose line resets, cuts, answers for the server, and flips bits."""

    def __init__(self, url: str, **more: Any) -> None:
        keys = more.pop("credentials", lambda: Credentials(ACCESS_KEY, SECRET_KEY))
        super().__init__(url, region="us-east-1", credentials=keys, sleep=lambda _: None, **more)
        self.line = Line()
        self.asked: Counter[str] = Counter()

    def _exchange(self, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        told, body = self._on_the_way(method, body)
        return told or self._on_the_way_back(method, super()._exchange(method, host, target, headers, body))

    def begin(self, method: str, bucket: str, name: str, *, body: bytes = b"", **more: Any) -> Begun:
        told, spoiled = self._on_the_way(method, body)
        if told is not None:
            return cast("Begun", Told(told))
        digest = hashlib.sha256(body).hexdigest()
        begun = super().begin(method, bucket, name, body=spoiled, payload_sha256=digest, **more)
        return cast("Begun", Spoiled(begun.line, begun, self))

    def _on_the_way(self, method: str, body: bytes) -> tuple[Answer | None, bytes]:
        """An answer in the server's place, if there is to be one, and what arrives of the body."""
        self.asked[method] += 1
        line = self.line
        if line.down:
            msg = "refused"
            raise ConnectionRefusedError(msg)
        if line.before and line.before[0][0] == method:
            raise line.before.popleft()[1]
        if line.answers and line.answers[0][0] == method:
            _, status, told = line.answers.popleft()
            return Answer(status, {}, told), body
        if body and line.flips and line.flips[0] == (method, "sent"):
            line.flips.popleft()
            body = bytes([body[0] ^ 1]) + body[1:]
        return None, body

    def _on_the_way_back(self, method: str, answer: Answer) -> Answer:
        line = self.line
        if line.after and line.after[0][0] == method:
            raise line.after.popleft()[1]
        if answer.body and line.flips and line.flips[0] == (method, "received"):
            line.flips.popleft()
            answer = Answer(answer.status, answer.headers, bytes([answer.body[0] ^ 1]) + answer.body[1:])
        rewrite = line.rewrite.get(method)
        return answer if rewrite is None else rewrite(answer)


class Spoiled(NamedTuple):
    """A request under way on a bad line."""

    line: HttpLine
    begun: Begun
    endpoint: BadLine

    def answer(self) -> Answer:
        return self.endpoint._on_the_way_back(self.begun.method, self.begun.answer())


class Told:
    """A request that never went out, and its answer."""

    def __init__(self, answer: Answer) -> None:
        self.line, other = socket.socketpair()
        other.close()
        self._answer = answer

    def answer(self) -> Answer:
        self.line.close()
        return self._answer
