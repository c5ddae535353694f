"""Write and remove objects through the fleet, also while they move.

The order is the design (docs/invariants.md, "Writes through the fleet"): stage aside → claim the key → look where the object is →
wait out readers who go by what they knew → mark → replace in one step → end the claim. From the claim on no flip takes the key;
from the mark on, while anything moves, its node is its only place. Keeps: nothing is lost, nothing torn is visible, and a
write that was acknowledged is what every later read sees.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import (
    NodeError,
    ObjectNotFound,
    RetryableError,
    TargetExists,
)
from rebalance_tasks.core.ids import MoveId
from rebalance_tasks.core.keys import validate_key
from rebalance_tasks.drivers.base import FreeOutcome, ObjectMetadata
from rebalance_tasks.store.claims import WRITE_PREFIX, WriteInDoubt

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.control.access.holders import Holder, Holders
    from rebalance_tasks.control.context import PlacesContext
    from rebalance_tasks.control.locate import Locator
    from rebalance_tasks.drivers.base import StagedWriter
    from rebalance_tasks.drivers.doors import Door
    from rebalance_tasks.settings import Settings
    from rebalance_tasks.store.claims import Claim, ClaimStore

#: A claim lasts so long, and longer for what takes a store long to copy (10 MB/s).
CLAIM_MS: Final = 30_000
_BYTES_PER_MS: Final = 10_000
#: A key that others write all the time is given up after so many tries …
TRIES: Final = 100
#: … and so many seconds.
PATIENCE_S: Final = 90.0
#: Another writer's claim is looked at again so soon: it is held for one step only.
POLL_S: Final = 0.02
#: What a new file can be read by.
MODE: Final = 0o644
_CHUNK_BYTES: Final = 1 << 20


@dataclass
class Draft:
    """An object being written, aside; seen by nobody before `Writer.commit`."""

    key: str
    token: MoveId
    node_id: str
    writer: StagedWriter
    size_bytes: int = 0
    finished: bool = field(default=False)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises: NodeError."""
        self.writer.write(memoryview(data))
        self.size_bytes += len(data)


class Writer:
    """Writes and removes objects of one fleet; safe to use from several threads."""

    def __init__(
        self,
        context: PlacesContext,
        locator: Locator,
        holders: Holders,
        claims: ClaimStore,
        door: Callable[[str], Door],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Bind to a fleet."""
        self._c, self._locator, self._holders, self._claims, self._door = context, locator, holders, claims, door
        self._sleep = sleep

    # -- writing --------------------------------------------------------------------------------------------------
    def begin(self, key: str) -> Draft:
        """Begin to write an object, where it is or will most likely be. Raises: InvalidKey, NodeError, EmptyClusterError."""
        where = self._locator.where(key)
        holder = self._holders.likeliest(key, where)
        node_id = holder.node_id if holder is not None else self._holders.placed(key, where)
        token = MoveId(f"{WRITE_PREFIX}{uuid.uuid4().hex}")
        return Draft(key, token, node_id, self._stage(node_id, token))

    def _stage(self, node_id: str, token: MoveId) -> StagedWriter:
        driver = self._c.driver(node_id)
        driver.check_identity()  # nothing is written to a disk that is not mounted
        return driver.stage(token)

    def discard(self, draft: Draft) -> None:
        """Throw a draft away."""
        draft.writer.close()
        self._c.driver(draft.node_id).discard(draft.token)

    def commit(self, draft: Draft, *, new: bool = False) -> str:
        """Give a draft its key, in place of what is there; return its node. The draft is gone whatever happens.

        Args:
            draft: all of whose bytes were written.
            new: only if nothing is there.

        Raises:
            TargetExists: ``new``, and something is there.
            WriteInDoubt: it took too long; nobody knows whether it stands.
            RetryableError: others kept writing this key.
            NodeError: a node cannot be reached or written to; nothing was changed.
        """
        try:
            if not draft.finished:
                draft.writer.sync()
                draft.writer.finish(ObjectMetadata(mode=MODE, mtime_ns=time.time_ns()))
                draft.finished = True
            return self._each_try(
                draft.key, draft.token, draft.size_bytes, lambda claim: self._put(draft, claim, new=new)
            )
        except BaseException:
            with suppress(NodeError):  # the cleanup finds it
                self._c.driver(draft.node_id).discard(draft.token)
            raise

    def _put(self, draft: Draft, claim: Claim, *, new: bool) -> str | None:
        """Put a finished draft under a claim; ``None``: claim it again."""
        key = draft.key
        there = self._holders.all(key, claim.where)
        if new and there:
            raise TargetExists(key, f"an object is there already, on node {there[0].node_id!r}")
        node_id = there[0].node_id if there else claim.where.written or self._holders.placed(key, claim.where)
        if node_id != draft.node_id:
            # It moved on: carry the draft there without holding up anybody.
            self._claims.give_back(claim)
            self._carry(draft, node_id)
            return None
        if not self._marked(claim, node_id, draft.size_bytes):
            return None
        self._door(node_id).replace(draft.token, key)
        grown = draft.size_bytes - (there[0].version.size_bytes if there else 0)
        self._end(claim, node_id, there=True, grown_bytes=grown)
        return node_id

    def _carry(self, draft: Draft, node_id: str) -> None:
        """Stage a finished draft on another node."""
        old = self._c.driver(draft.node_id)
        writer = self._stage(node_id, draft.token)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        with old.open_staged(draft.token) as source:
            while count := source.readinto(buffer):
                writer.write(buffer[:count])
        writer.sync()
        writer.finish(ObjectMetadata(mode=MODE, mtime_ns=time.time_ns()))
        old.discard(draft.token)
        draft.node_id, draft.writer = node_id, writer

    # -- removing -------------------------------------------------------------------------------------------------
    def remove(self, key: str) -> None:
        """Remove an object. Raises: InvalidKey, ObjectNotFound, WriteInDoubt, RetryableError, NodeError."""
        token = MoveId(f"{WRITE_PREFIX}{uuid.uuid4().hex}")
        node_id = self._each_try(validate_key(key), token, 0, self._take_away)
        self._c.driver(node_id).purge(token, None)

    def _take_away(self, claim: Claim) -> str | None:
        """Remove every copy that a reader could come upon, the one it would find last."""
        there = self._holders.all(claim.key, claim.where)
        if not there:
            raise ObjectNotFound(claim.key)
        node_id = there[0].node_id
        if not self._marked(claim, node_id, 0):
            return None
        for holder in [*there[1:], there[0]] if not claim.where.moving else there[:1]:
            outcome = self._free(claim, holder)
            if outcome is FreeOutcome.CHANGED:  # a stranger wrote to it
                self._claims.give_back(claim)
                return None
        self._end(claim, node_id, there=False, grown_bytes=-there[0].version.size_bytes)
        return node_id

    def _free(self, claim: Claim, holder: Holder) -> FreeOutcome:
        driver = self._c.driver(holder.node_id)
        token = MoveId(claim.token)
        outcome = driver.free(claim.key, token, holder.version)
        if outcome is FreeOutcome.FREED:
            driver.purge(token, holder.version)
        return outcome

    # -- claims ---------------------------------------------------------------------------------------------------
    def _each_try(self, key: str, token: str, size_bytes: int, act: Callable[[Claim], str | None]) -> str:
        """Claim a key and act, again and again while the answer is ``None``."""
        until = time.monotonic() + PATIENCE_S
        for _ in range(TRIES):
            claim = self._claim(key, token, size_bytes, until)
            try:
                done = act(claim)
            except WriteInDoubt:
                raise
            except BaseException:
                self._claims.give_back(claim)
                raise
            if done is not None:
                return done
        msg = f"object {key!a} moves or is written by others all the time; try again later"
        raise RetryableError(msg)

    def _claim(self, key: str, token: str, size_bytes: int, until: float) -> Claim:
        while True:
            claim = self._claims.take(key, token, ttl_ms=claim_ttl_ms(size_bytes))
            if not isinstance(claim, int):
                return claim
            if time.monotonic() > until:
                msg = f"another writer has held object {key!a} for {PATIENCE_S:.0f} s; try again later"
                raise RetryableError(msg)
            self._sleep(min(claim / 1000, POLL_S))

    def _marked(self, claim: Claim, node_id: str, size_bytes: int) -> bool:
        """Wait out readers, then say where the key is changed."""
        if claim.wait_ms:
            self._sleep(claim.wait_ms / 1000)
        return self._claims.mark(claim, node_id, ttl_ms=claim_ttl_ms(size_bytes))

    def _end(self, claim: Claim, node_id: str, *, there: bool, grown_bytes: int) -> None:
        placed = needs_entry(self._c.settings, self._locator, claim, node_id)
        if not self._claims.end(claim, node_id, there=there, placed=placed, grown_bytes=grown_bytes):
            msg = f"object {claim.key!a} was changed on node {node_id!r} later than its claim allowed; read it, and write it again"
            raise WriteInDoubt(msg)


def needs_entry(settings: Settings, locator: Locator, claim: Claim, node_id: str) -> bool:
    """Whether readers of a claimed key find a node only by an override, or because a catalogue keeps all."""
    match settings.locator:
        case "union":
            return False
        case "crush":
            return node_id != locator.home(claim.key, claim.where)
        case _:
            return True


def claim_ttl_ms(size_bytes: int) -> int:
    """How long a claim lasts under which so many bytes are written or read."""
    return CLAIM_MS + size_bytes // _BYTES_PER_MS
