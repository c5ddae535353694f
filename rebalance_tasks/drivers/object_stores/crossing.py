"""Small objects of a batch straight to their keys in another S3 bucket, many under way at once in one thread.

`object_stores.direct` for many, and like it one conditional write an object (docs/invariants.md, "Straight to the key"). Between buckets of one
account objects may be copied by the server or read and put by us; which costs less is the server's affair, so it is measured, by whole
stretches of a batch (`core.pacing.choice`). What is not small, has tags, or does not go as it should is declined: `object_stores.direct` says what is wrong.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.pacing.choice import Choice, to_try, tried, went
from rebalance_tasks.drivers.object_stores.bucket import MD5, BucketError
from rebalance_tasks.drivers.object_stores.files import attributes_of, metadata_of
from rebalance_tasks.drivers.s3.answers import bare_etag, copy_origin, headers_of, stored_of
from rebalance_tasks.drivers.s3.lines import Asked, carried
from rebalance_tasks.drivers.s3.probe import md5_header

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.s3.bucket import S3Bucket
    from rebalance_tasks.drivers.s3.lines import Way

    Named = tuple[str, str, Fingerprint]

#: A request or an answer of this size goes through a line without waiting; larger objects are better off with a thread each.
SMALL_BYTES: Final = 64 * 1024
_NEW: Final = {"if-none-match": "*"}
#: A stretch that waited longer than this share of its time for the throttle tells what the throttle costs.
MOST_WAITED: Final = 0.25
#: By what each pair of buckets was found to cost: 0 copied by the server, 1 through us. A fork goes on from what its parent knew.
_choices: Final[dict[tuple[str, str, str], Choice]] = {}


class Crossing:
    """From one bucket to another."""

    def __init__(self, source: S3Bucket, target: S3Bucket, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Ask nothing yet; ``clock`` tells seconds."""
        self._source, self._target, self._clock = source, target, clock
        self._pair = (target.endpoint.url, source.name, target.name)
        able = target.capabilities
        self._ways: list[Callable[[str, str, Fingerprint], Way[str]]] = []
        if able.etags_are_md5 and target.copies_from(source):
            self._ways.append(self._copied)
        if able.etags_are_md5 and able.checks_md5:
            self._ways.append(self._sent)

    def carry(self, objects: Sequence[Named | None], spend: Callable[[int], None], *, at_once: int) -> Iterator[bool]:
        """Copy (name in the source, name in the target, version) straight to their keys; see `Burst.copy`."""
        able = [one if one is not None and self._may_cross(one[2]) else None for one in objects]
        run = _Run(spend, at_once, self._clock)
        done = self._stretches(run, [one for one in able if one is not None])
        for one in able:
            yield one is not None and next(done)
        # What is noted after the last one.
        next(done, None)

    def _may_cross(self, version: Fingerprint) -> bool:
        return bool(self._ways and version.size_bytes <= SMALL_BYTES and MD5.fullmatch(version.etag))

    def _stretches(self, run: _Run, objects: Sequence[Named]) -> Iterator[bool]:
        """Carry objects by the way that costs less, some of them by each where that is to be found out."""
        if len(self._ways) == 1:
            yield from self._stretch(run, 0, objects)
            return
        choice = _choices.get(self._pair, Choice())
        count = to_try(choice, len(objects))
        if count:
            half = count // 2
            before = yield from self._timed(run, 0, objects[:half])
            between = yield from self._timed(run, 1, objects[half : half + count])
            after = yield from self._timed(run, 0, objects[half + count : 2 * count])
            if run.waited_s <= MOST_WAITED * run.passed_s:
                choice = tried(choice, (_cost(before, after), _cost(between)))
        rest = objects[2 * count :]
        came_through = yield from self._stretch(run, choice.better, rest)
        _choices[self._pair] = went(choice, len(rest), came_through)

    def _timed(self, run: _Run, way: int, objects: Sequence[Named]) -> Generator[bool, None, tuple[float, int]]:
        """Carry objects by one way; return the seconds that they took, and how many came through."""
        before = run.passed_s - run.waited_s
        came_through = yield from self._stretch(run, way, objects)
        return run.passed_s - run.waited_s - before, came_through

    def _stretch(self, run: _Run, way: int, objects: Sequence[Named]) -> Generator[bool, None, int]:
        """Carry objects by one way; return how many came through."""
        came_through = 0
        etags = carried((self._begin(run, way, one) for one in objects), at_once=run.at_once)
        for one, etag in zip(objects, etags, strict=True):
            done = bool(etag) and self._is_right(one[1], one[2], etag)
            came_through += done
            yield done
        return came_through

    def _begin(self, run: _Run, way: int, one: Named) -> Way[str]:
        run.spend(one[2].size_bytes)
        return self._ways[way](*one)

    def _is_right(self, name: str, version: Fingerprint, etag: str | None) -> bool:
        """Whether a copy is what was to be copied; one that is not is taken away again."""
        if etag == version.etag:
            return True
        with suppress(BucketError):
            self._target.delete(name, etag=etag)
        return False

    # -- the ways; each returns the copy's etag, empty where it was not made --------------------------------------------
    def _copied(self, source: str, target: str, version: Fingerprint) -> Way[str]:
        origin = copy_origin(self._source.name, source, version.etag)
        answer = yield Asked(self._target, "PUT", target, {**origin, **_NEW})
        return bare_etag(answer.text("ETag")) if answer.ok else ""

    def _sent(self, source: str, target: str, version: Fingerprint) -> Way[str]:
        answer = yield Asked(self._source, "GET", source, {"if-match": f'"{version.etag}"'})
        whole = answer.ok and len(answer.body) == version.size_bytes
        if not whole or "x-amz-tagging-count" in answer.headers:
            return ""
        found = stored_of(source, answer.headers, len(answer.body))
        try:
            headers = headers_of(attributes_of(metadata_of(found)))
        except BucketError:
            return ""
        # The store holds the bytes against the original's MD5, so a bit that flipped on either way is noticed by it.
        headers |= {**_NEW, **md5_header(bytes.fromhex(version.etag))}
        answer = yield Asked(self._target, "PUT", target, headers, answer.body)
        return bare_etag(answer.headers.get("etag", "")) if answer.ok else ""


def _cost(*stretches: tuple[float, int]) -> float | None:
    """Seconds that one object took; ``None`` where none came through."""
    seconds, came_through = (sum(column) for column in zip(*stretches, strict=True))
    return seconds / came_through if came_through else None


class _Run:
    """One call of `Crossing.carry`: who is asked for leave, how many objects go at once, and how much of its time was waiting for leave."""

    def __init__(self, spend: Callable[[int], None], at_once: int, clock: Callable[[], float]) -> None:
        self._spend, self.at_once, self._clock = spend, at_once, clock
        self._begun = clock()
        self.waited_s = 0.0

    @property
    def passed_s(self) -> float:
        return self._clock() - self._begun

    def spend(self, size_bytes: int) -> None:
        before = self._clock()
        self._spend(size_bytes)
        self.waited_s += self._clock() - before
