"""Many small S3 requests under way at once in one thread: each on a line of its own, answers taken as they come.

Threads that wait for one answer each spend more on being woken in turn than on the requests themselves
([ADR 32](../../docs/adr/0032-small-objects-cross-in-one-thread.md)). What is to be done with one object is a *way*, a generator
that yields a request and is sent its answer. Nothing is tried again here: a way whose line breaks ends without a result, and
whoever wanted it asks by `S3Endpoint.request`, which is patient. An answer that has begun to come is read to its end before the next.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from rebalance_tasks.drivers.s3.http import Answer
from rebalance_tasks.drivers.s3.http_line import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rebalance_tasks.drivers.s3.bucket import S3Bucket
    from rebalance_tasks.drivers.s3.http import Begun

T = TypeVar("T")


class Asked(NamedTuple):
    """One request of a way."""

    bucket: S3Bucket
    method: str
    #: of the object
    name: str
    headers: Mapping[str, str]
    body: bytes = b""

    def begin(self) -> Begun:
        """Send it. Raises: OSError."""
        endpoint = self.bucket.endpoint
        return endpoint.begin(self.method, self.bucket.name, self.name, headers=self.headers, body=self.body)


Way = Generator[Asked, Answer, T]


def carried(ways: Iterator[Way[T] | None], *, at_once: int) -> Iterator[T | None]:
    """Go many ways, some at once.

    Args:
        ways: taken one by one, whenever there is room; ``None`` where there is none to go. What it raises is raised when those
            that are under way have come to their end.
        at_once: how many may be under way.

    Yields:
        What each way returned, in their order; ``None`` where there was none, or its line broke.
    """
    with _UnderWay[T](at_once) as under_way:
        stop: BaseException | None = None
        more = True
        while more or under_way:
            while more and under_way.has_room:
                try:
                    under_way.start(next(ways))
                except StopIteration:
                    more = False
                except BaseException as exc:  # noqa: BLE001  raised again below
                    more, stop = False, exc
            yield from under_way.in_order()
            under_way.wait()
        yield from under_way.in_order()
        if stop is not None:
            raise stop


class _UnderWay(Generic[T]):
    """Ways whose request is sent, and results that wait for those before them."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        # A few lines that come and go: to name them all anew costs less than to tell the kernel of each.
        self._poll = select.poll()
        #: by the descriptor of the line: (number of the way, way, what was begun)
        self._sent: dict[int, tuple[int, Way[T], Begun]] = {}
        self._results: dict[int, T | None] = {}
        self._started = self._yielded = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        """Hang up where an answer is still to come: nobody will read it."""
        for _, way, begun in self._sent.values():
            way.close()
            begun.line.close()

    def __bool__(self) -> bool:
        return bool(self._sent)

    @property
    def has_room(self) -> bool:
        return len(self._sent) < self._at_once

    def start(self, way: Way[T] | None) -> None:
        number = self._started
        self._started += 1
        if way is None:
            self._results[number] = None
        else:
            self._go_on(number, way, None)

    def in_order(self) -> Iterator[T | None]:
        while self._yielded in self._results:
            result = self._results.pop(self._yielded)
            self._yielded += 1
            yield result

    def wait(self) -> None:
        """Wait until at least one answer comes, and take the ways whose answers came on to their next request."""
        if not self._sent:
            return
        ready = [place for place, _ in self._poll.poll(TIMEOUT_S * 1000)]
        for place in ready or list(self._sent):
            number, way, begun = self._sent.pop(place)
            self._poll.unregister(place)
            try:
                if not ready:
                    begun.line.close()
                answer = begun.answer()
            except OSError:
                way.close()
                self._results[number] = None
            else:
                self._go_on(number, way, answer)

    def _go_on(self, number: int, way: Way[T], answer: Answer | None) -> None:
        self._results[number] = None
        try:
            asked = next(way) if answer is None else way.send(answer)
            begun = asked.begin()
        except StopIteration as end:
            self._results[number] = end.value
        except OSError:
            way.close()
        else:
            del self._results[number]
            place = begun.line.fileno()
            self._sent[place] = (number, way, begun)
            self._poll.register(place, select.POLLIN)
