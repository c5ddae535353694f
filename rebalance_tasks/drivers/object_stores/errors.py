"""What a store's errors mean for a node, a source or a target: `BucketError` in, `core.errors` out. Nothing above sees the former."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from rebalance_tasks.core.errors import (
    ChecksumMismatch,
    InvalidKey,
    MoveError,
    NodeError,
    NodeMissing,
    NodeNotWritable,
    ObjectUnreadable,
    PermanentError,
    RebalanceError,
    SourceChanged,
    SourceVanished,
    TargetExists,
)
from rebalance_tasks.drivers.base import ObjectTooLarge
from rebalance_tasks.drivers.object_stores import bucket as buckets

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Bytes that arrive wrong so often are not bad luck.
_TRIES: Final = 3


class StoreRefusal(MoveError, PermanentError):
    """The store refused a request for one object, in words of its own."""

    cause = "store_refused"


def node_error(node_id: str, exc: buckets.BucketError, doing: str) -> NodeError:
    """Say what an error on the node itself means: missing or not writable."""
    if isinstance(exc, buckets.Refused):
        return NodeNotWritable(
            node_id, f"{doing}: {exc}; check the credentials (renew them, if they expire), their rights and the bucket"
        )
    return NodeMissing(node_id, f"{doing}: {exc}; check the bucket, the endpoint and the network")


def source_error(node_id: str, key: str, exc: buckets.BucketError, doing: str) -> RebalanceError:
    """Say what an error on an object that is read or freed means."""
    match exc:
        case buckets.NotThere():
            return SourceVanished(key, "nothing is at this key any more")
        case buckets.ConditionFailed():
            return SourceChanged(key, "another version has been written to this key")
        case buckets.Refused():
            return ObjectUnreadable(key, f"{doing}: {exc}; give the credentials the right to read and delete it")
        case buckets.BadBytes():
            return ObjectUnreadable(key, f"{doing}: {exc}; look at the network and the store")
        case buckets.NoBucket():
            return node_error(node_id, exc, doing)
        case _:
            return StoreRefusal(key, f"{doing}: {exc}")


def target_error(node_id: str, key: str, exc: buckets.BucketError, doing: str) -> RebalanceError:
    """Say what an error on an object that is written means."""
    match exc:
        case buckets.ConditionFailed():
            return TargetExists(key, "something else is at this key")
        case buckets.BadName():
            return InvalidKey(key, f"the store cannot hold this name ({exc})")
        case buckets.TooLarge():
            return ObjectTooLarge(key, f"{doing}: {exc}")
        case buckets.BadBytes() | buckets.NotThere():
            why = "what was there of the copy is gone" if isinstance(exc, buckets.NotThere) else exc
            return ChecksumMismatch(key, f"{doing}: {why}")
        case buckets.NoBucket() | buckets.Refused():
            return node_error(node_id, exc, doing)
        case _:
            return StoreRefusal(key, f"{doing}: {exc}")


def patiently(ask: Callable[[], T]) -> T:
    """Ask again when bytes arrived wrong. Raises: BucketError."""
    for _ in range(_TRIES - 1):
        try:
            return ask()
        except buckets.BadBytes:
            continue
    return ask()
