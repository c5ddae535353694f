"""Find out what an S3 endpoint really does, by asking it for things that it ought to refuse.

Compatible servers differ most where it matters here: some ignore a condition they do not know and overwrite, some accept a
body that is not what its hash says. Each probe is a pair: what must be refused, and what must not. They cost about fifteen
small requests, once per process, below ``.rebalance/tmp/``.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.keys import RESERVED
from rebalance_tasks.drivers.bucket import Capabilities, NoBucket, Refused
from rebalance_tasks.drivers.s3_answers import bare_etag, deleted_of, deletion_of
from rebalance_tasks.drivers.s3_http import EndpointUnreachable

if TYPE_CHECKING:
    from rebalance_tasks.drivers.s3_http import Answer, S3Endpoint

_BODY: Final = b"probe"
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
            return {guard: base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}


def probe_endpoint(endpoint: S3Endpoint, bucket: str, *, prefix: str = "") -> tuple[Capabilities, Guard]:
    """Ask for what ought to be refused; leave nothing behind.

    Returns:
        What it can do, and what it checks bodies by.

    Raises:
        NoBucket: it does not answer.
        Refused: the credentials may not write.
    """
    base = "/".join((f"{prefix}{RESERVED}", "tmp", f"probe-{os.urandom(8).hex()}"))
    names = [f"{base}{ending}" for ending in ("", "~copy", "~bad", "~a\\b")]

    def ask(method: str, name: str, headers: dict[str, str] | None = None) -> Answer:
        body = _BODY if method == "PUT" and not (headers or {}).get("x-amz-copy-source") else b""
        return endpoint.request(method, bucket, name, headers=headers, body=body)

    try:
        written = ask("PUT", base)
        if not written.ok:
            msg = f"s3://{bucket}: write a probe: {written.status} {written.code}"
            raise (Refused if written.status == _REFUSED else NoBucket)(msg)
        origin = {"x-amz-copy-source": f"/{bucket}/{base}"}
        etag = written.headers.get("etag", "")
        copied = ask("PUT", names[1], {**origin, "if-none-match": "*"}).ok
        guard = _guard(endpoint, bucket, names[2])
        able = Capabilities(
            checks_writes=guard is not None,
            puts_new=not ask("PUT", base, {"if-none-match": "*"}).ok,
            copies_new=copied and not ask("PUT", names[1], {**origin, "if-none-match": "*"}).ok,
            deletes_version=not ask("DELETE", names[1], {"if-match": '"another"'}).ok
            and ask("DELETE", names[1], {"if-match": etag}).ok,
            deletes_versions=_deletes_versions(endpoint, bucket, base, bare_etag(etag)),
            etags_are_md5=bare_etag(etag) == hashlib.md5(_BODY, usedforsecurity=False).hexdigest(),
            parts=True,
            keeps_backslashes=_keeps_backslash(endpoint, bucket, names[3]),
        )
    except EndpointUnreachable as exc:
        msg = f"s3://{bucket} does not answer: {exc}"
        raise NoBucket(msg) from exc
    else:
        return able, guard or Guard.SIGNATURE
    finally:
        with suppress(EndpointUnreachable):
            for name in names:
                endpoint.request("DELETE", bucket, name)


def _guard(endpoint: S3Endpoint, bucket: str, name: str) -> Guard | None:
    """The first way in which the endpoint refuses a body that is another than was said."""
    if not endpoint.request("PUT", bucket, name, body=_BODY, payload_sha256=_WRONG.hexdigest()).ok:
        return Guard.SIGNATURE
    for guard in (Guard.SHA256, Guard.MD5):
        headers = guard_header(guard, b"something else", _WRONG.digest())
        if not endpoint.request("PUT", bucket, name, headers=headers, body=_BODY).ok:
            return guard
    return None


def _deletes_versions(endpoint: S3Endpoint, bucket: str, name: str, etag: str) -> bool:
    """Whether a request that deletes many objects spares another version, and deletes the one that is meant."""

    def deleted(version: str) -> bool:
        headers, body = deletion_of([(name, version)])
        return name in deleted_of(endpoint.request("POST", bucket, query={"delete": ""}, headers=headers, body=body))

    return not deleted("another") and deleted(etag)


def _keeps_backslash(endpoint: S3Endpoint, bucket: str, name: str) -> bool:
    if not endpoint.request("PUT", bucket, name, body=_BODY).ok:
        return False
    query = {"list-type": "2", "prefix": name}
    found = endpoint.request("GET", bucket, query=query).text("KeyCount")
    return found == "1"
