"""What steers a slice while it works: pause and cancel flags, the worker's shutdown, the lease, the deadline, the throttle.

Every byte passes through `SliceControl.spend`, which looks at the flags at least every 100 ms (invariant 6) and renews
the lease with the same round trip. The worker's shutdown is a look at memory, and so is looked at each time.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from rebalance_tasks.core.errors import RebalanceError, StaleLease
from rebalance_tasks.core.options import MIB
from rebalance_tasks.migration.shutdown import SHUTTING_DOWN
from rebalance_tasks.store.throttle import LEASE_VALID_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.store.throttle import ByteBucket

#: Bytes between two looks at the flags; also the largest write.
CHUNK_BYTES: Final = MIB
#: Flags are looked at this often while bytes move (the promise is 100 ms).
BEAT_EVERY_S: Final = 0.05
#: Asking the bucket more often than this only spins.
LEAST_WAIT_S: Final = 0.01
#: A lowered throttle may let a chunk of the old size wait for so many leases of a tenth of a second.
CHUNKS_OF_LEASES: Final = 10
#: A lease of the bucket is a tenth of a second's rate.
LEASES_PER_S: Final = 10
#: Without a throttle, the bucket is asked this often whether there is one now.
RATE_EVERY_S: Final = 0.5
#: A slice hands back after this long, well under the task's time limit and the broker's visibility timeout.
SLICE_S: Final = 20.0


class Interrupt(StrEnum):
    """Why a slice stops before its work is done."""

    PAUSED = "paused"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


class SliceInterrupted(RebalanceError):
    """The slice must stop here; what is staged stays and is journalled."""

    cause = "interrupted"

    def __init__(self, why: Interrupt) -> None:
        """Say why."""
        super().__init__(f"the slice stops: {why}")
        self.why = why


class Steering(Protocol):
    """What steers those who move bytes; see `SliceControl`."""

    @property
    def chunk_bytes(self) -> int:
        """Most bytes to be spent at once."""
        ...

    @property
    def slice_bytes(self) -> int | None:
        """Bytes that may be asked for in one go and are granted within half a slice; ``None`` without a throttle."""
        ...

    @property
    def overdue(self) -> bool:
        """Whether the slice's time is up."""
        ...

    def check(self) -> None:
        """Look at the flags. Raises: SliceInterrupted, StaleLease."""
        ...

    def spend(self, size_bytes: int) -> None:
        """Ask for leave to write so many bytes. Raises: SliceInterrupted, StaleLease."""
        ...


class SliceControl:
    """Flags, lease, deadline and throttle of one slice; used by one thread."""

    def __init__(
        self,
        beat: Callable[[], str],
        *,
        bucket: ByteBucket | None,
        look_at_once: bool = False,
        slice_s: float = SLICE_S,
        stopping: Callable[[], bool] = SHUTTING_DOWN,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set up.

        Args:
            beat: renews the lease and reads the flags; returns ok, lost, cancel or paused.
            bucket: where bytes are leased from, ``None`` for no throttle at all.
            look_at_once: ask ``beat`` before the first byte, because it knows more than the flags that came with the lease.
            slice_s: seconds until the slice hands back.
            stopping: whether the worker is to end.
            clock: monotonic seconds.
            sleep: waits, in seconds.
        """
        self._beat = beat
        self._bucket = bucket
        self._stopping = stopping
        self._clock = clock
        self._sleep = sleep
        self._deadline = clock() + slice_s
        # The lease and the flags were read a moment ago.
        self._next_beat = clock() + (0.0 if look_at_once else BEAT_EVERY_S)
        #: leased bytes, and when the last of them were
        self._tokens = 0
        self._leased_at: float | None = None

    @property
    def chunk_bytes(self) -> int:
        """Most bytes to be spent at once: under a slow throttle one lease of the bucket, or a slice could not end in time."""
        if self._bucket is None:
            return CHUNK_BYTES
        if self._leased_at is None:
            # What is in force is known with the first lease; a chunk of another rate's size might have to wait for ever.
            self._lease(self._bucket)
        lease_bytes = self._bucket.lease_bytes
        return CHUNK_BYTES if lease_bytes is None else min(CHUNK_BYTES, lease_bytes)

    @property
    def slice_bytes(self) -> int | None:
        """Bytes that may be asked for in one go and are granted within half a slice; ``None`` without a throttle."""
        lease_bytes = None if self._bucket is None or self.chunk_bytes == 0 else self._bucket.lease_bytes
        return None if lease_bytes is None else int(lease_bytes * LEASES_PER_S * SLICE_S / 2)

    @property
    def overdue(self) -> bool:
        """Whether the slice's time is up."""
        return self._clock() >= self._deadline

    def check(self) -> None:
        """Look whether the worker is to end, and at the flags if the last look is old.

        Raises:
            SliceInterrupted: shutdown, paused or cancelled.
            StaleLease: another runner has taken over.
        """
        if self._stopping():
            raise SliceInterrupted(Interrupt.SHUTDOWN)
        now = self._clock()
        if now < self._next_beat:
            return
        code = self._beat()
        # On a slow line no more than half of the time goes into looking.
        after = self._clock()
        self._next_beat = max(now + BEAT_EVERY_S, after + min(after - now, BEAT_EVERY_S))
        match code:
            case "ok":
                return
            case "paused":
                raise SliceInterrupted(Interrupt.PAUSED)
            case "cancel":
                raise SliceInterrupted(Interrupt.CANCELLED)
            case _:
                msg = "the lease of this slice has a newer holder"
                raise StaleLease(msg)

    def spend(self, size_bytes: int) -> None:
        """Ask for leave to write so many bytes; waits for the throttle, looks at the flags and the deadline.

        Raises:
            SliceInterrupted: shutdown, paused, cancelled, or the slice's time is up (also when the throttle was lowered so
                far that these bytes would not go through in time: the next slice asks for fewer at once).
            StaleLease: another runner has taken over.
        """
        self.check()
        if self.overdue:
            raise SliceInterrupted(Interrupt.DEADLINE)
        if self._bucket is not None:
            self._wait_for(self._bucket, size_bytes)

    def _wait_for(self, bucket: ByteBucket, size_bytes: int) -> None:
        wait_ms = self._renewed(bucket)
        while bucket.lease_bytes is not None and self._tokens < size_bytes:
            if size_bytes > CHUNKS_OF_LEASES * bucket.lease_bytes:
                raise SliceInterrupted(Interrupt.DEADLINE)
            if wait_ms is not None:
                self._sleep(min(max(wait_ms / 1000, LEAST_WAIT_S), BEAT_EVERY_S))
                self.check()
            wait_ms = self._lease(bucket)
        self._tokens -= min(self._tokens, size_bytes)

    def _renewed(self, bucket: ByteBucket) -> int | None:
        """Exchange an old lease for a new one; return the ms to wait, ``None`` if the bucket was not asked."""
        age = float("inf") if self._leased_at is None else self._clock() - self._leased_at
        if not (age > RATE_EVERY_S if bucket.lease_bytes is None else self._tokens and age > LEASE_VALID_S):
            return None
        back, self._tokens = self._tokens, 0
        return self._lease(bucket, back=back)

    def _lease(self, bucket: ByteBucket, *, back: int = 0) -> int:
        granted, wait_ms = bucket.take(back=back)
        self._tokens += granted
        self._leased_at = self._clock()
        return wait_ms
