"""Uploads in parts that lie at the key they are for: nobody sees one until it is completed, which is then what publishes it.

So a large copy is written once, where one that lies aside under a name of its own is copied again to its key. What an unfinished
upload is for must be found again by whoever comes after a death, so a marker ``.rebalance/tmp/<move>~upload-<token>`` says it: it is
written before the upload is begun, and again with the upload's id. A death in between leaves an upload without an id, which is known
by its name and by when it was begun (docs/invariants.md, "Uploads at the key").
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from rebalance_tasks.core.errors import ChecksumMismatch
from rebalance_tasks.drivers.object_stores.bucket import MD5, BucketError, NotThere, Stretch
from rebalance_tasks.drivers.object_stores.errors import patiently
from rebalance_tasks.drivers.object_stores.files import attributes_of, metadata_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.object_stores.bucket import Bucket
    from rebalance_tasks.drivers.object_stores.direct import End

#: An upload whose id nobody knows was begun at most so long after its marker was written.
BEGUN_WITHIN_NS: Final = 120 * 10**9
#: Parts that a server copies side by side.
_PARTS_AT_ONCE: Final = 4
_MARK: Final = "~upload-"
_MARKER_BYTES: Final = 1 << 20


class KeyUpload(BaseModel, frozen=True):
    """An upload, as its marker says.

    Attributes:
        name: of the object that it is to become.
        size_bytes: of the whole.
        attributes: that it was begun with.
        etags: of its parts, once all of them are there.
        upload_id: None: nobody knows whether it was begun.
        marker: name of its marker.
        marked_ns: when that was written, ns since the epoch by the store's clock.
    """

    name: str
    size_bytes: NonNegativeInt
    attributes: dict[str, str]
    etags: tuple[str, ...] = ()
    upload_id: str | None = None
    marker: Annotated[str, Field(exclude=True)] = ""
    marked_ns: Annotated[int, Field(exclude=True)] = 0

    @property
    def etag(self) -> str:
        """ETag that the object will have; empty as long as it is not whole."""
        return etag_of_parts(self.etags)


def etag_of_parts(etags: Sequence[str]) -> str:
    """ETag of an object made of parts with these; empty where theirs are no MD5."""
    if not etags or not all(map(MD5.fullmatch, etags)):
        return ""
    digest = hashlib.md5(b"".join(map(bytes.fromhex, etags)), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(etags)}"


def _cuts_of(version: Fingerprint, part_bytes: int) -> list[tuple[int, int]]:
    """First and last byte of each part of a version that was uploaded in parts of that size, the last but shorter; one, where it was not."""
    size = version.size_bytes
    step = part_bytes or size
    return [(first, min(first + step, size) - 1) for first in range(0, size, step)]


class KeyUploads:
    """The uploads at keys of one node."""

    def __init__(self, bucket: Bucket, *, root: str, work: str) -> None:
        """Keep markers in ``tmp`` below ``work``; uploads are for names below ``root`` and not below ``work``, and nowhere else."""
        self._bucket, self._root, self._work, self._folder = bucket, root, work, f"{work}tmp/"

    @property
    def able(self) -> bool:
        """Whether the store can do it: bytes are checked as they arrive, since nothing can be read back, and completing never overwrites."""
        return self._bucket.capabilities.checks_writes and self._bucket.in_parts.completes_new

    def begin(self, move_id: str, name: str, size_bytes: int, attributes: Mapping[str, str]) -> KeyUpload:
        """Begin an upload, and mark it. Raises: BucketError."""
        marker = f"{self._folder}{move_id}{_MARK}{os.urandom(4).hex()}"
        upload = KeyUpload(name=name, size_bytes=size_bytes, attributes=dict(attributes), marker=marker)
        self._mark(upload)
        upload_id, twice = self._bucket.begin(name, attributes)
        if twice and (marked := self._read(marker)) is not None:
            self._abort_unknown(marked, but=upload_id)
        upload = upload.model_copy(update={"upload_id": upload_id})
        self._mark(upload)
        return upload

    def whole(self, upload: KeyUpload, etags: Sequence[str]) -> KeyUpload:
        """Mark that all of its parts are there. Raises: BucketError."""
        upload = upload.model_copy(update={"etags": tuple(etags)})
        self._mark(upload)
        return upload

    def _mark(self, upload: KeyUpload) -> None:
        told = upload.model_dump_json().encode()
        patiently(lambda: self._bucket.put(upload.marker, told, {}, new=False))

    def of(self, move_id: str) -> Iterator[KeyUpload]:
        """Yield what is marked for a move. Raises: BucketError."""
        for page in self._bucket.pages(f"{self._folder}{move_id}{_MARK}"):
            for found in page:
                if (upload := self._read(found.name)) is not None:
                    yield upload

    def _read(self, marker: str) -> KeyUpload | None:
        """What a marker says; None where it is gone, or says nothing that we could have written."""
        try:
            found, data = self._bucket.get(marker, 0, _MARKER_BYTES)
            told = KeyUpload.model_validate_json(data)
        except (NotThere, ValidationError):
            return None
        ours = told.name.startswith(self._root) and not told.name.startswith(self._work)
        return told.model_copy(update={"marker": marker, "marked_ns": found.modified_ns}) if ours else None

    def _listed(self, upload: KeyUpload) -> list[tuple[int, str, int]]:
        """What of it is there; nothing where the upload is gone."""
        if upload.upload_id is None:
            return []
        try:
            return self._bucket.parts(upload.name, upload.upload_id)
        except NotThere:
            return []

    def whole_of(self, move_id: str, etag: str) -> KeyUpload | None:
        """The upload that is a move's copy, whole and with this ETag; None where it lies aside. Raises: BucketError."""
        return next((upload for upload in self.of(move_id) if upload.etag == etag), None)

    def parts(self, upload: KeyUpload) -> list[tuple[str, int]]:
        """Return (etag, size in bytes) of the parts that are there, in order, up to the first of which there are two: some stores keep both. Raises: BucketError."""
        listed = self._listed(upload)
        times = Counter(number for number, _, _ in listed)
        known = takewhile(lambda one: one[0] == one[1][0] and times[one[0]] == 1, enumerate(sorted(listed), 1))
        return [(etag, size) for _, (_, etag, size) in known]

    def is_whole(self, upload: KeyUpload) -> bool:
        """Whether all of its parts are there; what an earlier attempt left may be there too. Raises: BucketError."""
        there = {(number, etag) for number, etag, _ in self._listed(upload)}
        return bool(upload.etag) and there.issuperset(enumerate(upload.etags, 1))

    def forget(self, upload: KeyUpload) -> None:
        """Throw an upload away, whatever of it is there, and its marker last. Raises: BucketError."""
        if upload.upload_id is not None:
            self._bucket.abort(upload.name, upload.upload_id)
        else:
            self._abort_unknown(upload)
        self._bucket.delete(upload.marker)

    def forget_all(self, move_id: str) -> None:
        """Throw away all that a move has begun. Raises: BucketError."""
        for upload in self.of(move_id):
            self.forget(upload)

    def _abort_unknown(self, upload: KeyUpload, *, but: str = "") -> None:
        """Throw uploads away of which nobody was told that they had been begun."""
        for other in self._bucket.uploads(upload.name):
            in_time = upload.marked_ns <= other.begun_ns <= upload.marked_ns + BEGUN_WITHIN_NS
            if other.name == upload.name and in_time and other.upload_id != but:
                self._bucket.abort(other.name, other.upload_id)

    def complete(self, upload: KeyUpload) -> str:
        """Make the object of its parts, unless its name is taken; return its etag.

        Raises:
            ConditionFailed: the name is taken.
            NotThere: the upload is gone, or not whole.
            BucketError.
        """
        if upload.upload_id is None or not self.is_whole(upload):
            raise NotThere(upload.name)
        try:
            return self._bucket.complete(upload.name, upload.upload_id, list(enumerate(upload.etags, 1)), new=True)
        except BucketError:
            # The try whose answer was lost may have completed it.
            found = self._bucket.head(upload.name)
            if found is not None and found.etag == upload.etag and not self._listed(upload):
                return upload.etag
            raise

    def copy(self, move_id: str, source: End, target: End, key: str, version: Fingerprint) -> str:
        """Have the server copy a version in the parts in which it was uploaded; return the copy's etag.

        Raises:
            ChecksumMismatch: it cannot be cut so that its copy shows the same etag; nothing was published.
            BucketError: as `Bucket.copy`.
        """
        found, _ = source.bucket.get(source.name, 0, 1, etag=version.etag)
        cuts = _cuts_of(version, source.bucket.part_bytes(source.name, version.etag))
        upload = self.begin(move_id, target.name, version.size_bytes, attributes_of(metadata_of(found)))

        def copy_part(part: tuple[int, tuple[int, int]]) -> str:
            number, (first, last) = part
            stretch = Stretch(source.bucket.name, source.name, version.etag, first, last)
            return self._bucket.copy_part(target.name, upload.upload_id or "", number, stretch)

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="rebalance-part") as threads:
                etags = list(threads.map(copy_part, enumerate(cuts, 1)))
            if etag_of_parts(etags) != version.etag:
                raise ChecksumMismatch(key, "the copies of its parts do not make the original's ETag")
            return self.complete(self.whole(upload, etags))
        finally:
            self.forget_all(move_id)
