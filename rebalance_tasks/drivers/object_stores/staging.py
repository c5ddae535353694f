"""Copies aside in a store: objects below ``.rebalance/tmp/`` that nobody sees at a key (`drivers.object_stores.files` says what they are made of)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import Fingerprint
from rebalance_tasks.drivers.local.errors import is_name, validate_name
from rebalance_tasks.drivers.object_stores.bucket import BucketError, NotThere
from rebalance_tasks.drivers.object_stores.errors import node_error, target_error
from rebalance_tasks.drivers.object_stores.files import (
    MTIME,
    OFFSET,
    ObjectSource,
    ObjectWriter,
    Partial,
    fingerprint_of,
    mtime_ns_told,
)
from rebalance_tasks.drivers.object_stores.key_uploads import KeyUploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rebalance_tasks.drivers.object_stores.bucket import Bucket, Stored
    from rebalance_tasks.drivers.object_stores.key_uploads import KeyUpload


class ObjectStaging:
    """The copies aside of one node.

    Attributes:
        at_keys: those in parts, where the store lets them lie at their keys.
    """

    def __init__(self, bucket: Bucket, node_id: str, *, root: str, work: str) -> None:
        """Keep copies in ``tmp`` below ``work``, of objects below ``root``; both are empty or end in a slash."""
        self._bucket, self._node_id, self._folder = bucket, node_id, f"{work}tmp/"
        self.at_keys = KeyUploads(bucket, root=root, work=work)
        #: moves of which an earlier attempt has left something
        self._begun: set[MoveId] = set()

    def name(self, move_id: MoveId) -> str:
        """Name of a move's copy. Raises: InvalidArgument."""
        return f"{self._folder}{validate_name(move_id, 'move id')}"

    def write(self, move_id: MoveId, offset: int, name_of: Callable[[str], str]) -> ObjectWriter:
        """Open a copy for appending at ``offset``; see `Driver.stage`.

        Args:
            move_id: whose.
            offset: bytes of an earlier attempt to keep.
            name_of: name of the object with a key.
        """

        def begin_at(key: str, size_bytes: int, attributes: Mapping[str, str]) -> KeyUpload:
            return self.at_keys.begin(move_id, name_of(key), size_bytes, attributes)

        name, label = self.name(move_id), f"staged:{move_id}"
        try:
            begun = self._partial(name) if offset else Partial()
            if not offset and move_id in self._begun:
                self.forget(move_id, whole=False)
            return ObjectWriter(
                self._bucket,
                self._node_id,
                name,
                label=label,
                begun=begun,
                offset=offset,
                uploads=self.at_keys,
                begin_at=begin_at,
            )
        except BucketError as exc:
            raise target_error(self._node_id, label, exc, "stage a copy") from exc

    def read(self, move_id: MoveId) -> ObjectSource:
        """Open a copy for reading it back. Raises: SourceVanished, ObjectUnreadable."""
        source = ObjectSource(self._bucket, self._node_id, self.name(move_id), f"staged:{move_id}")
        source.fingerprint = self.look(move_id) or source.fingerprint
        return source

    def look(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a copy, with the time that travels; one that is not whole has a size and nothing else."""
        name = self.name(move_id)
        try:
            found = self._bucket.head(name)
            partial = self._partial(name) if found is None else Partial()
            whole = self._whole_at_key(partial.at_key) if found is None else self._whole(found)
        except BucketError as exc:
            raise node_error(self._node_id, exc, "look at a copy") from exc
        if whole is not None or partial.size_bytes or partial.at_key:
            self._begun.add(move_id)
        return whole or (Fingerprint(partial.size_bytes) if partial.size_bytes else None)

    def _whole(self, found: Stored) -> Fingerprint:
        attributes = self.attributes(found.name, found.etag)
        return fingerprint_of(found if attributes is None else replace(found, attributes=attributes))

    def _whole_at_key(self, upload: KeyUpload | None) -> Fingerprint | None:
        """Fingerprint that an upload at its key will have once it is completed; None where it is not whole."""
        if upload is None or not self.at_keys.is_whole(upload):
            return None
        mtime_ns = mtime_ns_told(upload.attributes.get(MTIME, "")) or 0
        return Fingerprint(upload.size_bytes, mtime_ns=mtime_ns, etag=upload.etag)

    def attributes(self, name: str, etag: str) -> dict[str, str] | None:
        """The attributes that wait beside a copy that was uploaded in parts (its ETag has a dash); None: it has them itself."""
        if "-" not in etag:
            return None
        try:
            _, data = self._bucket.get(f"{name}~attributes", 0, 1 << 20)
        except NotThere:
            return None
        return {str(key): str(value) for key, value in json.loads(data).items()}

    def _partial(self, name: str) -> Partial:
        """What is there of a copy that is not whole."""
        begun = Partial()
        for upload_id in self._uploads(name):
            parts = self._bucket.parts(name, upload_id)
            begun.upload_id, begun.parts = upload_id, [(etag, size) for _, etag, size in parts]
        if begun.upload_id is None:
            marked = self.at_keys.of(name.removeprefix(self._folder))
            at_keys = [(upload, self.at_keys.parts(upload)) for upload in marked if upload.upload_id is not None]
            for upload, there in sorted(at_keys, key=lambda one: (bool(one[0].etags), len(one[1]))):
                begun.upload_id, begun.parts, begun.at_key = upload.upload_id, there, upload
        tail = self._bucket.head(f"{name}~tail")
        if tail is not None:
            begun.tail_start, begun.tail_bytes = int(tail.attributes.get(OFFSET, "0")), tail.size_bytes
        return begun

    def _uploads(self, name: str) -> list[str]:
        if not self._bucket.capabilities.parts:
            return []
        return [upload.upload_id for upload in self._bucket.uploads(name) if upload.name == name]

    def forget(self, move_id: MoveId, *, whole: bool) -> None:
        """Remove a copy if there is one.

        Args:
            move_id: whose.
            whole: it was put in one piece, so nothing lies beside it unless an earlier attempt left it.
        """
        name = self.name(move_id)
        try:
            self._bucket.delete(name)
            if not whole or move_id in self._begun:
                self.at_keys.forget_all(move_id)
                for upload_id in self._uploads(name):
                    self._bucket.abort(name, upload_id)
                for page in self._bucket.pages(f"{name}~"):
                    for found in page:
                        self._bucket.delete(found.name)
        except BucketError as exc:
            raise node_error(self._node_id, exc, "discard a copy") from exc
        self._begun.discard(move_id)

    def entries(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the copies lying about; one that is not whole with the time of what is there of it."""
        try:
            lying = [(found.name, found.modified_ns) for page in self._bucket.pages(self._folder) for found in page]
            if self._bucket.capabilities.parts:
                lying += [(upload.name, upload.begun_ns) for upload in self._bucket.uploads(self._folder)]
        except BucketError as exc:
            raise node_error(self._node_id, exc, "list copies") from exc
        written_ns: dict[str, int] = {}
        for name, at_ns in lying:
            move_id = name.removeprefix(self._folder).partition("~")[0]
            written_ns[move_id] = max(at_ns, written_ns.get(move_id, 0))
        for move_id in sorted(filter(is_name, written_ns)):
            found = self.look(MoveId(move_id))
            partial = Fingerprint(found.size_bytes if found else 0, mtime_ns=written_ns[move_id])
            yield MoveId(move_id), found if found is not None and found.etag else partial
