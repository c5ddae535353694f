"""The back door to a node in an object store: a bucket of its own, asked without the driver."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from rebalance_tasks.drivers.object_stores.bucket import NotThere
from rebalance_tasks.drivers.object_stores.driver import ObjectStoreDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.drivers.object_stores.bucket import Bucket


class ObjectHarness:
    """An adopted node below a prefix of a bucket that no other one has."""

    def __init__(self, bucket: Callable[[], Bucket]) -> None:
        self._open = bucket
        self.bucket = bucket()
        self.clear()

    def put(self, key: str, data: bytes) -> None:
        self.bucket.put(f"{self.prefix}/{key}", data, {}, new=False)

    def get(self, key: str) -> bytes | None:
        try:
            return self.bucket.get(f"{self.prefix}/{key}", 0, 1 << 24)[1]
        except NotThere:
            return None

    def remove(self, key: str) -> None:
        self.bucket.delete(f"{self.prefix}/{key}")

    def clear(self) -> None:
        """Begin anew elsewhere: a store on files may keep the folders of objects that are gone for a while."""
        self.prefix = f"some/prefix-{uuid.uuid4().hex[:8]}"
        self.driver = self.another("node-1")
        self.driver.adopt()

    def lose_identity(self) -> None:
        self.bucket.delete(f"{self.prefix}/.rebalance/node-id")

    def another(self, node_id: str) -> ObjectStoreDriver:
        return ObjectStoreDriver(node_id, self._open(), prefix=self.prefix)

    def holds(self, key: str) -> bool:
        return len(f"{self.prefix}/{key}".encode()) <= 1024 and (
            "\\" not in key or self.bucket.capabilities.keeps_backslashes
        )
