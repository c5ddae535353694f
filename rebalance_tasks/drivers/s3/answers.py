"""S3's headers and XML in the words of `drivers.object_stores.bucket`, and ours in S3's: nothing here asks anybody anything."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

from rebalance_tasks.drivers.object_stores import bucket as buckets
from rebalance_tasks.drivers.object_stores.bucket import STANDARD_ATTRIBUTES, Stored
from rebalance_tasks.drivers.s3.http import child_text
from rebalance_tasks.drivers.s3.signing import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from xml.etree.ElementTree import Element

    from rebalance_tasks.drivers.s3.http import Answer

_META: Final = "x-amz-meta-"
_HEADER_OF: Final = {"storage-class": "x-amz-storage-class", "tags": "x-amz-tagging"}
#: What HTTP allows as the name of a header.
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: An MD5 as an ETag shows it; with server-side encryption by KMS it is none.
_MD5_DIGITS: Final = 32


def fail(told: str, code: str | int) -> NoReturn:
    """Raise what an answer's code, or its status where it has none, means. Raises: BucketError."""
    match code:
        case "NoSuchBucket":
            raise buckets.NoBucket(told)
        case 404 | "NoSuchKey" | "NoSuchUpload":
            raise buckets.NotThere(told)
        case 409 | 412 | "PreconditionFailed" | "ConditionalRequestConflict" | "OperationAborted":
            raise buckets.ConditionFailed(told)
        case "KeyTooLongError" | "InvalidObjectName" | "InvalidURI" | "XMinioInvalidObjectName":
            raise buckets.BadName(told)
        case "EntityTooLarge":
            raise buckets.TooLarge(told)
        case "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody":
            raise buckets.BadBytes(told)
        case 401 | 403 | "AccessDenied" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken":
            raise buckets.Refused(told)
        case _:
            raise buckets.BucketError(told)


def bare_etag(text: str) -> str:
    """An entity tag without its quotes."""
    return text.strip('"')


def is_md5(etag: str, headers: Mapping[str, str]) -> bool:
    """Tell whether an entity tag is the MD5 of the bytes that came with it."""
    kms = "kms" in headers.get("x-amz-server-side-encryption", "")
    customer = "x-amz-server-side-encryption-customer-algorithm" in headers
    return len(etag) == _MD5_DIGITS and not kms and not customer


def headers_of(attributes: Mapping[str, str]) -> dict[str, str]:
    """Attributes as S3's headers; text that is no plain ASCII is encoded as S3's own tools do (RFC 2047).

    Raises:
        BucketError: a name that cannot be a header's.
    """
    headers: dict[str, str] = {}
    for name, value in attributes.items():
        header = f"{_META}{name.removeprefix('meta:')}" if name.startswith("meta:") else _HEADER_OF.get(name, name)
        if not _TOKEN.fullmatch(header):
            msg = f"its attribute {name!r} cannot be sent as a header; rename it, or take it off the object"
            raise buckets.BucketError(msg)
        plain = value.isascii() and value.isprintable()
        headers[header] = value if plain else f"=?UTF-8?B?{base64.b64encode(value.encode()).decode()}?="
    return headers


def copy_origin(bucket: str, name: str, etag: str) -> dict[str, str]:
    """Headers that say what is to be copied: one version of an object."""
    return {
        "x-amz-copy-source": f"/{bucket}/{quoted(name, safe='/')}",
        "x-amz-copy-source-if-match": f'"{etag}"',
    }


def stored_of(name: str, headers: Mapping[str, str], size_bytes: int) -> Stored:
    """The object that the headers of an answer show."""
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        if header.startswith(_META):
            attributes[f"meta:{header[len(_META) :]}"] = value
        elif header in STANDARD_ATTRIBUTES:
            attributes[header] = value
    storage_class = headers.get("x-amz-storage-class", "")
    if storage_class and storage_class != "STANDARD":
        attributes["storage-class"] = storage_class
    modified_ns = _date_ns(headers["last-modified"])
    return Stored(name, size_bytes, bare_etag(headers.get("etag", "")), modified_ns, attributes, storage_class)


@lru_cache(maxsize=256)
def _date_ns(text: str) -> int:
    """A header's date in ns since the epoch; neighbours were mostly written in the same second."""
    return int(parsedate_to_datetime(text).timestamp()) * 10**9


def listed_of(element: Element) -> Stored:
    """The object that an entry of a listing shows."""
    return Stored(
        unquote_plus(child_text(element, "Key")),
        int(child_text(element, "Size")),
        bare_etag(child_text(element, "ETag")),
        seconds_ns(child_text(element, "LastModified")),
        storage_class=child_text(element, "StorageClass"),
    )


@lru_cache(maxsize=256)
def seconds_ns(text: str) -> int:
    """An ISO time in ns since the epoch, whole seconds: that is all a look at an object tells."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


def deletion_of(versions: Iterable[tuple[str, str]]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a request that deletes (name, etag), each only if it is still that version."""
    listed = "".join(
        f"<Object><Key>{escape(name)}</Key><ETag>&quot;{escape(etag)}&quot;</ETag></Object>" for name, etag in versions
    )
    body = f"<Delete>{listed}</Delete>".encode()
    md5 = hashlib.md5(body, usedforsecurity=False).digest()
    return {"content-md5": base64.b64encode(md5).decode()}, body


def completion_of(parts: Iterable[tuple[int, str]]) -> bytes:
    """Body of a request that makes an object of its parts: (number, etag), in order."""
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>" for number, etag in parts
    )
    return f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()


def deleted_of(answer: Answer) -> set[str]:
    """Names that the answer to such a request says are gone."""
    return {child_text(element, "Key") for element in answer.xml().iterfind("Deleted")} if answer.ok else set()
