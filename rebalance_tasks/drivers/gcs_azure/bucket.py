"""A bucket in Google Cloud Storage, Azure or the memory of this process, through obstore: `drivers.object_stores.bucket.Bucket`.

obstore puts and copies without overwriting, in one step. What it lacks is made of what it has: it shows no unfinished uploads, so the
parts of a large copy are objects beside it until the last is there; it copies no certain version, so the version of the original
is looked at before and after; it deletes no certain version, so an object is looked at right before it is deleted
(`Capabilities.deletes_version`). A copy on the server's side is another version with the same times in its metadata.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore import exceptions

from rebalance_tasks.core.masking import masked_text
from rebalance_tasks.drivers.object_stores import bucket as buckets
from rebalance_tasks.drivers.object_stores.bucket import Begun, Capabilities, PartAbilities, Stored, Stretch, Upload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from obstore import Attributes, ObjectMeta
    from obstore.store import ObjectStore

    from rebalance_tasks.drivers.object_stores.bucket import Bucket

#: Standard attributes that obstore writes and reads; it cannot read tags, and each provider has storage classes of its own.
_HEADERS: Final = ("content-type", "cache-control", "content-disposition", "content-encoding", "content-language")
_NAMES: Final = {header.title(): header for header in _HEADERS}
_NOT_KEPT: Final = frozenset({"expires", "storage-class", "tags"})
_META: Final = "meta:"
#: The end of a part's name: which upload, which number.
_PART: Final = "~part~"
_NS: Final = 10**9
#: Where obstore would begin with something else than a name says, or refuse it: control characters; components that are empty, or dots.
_CHANGED: Final = re.compile(r"(?:^|(?<=/))\.{0,2}(?:[/\x00-\x1f\x7f]|$)|[\x00-\x1f\x7f]")
#: Objects on a page of a listing, as S3 has it.
_PAGE: Final = 1_000


class ObstoreBucket:
    """A bucket or container; may be called from several threads at once."""

    def __init__(self, store: ObjectStore, *, url: str, name: str, keeps_backslashes: bool = True) -> None:
        """Ask nothing yet.

        Args:
            store: obstore's, of the whole bucket.
            url: as the operator wrote it, without its path.
            name: of the bucket.
            keeps_backslashes: Azure makes slashes of them.
        """
        self._store = store
        self._able = Capabilities(parts=True, keeps_versions=False, keeps_backslashes=keeps_backslashes)
        self.url = url
        self.name = name
        #: until a server is seen to begin from the beginning
        self.starts_anywhere = True

    @property
    def capabilities(self) -> Capabilities:
        """What obstore promises for every provider."""
        return self._able

    def require_usable(self) -> None:
        """Look whether it answers. Raises: NoBucket, Refused."""
        with self._translated("look at it"):
            next(iter(obstore.list(self._store, chunk_size=1)), None)

    # -- objects --------------------------------------------------------------------------------------------------
    def head(self, name: str) -> Stored | None:
        """Look at one object."""
        try:
            with self._translated(f"look at {name!r}"):
                found = obstore.get(self._store, name, options={"head": True})
        except buckets.NotThere:
            return None
        return _stored(found.meta, found.attributes)

    def get(
        self,
        name: str,
        offset: int,
        length: int | None,
        *,
        etag: str | None = None,
        compare: bool = True,  # noqa: ARG002  nothing is told that could be compared
    ) -> tuple[Stored, bytes]:
        """Read a stretch, or all from there on."""
        options: dict[str, Any] = {}
        if length is not None:
            options["range"] = (offset, offset + length)
        elif offset:
            options["range"] = {"offset": offset}
        if etag is not None:
            options["if_match"] = f'"{etag}"'
        try:
            with self._translated(f"read {name!r}"):
                found = obstore.get(self._store, name, options=options)  # type: ignore[arg-type]
                return _stored(found.meta, found.attributes), bytes(found.bytes())
        except buckets.BucketError as exc:
            # An empty object has no first byte, and no stretch begins behind the last one.
            stored = None if isinstance(exc, (buckets.NotThere, buckets.ConditionFailed)) else self.head(name)
            if stored is None or stored.size_bytes > offset:
                raise
            return stored, b""

    def put(
        self,
        name: str,
        data: bytes,
        attributes: Mapping[str, str],
        *,
        new: bool,
        md5: str | None = None,  # noqa: ARG002  no store behind obstore is said to look at it
    ) -> str:
        """Write an object in one step."""
        with self._translated(f"write {name!r}"):
            written = obstore.put(
                self._store,
                name,
                data,
                attributes=_attributes_of(attributes),
                mode="create" if new else "overwrite",
                use_multipart=False,
            )
        return _etag(written["e_tag"])

    def copy(
        self,
        source: str,
        name: str,
        *,
        etag: str,
        size_bytes: int,
        new: bool,
        attributes: Mapping[str, str] | None = None,  # noqa: ARG002  a copy made of parts has had them since `complete`
        source_bucket: str | None = None,  # noqa: ARG002  `copies_from` says no
    ) -> str:
        """Copy on the server's side; the original is looked at before and after, since no condition can be put on it."""
        self._require_version(source, etag, size_bytes)
        with self._translated(f"copy {source!r} to {name!r}"):
            obstore.copy(self._store, source, name, overwrite=not new)
        copied = self.head(name)
        try:
            self._require_version(source, etag, size_bytes)
            if copied is None or copied.size_bytes != size_bytes:
                msg = f"{self.url}: the copy of {source!r} at {name!r} has another size than its original"
                raise buckets.BadBytes(msg)
        except buckets.BucketError:
            self.delete(name)
            raise
        return copied.etag

    def _require_version(self, name: str, etag: str, size_bytes: int) -> None:
        found = self.head(name)
        if found is None:
            raise buckets.NotThere(name)
        if (found.etag, found.size_bytes) != (etag, size_bytes):
            msg = f"{self.url}: {name!r} is another version"
            raise buckets.ConditionFailed(msg)

    def copies_from(self, other: Bucket) -> bool:  # noqa: ARG002  a store of obstore's knows one bucket
        """Never."""
        return False

    def delete(self, name: str, *, etag: str | None = None) -> bool:
        """Delete an object, with ``etag`` after a look at its version; False when there was none."""
        found = self.head(name)
        if found is None:
            return False
        if etag is not None and found.etag != etag:
            msg = f"{self.url}: {name!r} is another version"
            raise buckets.ConditionFailed(msg)
        try:
            with self._translated(f"delete {name!r}"):
                obstore.delete(self._store, name)
        except buckets.NotThere:
            return False
        return True

    def delete_versions(self, versions: Mapping[str, str]) -> set[str]:  # noqa: ARG002  there is no such request
        """Delete none."""
        return set()

    def pages(
        self,
        prefix: str,
        *,
        after: str = "",
        most: int | None = None,
    ) -> Iterator[Sequence[Stored]]:
        """Yield pages of objects as the store lists them: in order, or `drivers.key_ranges` finds out."""
        # obstore's prefixes end at a slash, ours anywhere.
        folder, offset = prefix.rpartition("/")[0], _offset(after)
        with self._translated("list objects"):
            listed = obstore.list(self._store, folder or None, offset=offset or None, chunk_size=most or _PAGE)
            for page in listed:
                if page and page[0]["path"] < offset:
                    self.starts_anywhere = False
                yield [_stored(meta, {}) for meta in page if meta["path"].startswith(prefix) and meta["path"] > after]

    def level(self, prefix: str) -> Iterator[tuple[Sequence[Stored], Sequence[str]]]:
        """Yield one folder as one page: its objects, and the prefixes of the folders in it."""
        with self._translated("list a folder"):
            found = obstore.list_with_delimiter(self._store, prefix or None)
            inside = [f"{folder}/" for folder in found["common_prefixes"]]
            yield [_stored(meta, {}) for meta in found["objects"]], inside

    # -- uploads in parts: objects beside the copy ----------------------------------------------------------------
    def begin(self, name: str, attributes: Mapping[str, str]) -> Begun:  # noqa: ARG002  known when it is completed
        """Begin an upload in parts."""
        return Begun(uuid.uuid4().hex)

    def part(self, name: str, upload_id: str, number: int, data: bytes) -> str:
        """Upload a part; return its etag."""
        return self.put(f"{name}{_PART}{upload_id}~{number:05d}", data, {}, new=False)

    @property
    def in_parts(self) -> PartAbilities:
        """Nothing of it."""
        return PartAbilities()

    def part_bytes(self, name: str, etag: str) -> int:  # noqa: ARG002  not told
        """Say nothing; see `Bucket.part_bytes`."""
        return 0

    def copy_part(self, name: str, upload_id: str, number: int, stretch: Stretch) -> str:  # noqa: ARG002  not able
        """Refuse: not `copies_ranges`. Raises: BucketError."""
        msg = f"{self.url} copies no stretch of an object into {name!r}"
        raise buckets.BucketError(msg)

    def parts(self, name: str, upload_id: str) -> list[tuple[int, str, int]]:
        """Return (number, etag, size in bytes) of the parts that are there. Raises: NotThere."""
        prefix = f"{name}{_PART}{upload_id}~"
        found = [part for page in self.pages(prefix) for part in page]
        if not found:
            raise buckets.NotThere(prefix)
        return sorted((int(part.name.removeprefix(prefix)), part.etag, part.size_bytes) for part in found)

    def complete(
        self,
        name: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        new: bool = False,  # noqa: ARG002  not `completes_new`
    ) -> str:
        """Make the object of its parts, which pass through this process once more; return its etag."""
        _, attributes = self.get(f"{name}~attributes", 0, 1 << 20)
        sizes = {number: size for number, _, size in self.parts(name, upload_id)}
        given = _attributes_of({str(key): str(value) for key, value in json.loads(attributes).items()})
        with self._translated(f"complete {name!r}"), obstore.open_writer(self._store, name, attributes=given) as writer:
            for number, etag in parts:
                _, data = self.get(f"{name}{_PART}{upload_id}~{number:05d}", 0, sizes[number], etag=etag)
                writer.write(data)
        self.abort(name, upload_id)
        found = self.head(name)
        if found is None:
            raise buckets.NotThere(name)
        return found.etag

    def abort(self, name: str, upload_id: str) -> None:
        """Throw an upload away if it is there."""
        for page in self.pages(f"{name}{_PART}{upload_id}~"):
            for part in page:
                self.delete(part.name)

    def uploads(self, prefix: str) -> list[Upload]:
        """Return unfinished uploads, oldest first."""
        found: dict[tuple[str, str], int] = {}
        for part in itertools.chain.from_iterable(self.pages(prefix)):
            name, mark, rest = part.name.rpartition(_PART)
            upload = (name, rest.partition("~")[0])
            if mark:
                found[upload] = min(part.modified_ns, found.get(upload, part.modified_ns))
        return sorted(Upload(begun_ns, *upload) for upload, begun_ns in found.items())

    def close(self) -> None:
        """Nothing to do: connections are obstore's."""

    # -- answers --------------------------------------------------------------------------------------------------
    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Raise obstore's errors as ours, by their first line: what follows is for those who debug obstore."""
        try:
            yield
        except FileNotFoundError as exc:
            raise buckets.NotThere(self._told(doing, exc)) from exc
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as exc:
            raise buckets.ConditionFailed(self._told(doing, exc)) from exc
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as exc:
            raise buckets.Refused(self._told(doing, exc)) from exc
        except (exceptions.InvalidPathError, ValueError) as exc:
            raise buckets.BadName(self._told(doing, exc)) from exc
        except (exceptions.GenericError, OSError) as exc:
            raise buckets.NoBucket(self._told(doing, exc)) from exc
        except exceptions.BaseError as exc:
            raise buckets.BucketError(self._told(doing, exc)) from exc

    def _told(self, doing: str, exc: Exception) -> str:
        return f"{self.url}: {doing}: {masked_text(str(exc).partition(chr(10))[0])}"


def _offset(name: str) -> str:
    """Return the longest beginning of a name that obstore passes on as it is; every name after the whole of it comes after a beginning, too."""
    changed = _CHANGED.search(name)
    return (name[: changed.start()] if changed else name).rstrip("/")


def _etag(text: str | None) -> str:
    return (text or "").strip('"')


def _stored(meta: ObjectMeta, attributes: Attributes) -> Stored:
    return Stored(
        meta["path"],
        meta["size"],
        _etag(meta["e_tag"]),
        # Whole seconds: a look tells no more, where a listing may.
        int(meta["last_modified"].timestamp()) * _NS,
        {_NAMES.get(name, f"{_META}{name}"): value for name, value in attributes.items() if name != "Storage-Class"},
    )


def _attributes_of(attributes: Mapping[str, str]) -> Attributes:
    """Attributes as obstore names them; without those it cannot keep (`drivers.fidelity` says which)."""
    return {
        name.removeprefix(_META) if name.startswith(_META) else name.title(): value
        for name, value in attributes.items()
        if name not in _NOT_KEPT
    }
