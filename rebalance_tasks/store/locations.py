"""Where readers find an object: forwardings, placement overrides, the catalogue, pending frees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar, cast

from rebalance_tasks.store.batches import MARK, BatchRecord, moved_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rebalance_tasks.store.connection import Connection, Value
    from rebalance_tasks.store.keys import FleetKeys
T = TypeVar("T")

#: Fields written per command when an index is rebuilt: long enough to be fast, short enough not to hold up the server.
BATCH: Final = 1_000


class Where(NamedTuple):
    """What is known of the place of a key.

    Attributes:
        written: its only node, where it was written or removed through the fleet while things moved.
        forwarded: to which it was moved not long ago.
        placed: its override, or what the catalogue says.
        moving: a job, or what jobs have left undone, may change places or keep copies where they do not belong.
        unfreed: some sources are still to be freed (`LocationStore.leaving`).
        epoch: rises with every job that ends.
        states: node id -> state set at run time.
    """

    written: str | None
    forwarded: str | None
    placed: str | None
    moving: bool
    unfreed: bool
    epoch: int
    states: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, reply: bytes) -> Self:
        """Read what ``lua/with/where.lua`` answers."""
        written, forwarded, placed, moving, unfreed, epoch, *words = reply.decode().split("\n")
        states = tuple(zip(words[::2], words[1::2], strict=True))
        return cls(
            written or None, forwarded or None, placed or None, moving == "1", unfreed == "1", int(epoch), states
        )


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode()


@dataclass(frozen=True, slots=True)
class MovedObject:
    """An object of which a manifest says when it came to its node."""

    key: str
    node: str
    at_ms: int


class LocationStore:
    """Locations of a fleet's objects."""

    def __init__(self, connection: Connection, keys: FleetKeys) -> None:
        """Bind to a fleet's keys."""
        self._redis = connection
        self._keys = keys

    def lookup(self, key: str) -> Where:
        """Return what is known of the place of a key, in one round trip."""
        return Where.read(self._redis.run("locate", self.where_keys, [key]))

    def leaving(self, key: str, nodes: Sequence[str]) -> frozenset[str]:
        """Those of the nodes that still have to free a copy of a key (unless a batch of a running job does)."""
        found = cast(
            "list[bytes | None]", self._redis.client.hmget(self._keys.frees, [f"{node}\0{key}" for node in nodes])
        )
        return frozenset(node for node, move_id in zip(nodes, found, strict=True) if move_id is not None)

    @cached_property
    def where_keys(self) -> list[str]:
        """KEYS of ``lua/with/where.lua``."""
        keys = self._keys
        return [
            keys.written,
            keys.forwarding,
            keys.locations,
            keys.active,
            keys.frees,
            keys.frees_batches,
            keys.undos,
            keys.node_states,
            keys.info,
        ]

    def written(self) -> dict[str, str]:
        """Key -> its only node, of keys that were written or removed through the fleet while things moved; empty when none do."""
        keys = self._keys
        pipe = self._redis.client.pipeline(transaction=True)
        pipe.exists(keys.active, keys.frees, keys.frees_batches, keys.undos)
        pipe.hgetall(keys.written)
        moving, raw = pipe.execute()
        return {key.decode(): node.decode() for key, node in raw.items()} if moving else {}

    def marks(self, keys: Sequence[str]) -> list[str | None]:
        """The only node of each key, where it was written or removed through the fleet while things moved."""
        if not keys:
            return []
        found = cast("list[bytes | None]", self._redis.client.hmget(self._keys.written, list(keys)))
        return [_text(raw) for raw in found]

    def last_moved(self) -> dict[str, int]:
        """Key -> when it was last moved, in ms; kept as long as the cooldown and the forwarding need it."""
        raw = cast("list[tuple[bytes, float]]", self._redis.client.zrange(self._keys.moved, 0, -1, withscores=True))
        alone = {name.decode(): int(at) for name, at in raw}
        batches = {name.removeprefix(MARK): alone.pop(name) for name in list(alone) if name.startswith(MARK)}
        records = self._redis.hgetall(self._keys.moved_batches)
        at_of: dict[str, int] = {}
        # The later one wins.
        for name in sorted(records, key=lambda name: batches.get(name, 0)):
            at_of.update(dict.fromkeys(moved_keys(name, records[name]), batches.get(name, 0)))
        for key, at in alone.items():
            at_of[key] = max(at_of.get(key, 0), at)
        return at_of

    def moved_since(self, at_ms: int) -> set[str]:
        """Keys that were moved at that time or later."""
        raw = cast("list[bytes]", self._redis.client.zrangebyscore(self._keys.moved, at_ms, "+inf"))
        members = [member.decode() for member in raw]
        moved = {member for member in members if not member.startswith(MARK)}
        batches = [member.removeprefix(MARK) for member in members if member.startswith(MARK)]
        for name in batches:
            record = self._redis.hget(self._keys.moved_batches, name)
            moved.update(move.key for move in (BatchRecord.read(name, record).moves if record is not None else ()))
        return moved

    def pending_frees(self) -> dict[tuple[str, str], str]:
        """(node, key) -> move id of sources that are flipped but not freed yet."""
        result: dict[tuple[str, str], str] = {}
        for field, move_id in self._redis.hgetall(self._keys.frees).items():
            node, _, key = field.partition("\0")
            result[node, key] = move_id.decode()
        for record in self._batches(self._keys.frees_batches).values():
            result.update(((record.node, move.key), move.move_id) for move in record.moves)
        return result

    def spread_frees(self, *, active: str | None) -> int:
        """Let sources of ended jobs that are pending as a batch be pending each by itself; return how many.

        Only the job's own runners settle a batch as a whole, and a flip cancels only what is pending by itself.

        Args:
            active: the job that still runs, whose batches are left alone.
        """
        keys = [self._keys.frees_batches, self._keys.frees]
        spread = 0
        for name, raw in self._redis.hgetall(self._keys.frees_batches).items():
            if name.partition("/")[0] == active:
                continue
            record = BatchRecord.read(name, raw)
            args: list[Value] = [name, raw]
            for move_id, key in record.moves:
                args += [f"{record.node}\0{key}", move_id]
            spread += len(record.moves) * int(self._redis.run("frees_spread", keys, args))
        return spread

    def _batches(self, key: str) -> dict[str, BatchRecord]:
        return {name: BatchRecord.read(name, raw) for name, raw in self._redis.hgetall(key).items()}

    def expire(self, *, keep_ms: int, limit: int) -> int:
        """Forget keys that were moved longer ago than ``keep_ms``, with their forwardings; return how many.

        Args:
            keep_ms: how long a moved key is remembered. A forwarding that was promised for longer is kept so long.
            limit: most keys to look at, but for the last batch, which goes as a whole.
        """
        keys = [self._keys.forwarding, self._keys.moved, self._keys.moved_batches]
        before = self._redis.now_ms() - keep_ms
        forgotten = 0
        single: list[str] = []
        for member in self._redis.zrange_due(self._keys.moved, before, limit):
            if forgotten + len(single) >= limit:
                break
            if not member.startswith(MARK):
                single.append(member)
                continue
            name = member.removeprefix(MARK)
            raw = self._redis.hget(self._keys.moved_batches, name)
            of_batch = [] if raw is None else [move.key for move in BatchRecord.read(name, raw).moves]
            forgotten += int(self._redis.run("forwarding_expire", keys, [keep_ms, name, *of_batch]))
        for batch in _batches(single):
            forgotten += int(self._redis.run("forwarding_expire", keys, [keep_ms, "", *batch]))
        return forgotten

    # -- rebuilding -----------------------------------------------------------------------------------------------
    def place(self, places: Mapping[str, str]) -> int:
        """Write overrides, or the catalogue: key → node; return how many of them were not there or were others."""
        changed = 0
        for batch in _batches(places.items()):
            keys = [key for key, _ in batch]
            known = cast("list[bytes | None]", self._redis.client.hmget(self._keys.locations, keys))
            fresh = {key: node for (key, node), old in zip(batch, known, strict=True) if old != node.encode()}
            self._redis.hset(self._keys.locations, fresh)
            changed += len(fresh)
        return changed

    def forget_node(self, node: str) -> int:
        """Forget every forwarding, override and catalogue entry that leads to a node; return how many there were.

        Readers of such a key look on the nodes again. Each entry is compared and removed in one step.
        """
        return sum(self._forget(key, node) for key in (self._keys.forwarding, self._keys.locations))

    def _forget(self, key: str, node: str) -> int:
        forgotten = 0
        for batch in _batches(name.decode() for name, _ in self._redis.client.hscan_iter(key, count=BATCH)):
            forgotten += int(self._redis.run("locations_forget", [key], [node, *batch]))
        return forgotten

    def release(self, keys: Iterable[str]) -> int:
        """Forget that keys were written while a job ran, unless one runs by now; return how many."""
        script_keys = [self._keys.written, self._keys.active]
        return sum(int(self._redis.run("written_release", script_keys, batch)) for batch in _batches(keys))

    def unplace(self, keys: Iterable[str]) -> int:
        """Remove overrides; return how many there were."""
        return sum(self._redis.hdel(self._keys.locations, *batch) for batch in _batches(keys))

    def remember_moves(self, moved: Iterable[MovedObject], *, forwarding_ttl_ms: int, now_ms: int) -> int:
        """Note objects that were moved (for the cooldown) and forwardings that are not over; return how many are new.

        Args:
            moved: the newest move of each object.
            forwarding_ttl_ms: 0 writes no forwarding.
            now_ms: the time.
        """
        written = 0
        remembered = self.last_moved()
        for batch in _batches(moved):
            live = [entry for entry in batch if entry.at_ms + forwarding_ttl_ms > now_ms] if forwarding_ttl_ms else []
            later = {entry.key: entry.at_ms for entry in batch if entry.at_ms > remembered.get(entry.key, -1)}
            if later:
                self._redis.client.zadd(self._keys.moved, later, gt=True)
            if not live:
                continue
            known = cast(
                "list[bytes | None]", self._redis.client.hmget(self._keys.forwarding, [entry.key for entry in live])
            )
            fresh = {
                entry.key: f"{entry.node}|{entry.at_ms + forwarding_ttl_ms}"
                for entry, old in zip(live, known, strict=True)
                if old is None or old.rpartition(b"|")[0] != entry.node.encode()
            }
            self._redis.hset(self._keys.forwarding, fresh)
            written += len(fresh)
        return written

    def expect_free(self, node: str, key: str, move_id: str) -> bool:
        """Note a source that is still to be freed; False when it was noted before."""
        return bool(self._redis.client.hsetnx(self._keys.frees, f"{node}\0{key}", move_id))

    def freed(self, node: str, key: str) -> None:
        """Forget a pending free: it is done."""
        self._redis.hdel(self._keys.frees, f"{node}\0{key}")


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
