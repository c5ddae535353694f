"""Manifests in a store: one object each below ``.rebalance/manifests/``, written in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.drivers.local.errors import validate_name
from rebalance_tasks.drivers.object_stores.bucket import BucketError, NotThere
from rebalance_tasks.drivers.object_stores.errors import node_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rebalance_tasks.drivers.object_stores.bucket import Bucket


class ObjectManifests:
    """The manifests of one node; see `Driver` for every promise."""

    def __init__(self, bucket: Bucket, node_id: str, folder: str) -> None:
        """Keep them below ``folder``, which ends in a slash."""
        self._bucket, self._node_id, self._folder = bucket, node_id, folder

    def _name(self, name: str) -> str:
        return f"{self._folder}{validate_name(name, 'manifest name')}"

    def write(self, name: str, lines: Iterable[str]) -> None:
        """Write one; the same name again replaces it."""
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        try:
            self._bucket.put(self._name(name), data, {}, new=False)
        except BucketError as exc:
            raise node_error(self._node_id, exc, "write a manifest") from exc

    def read_all(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (name, lines) of each."""
        try:
            for page in self._bucket.pages(self._folder):
                for found in page:
                    try:
                        _, data = self._bucket.get(found.name, 0, max(found.size_bytes, 1))
                    except NotThere:  # removed meanwhile
                        continue
                    yield found.name.removeprefix(self._folder), data.decode("utf-8", "replace").split("\n")[:-1]
        except BucketError as exc:
            raise node_error(self._node_id, exc, "read manifests") from exc

    def remove(self, name: str) -> None:
        """Remove one if it is there."""
        try:
            self._bucket.delete(self._name(name))
        except BucketError as exc:
            raise node_error(self._node_id, exc, "remove a manifest") from exc
