"""What steers a slice while it works: pause and cancel flags, the worker's shutdown, the lease, the deadline, the throttle.

Every byte passes through `SliceControl.spend`, which looks at the flags at least every 100 ms (invariant 6) and renews
the lease with the same round trip. The worker's shutdown is a look at memory, and so is looked at each time.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from rebalance_tasks.core.errors import RebalanceError, StaleLease
from rebalance_tasks.core.options import MIB
from rebalance_tasks.migration.shutdown import SHUTTING_DOWN
from rebalance_tasks.migration.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.store.connection import Asked
    from rebalance_tasks.store.throttle import ByteBucket

#: Bytes between two looks at the flags; also the largest write.
CHUNK_BYTES: Final = MIB
#: Flags are looked at this often while bytes move (the promise is 100 ms).
BEAT_EVERY_S: Final = 0.05
#: A lease of the bucket is a tenth of a second's rate.
LEASES_PER_S: Final = 10
#: A slice hands back after this long, well under the task's time limit and the broker's visibility timeout.
SLICE_S: Final = 20.0
#: Copies that lie aside, and sources of what readers have already, are let through for so much longer; then they wait for the next slice.
FINISHING_S: Final = SLICE_S / 2


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

    def request(self, count: int = 1, *, of_source: bool = False) -> None:
        """Ask for leave to have a server copy objects. Raises: SliceInterrupted, StaleLease."""
        ...

    def requests_at_once(self, *, of_source: bool = False) -> int | None:
        """Most copies to ask for in one go; ``None`` without a limit."""
        ...


class Buckets(NamedTuple):
    """What a slice leases from.

    Attributes:
        of_bytes: each byte is leased from all of them: of the group, of the node that is read, of the node that is written.
        of_requests: for copies that the target's server makes.
        of_frees: for copies that the source's server makes, into its trash.
    """

    of_bytes: tuple[ByteBucket, ...]
    of_requests: ByteBucket | None = None
    of_frees: ByteBucket | None = None


class SliceControl:
    """Flags, lease, deadline and throttle of one slice; used by one thread."""

    def __init__(
        self,
        beat: Callable[[], str],
        *,
        bucket: ByteBucket | Buckets | None,
        look_at_once: bool = False,
        slice_s: float = SLICE_S,
        stopping: Callable[[], bool] = SHUTTING_DOWN,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set up.

        Args:
            beat: renews the lease and reads the flags; returns ok, lost, cancel or paused.
            bucket: where bytes are leased from, or several of them and one of requests; ``None`` for no throttle at all.
            look_at_once: ask ``beat`` before the first byte, because it knows more than the flags that came with the lease.
            slice_s: seconds until the slice hands back.
            stopping: whether the worker is to end.
            clock: monotonic seconds.
            sleep: waits, in seconds.
        """
        self._beat = beat
        buckets = bucket if isinstance(bucket, Buckets) else Buckets(() if bucket is None else (bucket,))
        self._taps = [Tap(each, clock=clock) for each in buckets.of_bytes]
        of_server = {False: buckets.of_requests, True: buckets.of_frees}
        #: by whether they are the source's
        self._requests = {side: Tap(one, clock=clock) for side, one in of_server.items() if one is not None}
        self._stopping = stopping
        self._clock = clock
        self._sleep = sleep
        self._deadline = clock() + slice_s
        # The lease and the flags were read a moment ago.
        self._next_beat = clock() + (0.0 if look_at_once else BEAT_EVERY_S)

    @property
    def chunk_bytes(self) -> int:
        """Most bytes to be spent at once: under a slow throttle one lease of the bucket, or a slice could not end in time."""
        return min([CHUNK_BYTES, *self._leases()])

    @property
    def slice_bytes(self) -> int | None:
        """Bytes that may be asked for in one go and are granted within half a slice; ``None`` without a throttle."""
        leases = self._leases()
        return int(min(leases) * LEASES_PER_S * SLICE_S / 2) if leases else None

    def first_leases(self) -> list[Asked]:
        """What asks for the first lease of each bucket that was not asked yet, so that it costs no trip of its own."""
        return [asked for tap in self._taps if (asked := tap.first_lease()) is not None]

    def _leases(self) -> list[int]:
        return [tap.lease_bytes for tap in self._taps if tap.lease_bytes is not None]

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
        now = self._clock()
        if now >= self._deadline:
            raise SliceInterrupted(Interrupt.DEADLINE)
        for tap in self._taps:
            if not tap.is_free(now):
                self._take(tap, size_bytes)

    def request(self, count: int = 1, *, of_source: bool = False) -> None:
        """Ask for leave to have a server copy objects; waits, and looks at the flags where it does.

        Args:
            count: how many, at most `requests_at_once`.
            of_source: the source's server, and not the target's.

        Raises:
            SliceInterrupted: as `spend`, but the slice's time is up `FINISHING_S` later.
            StaleLease: another runner has taken over.
        """
        tap = self._requests.get(of_source)
        if tap is None or tap.is_free(self._clock()):
            return
        if self._clock() >= self._deadline + FINISHING_S:
            raise SliceInterrupted(Interrupt.DEADLINE)
        self._take(tap, count)

    def requests_at_once(self, *, of_source: bool = False) -> int | None:
        """Most copies to ask for in one go, so that a limit holds within each tenth of a second; ``None`` without one."""
        tap = self._requests.get(of_source)
        return None if tap is None else tap.most

    def _take(self, tap: Tap, size: int) -> None:
        if not tap.spend(size, wait=self._wait):
            raise SliceInterrupted(Interrupt.DEADLINE)

    def _wait(self, seconds: float) -> None:
        self._sleep(min(seconds, BEAT_EVERY_S))
        self.check()
