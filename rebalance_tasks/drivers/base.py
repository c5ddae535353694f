"""The protocol between the migration engine and a store; every driver passes the same conformance suite.

A driver serves one node. It knows nothing of jobs, Redis or policy: it lists, reads, stages aside, publishes without
overwrite, frees reversibly and purges, and it confines every key to its node's root. The order of these calls is the
engine's business (docs/invariants.md); what each call promises is written here.

Reserved names on a node, never objects::

    .rebalance/node-id            which node this root is
    .rebalance/tmp/<move_id>      copies being made
    .rebalance/manifests/<name>   what was published here, by batch
    .rebalance/trash/<move_id>    freed, still reversible
    .rebalance/kept/<name>        changed by a stranger while it was freed, its key taken again: never purged
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self

from rebalance_tasks.core.errors import MoveError, PermanentError
from rebalance_tasks.core.fingerprint import Fingerprint
from rebalance_tasks.core.keys import RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from rebalance_tasks.core.ids import MoveId, NodeId

__all__ = [
    "RESERVED",
    "Driver",
    "Fingerprint",
    "FreeOutcome",
    "Hold",
    "Listing",
    "NodeHealth",
    "ObjectMetadata",
    "ObjectTooLarge",
    "Remote",
    "ServerSide",
    "SourceHandle",
    "StagedWriter",
    "never_freed",
]


@dataclass(slots=True)
class ObjectMetadata:
    """What travels with an object's bytes; made once, never changed (a frozen one takes three times as long to make)."""

    mode: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    #: the owner, which only root can carry over.
    uid: int | None = None
    gid: int | None = None
    #: the source occupies fewer blocks than its size: holes are kept.
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a node, as columns of equal length n; ``left_out`` counts what is on the node but not an object."""

    keys: list[str]
    size_bytes: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    #: reason ("symlink", "special_file", "invalid_key", "hard_link", "excluded", "other_file_system",
    #: "unreadable_folder") -> count; a folder that is left out counts once.
    left_out: Mapping[str, int]
    #: when each was read last, 0 where that is not told; ``None`` where nobody asked, or it never is.
    atime_ns: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """What a probe of the node's root found."""

    #: what the file system says; ``None`` where the store has no natural capacity.
    total_bytes: int | None
    free_bytes: int | None
    #: equal for two nodes on one device (0: not a local file system).
    device: int
    #: whether ``.rebalance/node-id`` is there.
    adopted: bool
    #: files in ``.rebalance/kept``, waiting for an operator's look.
    kept_files: int = 0
    #: whether large copies go around the page cache there; ``None``: it is no local node, or not adopted.
    direct: bool | None = None
    #: whether reading an object shows in its access time: not on a mount with noatime; ``None``: nobody can say.
    shows_access: bool | None = None


class FreeOutcome(StrEnum):
    """What freeing a source reversibly came to."""

    FREED = "freed"
    CHANGED = "changed"
    GONE = "gone"


def never_freed(_: Fingerprint) -> bool:
    """What `Driver.free` believes of another version in the trash, unless it is told more: a stranger changed it just then."""
    return False


class ObjectTooLarge(MoveError, PermanentError):
    """The target's file system, or a limit of the worker's process, holds no object of this size; others still fit."""

    cause = "too_large"


class SourceHandle(Protocol):
    """An object open for reading, pinned to the version whose fingerprint it carries."""

    fingerprint: Fingerprint

    @property
    def metadata(self) -> ObjectMetadata:
        """What travels with the bytes."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position; return the number of bytes, 0 at the end."""
        ...

    def seek(self, offset: int) -> None:
        """Go to an absolute byte offset."""
        ...

    def close(self) -> None:
        """Let go."""
        ...

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        ...


class StagedWriter(Protocol):
    """A copy being made aside; invisible at any key until `Driver.publish`."""

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises: NodeFull when the target has no room, ObjectTooLarge when it takes no object of this size."""
        ...

    def sync(self) -> None:
        """Make what was written so far durable (used between the parts of a large object)."""
        ...

    def finish(self, metadata: ObjectMetadata) -> None:
        """Apply the metadata (mtime last, so that a staged file with the source's mtime is whole) and close."""
        ...

    def close(self) -> None:
        """Close and keep what is there (a later attempt may resume it)."""
        ...


class Expecting(Protocol):
    """What a `StagedWriter` may offer besides; asked for by name, as `Remote`."""

    def expect(self, size_bytes: int, key: str, source: SourceHandle) -> None:
        """Prepare for a copy of that size in all, before its next byte.

        Args:
            size_bytes: of the whole.
            key: where it will be published.
            source: what it is a copy of; what belongs to it may be asked for.

        Raises:
            NodeFull, ObjectTooLarge, NodeNotWritable, InvalidKey.
        """
        ...


class Hold(Protocol):
    """A context in which a driver keeps folders open between calls; `Driver.hold`."""

    #: moves whose publishing or freeing was taken back at the end, because their folder had been renamed under our hands.
    strays: set[MoveId]

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look whether the folders are still in their places; let go."""
        ...


class Remote(Protocol):
    """What a driver may say of itself besides; the engine asks for each by name, and does without (`migration.ways`)."""

    #: objects that may go through one step at once, since each call takes a round trip.
    parallel: int

    #: whether a copy has the modification time of its original, so that it can be told by it; true where it is not said.
    keeps_mtime: bool

    #: whether what is freed is copied into the trash and then deleted, so that it may be at both places; false where it is not said.
    frees_by_copy: bool

    #: whether a copy gets its key by a further copy that the node's server makes; false where it is not said.
    publishes_by_copy: bool

    @property
    def copies_to_free(self) -> bool:
        """Whether freeing takes a copy that the node's server makes; false where it is not said. Raises: NodeMissing."""
        ...

    @property
    def keeps_versions(self) -> bool:
        """Whether a copy is the same version at its key as it was aside; true where it is not said.

        Elsewhere a copy is known by its size and modification time, which then must travel.
        """
        ...

    @property
    def uploads_at_keys(self) -> bool:
        """Whether a copy whose entity tag is that of several parts has the same one at its key; false where it is not said."""
        ...

    @property
    def checks_writes(self) -> bool:
        """Whether bytes that are not what was sent are refused on arrival, so that a copy need not be read back."""
        ...


class ServerSide(Protocol):
    """A driver that takes objects of its own kind straight to their keys, in one write each; asked for by name, as `Remote`."""

    def direct_bytes(self, source: Driver, *, in_parts: bool = False) -> int:
        """Size of the largest object that it takes so from this node, of those that were uploaded ``in_parts`` or of the others; 0: none."""
        ...

    def versions(self, keys: Sequence[str]) -> dict[str, Fingerprint]:
        """Return the versions of those objects that can go so: a copy proves itself by the same entity tag."""
        ...

    def copy_from(self, source: Driver, key: str, version: Fingerprint, move_id: MoveId) -> Fingerprint:
        """Copy one version to the same key here, in one step and never overwriting; what it takes until then is discarded by its move's id.

        Raises:
            SourceVanished, SourceChanged: there is no such version any more.
            TargetExists: something else is at the key here.
            ChecksumMismatch: what was written shows another entity tag, and was taken away.
        """
        ...


class Driver(Protocol):
    """One node's store. All methods raise `core.errors` only; keys are validated and confined in each of them."""

    node_id: NodeId

    # -- the node itself ------------------------------------------------------------------------------------------
    def probe(self) -> NodeHealth:
        """Look at the root without changing it.

        Raises:
            NodeMissing: no root, or ``.rebalance/node-id`` names another node.
            NodeNotWritable: the root cannot be written to.
        """
        ...

    def check_identity(self) -> None:
        """Cheap check that the root is still this node. Raises: NodeMissing."""
        ...

    def adopt(self) -> None:
        """Write ``.rebalance/node-id`` (idempotent) and the working folders. Raises: NodeMissing, NodeNotWritable."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes an ordinary user could still write; ``None`` without natural capacity."""
        ...

    def list_objects(self, *, require_identity: bool = True) -> Listing:
        """List every object, in no particular order. Never follows symbolic links.

        Args:
            require_identity: False also lists a root that was never adopted (observe mode); another node's never.

        Raises:
            NodeMissing: rather than list an unmounted root or half of a broken one.
        """
        ...

    # -- bursts ---------------------------------------------------------------------------------------------------
    def hold(self, fresh: Collection[MoveId] = ()) -> Hold:
        """Let this thread's next calls share what is costly to open, until the context ends; holds do not nest.

        Args:
            fresh: moves that were never attempted before: nothing is staged and nothing is in the trash under them.
        """
        ...

    # -- reading --------------------------------------------------------------------------------------------------
    def stat(self, key: str) -> Fingerprint | None:
        """Fingerprint of the object at ``key``, ``None`` when there is none. Raises: InvalidKey, ObjectUnreadable."""
        ...

    def unchanged(self, key: str, version: Fingerprint) -> bool:
        """Tell whether the object at ``key`` is still that version. Raises: InvalidKey, ObjectUnreadable."""
        ...

    def open_source(self, key: str) -> SourceHandle:
        """Open for reading. Raises: InvalidKey, SourceVanished, ObjectUnreadable (also: parent not writable, so it could not be freed)."""
        ...

    # -- copy aside, verify, publish ------------------------------------------------------------------------------
    def stage(self, move_id: MoveId, *, offset: int = 0, sparse: bool = False) -> StagedWriter:
        """Open the staged copy of a move, cut to ``offset`` bytes, for appending.

        Args:
            move_id: whose copy.
            offset: bytes of an earlier attempt to keep.
            sparse: leave holes where whole blocks are zero (pass the source's ``metadata.sparse``).

        Raises:
            InvalidArgument: fewer than ``offset`` bytes are there; begin at 0.
            NodeFull, NodeNotWritable.
        """
        ...

    def staged(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of a staged copy, ``None`` when there is none."""
        ...

    def open_staged(self, move_id: MoveId) -> SourceHandle:
        """Open a staged copy for reading it back."""
        ...

    def sync(self) -> None:
        """Make everything staged, published or renamed on this node so far durable (``syncfs`` where it exists)."""
        ...

    def publish(self, move_id: MoveId, key: str, *, expected: Fingerprint | None = None) -> Fingerprint:
        """Give the staged copy its key in one step, never overwriting.

        Args:
            move_id: whose copy.
            key: where to.
            expected: the copy that was verified; a stale worker may have put another under the same name.

        Raises:
            ChecksumMismatch: what is staged is not ``expected``.
            TargetExists: something else is at ``key`` (or at a name the file system cannot tell from it).
            InvalidKey: the key does not fit this store.
            InvalidArgument: nothing is staged under this move (it was published or discarded before).
        """
        ...

    def discard(self, move_id: MoveId) -> None:
        """Remove a staged copy if there is one."""
        ...

    # -- freeing --------------------------------------------------------------------------------------------------
    def free(
        self,
        key: str,
        move_id: MoveId,
        expected: Fingerprint,
        *,
        freed_before: Callable[[Fingerprint], bool] = never_freed,
    ) -> FreeOutcome:
        """Move the object into the trash if it is still ``expected``; compare again there, restore on mismatch.

        Returns ``FREED`` also when the trash already holds it under this move (idempotent). Where a changed object
        cannot be put back because its key is taken again, it goes to ``.rebalance/kept`` and ``CHANGED`` is returned.

        Args:
            key: of the object.
            move_id: for which move.
            expected: the version that may go.
            freed_before: asked about another version in the trash of this move: whether it was freed there on purpose, before the
                move began again. Such a one goes for good, where it would be in the way.

        Raises:
            ObjectUnreadable: it cannot be renamed.
        """
        ...

    def trashed(self, move_id: MoveId) -> Fingerprint | None:
        """Fingerprint of what the trash holds for a move."""
        ...

    def restore(self, move_id: MoveId, key: str) -> bool:
        """Bring a trashed object back without overwriting; False when something is at the key.

        Raises: SourceVanished when neither the trash nor the key holds anything.
        """
        ...

    def purge(self, move_id: MoveId, expected: Fingerprint | None) -> bool:
        """Delete from the trash; with ``expected``, only if it is still that version. True when nothing is left of it."""
        ...

    def list_trash(self) -> Iterator[tuple[MoveId, Fingerprint, int]]:
        """Yield (move_id, fingerprint, when it was trashed in ns since the epoch)."""
        ...

    def list_staged(self) -> Iterator[tuple[MoveId, Fingerprint]]:
        """Yield the staged copies lying about."""
        ...

    # -- manifests ------------------------------------------------------------------------------------------------
    def write_manifest(self, name: str, lines: Iterable[str]) -> None:
        """Write a manifest (one JSON document a line) so that it is there whole or not at all, durably."""
        ...

    def read_manifests(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of every manifest."""
        ...

    def remove_manifest(self, name: str) -> None:
        """Remove a manifest if it is there."""
        ...

    def close(self) -> None:
        """Let go of descriptors."""
        ...
