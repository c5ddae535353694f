"""The driver for object stores: what it asks of one is `drivers.object_stores.bucket`, and S3 answers it (`drivers.s3.bucket`).

It stands at the bottom of the way of one object, as the local driver does. Invariants it keeps: nothing torn at a key (a store
shows an object whole or not at all), publishing never overwrites (a copy on the server's side that fails when the name is
taken), freeing is reversible (`drivers.object_stores.trash`), and no key leaves the node's prefix. What a store lacks for this is
refused when the node is looked at, not found out in the middle of a job.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    InvalidArgument,
    InvalidKey,
    NodeMissing,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId, NodeId
from rebalance_tasks.core.keys import MAX_KEY_BYTES, RESERVED, validate_key
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome, Listing, NodeHealth, never_freed
from rebalance_tasks.drivers.listing import Columns, reason_left_out
from rebalance_tasks.drivers.local.errors import validate_name
from rebalance_tasks.drivers.local.listing import key_filter
from rebalance_tasks.drivers.node_parts import Limit
from rebalance_tasks.drivers.object_stores.bucket import BucketError, ConditionFailed, NotThere
from rebalance_tasks.drivers.object_stores.direct import End, copy_version, direct_bytes, same_version
from rebalance_tasks.drivers.object_stores.errors import node_error, source_error, target_error
from rebalance_tasks.drivers.object_stores.files import ObjectSource, ObjectWriter, fingerprint_of
from rebalance_tasks.drivers.object_stores.hold import ObjectHold
from rebalance_tasks.drivers.object_stores.manifests import ObjectManifests
from rebalance_tasks.drivers.object_stores.parts import pages_of
from rebalance_tasks.drivers.object_stores.staging import ObjectStaging
from rebalance_tasks.drivers.object_stores.trash import ObjectTrash
from rebalance_tasks.drivers.object_stores.versions import versions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.drivers.key_ranges import KeyRange
    from rebalance_tasks.drivers.node_parts import Part
    from rebalance_tasks.drivers.object_stores.bucket import Bucket

T = TypeVar("T")

#: Storage classes out of which an object must be brought back before it can be read.
_ARCHIVED: Final = frozenset({"GLACIER", "DEEP_ARCHIVE", "ARCHIVE", "Archive"})
#: Requests in flight at once; the engine asks for as many objects at a time.
PARALLEL: Final = 16


class ObjectStoreDriver:
    """A node in an object store; see `drivers.base.Driver` for every promise.

    Attributes:
        parallel: objects that the engine may carry through one step at once.
        frees_by_copy: see `Remote`.
        publishes_by_copy: see `Remote`.
    """

    parallel = PARALLEL
    frees_by_copy = True
    publishes_by_copy = True

    def __init__(
        self,
        node_id: str,
        bucket: Bucket,
        *,
        prefix: str = "",
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        trash: bool = True,
    ) -> None:
        """Serve the objects below ``prefix`` (no slash at its ends); nothing is asked before the first call.

        Args:
            node_id: who this node is.
            bucket: where its objects are.
            prefix: of their names; the whole bucket when empty.
            include: glob patterns; when given, only keys that match one are objects.
            exclude: glob patterns; keys that match one are left alone.
            trash: free by a copy into the trash; False deletes the copied version at once where the store can do that.
        """
        self.node_id = NodeId(node_id)
        self.bucket = bucket
        self._root = f"{prefix}/" if prefix else ""
        self._work = f"{self._root}{RESERVED}/"
        self._staging = ObjectStaging(bucket, node_id, root=self._root, work=self._work)
        self._trash = ObjectTrash(bucket, node_id, f"{self._work}trash/", keeps=trash)
        self._manifests = ObjectManifests(bucket, node_id, f"{self._work}manifests/")
        self._passes = key_filter(include, exclude)
        #: moves that are freed for the first time, counted by the holds that say so
        self._fresh: Counter[MoveId] = Counter()
        self._lock = threading.Lock()

    @property
    def checks_writes(self) -> bool:
        """Whether the store refuses bytes that are not what was sent, so that a copy need not be read back."""
        return self._asked(lambda: self.bucket.capabilities.checks_writes)

    @property
    def copies_to_free(self) -> bool:
        """Whether freeing takes a copy by the store; see `Remote.copies_to_free`."""
        return self._asked(lambda: self._trash.copies)

    @property
    def prefix(self) -> str:
        """What the names of its objects begin with: empty, or ending in a slash."""
        return self._root

    @property
    def staging(self) -> ObjectStaging:
        """Its copies aside, for `drivers.doors`."""
        return self._staging

    @property
    def keeps_versions(self) -> bool:
        """Whether a copy has the ETag of its original; see `Remote.keeps_versions`."""
        return self._asked(lambda: self.bucket.capabilities.keeps_versions)

    @property
    def uploads_at_keys(self) -> bool:
        """Whether a copy in parts is uploaded at its very key; see `Remote.uploads_at_keys`."""
        return self._asked(lambda: self._staging.at_keys.able)

    def _asked(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except BucketError as exc:
            raise node_error(self.node_id, exc, "ask what the store can do") from exc

    # -- the node itself ------------------------------------------------------------------------------------------
    def probe(self) -> NodeHealth:
        """Look at the bucket and its node-id. Raises: NodeMissing, NodeNotWritable."""
        try:
            self.bucket.require_usable()
        except BucketError as exc:
            raise node_error(self.node_id, exc, "look at the node") from exc
        return NodeHealth(total_bytes=None, free_bytes=None, device=0, adopted=self._verify(required=False))

    def check_identity(self) -> None:
        """Read the node-id. Raises: NodeMissing."""
        self._verify(required=True)

    def _verify(self, *, required: bool) -> bool:
        try:
            _, data = self.bucket.get(f"{self._work}node-id", 0, 1024)
        except NotThere:
            if not required:
                return False
            raise NodeMissing(
                self.node_id,
                f"{self.bucket.url}/{self._root} carries no {RESERVED}/node-id, so it is taken for unmounted: look whether "
                "bucket and prefix are right, or adopt it with `rebalance nodes --adopt`",
            ) from None
        except BucketError as exc:
            raise node_error(self.node_id, exc, "read the node-id") from exc
        found = data.decode("utf-8", "replace").strip()
        if found != self.node_id:
            message = f"{self.bucket.url}/{self._root} belongs to node {found!r}; put bucket and prefix right in rebalance.toml"
            raise NodeMissing(self.node_id, message)
        return True

    def adopt(self) -> None:
        """Write the node-id, after a look at what the store can do. Raises: NodeMissing, NodeNotWritable."""
        if self._verify(required=False):
            return
        try:
            able = self.bucket.capabilities
            if not (able.puts_new and able.copies_new):
                msg = f"{self.bucket.url} writes over what is there although it was told not to (If-None-Match); it cannot be a node"
                raise node_error(self.node_id, BucketError(msg), "adopt it")
            self.bucket.put(f"{self._work}node-id", f"{self.node_id}\n".encode(), {}, new=True)
        except ConditionFailed:
            self._verify(required=True)
        except BucketError as exc:
            raise node_error(self.node_id, exc, "adopt it") from exc

    def free_bytes(self) -> int | None:
        """Unknown: a store has no natural capacity."""
        return None

    def list_objects(self, *, require_identity: bool = True) -> Listing:
        """List every object. Raises: NodeMissing rather than list half of it."""
        return self.list_part(None, require_identity=require_identity)

    def list_part(
        self, part: Part | KeyRange | None, *, require_identity: bool = True, most: int | None = None
    ) -> Listing:
        """List a part; see `drivers.node_parts.Parted`."""
        self._verify(required=require_identity)
        columns, skip = Columns(), len(self._root)
        limit = Limit(most, flat=self.bucket.starts_anywhere)
        try:
            for page in pages_of(self.bucket, self._root, part):
                for found in page:
                    key = found.name[skip:]
                    if reason := self._not_listed(key, found.storage_class):
                        columns.leave_out(reason)
                    else:
                        columns.add(key, found.size_bytes, found.modified_ns)
                        limit.count(key)
        except BucketError as exc:
            raise node_error(self.node_id, exc, "list objects") from exc
        return columns.listing()

    def _not_listed(self, key: str, storage_class: str) -> str:
        """Why a name is no object of this node; empty when it is one."""
        reason = reason_left_out(key, validate=validate_key, passes=self._passes)
        return "archived" if storage_class in _ARCHIVED and reason in {"", "excluded"} else reason

    def name_of(self, key: str) -> str:
        """Name of an object in the bucket. Raises: InvalidKey."""
        name = self._root + validate_key(key)
        if len(name.encode()) > MAX_KEY_BYTES:
            raise InvalidKey(key, f"with the node's prefix it has more than {MAX_KEY_BYTES} bytes")
        if "\\" in key and not self._capable_of_backslashes():
            raise InvalidKey(key, f"{self.bucket.url} takes a backslash for a slash")
        return name

    def _capable_of_backslashes(self) -> bool:
        return self._asked(lambda: self.bucket.capabilities.keeps_backslashes)

    # -- bursts ---------------------------------------------------------------------------------------------------
    def hold(self, fresh: Collection[MoveId] = ()) -> ObjectHold:
        """Remember which moves are fresh; a store has no folders that could be renamed."""
        return ObjectHold(self._fresh, self._lock, fresh)

    # -- reading --------------------------------------------------------------------------------------------------
    def stat(self, key: str) -> Fingerprint | None:
        """Fingerprint of the object at ``key``, else None. Raises: InvalidKey, ObjectUnreadable."""
        name = self.name_of(key)
        try:
            found = self.bucket.head(name)
        except BucketError as exc:
            raise source_error(self.node_id, key, exc, "look at it") from exc
        return None if found is None else fingerprint_of(found)

    def unchanged(self, key: str, version: Fingerprint) -> bool:
        """Tell whether the object at ``key`` is still that version. Raises: InvalidKey, ObjectUnreadable."""
        name = self.name_of(key)
        try:
            return same_version(self.bucket.head(name), version)
        except BucketError as exc:
            raise source_error(self.node_id, key, exc, "look at it") from exc

    def open_source(self, key: str) -> ObjectSource:
        """Open for reading. Raises: InvalidKey, SourceVanished, ObjectUnreadable."""
        return ObjectSource(self.bucket, self.node_id, self.name_of(key), key)

    # -- copy aside, verify, publish ------------------------------------------------------------------------------
    def stage(self, move_id: MoveId, *, offset: int = 0, sparse: bool = False) -> ObjectWriter:  # noqa: ARG002  stores know no holes
        """Open the staged copy of a move, cut to ``offset`` bytes, for appending; see `Driver.stage`."""
        return self._staging.write(move_id, offset, self.name_of)

    def staged(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a staged copy; one that is not whole has a size and nothing else."""
        return self._staging.look(move_id)

    def open_staged(self, move_id: MoveId) -> ObjectSource:
        """Open a staged copy for reading it back. Raises: SourceVanished, ObjectUnreadable."""
        return self._staging.read(move_id)

    def sync(self) -> None:
        """Nothing to do: a store answers when it has what it was given."""

    def publish(self, move_id: MoveId, key: str, *, expected: Fingerprint | None = None) -> Fingerprint:
        """Give the staged copy its key by a copy on the server's side that never overwrites; see `Driver.publish`."""
        name, aside = self.name_of(key), self._staging.name(move_id)
        staged = self.staged(move_id) if expected is None else expected
        if staged is None or not staged.etag:
            message = f"nothing is staged under move {move_id!r}; it was published or discarded before"
            raise InvalidArgument(message)
        if self._publish_upload(move_id, key, staged):
            return staged
        try:
            etag = self.bucket.copy(
                aside,
                name,
                etag=staged.etag,
                size_bytes=staged.size_bytes,
                new=True,
                attributes=self._staging.attributes(aside, staged.etag),
            )
        except (ConditionFailed, NotThere) as exc:
            self._explain(name, aside, key, staged, expected)
            raise TargetExists(key, "something else is at this key") from exc
        except BucketError as exc:
            raise target_error(self.node_id, key, exc, "publish") from exc
        self._staging.forget(move_id, whole="-" not in staged.etag)
        return Fingerprint(staged.size_bytes, mtime_ns=staged.mtime_ns, etag=etag)

    def _publish_upload(self, move_id: MoveId, key: str, staged: Fingerprint) -> bool:
        """Complete the upload at the key that is the copy; False where the copy lies aside."""
        try:
            upload = self._staging.at_keys.whole_of(move_id, staged.etag) if "-" in staged.etag else None
            if upload is None:
                return False
            if upload.name != self.name_of(key):
                message = f"what is staged under move {move_id!r} is for {upload.name!r}, not for key {key!r}"
                raise InvalidArgument(message)
            etag = self._staging.at_keys.complete(upload)
            if etag != staged.etag:
                self.bucket.delete(upload.name, etag=etag)
                raise ChecksumMismatch(
                    key, f"the copy has the ETag {etag!r} and not {staged.etag!r}, which its parts make"
                )
        except ConditionFailed as exc:
            raise TargetExists(key, "something else is at this key") from exc
        except NotThere as exc:
            raise ChecksumMismatch(key, "the copy that was uploaded is not there any more") from exc
        except BucketError as exc:
            raise target_error(self.node_id, key, exc, "publish") from exc
        self._staging.forget(move_id, whole=False)
        return True

    def _explain(self, name: str, aside: str, key: str, staged: Fingerprint, expected: Fingerprint | None) -> None:
        """Raise what is wrong if it is the staged copy, and not the key."""
        try:
            there, copy = self.bucket.head(name), self.bucket.head(aside)
        except BucketError as exc:
            raise target_error(self.node_id, key, exc, "publish") from exc
        if copy is None and expected is None:
            message = f"nothing is staged at {aside!r}; it was published or discarded before"
            raise InvalidArgument(message)
        if copy is None or copy.etag != staged.etag:
            raise ChecksumMismatch(key, f"the copy staged at {aside!r} is not the one that was verified")
        if there is None:
            why = "the store says that this key is taken and shows nothing there: an empty folder of a store on files?"
            raise TargetExists(key, why)

    def discard(self, move_id: MoveId) -> None:
        """Remove a staged copy if there is one, unfinished uploads too."""
        self._staging.forget(move_id, whole=False)

    def list_staged(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the staged copies lying about, unfinished ones too."""
        return self._staging.entries()

    # -- straight to the key --------------------------------------------------------------------------------------
    def direct_bytes(self, source: Driver, *, in_parts: bool = False) -> int:
        """Size of the largest object that goes straight from that node to its key here; see `ServerSide`. Raises: NodeMissing."""
        if not isinstance(source, ObjectStoreDriver):
            return 0
        return self._asked(lambda: direct_bytes(self.bucket, source.bucket, in_parts=in_parts))

    def versions(self, keys: Sequence[str]) -> dict[str, Fingerprint]:
        """Return versions that can go straight to their keys; see `drivers.object_stores.versions`. Raises: NodeMissing."""
        names = {}
        for key in keys:
            with suppress(InvalidKey):  # whoever acts on it will say so
                names[self.name_of(key)] = key
        try:
            found = versions_of(self.bucket, names)
        except BucketError as exc:
            raise node_error(self.node_id, exc, "look at objects") from exc
        return {names[name]: version for name, version in found.items()}

    def copy_from(self, source: Driver, key: str, version: Fingerprint, move_id: MoveId) -> Fingerprint:
        """Copy one version to the same key here, never overwriting; see `ServerSide.copy_from`."""
        if not isinstance(source, ObjectStoreDriver):
            msg = f"node {source.node_id!r} is in no store"
            raise TypeError(msg)
        in_parts = partial(self._staging.at_keys.copy, MoveId(validate_name(move_id, "move id")))
        return copy_version(source.end(key), self.end(key), key, version, in_parts)

    def end(self, key: str) -> End:
        """Where the object with this key is, or goes. Raises: InvalidKey."""
        return End(self.bucket, self.node_id, self.name_of(key))

    # -- freeing --------------------------------------------------------------------------------------------------
    def free(
        self,
        key: str,
        move_id: MoveId,
        expected: Fingerprint,
        *,
        freed_before: Callable[[Fingerprint], bool] = never_freed,  # noqa: ARG002  each version has a name of its own here
    ) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; see `ObjectTrash.free`."""
        name = self.name_of(key)
        validate_name(move_id, "move id")
        return self._trash.free(name, key, move_id, expected, fresh=move_id in self._fresh)

    def free_fresh(self, objects: Sequence[tuple[str, MoveId, Fingerprint]]) -> list[bool]:
        """Free many objects by few requests, each as `free` would; False: not freed, which `free` settles.

        Args:
            objects: (key, move id, version that was copied) of moves under which nothing was ever freed.
        """
        named = [(self.name_of(key), MoveId(validate_name(move, "move id")), version) for key, move, version in objects]
        freed = self._trash.free_fresh(named)
        return [name in freed for name, _, _ in named]

    def trashed(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        return self._trash.held(MoveId(validate_name(move_id, "move id")))

    def restore(self, move_id: MoveId, key: str) -> bool:
        """Bring a trashed object back without overwriting; see `Driver.restore`."""
        name = self.name_of(key)
        return self._trash.restore(MoveId(validate_name(move_id, "move id")), name, key)

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only that version; True when nothing is left of it."""
        return self._trash.purge(MoveId(validate_name(move_id, "move id")), expected)

    def list_trash(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch)."""
        return self._trash.entries()

    # -- manifests ------------------------------------------------------------------------------------------------
    def write_manifest(self, name: str, lines: Iterable[str]) -> None:
        """Write a manifest in one step; the same name again replaces it. Raises: NodeMissing, NodeNotWritable."""
        self._manifests.write(name, lines)

    def read_manifests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of every manifest."""
        return self._manifests.read_all()

    def remove_manifest(self, name: str) -> None:
        """Remove a manifest if it is there."""
        self._manifests.remove(name)

    def close(self) -> None:
        """Let go of connections."""
        self.bucket.close()
