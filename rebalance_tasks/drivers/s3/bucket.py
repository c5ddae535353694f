"""One S3 bucket: the requests behind `drivers.object_stores.bucket.Bucket`, and how S3's answers are to be read.

Requests are built and signed here because no kept library has all of what the engine needs (copies between buckets, uploads
in parts that a later attempt takes up, conditions on copies and deletes) at a bearable price for small objects
([ADR 13](../../docs/adr/0013-s3-requests-are-signed-here.md)). Which of these an endpoint really honours is found out by
asking it (`drivers.s3.probe`), not believed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import unquote_plus

from rebalance_tasks.drivers.lanes import each
from rebalance_tasks.drivers.object_stores import bucket as buckets
from rebalance_tasks.drivers.object_stores.bucket import Begun, Capabilities, PartAbilities, Stored, Stretch, Upload
from rebalance_tasks.drivers.s3.answers import (
    bare_etag,
    completion_of,
    copy_origin,
    deleted_of,
    deletion_of,
    fail,
    headers_of,
    is_md5,
    listed_of,
    seconds_ns,
    stored_of,
)
from rebalance_tasks.drivers.s3.http import Answer, EndpointUnreachable, child_text
from rebalance_tasks.drivers.s3.probe import Guard, guard_header, md5_header, probe_bucket
from rebalance_tasks.drivers.s3.probe_parts import probe_parts
from rebalance_tasks.drivers.s3.signing import query_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from xml.etree.ElementTree import Element

    from rebalance_tasks.drivers.object_stores.bucket import Bucket
    from rebalance_tasks.drivers.s3.http import S3Endpoint

#: S3 copies no more in one request; above it the copy is made of parts …
COPY_BYTES: Final = 5 * 1024**3
#: … of this size.
COPY_PART_BYTES: Final = 1024**3
#: Objects in one request that deletes many: the server takes them one after the other, and several requests side by side.
DELETED_AT_ONCE: Final = 128
DELETES_AT_ONCE: Final = 4
_OK_NOT_THERE: Final = 404
_FORBIDDEN: Final = 403
_PRECONDITION: Final = frozenset({409, 412})


class S3Bucket:
    """A bucket at an endpoint."""

    starts_anywhere = True

    def __init__(self, endpoint: S3Endpoint, name: str, *, prefix: str = "", allow_versions: bool = False) -> None:
        """Ask nothing yet.

        Args:
            endpoint: where it is.
            name: which bucket.
            prefix: of the node, below which the endpoint is tried out.
            allow_versions: use it although it keeps old versions or locks objects.
        """
        self.url = f"s3://{name}"
        self.endpoint = endpoint
        self.name = name
        self._prefix = f"{prefix}/" if prefix else ""
        self._allow_versions = allow_versions

    @cached_property
    def _probed(self) -> tuple[Capabilities, Guard]:
        return probe_bucket(self.endpoint, self.name, prefix=self._prefix)

    @property
    def capabilities(self) -> Capabilities:
        """What the bucket was found to do, asked once per process."""
        return self._probed[0]

    @cached_property
    def in_parts(self) -> PartAbilities:
        """What the bucket was found to do with uploads in parts, asked once per process."""
        if not self.capabilities.etags_are_md5:
            return PartAbilities()
        return probe_parts(self.endpoint, self.name, prefix=self._prefix)

    def require_usable(self) -> None:
        """Look whether it is there, and refuse versions and locks. Raises: NoBucket, Refused."""
        self._listing({"max-keys": "1", "list-type": "2"})
        if self._allow_versions:
            return
        versioning = self._ask("GET", query={"versioning": ""})
        lock = self._ask("GET", query={"object-lock": ""})
        if _FORBIDDEN in {versioning.status, lock.status}:
            msg = (
                f"{self.url} does not say whether it keeps old versions or locks its objects; give the credentials the rights "
                "s3:GetBucketVersioning and s3:GetBucketObjectLockConfiguration, or set storage_options.allow_versions = true"
            )
            raise buckets.Refused(msg)
        found = versioning.text("Status") if versioning.ok else ""
        if found == "Enabled" or (lock.ok and lock.text("ObjectLockEnabled") == "Enabled"):
            what = "keeps old versions" if found == "Enabled" else "locks its objects"
            msg = f"{self.url} {what}, so that moving an object away frees nothing; set storage_options.allow_versions = true to use it all the same"
            raise buckets.Refused(msg)

    # -- objects --------------------------------------------------------------------------------------------------
    def head(self, name: str) -> Stored | None:
        """Look at one object."""
        answer = self._ask("HEAD", name)
        if answer.status == _OK_NOT_THERE:
            return None
        self._require(answer, f"look at {name!r}")
        return stored_of(name, answer.headers, int(answer.headers["content-length"]))

    def get(
        self, name: str, offset: int, length: int | None, *, etag: str | None = None, compare: bool = True
    ) -> tuple[Stored, bytes]:
        """Read a stretch, or all from there on; the bytes of a whole object are compared with its MD5 where the ETag is one."""
        headers: dict[str, str] = {}
        if offset or length is not None:
            headers["range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        if etag is not None:
            headers["if-match"] = f'"{etag}"'
        answer = self._ask("GET", name, headers=headers)
        if answer.status == 416:  # noqa: PLR2004  an empty object has no first byte
            found = self.head(name)
            if found is None:
                raise buckets.NotThere(name)
            return found, b""
        self._require(answer, f"read {name!r}")
        total = answer.headers.get("content-range", "").rpartition("/")[2]
        found = stored_of(name, answer.headers, int(total) if total.isdigit() else len(answer.body))
        # TLS would have noticed a flipped bit; a plain line does not.
        tells = len(answer.body) == found.size_bytes and is_md5(found.etag, answer.headers)
        plain = compare and not self.endpoint.secure
        if plain and tells and hashlib.md5(answer.body, usedforsecurity=False).hexdigest() != found.etag:
            msg = f"{self.url}: {name!r} arrived with other bytes than its ETag says"
            raise buckets.BadBytes(msg)
        if offset == 0 and answer.headers.get("x-amz-tagging-count"):
            found = replace(found, attributes={**found.attributes, "tags": self._tags(name)})
        return found, answer.body

    def _tags(self, name: str) -> str:
        """Tags as a query string, which is how they are written."""
        answer = self._ask("GET", name, query={"tagging": ""})
        self._require(answer, f"read the tags of {name!r}")
        return query_text({child_text(tag, "Key"): child_text(tag, "Value") for tag in answer.xml().iter("Tag")})

    def put(self, name: str, data: bytes, attributes: Mapping[str, str], *, new: bool, md5: str | None = None) -> str:
        """Write an object in one step, checked by the MD5 that it had at its origin, else by what the endpoint was found to check."""
        headers = headers_of(attributes)
        if new:
            headers["if-none-match"] = "*"
        answer = self._send(name, data, headers=headers, md5=md5)
        if new and answer.retried and answer.status in _PRECONDITION:
            # The try whose answer was lost may have written it.
            found = self.head(name)
            if found is not None and found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
                return found.etag
        self._require(answer, f"write {name!r}")
        return bare_etag(answer.headers.get("etag", ""))

    def copy(
        self,
        source: str,
        name: str,
        *,
        etag: str,
        size_bytes: int,
        new: bool,
        attributes: Mapping[str, str] | None = None,
        source_bucket: str | None = None,
    ) -> str:
        """Copy one version on the server's side."""
        origin = copy_origin(source_bucket or self.name, source, etag)
        if size_bytes > COPY_BYTES:
            whole = Stretch(source_bucket or self.name, source, etag, 0, size_bytes - 1)
            return self._copy_in_parts(whole, name, attributes)
        headers = dict(origin)
        if attributes is not None:
            headers |= {"x-amz-metadata-directive": "REPLACE", **headers_of(attributes)}
            if "tags" in attributes:
                headers["x-amz-tagging-directive"] = "REPLACE"
        if new:
            headers["if-none-match"] = "*"
        answer = self._ask("PUT", name, headers=headers)
        self._require(answer, f"copy {source!r} to {name!r}")
        copied = answer.text("ETag")
        if not copied:  # 200 with an error in the body: S3 says so when it fails half-way
            self._fail(answer, f"copy {source!r} to {name!r}")
        return bare_etag(copied)

    def _copy_in_parts(self, whole: Stretch, name: str, attributes: Mapping[str, str] | None) -> str:
        found = self.head(whole.name) if attributes is None else None
        upload_id, _ = self.begin(name, attributes if attributes is not None else found.attributes if found else {})
        try:
            parts: list[tuple[int, str]] = []
            for number, first in enumerate(range(0, whole.last + 1, COPY_PART_BYTES), 1):
                stretch = whole._replace(first=first, last=min(first + COPY_PART_BYTES - 1, whole.last))
                parts.append((number, self.copy_part(name, upload_id, number, stretch)))
            return self.complete(name, upload_id, parts)
        except BaseException:
            self.abort(name, upload_id)
            raise

    def copy_part(self, name: str, upload_id: str, number: int, stretch: Stretch) -> str:
        """Copy a stretch of one version into a part; return the part's etag."""
        origin = copy_origin(stretch.bucket, stretch.name, stretch.etag)
        answer = self._ask(
            "PUT",
            name,
            query={"partNumber": str(number), "uploadId": upload_id},
            headers={**origin, "x-amz-copy-source-range": f"bytes={stretch.first}-{stretch.last}"},
        )
        self._require(answer, f"copy a part of {stretch.name!r}")
        return bare_etag(answer.text("ETag"))

    def part_bytes(self, name: str, etag: str) -> int:
        """Size of the first part in which a version was uploaded; 0: not told."""
        answer = self._ask("HEAD", name, query={"partNumber": "1"}, headers={"if-match": f'"{etag}"'})
        if answer.status == _OK_NOT_THERE:
            raise buckets.NotThere(name)
        self._require(answer, f"look at a part of {name!r}")
        count = answer.headers.get("x-amz-mp-parts-count", "")
        return int(answer.headers["content-length"]) if count == etag.rpartition("-")[2] else 0

    def delete(self, name: str, *, etag: str | None = None) -> bool:
        """Delete an object, with ``etag`` only that version."""
        headers = {} if etag is None else {"if-match": f'"{etag}"'}
        answer = self._ask("DELETE", name, headers=headers)
        if answer.status == _OK_NOT_THERE:
            return False
        self._require(answer, f"delete {name!r}")
        return True

    def delete_versions(self, versions: Mapping[str, str]) -> set[str]:
        """Delete objects (name -> etag) by few requests, each only if it is still that version; return the names that are gone."""
        # XML 1.0 cannot carry every name.
        ready = [(name, etag) for name, etag in versions.items() if name.isprintable()]
        gone: set[str] = set()

        def ask(start: int) -> None:
            headers, body = deletion_of(ready[start : start + DELETED_AT_ONCE])
            answer = self._ask("POST", query={"delete": ""}, headers=headers, body=body)
            self._require(answer, "delete objects")
            gone.update(deleted_of(answer))

        each(range(0, len(ready), DELETED_AT_ONCE), ask, at_once=DELETES_AT_ONCE)
        return gone & versions.keys()

    def copies_from(self, other: Bucket) -> bool:
        """Whether the other is at the same endpoint, for the same account."""
        return isinstance(other, S3Bucket) and self.endpoint.same_account(other.endpoint)

    def pages(self, prefix: str, *, after: str = "", most: int | None = None) -> Iterator[Sequence[Stored]]:
        """Yield pages of objects, in order of their names."""
        more = {"start-after": after} if after else {}
        for root in self._pages(prefix, more if most is None else {**more, "max-keys": str(most)}):
            yield [listed_of(element) for element in root.iterfind("Contents")]

    def level(self, prefix: str) -> Iterator[tuple[Sequence[Stored], Sequence[str]]]:
        """Yield pages of one folder: its objects, and the prefixes of the folders in it."""
        for root in self._pages(prefix, {"delimiter": "/"}):
            objects = [listed_of(element) for element in root.iterfind("Contents")]
            yield objects, [unquote_plus(child_text(found, "Prefix")) for found in root.iterfind("CommonPrefixes")]

    def _pages(self, prefix: str, more: Mapping[str, str]) -> Iterator[Element]:
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix, **more}
        while True:
            root = self._listing(query).xml()
            yield root
            token = child_text(root, "NextContinuationToken")
            if child_text(root, "IsTruncated") != "true" or not token:
                return
            query["continuation-token"] = token

    # -- uploads in parts -----------------------------------------------------------------------------------------
    def begin(self, name: str, attributes: Mapping[str, str]) -> Begun:
        """Begin an upload in parts."""
        answer = self._ask("POST", name, query={"uploads": ""}, headers=headers_of(attributes))
        self._require(answer, f"begin the upload of {name!r}")
        return Begun(answer.text("UploadId"), answer.retried)

    def part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        """Upload a part; return its etag."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        answer = self._send(name, data, query=query)
        self._require(answer, f"upload a part of {name!r}")
        return bare_etag(answer.headers.get("etag", ""))

    def parts(self, name: str, upload_id: str) -> list[tuple[int, str, int]]:
        """Return (number, etag, size in bytes) of the parts that are there. Raises: NotThere."""
        found: list[tuple[int, str, int]] = []
        query = {"uploadId": upload_id}
        while True:
            answer = self._ask("GET", name, query=query)
            self._require(answer, f"list the parts of {name!r}")
            root = answer.xml()
            for part in root.iterfind("Part"):
                size = int(child_text(part, "Size"))
                found.append((int(child_text(part, "PartNumber")), bare_etag(child_text(part, "ETag")), size))
            if child_text(root, "IsTruncated") != "true":
                return found
            query["part-number-marker"] = child_text(root, "NextPartNumberMarker")

    def complete(self, name: str, upload_id: str, parts: Sequence[tuple[int, str]], *, new: bool = False) -> str:
        """Make the object of its parts; return its etag."""
        headers = {"if-none-match": "*"} if new else {}
        answer = self._ask("POST", name, query={"uploadId": upload_id}, headers=headers, body=completion_of(parts))
        if not new and answer.retried and answer.status == _OK_NOT_THERE:
            # The try whose answer was lost has completed it.
            found = self.head(name)
            if found is not None:
                return found.etag
        self._require(answer, f"complete the upload of {name!r}")
        etag = answer.text("ETag")
        if not etag:
            self._fail(answer, f"complete the upload of {name!r}")
        return bare_etag(etag)

    def abort(self, name: str, upload_id: str) -> None:
        """Throw an upload away if it is there."""
        answer = self._ask("DELETE", name, query={"uploadId": upload_id})
        if answer.status != _OK_NOT_THERE:
            self._require(answer, f"abort the upload of {name!r}")

    def uploads(self, prefix: str) -> list[Upload]:
        """Return unfinished uploads, oldest first."""
        found: list[Upload] = []
        query = {"uploads": "", "prefix": prefix, "encoding-type": "url"}
        while True:
            answer = self._ask("GET", query=query)
            self._require(answer, "list uploads")
            root = answer.xml()
            for upload in root.iterfind("Upload"):
                name = unquote_plus(child_text(upload, "Key"))
                if name.startswith(prefix):
                    begun_ns = seconds_ns(child_text(upload, "Initiated"))
                    found.append(Upload(begun_ns, name, child_text(upload, "UploadId")))
            if child_text(root, "IsTruncated") != "true":
                return sorted(found)
            query["key-marker"] = unquote_plus(child_text(root, "NextKeyMarker"))
            query["upload-id-marker"] = child_text(root, "NextUploadIdMarker")

    def close(self) -> None:
        """Let go of connections."""
        self.endpoint.close()

    # -- answers --------------------------------------------------------------------------------------------------
    def _ask(
        self,
        method: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        try:
            return self.endpoint.request(method, self.name, name, query=query, headers=headers, body=body)
        except EndpointUnreachable as exc:
            msg = f"{self.url} does not answer: {exc}"
            raise buckets.NoBucket(msg) from exc

    def _send(
        self,
        name: str,
        data: bytes,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        md5: str | None = None,
    ) -> Answer:
        """Put bytes, with the hash that is given, else with their own where the endpoint looks at it."""
        sha256 = hashlib.sha256(data)
        guard = md5_header(bytes.fromhex(md5)) if md5 else guard_header(self._probed[1], data, sha256.digest())
        guarded = {**(headers or {}), **guard}
        try:
            return self.endpoint.request(
                "PUT", self.name, name, query=query, headers=guarded, body=data, payload_sha256=sha256.hexdigest()
            )
        except EndpointUnreachable as exc:
            msg = f"{self.url} does not answer: {exc}"
            raise buckets.NoBucket(msg) from exc

    def _listing(self, query: Mapping[str, str]) -> Answer:
        answer = self._ask("GET", query=query)
        if answer.status == _OK_NOT_THERE:
            msg = f"there is no bucket {self.name!r} at {self.endpoint.url}"
            raise buckets.NoBucket(msg)
        self._require(answer, "list objects")
        return answer

    def _require(self, answer: Answer, doing: str) -> None:
        if not answer.ok:
            self._fail(answer, doing)

    def _fail(self, answer: Answer, doing: str) -> NoReturn:
        code = answer.code
        told = f"{self.url}: {doing}: {answer.status} {code} {answer.text('Message') if code else ''}".rstrip()
        fail(told, code or answer.status)
