"""The trash of a store: an object is freed by a copy on the server's side and a delete of exactly the version that was copied.

The copy is called ``.rebalance/trash/<move>~<mtime_ns>~<etag>``, so that its name keeps the version it was freed as: a store gives
a copy times, and sometimes an ETag, of its own. Where the store can delete one version only (`Capabilities.deletes_version`)
nothing that a stranger writes meanwhile is lost; elsewhere it is compared right before it is deleted, and docs say so.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import SourceVanished
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.drivers.base import Fingerprint, FreeOutcome
from rebalance_tasks.drivers.lanes import MOST_AT_ONCE, each
from rebalance_tasks.drivers.local.errors import is_name
from rebalance_tasks.drivers.object_stores.bucket import BucketError, ConditionFailed, NotThere
from rebalance_tasks.drivers.object_stores.errors import node_error, source_error, target_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rebalance_tasks.drivers.object_stores.bucket import Bucket, Stored


class ObjectTrash:
    """The trash of one node."""

    def __init__(self, bucket: Bucket, node_id: str, prefix: str, *, keeps: bool = True) -> None:
        """Keep freed objects below ``prefix``, which ends in a slash.

        Args:
            bucket: where.
            node_id: whose, for errors.
            prefix: of the trash.
            keeps: False deletes the version that was copied at once, where the store can do just that.
        """
        self._bucket, self._node_id, self._prefix, self._keeps = bucket, node_id, prefix, keeps

    @property
    def copies(self) -> bool:
        """Whether an object is copied before it is deleted. Raises: BucketError."""
        return self._keeps or not self._bucket.capabilities.deletes_version

    def free(self, name: str, key: str, move_id: MoveId, expected: Fingerprint, *, fresh: bool) -> FreeOutcome:
        """Move an object into the trash if it is still ``expected``.

        Args:
            name: of the object.
            key: its key, for errors.
            move_id: for which move.
            expected: the version that was copied.
            fresh: nothing was ever freed under this move.
        """
        try:
            if self._keeps and not fresh and self._find(move_id, expected) is not None:
                # An earlier attempt came as far as this, or further; another version at the key is a stranger's.
                self._remove(name, expected)
                return FreeOutcome.FREED
            return self._free(name, move_id, expected)
        except BucketError as exc:
            raise source_error(self._node_id, key, exc, "free") from exc

    def _free(self, name: str, move_id: MoveId, expected: Fingerprint) -> FreeOutcome:
        if not self.copies:
            return self._delete(name, expected)
        aside = self._name(move_id, expected)
        try:
            self._bucket.copy(name, aside, etag=expected.etag, size_bytes=expected.size_bytes, new=False)
        except NotThere:
            return FreeOutcome.GONE
        except ConditionFailed:
            return FreeOutcome.CHANGED
        if self._remove(name, expected):
            return FreeOutcome.FREED
        # A stranger's new version is at the key: the old one is nobody's any more.
        self._bucket.delete(aside)
        return FreeOutcome.CHANGED

    def free_fresh(self, objects: Sequence[tuple[str, MoveId, Fingerprint]]) -> set[str]:
        """Free (name, move, version) of moves under which nothing was ever freed, by few requests.

        Returns:
            Names of those that are freed. The others were left where they are, at most with a copy in the trash besides:
            `free` settles them, and says what is wrong.
        """
        versions = {name: version.etag for name, _, version in objects}
        try:
            if not self._bucket.capabilities.deletes_versions:
                return set()
            if self._keeps:
                aside: set[str] = set()
                each(objects, lambda one: aside.update(self._copied_aside(*one)), at_once=MOST_AT_ONCE)
                versions = {name: versions[name] for name in aside}
            return self._bucket.delete_versions(versions)
        except BucketError:
            return set()

    def _copied_aside(self, name: str, move_id: MoveId, version: Fingerprint) -> tuple[str, ...]:
        """Copy into the trash; the name, if that went well."""
        aside = self._name(move_id, version)
        with suppress(BucketError):
            self._bucket.copy(name, aside, etag=version.etag, size_bytes=version.size_bytes, new=False)
            return (name,)
        return ()

    def _delete(self, name: str, expected: Fingerprint) -> FreeOutcome:
        try:
            there = self._bucket.delete(name, etag=expected.etag)
        except ConditionFailed:
            return FreeOutcome.GONE if self._bucket.head(name) is None else FreeOutcome.CHANGED
        return FreeOutcome.FREED if there else FreeOutcome.GONE

    def _remove(self, name: str, expected: Fingerprint) -> bool:
        """Delete one version; False when another one is there."""
        if not self._bucket.capabilities.deletes_version:
            found = self._bucket.head(name)
            if found is not None and found.etag != expected.etag:
                return False
            self._bucket.delete(name)
            return True
        try:
            self._bucket.delete(name, etag=expected.etag)
        except ConditionFailed:
            # Also what some say of an object that is not there.
            return self._bucket.head(name) is None
        return True

    def _name(self, move_id: MoveId, version: Fingerprint) -> str:
        return f"{self._prefix}{move_id}~{version.mtime_ns}~{version.etag}"

    def _held(self, move_id: MoveId) -> Stored | None:
        return next((found for page in self._bucket.pages(f"{self._prefix}{move_id}~") for found in page), None)

    def _find(self, move_id: MoveId, expected: Fingerprint) -> Stored | None:
        found = self._bucket.head(self._name(move_id, expected))
        return found if found is not None and found.size_bytes == expected.size_bytes else None

    def _read(self, found: Stored) -> tuple[MoveId, Fingerprint] | None:
        """Take a trash entry's name apart; ``None`` when it is none of ours."""
        move_id, _, version = found.name.removeprefix(self._prefix).partition("~")
        mtime_ns, _, etag = version.partition("~")
        if not is_name(move_id) or not mtime_ns.isdigit():
            return None
        return MoveId(move_id), Fingerprint(found.size_bytes, mtime_ns=int(mtime_ns), etag=etag)

    def held(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        try:
            found = self._held(move_id)
        except BucketError as exc:
            raise node_error(self._node_id, exc, "look into the trash") from exc
        entry = None if found is None else self._read(found)
        return None if entry is None else entry[1]

    def restore(self, move_id: MoveId, name: str, key: str) -> bool:
        """Bring a trashed object back without overwriting; see `Driver.restore`."""
        try:
            found = self._held(move_id)
            there = self._bucket.head(name)
            if found is None:
                if there is None:
                    raise SourceVanished(key, f"neither the trash (move {move_id!r}) nor the key holds it")
                return False
            if there is not None:
                return False
            self._bucket.copy(found.name, name, etag=found.etag, size_bytes=found.size_bytes, new=True)
            self._bucket.delete(found.name)
        except ConditionFailed:
            return False
        except BucketError as exc:
            raise target_error(self._node_id, key, exc, "restore") from exc
        return True

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash, with ``expected`` only that version; True when nothing is left of it."""
        try:
            if expected is not None:
                found = self._find(move_id, expected)
                if found is None:
                    return self._held(move_id) is None
            else:
                found = self._held(move_id)
            if found is not None:
                self._bucket.delete(found.name)
        except BucketError as exc:
            raise node_error(self._node_id, exc, "purge") from exc
        return True

    def entries(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch: the copy was made then)."""
        try:
            for page in self._bucket.pages(self._prefix):
                for found in page:
                    entry = self._read(found)
                    if entry is not None:
                        yield *entry, found.modified_ns
        except BucketError as exc:
            raise node_error(self._node_id, exc, "list the trash") from exc
