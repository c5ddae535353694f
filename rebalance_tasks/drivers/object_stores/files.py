"""Objects of a store as the engine reads and writes them: a source pinned to one version, a staged copy made of parts.

A staged copy is the object ``.rebalance/tmp/<move>``. Until it is whole, what is there of it are the parts of an unfinished
upload and, where less than a part can be was left over, the object ``<move>~tail``, which says where in the copy it begins. A
later attempt finds both again, so no byte is sent twice. Where the store can complete an upload without overwriting, it lies at
the key that it is for (`object_stores.key_uploads`); else it becomes the staged copy, and its attributes, which come to be known
last, wait in ``<move>~attributes``.
"""

from __future__ import annotations

import json
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from rebalance_tasks.core.errors import InvalidArgument, SourceChanged
from rebalance_tasks.drivers.base import Fingerprint, ObjectMetadata
from rebalance_tasks.drivers.object_stores.bucket import BucketError, Stored, TooLarge
from rebalance_tasks.drivers.object_stores.errors import patiently, source_error, target_error
from rebalance_tasks.drivers.windowed import WindowedSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from rebalance_tasks.drivers.base import SourceHandle
    from rebalance_tasks.drivers.object_stores.bucket import Bucket
    from rebalance_tasks.drivers.object_stores.key_uploads import KeyUpload, KeyUploads

T = TypeVar("T")

#: A read asks for so much at once.
WINDOW_BYTES: Final = 4 * 1024**2
#: What a part holds at first; S3 takes 10,000 of them, so later ones are larger (`part_bytes`).
PART_BYTES: Final = 16 * 1024**2
#: So many parts have one size, the next ones twice that: 10,000 parts hold 1 TB.
_PARTS_OF_A_SIZE: Final = 2000
#: Larger copies are uploaded at their keys, where the store can do that; smaller ones keep the MD5 of their bytes as their ETag.
AT_KEY_BYTES: Final = PART_BYTES
#: Parts of one copy that are sent while the next is read.
PARTS_UNDER_WAY: Final = 2
#: S3 takes no smaller part but the last.
LEAST_PART_BYTES: Final = 5 * 1024**2
#: Where a store cannot go on with an upload, an object is put at once, from memory.
WHOLE_BYTES: Final = 128 * 1024**2
#: File attributes in user metadata, named and written as rclone does.
MTIME: Final = "meta:mtime"
MODE: Final = "meta:mode"
OFFSET: Final = "meta:offset"
#: A store's attributes on a local file.
_XATTR: Final = "user.rebalance."
_NS: Final = 10**9


def part_bytes(number: int) -> int:
    """Size of part ``number`` (from 1) of a large object."""
    return PART_BYTES << (number // _PARTS_OF_A_SIZE)


def mtime_ns_of(stored: Stored) -> int:
    """The modification time that travelled with an object, else when it was written; ns since the epoch."""
    told_ns = mtime_ns_told(stored.attributes.get(MTIME, ""))
    return stored.modified_ns if told_ns is None else told_ns


def mtime_ns_told(text: str) -> int | None:
    """A modification time as it travels, in ns since the epoch; None where it tells none."""
    seconds, _, fraction = text.partition(".")
    if seconds.isdigit() and (not fraction or fraction.isdigit()):
        return int(seconds) * _NS + int(fraction[:9].ljust(9, "0"))
    return None


def fingerprint_of(stored: Stored) -> Fingerprint:
    """Return the fingerprint of a stored object."""
    return Fingerprint(stored.size_bytes, mtime_ns=mtime_ns_of(stored), etag=stored.etag)


def metadata_of(stored: Stored) -> ObjectMetadata:
    """Return what travels with an object's bytes; what a file has no field for goes as extended attributes."""
    mode = stored.attributes.get(MODE, "")
    rest = {name: value for name, value in stored.attributes.items() if name not in {MTIME, MODE}}
    return ObjectMetadata(
        mode=int(mode, 8) & 0o7777 if mode.isdigit() and set(mode) <= set("01234567") else None,
        mtime_ns=mtime_ns_of(stored),
        xattrs={f"{_XATTR}{name}": value.encode() for name, value in rest.items()},
    )


def attributes_of(metadata: ObjectMetadata) -> dict[str, str]:
    """Return the attributes that carry a source's metadata; always with a modification time, since it marks a whole copy."""
    attributes = {
        name.removeprefix(_XATTR): value.decode("utf-8", "replace")
        for name, value in metadata.xattrs.items()
        if name.startswith(_XATTR)
    }
    mtime_ns = time.time_ns() if metadata.mtime_ns is None else metadata.mtime_ns
    attributes[MTIME] = f"{mtime_ns // _NS}.{mtime_ns % _NS:09d}"
    if metadata.mode is not None:
        attributes[MODE] = f"{metadata.mode:o}"
    return attributes


class ObjectSource(WindowedSource):
    """An object being read, a window at a time, each of the version that was opened; `SourceHandle`."""

    _opened: Stored

    def __init__(
        self,
        bucket: Bucket,
        node_id: str,
        name: str,
        key: str,
        *,
        start: int = 0,
        first_bytes: int = WINDOW_BYTES,
    ) -> None:
        """Open an object.

        Args:
            bucket: where.
            node_id: whose, for errors.
            name: of the object.
            key: what it is called in errors.
            start: where the first window begins.
            first_bytes: how much of it the first request asks for, at least 1.

        Raises:
            SourceVanished, ObjectUnreadable, NodeMissing.
        """
        super().__init__()
        self._bucket, self._node_id, self._name, self._key = bucket, node_id, name, key
        self._etag: str | None = None
        self._window_bytes = first_bytes
        self._look(start)
        self._window_bytes = WINDOW_BYTES
        self.fingerprint = fingerprint_of(self._opened)

    @property
    def metadata(self) -> ObjectMetadata:
        """What travels with the bytes."""
        return metadata_of(self._opened)

    def _fetch(self, offset: int) -> bytes:
        try:
            found, window = patiently(lambda: self._bucket.get(self._name, offset, self._window_bytes, etag=self._etag))
        except BucketError as exc:
            raise source_error(self._node_id, self._key, exc, "read") from exc
        if self._etag is None:
            # A later window does not tell of the tags.
            self._opened, self._etag = found, found.etag
        return window


@dataclass(slots=True)
class Partial:
    """What is there of a copy that is not whole: parts of an upload, and a tail.

    Attributes:
        upload_id: of the upload, if one was begun.
        parts: (etag, size in bytes) of its parts, in order.
        tail_start: where in the copy the tail begins.
        tail_bytes: how long it is.
        at_key: the upload, where it lies at the key that it is for.
    """

    upload_id: str | None = None
    parts: list[tuple[str, int]] = field(default_factory=list)
    tail_start: int = 0
    tail_bytes: int = 0
    at_key: KeyUpload | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the copy that are there."""
        uploaded = sum(size for _, size in self.parts)
        return max(uploaded, self.tail_start + self.tail_bytes if self.tail_bytes else 0)

    def cut(self, offset: int) -> tuple[list[tuple[str, int]], int]:
        """Return the parts to keep for going on at ``offset``, and how many bytes of the tail.

        Raises:
            InvalidArgument: the first ``offset`` bytes are not there, or do not end where a part or the tail can be cut.
        """
        starts = [0]
        for _, size in self.parts:
            starts.append(starts[-1] + size)
        if offset in starts:
            return self.parts[: starts.index(offset)], 0
        if self.tail_start in starts and self.tail_start < offset <= self.tail_start + self.tail_bytes:
            return self.parts[: starts.index(self.tail_start)], offset - self.tail_start
        message = f"the staged copy holds {self.size_bytes} bytes and cannot be taken up at {offset}; begin at 0"
        raise InvalidArgument(message)


class ObjectWriter:
    """A copy being made aside; `StagedWriter`."""

    def __init__(  # noqa: PLR0913  all that one copy is about, by name
        self,
        bucket: Bucket,
        node_id: str,
        name: str,
        *,
        label: str,
        begun: Partial,
        offset: int,
        uploads: KeyUploads,
        begin_at: Callable[[str, int, Mapping[str, str]], KeyUpload],
    ) -> None:
        """Go on at ``offset``.

        Args:
            bucket: where.
            node_id: whose, for errors.
            name: of the staged copy.
            label: names it in errors.
            begun: what an earlier attempt left.
            offset: bytes of it to keep.
            uploads: marks an upload at a key whole.
            begin_at: begins one, for a key and of a size, with attributes.

        Raises:
            InvalidArgument: they are not there.
        """
        self._bucket, self._node_id, self._name, self._label = bucket, node_id, name, label
        self._uploads, self._begin_at = uploads, begin_at
        self._key, self._at_key = "", begun.at_key
        self._upload_id = begun.upload_id
        kept_parts, kept = begun.cut(offset)
        self._parts = list(kept_parts)
        self._under_way: deque[tuple[bytes, Future[str]]] = deque()
        self._sender: ThreadPoolExecutor | None = None
        self._sent = offset - kept
        self._buffer = bytearray()
        self._has_tail = begun.tail_bytes > 0
        self._saved = kept
        if kept:
            self._buffer += bucket.get(f"{name}~tail", 0, kept)[1]

    def expect(self, size_bytes: int, key: str, source: SourceHandle) -> None:
        """Begin an upload at the key itself, if the copy is to be in parts and none of them is there yet; see `Expecting`."""
        self._key = key
        begun = self._upload_id is not None or self._sent
        if begun or size_bytes <= AT_KEY_BYTES or not self._try(lambda: self._uploads.able):
            return
        attributes = attributes_of(source.metadata)
        self._at_key = self._try(lambda: self._begin_at(key, size_bytes, attributes))
        self._upload_id = self._at_key.upload_id

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises: ObjectTooLarge, NodeMissing, NodeNotWritable."""
        self._buffer += data
        if not self._bucket.capabilities.parts:
            if len(self._buffer) > WHOLE_BYTES:
                msg = (
                    f"this kind of store takes an object from memory, at most {WHOLE_BYTES} bytes; exclude larger ones"
                )
                raise target_error(self._node_id, self._label, TooLarge(msg), "write")
            return
        while len(self._buffer) >= (size := part_bytes(self._next)):
            self._send(size)

    def sync(self) -> None:
        """Put what is in memory where a later attempt finds it: as a part, or as the tail where it is too short for one."""
        self._settle()
        if self._bucket.capabilities.parts and len(self._buffer) >= LEAST_PART_BYTES:
            self._send(len(self._buffer))
            self._settle()
        elif len(self._buffer) != self._saved:
            self._put("~tail", bytes(self._buffer), {OFFSET: str(self._sent)})
            self._saved, self._has_tail = len(self._buffer), True

    def finish(self, metadata: ObjectMetadata) -> None:
        """Make the copy whole, with its metadata."""
        attributes = attributes_of(metadata)
        if self._upload_id is not None and self._buffer:
            self._send(len(self._buffer))
        self._let_go()
        etags = [etag for etag, _ in self._parts]
        if self._upload_id is None:
            self._put("", bytes(self._buffer), attributes)
        elif (upload := self._at_key) is not None:
            if metadata.mtime_ns is None:
                attributes[MTIME] = upload.attributes.get(MTIME, "")
            if attributes != upload.attributes:
                raise SourceChanged(self._key, "what belongs to the object changed while it was copied")
            self._try(lambda: self._uploads.whole(upload, etags))
        else:
            self._put("~attributes", json.dumps(attributes).encode(), {})
            upload_id, numbered = self._upload_id, list(enumerate(etags, 1))
            self._try(lambda: self._bucket.complete(self._name, upload_id, numbered))
        if self._has_tail:
            self._try(lambda: self._bucket.delete(f"{self._name}~tail"))

    def close(self) -> None:
        """Keep what is there."""
        try:
            self.sync()
        finally:
            self._let_go()

    @property
    def _next(self) -> int:
        """Number of the part that is sent next."""
        return len(self._parts) + len(self._under_way) + 1

    def _send(self, size: int) -> None:
        """Send a part while the next one is read."""
        self._settle(PARTS_UNDER_WAY - 1)
        if self._upload_id is None:
            self._upload_id = self._try(lambda: self._bucket.begin(self._name, {})).upload_id
        with memoryview(self._buffer)[:size] as part:
            upload_id, number, data = self._upload_id, self._next, bytes(part)
        name = self._name if self._at_key is None else self._at_key.name
        self._sender = self._sender or ThreadPoolExecutor(PARTS_UNDER_WAY, thread_name_prefix="rebalance-part")
        etag = self._sender.submit(self._try, lambda: self._bucket.part(name, upload_id, number, data))
        self._under_way.append((data, etag))
        del self._buffer[:size]
        if size > PART_BYTES:  # several of these would take too much memory
            self._settle()

    def _settle(self, most: int = 0) -> None:
        """Wait until no more parts than that are under way; what did not arrive is to be sent again, with all that follows it."""
        while len(self._under_way) > most:
            data, etag = self._under_way[0]
            try:
                self._parts.append((etag.result(), len(data)))
            except BaseException:
                self._buffer[:0] = b"".join([data for data, _ in self._under_way])
                wait([etag for _, etag in self._under_way])
                self._under_way.clear()
                raise
            self._under_way.popleft()
            self._sent += len(data)
            self._saved = 0

    def _let_go(self) -> None:
        """Wait for what is under way, and end its thread."""
        try:
            self._settle()
        finally:
            if self._sender is not None:
                self._sender.shutdown()
                self._sender = None

    def _put(self, ending: str, data: bytes, attributes: Mapping[str, str]) -> None:
        self._try(lambda: self._bucket.put(f"{self._name}{ending}", data, attributes, new=False))

    def _try(self, ask: Callable[[], T]) -> T:
        try:
            return patiently(ask)
        except BucketError as exc:
            raise target_error(self._node_id, self._label, exc, "write a copy") from exc
