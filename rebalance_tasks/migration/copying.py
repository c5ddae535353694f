"""Copy one object aside, in parts that can be resumed and verified; no policy, no Redis.

A part is at most 64 MiB and carries the digest of what was read from the source. An interrupted copy keeps its last,
shorter part, so that no byte is copied twice; verification reads the staged copy back part by part.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import xxhash

from rebalance_tasks.core.errors import ChecksumMismatch, SourceChanged, SourceVanished
from rebalance_tasks.core.options import MIB
from rebalance_tasks.drivers.local.direct import aligned_buffer
from rebalance_tasks.drivers.local.linux import BLOCK_BYTES
from rebalance_tasks.migration.control import CHUNK_BYTES, Interrupt, SliceInterrupted
from rebalance_tasks.store.records import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver, SourceHandle, StagedWriter
    from rebalance_tasks.migration.control import Steering

#: One part is what may have to be read again after a crash.
PART_BYTES: Final = 64 * MIB


@dataclass(slots=True)
class StagedCopy:
    """A copy aside, in progress or whole.

    Attributes:
        source: the version that is copied.
        parts: what is there, in order; grows by `add` only.
        verified: number of parts read back and found right.
        staged_bytes: bytes that are there.
    """

    source: Fingerprint
    parts: list[Part] = field(default_factory=list)
    verified: int = 0
    staged_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Sum up what an earlier attempt left."""
        self.staged_bytes = sum([part.length for part in self.parts])

    def add(self, length: int, digest: str) -> None:
        """Note a part that is there."""
        self.parts.append(Part(length=length, digest=digest))
        self.staged_bytes += length

    @property
    def checksum(self) -> str:
        """Digest of the whole: the parts' digests, each with its length."""
        if len(self.parts) == 1:
            return f"xxh3:{self.parts[0].length}-{self.parts[0].digest}"
        return "xxh3:" + ",".join(f"{part.length}-{part.digest}" for part in self.parts)


class Copier:
    """Copies and verifies with one reused buffer."""

    def __init__(self, control: Steering) -> None:
        """Bind to the slice that steers it."""
        self._control = control
        #: bytes written to targets so far
        self.copied_bytes = 0

    @property
    def _buffer(self) -> memoryview:
        return _buffer()

    def stage(  # noqa: PLR0913  all that one copy is about, by name
        self,
        source: Driver,
        target: Driver,
        key: str,
        move_id: MoveId,
        *,
        size_bytes: int,
        resume: StagedCopy | None,
        progress: Callable[[StagedCopy], None],
        fresh: bool = False,
    ) -> StagedCopy:
        """Copy an object aside on the target, going on from ``resume`` if the source is still that version.

        Args:
            source: where it is.
            target: where it goes.
            key: object key.
            move_id: names the staged copy.
            size_bytes: what was reserved and booked for it.
            resume: what an earlier attempt left.
            progress: called with the copy after each part (to journal it).
            fresh: nothing was ever staged under this move, so nothing is looked for.

        Raises:
            SliceInterrupted: flags or deadline; ``progress`` has been called with what is there.
            SourceChanged: the source is not as big as was booked, or grew or shrank under our hands.
        """
        with source.open_source(key) as reader:
            if reader.fingerprint.size_bytes != size_bytes:
                raise SourceChanged(key, f"the source has {reader.fingerprint.size_bytes} bytes, not {size_bytes}")
            copy = StagedCopy(source=reader.fingerprint)
            left = None if fresh else target.staged(move_id)
            # A host that lost its page cache may hold less than the journal says.
            if left and resume and resume.source == reader.fingerprint and left.size_bytes >= resume.staged_bytes:
                copy = resume
            if left is not None and _whole(left, reader.fingerprint):
                return self._adopt(reader, copy, key)
            if copy.staged_bytes:
                reader.seek(copy.staged_bytes)
            writer = target.stage(move_id, offset=copy.staged_bytes, sparse=reader.metadata.sparse)
            self._write(reader, writer, copy, key, progress)
        return copy

    def _adopt(self, reader: SourceHandle, copy: StagedCopy, key: str) -> StagedCopy:
        """Take over a whole copy that a killed attempt left: read the source for its digests, write nothing."""
        reader.seek(copy.staged_bytes)
        while copy.staged_bytes < copy.source.size_bytes:
            self._part(reader, None, copy, key)
        return copy

    def _write(
        self,
        reader: SourceHandle,
        writer: StagedWriter,
        copy: StagedCopy,
        key: str,
        progress: Callable[[StagedCopy], None],
    ) -> None:
        size = copy.source.size_bytes
        large = size > PART_BYTES
        whole = False
        try:
            expect = getattr(writer, "expect", None)
            if expect is not None:
                expect(size, key, reader)
            while copy.staged_bytes < size:
                self._part(reader, writer.write, copy, key)
                if large:
                    writer.sync()
                    progress(copy)
            # A small source that grew shows before it is published, a large one would be read back for nothing.
            if large and reader.readinto(self._buffer[:1]):
                raise SourceChanged(key, "the source grew while it was copied")
            writer.finish(reader.metadata)
            whole = True
        finally:
            if not whole:
                writer.close()
                progress(copy)

    def _part(
        self, reader: SourceHandle, write: Callable[[memoryview], None] | None, copy: StagedCopy, key: str
    ) -> None:
        digest = xxhash.xxh3_128()
        length = 0
        try:
            while length < PART_BYTES:
                left = copy.source.size_bytes - copy.staged_bytes - length
                want = min(self._control.chunk_bytes, PART_BYTES - length, left)
                if want == 0:
                    break
                beyond = (copy.staged_bytes + length + want) % BLOCK_BYTES
                if beyond < want < left:
                    want -= beyond  # so that all but an object's last bytes go in whole blocks
                count = reader.readinto(self._buffer[:want])
                if count == 0:
                    raise SourceChanged(key, "the source shrank while it was copied")
                chunk = self._buffer[:count]
                self._control.spend(count)
                if write is not None:
                    write(chunk)
                    self.copied_bytes += count
                digest.update(chunk)
                length += count
        except SliceInterrupted:
            if length:
                copy.add(length, digest.hexdigest())
            raise
        if length:
            copy.add(length, digest.hexdigest())

    def verify(self, target: Driver, key: str, move_id: MoveId, copy: StagedCopy) -> Fingerprint:
        """Read the staged copy back and compare it part by part, going on after ``copy.verified``.

        Returns:
            Fingerprint of what was read back; only that very file may be published.

        Raises:
            ChecksumMismatch: a part differs, or the length; or there is no copy any more.
            SliceInterrupted: flags, or the deadline between two parts; ``copy.verified`` says how far it came.
        """
        try:
            staged = target.open_staged(move_id)
        except SourceVanished as exc:
            raise ChecksumMismatch(key, "the copy that lay aside is gone") from exc
        with staged as reader:
            self._compare(reader, key, copy)
            return reader.fingerprint

    def verify_published(self, target: Driver, key: str, copy: StagedCopy, version: Fingerprint) -> None:
        """As `verify`, for a copy that has its key already; what somebody has written to it since is theirs, and not compared.

        Raises:
            ChecksumMismatch, SliceInterrupted: as `verify`.
            SourceVanished, ObjectUnreadable: nothing is at the key any more, or nothing that can be read.
        """
        with target.open_source(key) as reader:
            if reader.fingerprint == version:
                self._compare(reader, key, copy)

    def _compare(self, reader: SourceHandle, key: str, copy: StagedCopy) -> None:
        if reader.fingerprint.size_bytes != copy.staged_bytes:
            raise ChecksumMismatch(key, "the copy has another length than what was read from the source")
        if copy.verified:
            reader.seek(sum(part.length for part in copy.parts[: copy.verified]))
        for part in copy.parts[copy.verified :]:
            if self._read_back(reader, part.length) != part.digest:
                raise ChecksumMismatch(key, "the copy read back differs from what was read from the source")
            copy.verified += 1
            if copy.verified < len(copy.parts) and self._control.overdue:
                raise SliceInterrupted(Interrupt.DEADLINE)

    def same(self, target: Driver, key: str, copy: StagedCopy) -> Fingerprint | None:
        """Read what is at the key and compare it with what was read from the source, modification time included where it travels.

        Returns:
            Fingerprint of what was read, ``None`` when it is another object.

        Raises:
            SliceInterrupted: flags.
        """
        with target.open_source(key) as reader:
            found = reader.fingerprint
            timed = not getattr(target, "keeps_mtime", True) or _whole(found, copy.source)
            if not timed or copy.staged_bytes != found.size_bytes:
                return None
            same = all(self._read_back(reader, part.length) == part.digest for part in copy.parts)
            return found if same else None

    def _read_back(self, reader: SourceHandle, length: int) -> str:
        """Digest of the next ``length`` bytes; of fewer, where there are no more."""
        digest = None
        left = length
        while left:
            self._control.check()
            want = min(CHUNK_BYTES, left)
            count = reader.readinto(self._buffer[:want])
            if count == length:
                return xxhash.xxh3_128_hexdigest(self._buffer[:count])
            if count == 0:
                break
            digest = digest or xxhash.xxh3_128()
            digest.update(self._buffer[:count])
            left -= count
        return (digest or xxhash.xxh3_128()).hexdigest()


_buffers = threading.local()


def _buffer() -> memoryview:
    """One buffer a thread, kept for all slices: a fresh megabyte costs more than a small object's copy."""
    view: memoryview | None = getattr(_buffers, "view", None)
    if view is None:
        view = _buffers.view = aligned_buffer(CHUNK_BYTES)
    return view


def _whole(staged: Fingerprint, source: Fingerprint) -> bool:
    """Metadata is applied last, so a staged copy with the source's size and mtime is whole."""
    return source.mtime_ns != 0 and (staged.size_bytes, staged.mtime_ns) == (source.size_bytes, source.mtime_ns)
