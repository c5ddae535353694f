"""What is to be done about a move that Redis forgot: decided by a look at both nodes, which changes nothing.

The table stands in docs/invariants.md ("What Redis forgot"); `control.cleaning.strays` acts on the verdicts, under a claim of the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rebalance_tasks.control.custody import Chains, held_elsewhere
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.options import MIB
from rebalance_tasks.migration.ways import as_published

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rebalance_tasks.control.context import FleetContext
    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.drivers.base import Driver, SourceHandle
    from rebalance_tasks.migration.manifests import ManifestEntry

#: What has no manifest is compared byte by byte, up to this size: both copies must be read while the claim lasts.
COMPARED_BYTES: Final = 256 * MIB
_CHUNK_BYTES: Final = 1 << 20


class Verdict(StrEnum):
    """What is to be done about a move that is over and not flipped."""

    #: its target holds nothing of it, or others know of what it holds
    NOTHING = "nothing"
    #: the original stands: the copy is taken off
    TAKE_OFF = "take_off"
    #: the source is in its trash: it goes back to its key, and the copy is taken off
    BRING_BACK = "bring_back"
    #: no manifest lists the copy, or versions and times do not say which is the newer: bytes must tell
    COMPARE = "compare"
    #: the copy was written to and the source was not: the copy is the object
    HAND_OVER = "hand_over"
    #: the copy is the only one: readers are sent there
    ADOPT = "adopt"
    #: nothing says which is the object: both stay
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True, slots=True)
class Stray:
    """A move that is over and not flipped, and what its target's manifests list of it, oldest first."""

    move_id: str
    key: str
    source: str
    entries: tuple[ManifestEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a stray.

    Attributes:
        copy: version on the target: as it was published if it is known to be this move's, else as it is.
        original: node that holds the object itself: the source, or where later moves took it from there.
    """

    verdict: Verdict
    copy: Fingerprint | None = None
    original: str = ""


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks at strays.

    Attributes:
        context: the fleet.
        adopted: nodes that carry their node-id.
        lines: what manifests list of their keys, oldest first.
    """

    context: FleetContext
    adopted: Collection[str]
    lines: Mapping[str, list[ManifestEntry]]

    def see(self, stray: Stray, source: Driver, target: Driver) -> Seen:
        """Look at both nodes, without changing anything. Raises: NodeError, also where another node may hold the object and is away."""
        source.check_identity()  # missing is never gone
        at_target, at_source = target.stat(stray.key), source.stat(stray.key)
        if at_target is None:
            return Seen(Verdict.NOTHING)
        for entry in reversed(stray.entries):
            copy = as_published(target, stray.key, entry.published_fingerprint())
            if copy is None:
                continue
            # What `_list` wrote is longer than what was copied: it was grown already.
            grown = entry.published_fingerprint().size_bytes != entry.copied_fingerprint().size_bytes
            untouched = not grown and target.unchanged(stray.key, copy)
            if at_source is None:
                return self._without_source(stray, entry, copy, (source, target), untouched=untouched)
            same = source.unchanged(stray.key, entry.copied_fingerprint())
            verdict = _beside(at_source, entry.copied_fingerprint(), same=same, untouched=untouched)
            return Seen(verdict, copy, stray.source)
        original = stray.source if at_source is not None else self._taken_on(stray)
        if original not in {None, target.node_id}:
            return Seen(Verdict.COMPARE, at_target, original)
        astray = not self._elsewhere(stray.key, target.node_id) and self._leads_elsewhere(stray.key, target.node_id)
        return Seen(Verdict.ADOPT if astray else Verdict.NOTHING, at_target, target.node_id)

    def _without_source(
        self, stray: Stray, entry: ManifestEntry, copy: Fingerprint, nodes: tuple[Driver, Driver], *, untouched: bool
    ) -> Seen:
        source, target = nodes
        lines = [other for other in self.lines.get(stray.key, ()) if other.move_id != stray.move_id]
        chains = Chains(self.context, {stray.key: lines})
        original = chains.end(stray.key, stray.source, entry.copied_fingerprint())
        if original is not None and original != target.node_id:
            return Seen(Verdict.TAKE_OFF if untouched else Verdict.AMBIGUOUS, copy, original)
        if self._elsewhere(stray.key, target.node_id):
            return Seen(Verdict.AMBIGUOUS, copy)
        if untouched and source.trashed(MoveId(stray.move_id)) == entry.copied_fingerprint():
            return Seen(Verdict.BRING_BACK, copy, stray.source)
        return Seen(Verdict.ADOPT, copy, target.node_id)

    def _taken_on(self, stray: Stray) -> str | None:
        """Where later moves took an object whose copy no manifest lists."""
        return Chains(self.context, self.lines).end(stray.key, stray.source, None)

    def _elsewhere(self, key: str, node_id: str) -> bool:
        return held_elsewhere(self.context, key, node_id, adopted=self.adopted)

    def _leads_elsewhere(self, key: str, node_id: str) -> bool:
        """Whether readers of a key are sent to another node first."""
        where = self.context.locations.lookup(key)
        return any(place not in {None, node_id} for place in (where.forwarded, where.placed))


def _beside(at_source: Fingerprint, copied: Fingerprint, *, same: bool, untouched: bool) -> Verdict:
    """What is to be done where both nodes hold something.

    Args:
        at_source: what the source holds.
        copied: what was copied from it.
        same: the source still holds just that.
        untouched: the copy is as it was published.
    """
    if untouched and (same or at_source.mtime_ns > copied.mtime_ns):
        return Verdict.TAKE_OFF
    if untouched and (at_source.size_bytes, at_source.mtime_ns) == (copied.size_bytes, copied.mtime_ns):
        # Brought back from the trash under a new version, within one tick of the store's clock.
        return Verdict.COMPARE
    return Verdict.HAND_OVER if same and not untouched else Verdict.AMBIGUOUS


def compare(source: Driver, target: Driver, key: str) -> tuple[Verdict, tuple[Fingerprint, Fingerprint]]:
    """Read what two nodes hold at a key: equal, or one is the other and what was appended to it later.

    Returns:
        The verdict, and the versions of source and target that were read.

    Raises:
        RebalanceError: one of them cannot be read.
    """
    with source.open_source(key) as one, target.open_source(key) as other:
        versions = one.fingerprint, other.fingerprint
        shorter, longer = sorted(versions, key=lambda version: version.size_bytes)
        grown = longer.size_bytes > shorter.size_bytes
        appended = longer.mtime_ns > shorter.mtime_ns and shorter.size_bytes > 0
        if longer.size_bytes > COMPARED_BYTES or (grown and not appended) or not _begin_alike(one, other, shorter):
            return Verdict.AMBIGUOUS, versions
    return (Verdict.HAND_OVER if grown and longer == versions[1] else Verdict.TAKE_OFF), versions


def _begin_alike(one: SourceHandle, other: SourceHandle, shorter: Fingerprint) -> bool:
    """Whether two objects begin with the same bytes, as many as the shorter one has."""
    first, second = memoryview(bytearray(_CHUNK_BYTES)), memoryview(bytearray(_CHUNK_BYTES))
    left = shorter.size_bytes
    while left:
        want = min(left, _CHUNK_BYTES)
        if _filled(one, first[:want]) < want or _filled(other, second[:want]) < want or first[:want] != second[:want]:
            return False
        left -= want
    return True


def _filled(handle: SourceHandle, buffer: memoryview) -> int:
    """Read until the buffer is full or there is no more; return how many bytes."""
    filled = 0
    while filled < len(buffer) and (count := handle.readinto(buffer[filled:])):
        filled += count
    return filled
