"""One version of an object straight to its key in another bucket: copied by the server, or read and put by us where it is small.

Either is one write that never overwrites, and whose result is known before it is made: the copy's etag is the MD5 of its bytes (or of its
parts'), as the original's is. So there is nothing aside, nothing to read back, and a successor recognises the copy at its key by the journal
(docs/invariants.md, "The direct way"). Endpoints whose etags are no MD5 (encrypted with keys of their own, say) are not used so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rebalance_tasks.core.errors import ChecksumMismatch, SourceChanged, SourceVanished, TargetExists
from rebalance_tasks.drivers.object_stores.bucket import (
    MD5,
    BadBytes,
    BucketError,
    ConditionFailed,
    NotThere,
    PartAbilities,
)
from rebalance_tasks.drivers.object_stores.errors import patiently, source_error, target_error
from rebalance_tasks.drivers.object_stores.files import WINDOW_BYTES, attributes_of, fingerprint_of, metadata_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.drivers.base import Fingerprint
    from rebalance_tasks.drivers.object_stores.bucket import Bucket, Stored

#: Larger objects are copied in parts that can be resumed, since no worker should wait so long for one answer.
COPIED_BYTES: Final = 1024**3
#: What is read in one request and put in one more; the threads of a process hold one such object each.
SENT_BYTES: Final = WINDOW_BYTES


class End(NamedTuple):
    """Where an object is, or goes."""

    bucket: Bucket
    node_id: str
    #: its whole name in the bucket
    name: str


def direct_bytes(target: Bucket, source: Bucket, *, in_parts: bool) -> int:
    """Size of the largest object that can go straight from one bucket to a key of the other; 0: none.

    Args:
        target: where it goes.
        source: where it is.
        in_parts: it was uploaded in parts, so that its ETag is that of a copy only where the server keeps the parts.

    Raises:
        BucketError.
    """
    able = target.capabilities
    by_server = able.etags_are_md5 and target.copies_from(source)
    if in_parts:
        # Its copy is then known by that ETag and nothing else, as one that we upload in parts ourselves (`Remote.uploads_at_keys`).
        parts = target.in_parts if by_server else PartAbilities()
        return COPIED_BYTES if parts.completes_new and (parts.copies_parts or parts.copies_ranges) else 0
    if by_server:
        return COPIED_BYTES
    return SENT_BYTES if able.etags_are_md5 and able.checks_writes else 0


def copy_version(
    source: End, target: End, key: str, version: Fingerprint, in_parts: Callable[[End, End, str, Fingerprint], str]
) -> Fingerprint:
    """Copy one version to its key, in one step and never overwriting; see `ServerSide.copy_from`.

    Args:
        source: where it is.
        target: where it goes.
        key: what it is called in errors.
        version: which one.
        in_parts: has the server copy it in the parts in which it was uploaded; returns the copy's etag.
    """
    by_server = target.bucket.copies_from(source.bucket)
    carry: Callable[[End, End, str, Fingerprint], str] = _copied if by_server else _sent
    if "-" in version.etag and not target.bucket.in_parts.copies_parts:
        carry = in_parts
    try:
        etag = carry(source, target, key, version)
    except NotThere as exc:
        if _same(source, key, version):
            raise target_error(target.node_id, key, exc, "copy") from exc
        raise SourceVanished(key, "nothing is at this key any more") from exc
    except ConditionFailed as exc:
        if by_server and not _same(source, key, version):
            raise SourceChanged(key, "another version has been written to this key") from exc
        raise TargetExists(key, "something else is at this key") from exc
    except BucketError as exc:
        raise target_error(target.node_id, key, exc, "copy") from exc
    if etag != version.etag:
        _take_away(target, key, etag)
        raise ChecksumMismatch(key, f"the copy has the ETag {etag!r} and not the original's {version.etag!r}")
    return version


def _copied(source: End, target: End, _key: str, version: Fingerprint) -> str:
    return target.bucket.copy(
        source.name,
        target.name,
        etag=version.etag,
        size_bytes=version.size_bytes,
        new=True,
        source_bucket=source.bucket.name,
    )


def _sent(source: End, target: End, key: str, version: Fingerprint) -> str:
    """Read the version whole, and put it with what belongs to it.

    The store refuses bytes that have not the MD5 of the original; where it looks at no MD5 they are compared here, and it refuses
    what is not what was sent.
    """
    md5 = version.etag if target.bucket.capabilities.checks_md5 and MD5.fullmatch(version.etag) else None

    def carry(*, compare: bool) -> str:
        found, data = _read(source, key, version, compare=compare)
        return target.bucket.put(target.name, data, attributes_of(metadata_of(found)), new=True, md5=md5)

    try:
        return carry(compare=md5 is None)
    except BadBytes:
        # On which of the two ways: told apart when it is done again.
        return patiently(lambda: carry(compare=True))


def _read(source: End, key: str, version: Fingerprint, *, compare: bool) -> tuple[Stored, bytes]:
    try:
        # The version says how large it is, and a request for a stretch takes some servers three times as long.
        return patiently(lambda: source.bucket.get(source.name, 0, None, etag=version.etag, compare=compare))
    except BucketError as exc:
        raise source_error(source.node_id, key, exc, "read") from exc


def _same(source: End, key: str, version: Fingerprint) -> bool:
    try:
        return same_version(source.bucket.head(source.name), version)
    except BucketError as exc:
        raise source_error(source.node_id, key, exc, "look at it") from exc


def _take_away(target: End, key: str, etag: str) -> None:
    try:
        target.bucket.delete(target.name, etag=etag)
    except BucketError as exc:
        raise target_error(target.node_id, key, exc, "take the copy back") from exc


def same_version(found: Stored | None, version: Fingerprint) -> bool:
    """Tell whether an object is still one version: its ETag and its size say so, as a store's conditions do."""
    return found is not None and found.size_bytes == version.size_bytes and fingerprint_of(found).etag == version.etag
