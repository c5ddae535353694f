"""The byte bucket: how fast a group may write, or a node be read or written, shared by all slices that work on it.

Slices lease bytes, at most a tenth of a second's rate at a time, and give back what they did not spend in time. What the
bucket grants within T seconds is bounded (``throttle_take.lua``), so what is written within T seconds is bounded by what it
grants in T + `LEASE_VALID_S`: in one second 18 % over the rate, in ten 2.8 %, however many slices share it and whoever
stalled before. A rate set at run time (the override key) wins over the configured one and is seen with the next lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rebalance_tasks.store.connection import Call, Connection

#: Leased bytes that were not spent for so long are given back: they would else come on top of what was saved up.
LEASE_VALID_S: Final = 0.03


class ByteBucket:
    """A token bucket in Redis.

    Attributes:
        rate_bytes_per_s: as configured, and from the first lease on as it is in force; ``None`` for no throttle.
        free_at: monotonic seconds of the last answer "no throttle", by the clock of who asked.
    """

    def __init__(
        self,
        connection: Connection,
        key: str,
        *,
        rate_bytes_per_s: int | None,
        override_key: str | None = None,
        pace_keys: Sequence[str] = (),
    ) -> None:
        """Bind to a bucket.

        Args:
            connection: the state's Redis.
            key: of the bucket.
            rate_bytes_per_s: the configured rate, ``None`` for no throttle.
            override_key: of a string that holds the rate set at run time, 0 for none.
            pace_keys: of the paces of a node, whose rates are limits besides; need an ``override_key``.
        """
        self._redis = connection
        self._keys = [name for name in (key, override_key, *pace_keys) if name is not None]
        self._configured = rate_bytes_per_s or 0
        self.rate_bytes_per_s = rate_bytes_per_s
        self.free_at = float("-inf")

    @property
    def lease_bytes(self) -> int | None:
        """Most bytes of one lease, ``None`` for no throttle."""
        return None if self.rate_bytes_per_s is None else max(1, self.rate_bytes_per_s // 10)

    def take(self, *, back: int = 0) -> tuple[int, int]:
        """Lease bytes, and learn the rate in force.

        Args:
            back: bytes of an earlier lease to give back.

        Returns:
            (bytes granted, ms until a whole lease is there); (0, 0) without a throttle.
        """
        return self.told(self._redis.run(*self.asking(back=back)))

    def asking(self, *, back: int = 0) -> Call:
        """The script that `take` runs, to be run along with others; `told` reads its reply."""
        return "throttle_take", self._keys, [self._configured, back]

    def told(self, reply: Sequence[int]) -> tuple[int, int]:
        """Return what `take` does, from the reply to `asking`."""
        granted, wait_ms, rate = reply
        self.rate_bytes_per_s = int(rate) or None
        return int(granted), int(wait_ms)
