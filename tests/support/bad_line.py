"""A line to a real S3 server that resets, cuts, answers in the server's place, flips bits, and counts what is asked."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rebalance_tasks.drivers.s3_http import Answer, S3Endpoint
from rebalance_tasks.drivers.s3_signing import Credentials
from tests.support.weed import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        self.asked[method] += 1
        line = self.line
        if line.down:
            msg = "refused"
            raise ConnectionRefusedError(msg)
        if line.before and line.before[0][0] == method:
            raise line.before.popleft()[1]
        if line.answers and line.answers[0][0] == method:
            _, status, told = line.answers.popleft()
            return Answer(status, {}, told)
        if body and line.flips and line.flips[0] == (method, "sent"):
            line.flips.popleft()
            body = bytes([body[0] ^ 1]) + body[1:]
        answer = super()._exchange(method, host, target, headers, body)
        if line.after and line.after[0][0] == method:
            raise line.after.popleft()[1]
        if answer.body and line.flips and line.flips[0] == (method, "received"):
            line.flips.popleft()
            answer = Answer(answer.status, answer.headers, bytes([answer.body[0] ^ 1]) + answer.body[1:])
        rewrite = line.rewrite.get(method)
        return answer if rewrite is None else rewrite(answer)
