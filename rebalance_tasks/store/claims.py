"""Claims: the right of one writer to change one key through the fleet, while no flip takes it.

The order of a write is in docs/invariants.md ("Writes through the fleet"): take, look where the object is, mark, change it there,
end. A claim is a lease: it ends by itself when its holder dies, and a holder that comes back too late is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import RetryableError
from rebalance_tasks.store.locations import Where

if TYPE_CHECKING:
    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys
    from rebalance_tasks.store.locations import LocationStore

#: Of copies aside and trash of writers; a move's id has a dot, so none is called like that.
WRITE_PREFIX: Final = "write:"
#: Readers may go so long by what they knew while nothing moved; a writer waits so long after a job began.
STILL_MS: Final = 1_000


class WriteInDoubt(RetryableError):
    """A write took longer than its claim: nobody knows whether it stands. Read the object, and write it again."""

    cause = "write_in_doubt"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that was taken.

    Attributes:
        wait_ms: how long to wait before anything is changed on a node, so that no reader goes by what it knew before a job began.
        where: what was known of the key when it was taken; no flip changes that.
    """

    key: str
    token: str
    wait_ms: int
    where: Where


class ClaimStore:
    """Claims of a fleet."""

    def __init__(self, connection: Connection, keys: FleetKeys, locations: LocationStore) -> None:
        """Bind to a fleet's keys."""
        self._redis, self._keys, self._locations = connection, keys, locations

    def take(self, key: str, token: str, *, ttl_ms: int) -> Claim | int:
        """Claim a key.

        Args:
            key: object key.
            token: names the holder.
            ttl_ms: until it is over by itself.

        Returns:
            The claim, or for how many ms another holder may still have it.
        """
        keys = [*self._locations.where_keys, self._keys.claims]
        args: list[Value] = [key, token, ttl_ms, STILL_MS, self._keys.job("").base]
        taken, ms, *where = self._redis.run("claim_take", keys, args)
        return Claim(key, token, int(ms), Where.read(where[0])) if taken else int(ms)

    def mark(self, claim: Claim, node: str, *, ttl_ms: int) -> bool:
        """Say on which node the key is changed right now, and have the claim anew; False when it is lost."""
        return bool(self._redis.run("claim_mark", self._script_keys(), [claim.key, claim.token, node, ttl_ms]))

    def end(self, claim: Claim, node: str, *, there: bool, placed: bool, grown_bytes: int) -> bool:
        """Give a claim back after a change.

        Args:
            claim: which.
            node: on which node it was changed.
            there: an object is there now.
            placed: its node is not what the locator computes, or a catalogue keeps it.
            grown_bytes: by which the node holds more.

        Returns:
            False when the claim was lost: nobody knows whether the change stands.
        """
        args: list[Value] = [claim.key, claim.token, node, int(there), int(placed), grown_bytes]
        return bool(self._redis.run("claim_end", self._end_keys(), args))

    def give_back(self, claim: Claim) -> None:
        """Give a claim back; nothing was changed."""
        self._redis.run("claim_end", self._end_keys(), [claim.key, claim.token, "", 0, 0, 0])

    def _script_keys(self) -> list[str]:
        keys = self._keys
        return [keys.claims, keys.written, keys.active, keys.frees, keys.frees_batches, keys.undos]

    def _end_keys(self) -> list[str]:
        return [*self._script_keys(), self._keys.forwarding, self._keys.locations, self._keys.usage]
