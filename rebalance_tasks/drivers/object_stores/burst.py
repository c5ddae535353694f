"""The burst of a node in a store: small objects cross to another bucket in one thread, and the sources of a batch are freed by few requests."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import InvalidKey
from rebalance_tasks.drivers.burst import NoBurst
from rebalance_tasks.drivers.object_stores.bucket import BucketError
from rebalance_tasks.drivers.object_stores.crossing import Crossing
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver
from rebalance_tasks.drivers.s3.bucket import S3Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rebalance_tasks.core.fingerprint import Fingerprint
    from rebalance_tasks.core.ids import MoveId
    from rebalance_tasks.drivers.base import Driver


class ObjectBurst(NoBurst):
    """Copies from one node to another store, and frees; `Burst`."""

    def __init__(self, source: ObjectStoreDriver, target: Driver) -> None:
        """Ask nothing yet."""
        self._source, self._target = source, target

    @cached_property
    def _crossing(self) -> Crossing | None:
        """Where both are S3 and can be asked what they can do."""
        here, there = self._source.bucket, getattr(self._target, "bucket", None)
        if isinstance(here, S3Bucket) and isinstance(there, S3Bucket):
            with suppress(BucketError):
                return Crossing(here, there)
        return None

    def copy(
        self, objects: Sequence[tuple[str, Fingerprint]], spend: Callable[[int], None], *, at_once: int
    ) -> Iterator[bool]:
        """Copy small objects, many under way at once."""
        if self._crossing is None:
            return super().copy(objects, spend, at_once=at_once)
        return self._crossing.carry([self._named(*one) for one in objects], spend, at_once=at_once)

    def _named(self, key: str, version: Fingerprint) -> tuple[str, str, Fingerprint] | None:
        if not isinstance(self._target, ObjectStoreDriver):
            return None
        with suppress(InvalidKey):
            return self._source.name_of(key), self._target.name_of(key), version
        return None

    def free(self, objects: Iterable[tuple[str, MoveId, Fingerprint] | None]) -> Iterator[bool]:
        """Free all of them at once, each if it is still what was copied."""
        asked = list(objects)
        freed = iter(self._source.free_fresh([one for one in asked if one is not None]))
        return iter([one is not None and next(freed) for one in asked])
