"""What file systems behind fsspec say of a file, brought to one form: each has names and units of its own for the same things."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.drivers.trees.calls import Found, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Entity tags, those first that are made of the bytes alone.
_TAGS: Final = ("md5Hash", "content_md5", "ETag", "etag")
#: When a file was written, best first; a file system that keeps no such time shows when it was made.
_TIMES: Final = (
    "mtime",
    "modified",
    "last_modified",
    "LastModified",
    "updated",
    "modify",
    "modificationTime",
    "created",
)
_PLAIN_TAG: Final = re.compile(r"[A-Za-z0-9._=+-]{1,64}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)
#: As FTP writes a time (RFC 3659 §2.3).
_FTP_TIME: Final = re.compile(r"\d{14}(\.\d+)?")


def found_of(info: Mapping[str, Any]) -> Found:
    """Read what a file system says of a name.

    The fingerprint's tag is the file system's own, or made of size and time; empty where it has neither.
    """
    size = int(info.get("size") or 0)
    mtime_ns = next((ns for name in _TIMES if (ns := time_ns(info.get(name)))), 0)
    tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name)), "")
    if tag and not _PLAIN_TAG.fullmatch(tag):
        tag = hashlib.blake2b(tag.encode(), digest_size=16).hexdigest()
    if not tag and mtime_ns:
        tag = f"{size}-{mtime_ns}"
    return Found(_kind_of(info), Fingerprint(size, mtime_ns=mtime_ns, etag=tag))


def _kind_of(info: Mapping[str, Any]) -> Kind:
    if info.get("islink") or info.get("type") == "link":
        return Kind.LINK
    match info.get("type"):
        case "directory":
            return Kind.FOLDER
        case "file":
            return Kind.HARD_LINK if int(info.get("nlink") or 1) > 1 else Kind.FILE
        case _:
            return Kind.SPECIAL


def time_ns(value: object) -> int:
    """Return a time as ns since the epoch, whole microseconds; 0 for what is none.

    Args:
        value: an aware or naive (UTC) datetime, seconds since the epoch, or a text as ISO 8601, RFC 2822 or FTP write it.
    """
    match value:
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return (aware - _EPOCH) // _US * 1000
        case bool():
            return 0
        case int() | float():
            return round(value * 1_000_000) * 1000
        case str():
            return _text_ns(value)
        case _:
            return 0


def _text_ns(text: str) -> int:
    if _FTP_TIME.fullmatch(text):
        whole, _, fraction = text.partition(".")
        second = datetime.strptime(whole, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        return time_ns(second) + int(fraction[:6].ljust(6, "0")) * 1000
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return time_ns(read(text))
        except ValueError:
            continue
    return 0
