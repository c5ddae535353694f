"""Find out what an S3 endpoint does with uploads in parts, as `drivers.s3.probe` does with the rest: some fifteen small requests, made once a process, when a first large object is at hand."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from rebalance_tasks.drivers.object_stores.bucket import NoBucket, PartAbilities
from rebalance_tasks.drivers.object_stores.key_uploads import etag_of_parts
from rebalance_tasks.drivers.s3.answers import bare_etag, completion_of
from rebalance_tasks.drivers.s3.http import EndpointUnreachable
from rebalance_tasks.drivers.s3.probe import BODY, BODY_MD5, probe_name

if TYPE_CHECKING:
    from rebalance_tasks.drivers.s3.http import Answer, S3Endpoint

#: What each endpoint was found to do, by its URL; only of those that complete as they are told, since what is refused may be one bucket's policy.
_known: Final[dict[str, PartAbilities]] = {}


def probe_parts(endpoint: S3Endpoint, bucket: str, *, prefix: str = "") -> PartAbilities:
    """Ask for what ought to be refused; leave nothing behind. The bucket's ETags must be MD5s. Raises: NoBucket."""
    if (known := _known.get(endpoint.url)) is not None:
        return known
    name = probe_name(prefix)
    try:
        found = _Probe(endpoint, bucket).run(name, f"{name}~copy")
    except EndpointUnreachable as exc:
        msg = f"s3://{bucket} does not answer: {exc}"
        raise NoBucket(msg) from exc
    if found.completes_new:
        _known[endpoint.url] = found
    return found


class _Probe:
    """All that is asked of one bucket."""

    def __init__(self, endpoint: S3Endpoint, bucket: str) -> None:
        self._endpoint, self._bucket = endpoint, bucket

    def run(self, name: str, copy: str) -> PartAbilities:
        """Ask, and clear up. Raises: EndpointUnreachable."""
        try:
            return self._found(name, copy)
        finally:
            for made in (name, copy):
                with suppress(EndpointUnreachable):
                    self._ask("DELETE", made)

    def _found(self, name: str, copy: str) -> PartAbilities:
        expected = etag_of_parts([BODY_MD5])
        if bare_etag(self._uploaded(name).text("ETag")) != expected:
            return PartAbilities()
        spares = not self._uploaded(name).ok
        origin = {"x-amz-copy-source": f"/{self._bucket}/{name}"}
        copied = bare_etag(self._ask("PUT", copy, headers=origin).text("ETag")) == expected
        cut = self._ask("HEAD", name, {"partNumber": "1"}).headers
        tells = (cut.get("content-length"), cut.get("x-amz-mp-parts-count")) == (str(len(BODY)), "1")
        origin["x-amz-copy-source-range"] = f"bytes=0-{len(BODY) - 1}"
        ranges = tells and bare_etag(self._uploaded(copy, origin).text("ETag")) == expected
        return PartAbilities(completes_new=spares, copies_parts=copied, copies_ranges=ranges)

    def _uploaded(self, name: str, origin: dict[str, str] | None = None) -> Answer:
        """The answer to completing an upload of one part, sent or copied from its origin; one that is sent must not overwrite."""
        upload = {"uploadId": self._ask("POST", name, {"uploads": ""}).text("UploadId")}
        sent = self._ask("PUT", name, {"partNumber": "1", **upload}, b"" if origin else BODY, origin)
        part = bare_etag(sent.text("ETag") if origin else sent.headers.get("etag", ""))
        completed = self._ask(
            "POST", name, upload, completion_of([(1, part)]), {} if origin else {"if-none-match": "*"}
        )
        if not completed.ok:
            self._ask("DELETE", name, upload)
        return completed

    def _ask(
        self,
        method: str,
        name: str,
        query: dict[str, str] | None = None,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        return self._endpoint.request(method, self._bucket, name, query=query, headers=headers, body=body)
