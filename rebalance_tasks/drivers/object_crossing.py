"""Small objects of a batch straight to their keys in another S3 bucket, many under way at once in one thread.

`object_direct` for many, and like it one conditional write an object (docs/invariants.md, "Straight to the key"). Between buckets of one
account an object may be copied by the server or read and put by us; which costs less is the server's affair, so it is measured
(`core.choice`). What is not small, has tags, or does not go as it should is declined: `object_direct` says what is wrong.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.choice import Choice, asked, told
from rebalance_tasks.drivers.bucket import BucketError
from rebalance_tasks.drivers.object_files import attributes_of, metadata_of
from rebalance_tasks.drivers.s3_answers import bare_etag, copy_origin, headers_of, stored_of
from rebalance_tasks.drivers.s3_lines import Asked, carried
from rebalance_tasks.drivers.s3_probe import md5_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.s3_bucket import S3Bucket
    from rebalance_tasks.drivers.s3_lines import Way

#: A request or an answer of this size goes through a line without waiting; larger objects are better off with a thread each.
SMALL_BYTES: Final = 64 * 1024
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_NEW: Final = {"if-none-match": "*"}
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

    def carry(
        self, objects: Sequence[tuple[str, str, Fingerprint] | None], spend: Callable[[int], None], *, at_once: int
    ) -> Iterator[bool]:
        """Copy (name in the source, name in the target, version) straight to their keys; see `Burst.copy`."""
        etags = carried(map(partial(self._begin, spend), objects), at_once=at_once)
        for one, etag in zip(objects, etags, strict=True):
            yield one is not None and bool(etag) and self._is_right(one[1], one[2], etag)

    def _begin(self, spend: Callable[[int], None], one: tuple[str, str, Fingerprint] | None) -> Way[str] | None:
        if one is None or not self._ways:
            return None
        version = one[2]
        if version.size_bytes > SMALL_BYTES or not _MD5.fullmatch(version.etag):
            return None
        spend(version.size_bytes)
        if len(self._ways) == 1:
            return self._ways[0](*one)
        number, is_trial, _choices[self._pair] = asked(_choices.get(self._pair, Choice()))
        way = self._ways[number](*one)
        return self._measured(number, way) if is_trial else way

    def _is_right(self, name: str, version: Fingerprint, etag: str | None) -> bool:
        """Whether a copy is what was to be copied; one that is not is taken away again."""
        if etag == version.etag:
            return True
        with suppress(BucketError):
            self._target.delete(name, etag=etag)
        return False

    def _measured(self, number: int, way: Way[str]) -> Way[str]:
        begun = self._clock()
        etag = yield from way
        if etag:
            took_ms = (self._clock() - begun) * 1000
            _choices[self._pair] = told(_choices[self._pair], number, took_ms=took_ms)
        return etag

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
