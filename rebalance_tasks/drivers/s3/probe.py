"""Find out what an S3 endpoint really does, by asking it for things that it ought to refuse.

Compatible servers differ most where it matters here: some ignore a condition they do not know and overwrite, some accept a
body that is not what its hash says. Each probe is a pair: what must be refused, and what must not. They cost about twenty
small requests below ``.rebalance/tmp/``, some of them at once, and are made once per process: of a further bucket of an endpoint
that honours every condition only its own is asked, in two requests (may we write and delete, what is its etag).
"""

from __future__ import annotations

import base64
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.object_stores.bucket import Capabilities, NoBucket, Refused
from rebalance_tasks.drivers.s3.answers import bare_etag, deleted_of, deletion_of
from rebalance_tasks.drivers.s3.http import EndpointUnreachable

if TYPE_CHECKING:
    from rebalance_tasks.drivers.s3.http import Answer, S3Endpoint

#: What a probe writes.
BODY: Final = b"probe"
#: … and what its etag is, where that is the MD5.
BODY_MD5: Final = hashlib.md5(BODY, usedforsecurity=False).hexdigest()
_WRONG: Final = hashlib.sha256(b"something else")
_REFUSED: Final = 403


class Guard(StrEnum):
    """What makes an endpoint look whether the bytes that arrived are those that were sent."""

    #: the hash in the signature: AWS and MinIO check it
    SIGNATURE = ""
    SHA256 = "x-amz-checksum-sha256"
    MD5 = "content-md5"


def guard_header(guard: Guard, data: bytes, sha256: bytes) -> dict[str, str]:
    """Return the header that has a body checked; none where the signature does it."""
    match guard:
        case Guard.SIGNATURE:
            return {}
        case Guard.SHA256:
            return {guard: base64.b64encode(sha256).decode()}
        case Guard.MD5:
            return md5_header(hashlib.md5(data, usedforsecurity=False).digest())


def md5_header(digest: bytes) -> dict[str, str]:
    """Return the header that names the MD5 of a body."""
    return {Guard.MD5: base64.b64encode(digest).decode()}


#: What each endpoint was found to do, by its URL; only of those that honour every condition, since what is refused may be one bucket's policy.
_known: Final[dict[str, tuple[Capabilities, Guard]]] = {}


def probe_name(prefix: str) -> str:
    """A name for what a probe writes, which nobody else has."""
    return "/".join((f"{prefix}{RESERVED}", "tmp", f"probe-{os.urandom(8).hex()}"))


def probe_bucket(endpoint: S3Endpoint, bucket: str, *, prefix: str = "") -> tuple[Capabilities, Guard]:
    """Ask for what ought to be refused; leave nothing behind.

    Returns:
        What it can do, and what it checks bodies by.

    Raises:
        NoBucket: it does not answer.
        Refused: the credentials may not write.
    """
    base = probe_name(prefix)
    try:
        known = _known.get(endpoint.url)
        if known is not None and (etag := _short_probe(endpoint, bucket, base)):
            return replace(known[0], etags_are_md5=etag == BODY_MD5), known[1]
        found = _Probe(endpoint, bucket, base).run()
    except EndpointUnreachable as exc:
        msg = f"s3://{bucket} does not answer: {exc}"
        raise NoBucket(msg) from exc
    able = found[0]
    if able.puts_new and able.copies_new and able.deletes_version and able.deletes_versions:
        _known[endpoint.url] = found
    return found


def _short_probe(endpoint: S3Endpoint, bucket: str, name: str) -> str:
    """Etag of an object that this bucket took and gave back; empty where it did not, and must be asked for all."""
    etag = endpoint.request("PUT", bucket, name, body=BODY).headers.get("etag", "")
    removed = endpoint.request("DELETE", bucket, name, headers={"if-match": etag}) if etag else None
    return bare_etag(etag) if removed is not None and removed.ok else ""


class _Probe:
    """All that is asked of one bucket."""

    def __init__(self, endpoint: S3Endpoint, bucket: str, base: str) -> None:
        """Write below names that begin with ``base``."""
        self._endpoint, self._bucket, self._base = endpoint, bucket, base
        self._names = [f"{base}{ending}" for ending in ("", "~copy", "~bad", "~a\\b", "~md5")]
        self._origin = {"x-amz-copy-source": f"/{bucket}/{base}"}

    def run(self) -> tuple[Capabilities, Guard]:
        """Ask, what needs no other answer at once, and clear up. Raises: NoBucket, Refused, EndpointUnreachable."""
        with ThreadPoolExecutor(len(self._names), thread_name_prefix="rebalance-probe") as pool:
            try:
                written = self._ask("PUT", self._base)
                if not written.ok:
                    msg = f"s3://{self._bucket}: write a probe: {written.status} {written.code}"
                    raise (Refused if written.status == _REFUSED else NoBucket)(msg)
                etag = written.headers.get("etag", "")
                copies = pool.submit(self._copies, etag)
                checked = pool.submit(_guard, self._endpoint, self._bucket, self._names[2])
                backslash = pool.submit(_keeps_backslash, self._endpoint, self._bucket, self._names[3])
                checks_md5 = pool.submit(self._checks_md5, self._names[4])
                puts_new = not self._ask("PUT", self._base, {"if-none-match": "*"}).ok
                (copies_new, deletes_version), guard = copies.result(), checked.result()
                able = Capabilities(
                    checks_writes=guard is not None,
                    checks_md5=checks_md5.result(),
                    puts_new=puts_new,
                    copies_new=copies_new,
                    deletes_version=deletes_version,
                    deletes_versions=_deletes_versions(self._endpoint, self._bucket, self._base, bare_etag(etag)),
                    etags_are_md5=bare_etag(etag) == BODY_MD5,
                    parts=True,
                    keeps_backslashes=backslash.result(),
                )
                return able, guard or Guard.SIGNATURE
            finally:
                list(pool.map(self._clear, self._names))

    def _ask(self, method: str, name: str, headers: dict[str, str] | None = None) -> Answer:
        body = BODY if method == "PUT" and not (headers or {}).get("x-amz-copy-source") else b""
        return self._endpoint.request(method, self._bucket, name, headers=headers, body=body)

    def _copies(self, etag: str) -> tuple[bool, bool]:
        """Whether a copy spares a name that is taken, and a delete another version than the one that is meant."""
        copy = self._names[1]
        copied = self._ask("PUT", copy, {**self._origin, "if-none-match": "*"}).ok
        spares = not self._ask("PUT", copy, {**self._origin, "if-none-match": "*"}).ok
        refused = not self._ask("DELETE", copy, {"if-match": '"another"'}).ok
        return copied and spares, refused and self._ask("DELETE", copy, {"if-match": etag}).ok

    def _checks_md5(self, name: str) -> bool:
        """Whether a body of another MD5 than is said leaves nothing behind, and the right one stays."""
        wrong, right = (hashlib.md5(data, usedforsecurity=False).digest() for data in (b"something else", BODY))
        refused = not self._ask("PUT", name, md5_header(wrong)).ok and not self._ask("HEAD", name).ok
        return refused and self._ask("PUT", name, md5_header(right)).ok

    def _clear(self, name: str) -> None:
        with suppress(EndpointUnreachable):
            self._endpoint.request("DELETE", self._bucket, name)


def _guard(endpoint: S3Endpoint, bucket: str, name: str) -> Guard | None:
    """The first way in which the endpoint refuses a body that is another than was said."""
    if not endpoint.request("PUT", bucket, name, body=BODY, payload_sha256=_WRONG.hexdigest()).ok:
        return Guard.SIGNATURE
    for guard in (Guard.SHA256, Guard.MD5):
        headers = guard_header(guard, b"something else", _WRONG.digest())
        if not endpoint.request("PUT", bucket, name, headers=headers, body=BODY).ok:
            return guard
    return None


def _deletes_versions(endpoint: S3Endpoint, bucket: str, name: str, etag: str) -> bool:
    """Whether a request that deletes many objects spares another version, and deletes the one that is meant."""

    def deleted(version: str) -> bool:
        headers, body = deletion_of([(name, version)])
        return name in deleted_of(endpoint.request("POST", bucket, query={"delete": ""}, headers=headers, body=body))

    return not deleted("another") and deleted(etag)


def _keeps_backslash(endpoint: S3Endpoint, bucket: str, name: str) -> bool:
    if not endpoint.request("PUT", bucket, name, body=BODY).ok:
        return False
    query = {"list-type": "2", "prefix": name}
    found = endpoint.request("GET", bucket, query=query).text("KeyCount")
    return found == "1"
