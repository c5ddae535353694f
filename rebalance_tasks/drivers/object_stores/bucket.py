"""What the object-store driver asks of a store: names, bytes, conditions. `drivers.s3.bucket` is the one for S3.

A bucket knows nothing of nodes, moves or the trash (`drivers.object_stores.driver` does). Names are whole object names, the
node's prefix included. Everything here may be called from several threads at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: An etag that may be the MD5 of bytes.
MD5: Final = re.compile(r"[0-9a-f]{32}")
#: Names of attributes that are no user metadata; ``tags`` is a query string.
STANDARD_ATTRIBUTES = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "storage-class",
    "tags",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored object, as a look or a listing shows it.

    Attributes:
        name: its whole name in the bucket.
        etag: its version, without quotes.
        modified_ns: when it was written, ns since the epoch (whole seconds).
        attributes: standard attributes by name, user metadata as ``meta:<name>``; empty in a listing.
        storage_class: as the store calls it; empty when it does not say.
    """

    name: str
    size_bytes: int
    etag: str
    modified_ns: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = ""


class Begun(NamedTuple):
    """An upload in parts that was just begun."""

    upload_id: str
    #: the answer to a first try was lost, so it may have begun another.
    twice: bool = False


class Upload(NamedTuple):
    """An unfinished upload in parts."""

    #: ns since the epoch
    begun_ns: int
    name: str
    upload_id: str


class Stretch(NamedTuple):
    """Bytes of one version of an object."""

    #: what the store calls its bucket
    bucket: str
    name: str
    etag: str
    #: both are part of it
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do; declared by its driver, and for S3 found out by asking (`S3Bucket.capabilities`).

    Attributes:
        checks_writes: it refuses a body that is not what its checksum says, so what was written need not be read back.
        checks_md5: it refuses a body that has not the MD5 that `Bucket.put` names, and keeps nothing of it.
        puts_new: a put can be made to fail when the name is taken.
        copies_new: so can a copy on the server's side.
        deletes_version: a delete can be made to fail unless the object is still one version.
        deletes_versions: so can a request that deletes many objects, each by itself (`Bucket.delete_versions`).
        etags_are_md5: an object put in one piece shows the MD5 of its bytes as its etag, so that it is known before the put.
        parts: large objects are uploaded in parts that a later attempt finds again.
        keeps_backslashes: a name with a backslash stays what it is.
        keeps_versions: a copy on the server's side shows the ETag of its original, but for one that was uploaded in parts.
    """

    checks_writes: bool = False
    checks_md5: bool = False
    puts_new: bool = True
    copies_new: bool = True
    deletes_version: bool = False
    deletes_versions: bool = False
    etags_are_md5: bool = False
    parts: bool = False
    keeps_backslashes: bool = True
    keeps_versions: bool = True


class PartAbilities(NamedTuple):
    """What a store can do with uploads in parts besides, found out when a first large object is at hand."""

    #: an upload can be made to fail at its completion when the name is taken; its ETag is known before
    completes_new: bool = False
    #: a copy on the server's side shows the ETag of its original also where that was uploaded in parts
    copies_parts: bool = False
    #: it tells how such an object was cut, and copies a stretch of it into an upload, with the MD5 of the stretch as its ETag
    copies_ranges: bool = False


class BucketError(Exception):
    """Something went wrong that trying again right now does not mend; the message says what the store said."""


class NotThere(BucketError):
    """There is no such object (or upload)."""


class NoBucket(BucketError):
    """There is no such bucket, or it cannot be reached; `doing it again later` may help."""


class Refused(BucketError):
    """The store does not let these credentials do that."""


class ConditionFailed(BucketError):
    """The name is taken, or the object is another version."""


class BadName(BucketError):
    """The store cannot hold this name."""


class TooLarge(BucketError):
    """The store takes no object of this size."""


class BadBytes(BucketError):
    """What arrived is not what was sent."""


class Bucket(Protocol):
    """A place that holds objects under names. All methods raise `BucketError` only."""

    #: as an operator wrote it, without secrets.
    url: str
    #: what the store calls it.
    name: str
    #: whether `pages` after a name reads nothing of what comes before it, as far as was seen.
    starts_anywhere: bool

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    @property
    def in_parts(self) -> PartAbilities:
        """What it can do with uploads in parts besides."""
        ...

    def require_usable(self) -> None:
        """Look whether deleting here frees space and nothing is locked. Raises: NoBucket, Refused."""
        ...

    def head(self, name: str) -> Stored | None:
        """Look at one object."""
        ...

    def get(
        self, name: str, offset: int, length: int | None, *, etag: str | None = None, compare: bool = True
    ) -> tuple[Stored, bytes]:
        """Read a stretch (fewer bytes at the end of the object), or all from there on (``None``).

        Args:
            name: which object.
            offset: where to begin.
            length: how many bytes.
            etag: the version that is meant.
            compare: compare what arrives with what the store says of it; False: somebody else will.

        Raises:
            NotThere, ConditionFailed (another version), BadBytes.
        """
        ...

    def put(self, name: str, data: bytes, attributes: Mapping[str, str], *, new: bool, md5: str | None = None) -> str:
        """Write an object in one step; return its etag.

        Args:
            name: which object.
            data: all of it.
            attributes: what belongs to it.
            new: fail when the name is taken.
            md5: what the bytes were at their origin, in hex, where `Capabilities.checks_md5`; else they are taken as they are.

        Raises:
            ConditionFailed: the name is taken, and it was to be ``new``.
            BadBytes: what arrived is not what was sent, or has another MD5.
        """
        ...

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
        """Copy one version on the server's side; return the copy's etag.

        Args:
            source: name of the original.
            name: of the copy.
            etag: version of the original that is meant.
            size_bytes: its size.
            new: fail when the name is taken.
            attributes: instead of the original's.
            source_bucket: where the original is, if not here (same endpoint only).

        Raises:
            NotThere: there is no original.
            ConditionFailed: the name is taken, or the original is another version.
        """
        ...

    def copies_from(self, other: Bucket) -> bool:
        """Whether `copy` can name the other one as ``source_bucket``."""
        ...

    def delete(self, name: str, *, etag: str | None = None) -> bool:
        """Delete an object, with ``etag`` only that version; False when there was none. Raises: ConditionFailed."""
        ...

    def delete_versions(self, versions: Mapping[str, str]) -> set[str]:
        """Delete objects by few requests, each only if it is still the version given (name -> etag).

        Returns:
            Names of those that were deleted; whoever wants to know what became of the others asks for each.
        """
        ...

    def pages(self, prefix: str, *, after: str = "", most: int | None = None) -> Iterator[Sequence[Stored]]:
        """Yield pages of the objects whose names begin with ``prefix`` and come after a name, in order of their names.

        Args:
            prefix: of the names.
            after: a name.
            most: objects on a page, where the store can be told; else as many as it likes.
        """
        ...

    def level(self, prefix: str) -> Iterator[tuple[Sequence[Stored], Sequence[str]]]:
        """Yield pages of one folder (its name and slash, or nothing): the objects directly in it, and the prefixes of the folders in it."""
        ...

    # -- uploads in parts -----------------------------------------------------------------------------------------
    def begin(self, name: str, attributes: Mapping[str, str]) -> Begun:
        """Begin an upload in parts."""
        ...

    def part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        """Upload a part (numbers from 1); return its etag."""
        ...

    def part_bytes(self, name: str, etag: str) -> int:
        """Size of the first part in which a version was uploaded; 0: not told. Raises: NotThere, ConditionFailed."""
        ...

    def copy_part(self, name: str, upload_id: str, number: int, stretch: Stretch) -> str:
        """Copy a stretch of one version into a part, where `PartAbilities.copies_ranges`; return the part's etag.

        Raises: NotThere, ConditionFailed (the original is another version).
        """
        ...

    def parts(self, name: str, upload_id: str) -> list[tuple[int, str, int]]:
        """Return (number, etag, size in bytes) of the parts that are there. Raises: NotThere."""
        ...

    def complete(self, name: str, upload_id: str, parts: Sequence[tuple[int, str]], *, new: bool = False) -> str:
        """Make the object of its parts; return its etag.

        Args:
            name: of the object.
            upload_id: of the upload.
            parts: (number, etag), in order.
            new: fail when the name is taken, where `PartAbilities.completes_new`.

        Raises:
            ConditionFailed: the name is taken, and it was to be ``new``.
            NotThere: the upload is gone.
        """
        ...

    def abort(self, name: str, upload_id: str) -> None:
        """Throw an upload away if it is there."""
        ...

    def uploads(self, prefix: str) -> list[Upload]:
        """Return unfinished uploads, oldest first."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
