"""What steers a slice while it works: pause and cancel flags, the lease, the deadline, the throttle.

Every byte passes through `SliceControl.spend`, which looks at the flags at least every 100 ms (invariant 6) and renews
the lease with the same round trip.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import RebalanceError, StaleLease
from rebalance_tasks.core.options import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.store.throttle import ByteBucket

#: Bytes between two looks at the flags; also the largest write.
CHUNK_BYTES: Final = MIB
#: Flags are looked at this often while bytes move (the promise is 100 ms).
BEAT_EVERY_S: Final = 0.05
#: Asking the bucket more often than this only spins.
LEAST_WAIT_S: Final = 0.01
#: A slice hands back after this long, well under the task's time limit and the broker's visibility timeout.
SLICE_S: Final = 20.0


class Interrupt(StrEnum):
    """Why a slice stops before its work is done."""

    PAUSED = "paused"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class SliceInterrupted(RebalanceError):
    """The slice must stop here; what is staged stays and is journalled."""

    cause = "interrupted"

    def __init__(self, why: Interrupt) -> None:
        """Say why."""
        super().__init__(f"the slice stops: {why}")
        self.why = why


class SliceControl:
    """Flags, lease, deadline and throttle of one slice."""

    def __init__(
        self,
        beat: Callable[[], str],
        *,
        bucket: ByteBucket | None,
        look_at_once: bool = False,
        slice_s: float = SLICE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set up.

        Args:
            beat: renews the lease and reads the flags; returns ok, lost, cancel or paused.
            bucket: where bytes are leased from, ``None`` for no throttle.
            look_at_once: ask ``beat`` before the first byte, because it knows more than the flags that came with the lease.
            slice_s: seconds until the slice hands back.
            clock: monotonic seconds.
            sleep: waits, in seconds.
        """
        self._beat = beat
        self._bucket = bucket
        self._clock = clock
        self._sleep = sleep
        self._deadline = clock() + slice_s
        # The lease and the flags were read a moment ago, and a new slice may write one lease's worth at once.
        self._next_beat = clock() + (0.0 if look_at_once else BEAT_EVERY_S)
        self._tokens = 0 if bucket is None else bucket.lease_bytes

    @property
    def chunk_bytes(self) -> int:
        """Most bytes to be spent at once: under a slow throttle one lease of the bucket, or a slice could not end in time."""
        return CHUNK_BYTES if self._bucket is None else min(CHUNK_BYTES, self._bucket.lease_bytes)

    @property
    def overdue(self) -> bool:
        """Whether the slice's time is up."""
        return self._clock() >= self._deadline

    def check(self) -> None:
        """Look at the flags if the last look is old.

        Raises:
            SliceInterrupted: paused or cancelled.
            StaleLease: another runner has taken over.
        """
        now = self._clock()
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_EVERY_S
        match self._beat():
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
        """Ask for leave to write so many bytes; waits for the throttle, looks at the flags and the deadline."""
        self.check()
        if self.overdue:
            raise SliceInterrupted(Interrupt.DEADLINE)
        if self._bucket is None:
            return
        while self._tokens < size_bytes:
            granted, wait_ms = self._bucket.take()
            self._tokens += granted
            if self._tokens < size_bytes:
                self._sleep(min(max(wait_ms / 1000, LEAST_WAIT_S), BEAT_EVERY_S))
            self.check()
        self._tokens -= size_bytes
