"""What one slice has leased from one bucket, and how it waits for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rebalance_tasks.store.throttle import LEASE_VALID_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.store.connection import Asked
    from rebalance_tasks.store.throttle import ByteBucket

#: Asking the bucket more often than this only spins.
LEAST_WAIT_S: Final = 0.01
#: A lowered throttle may let a chunk of the old size wait for so many leases of a tenth of a second.
CHUNKS_OF_LEASES: Final = 10
#: Without a throttle, the bucket is asked this often whether there is one now.
RATE_EVERY_S: Final = 0.5


class Tap:
    """A bucket's lease in the hands of one slice."""

    def __init__(self, bucket: ByteBucket, *, clock: Callable[[], float]) -> None:
        """Lease nothing yet; ``clock`` tells monotonic seconds."""
        self._bucket = bucket
        self._clock = clock
        #: leased, and when the last of it was
        self._tokens = 0
        self._leased_at: float | None = None
        if self.is_free(clock()):
            # Another slice of this process has been told a moment ago.
            self._leased_at = bucket.free_at

    @property
    def lease_bytes(self) -> int | None:
        """Most that is leased at once; ``None`` without a throttle."""
        if self._leased_at is None:
            # What is in force is known with the first lease; a chunk of another rate's size might have to wait for ever.
            self._lease()
        return self._bucket.lease_bytes

    @property
    def most(self) -> int | None:
        """Most that is leased at once, by what was in force half a second ago at most; ``None`` without a limit."""
        if not self.is_free(self._clock()):
            self._renewed()
        return self.lease_bytes

    def is_free(self, now: float) -> bool:
        """Whether nothing limits it, as the bucket has said a moment before ``now`` (monotonic seconds)."""
        return now - self._bucket.free_at <= RATE_EVERY_S

    def spend(self, size: int, *, wait: Callable[[float], None]) -> bool:
        """Spend so much of what is leased; lease more until it is enough.

        Args:
            size: bytes, or requests.
            wait: waits for at most so many seconds, and looks at the flags.

        Returns:
            False when the throttle was lowered so far that this would not go through in time.
        """
        wait_ms = self._renewed()
        while self._bucket.lease_bytes is not None and self._tokens < size:
            if size > CHUNKS_OF_LEASES * self._bucket.lease_bytes:
                return False
            if wait_ms is not None:
                wait(max(wait_ms / 1000, LEAST_WAIT_S))
            wait_ms = self._lease()
        self._tokens -= min(self._tokens, size)
        return True

    def _renewed(self) -> int | None:
        """Exchange an old lease for a new one; return the ms to wait, ``None`` if the bucket was not asked."""
        age = float("inf") if self._leased_at is None else self._clock() - self._leased_at
        if not (age > RATE_EVERY_S if self._bucket.lease_bytes is None else self._tokens and age > LEASE_VALID_S):
            return None
        back, self._tokens = self._tokens, 0
        return self._lease(back=back)

    def first_lease(self) -> Asked | None:
        """What asks for the first lease along with other scripts; ``None`` when the bucket was asked before."""
        if self._leased_at is not None:
            return None
        return self._bucket.asking(), lambda reply: self._told(*self._bucket.told(reply))

    def _lease(self, *, back: int = 0) -> int:
        return self._told(*self._bucket.take(back=back))

    def _told(self, granted: int, wait_ms: int) -> int:
        self._tokens += granted
        self._leased_at = self._clock()
        self._bucket.free_at = self._leased_at if self._bucket.lease_bytes is None else float("-inf")
        return wait_ms
