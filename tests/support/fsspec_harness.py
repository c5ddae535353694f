"""The back door to a node behind fsspec whose files lie on this machine."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from rebalance_tasks.core.models import NodeDescriptor
from rebalance_tasks.drivers.fsspec.driver import FsspecDriver
from rebalance_tasks.drivers.registry import open_driver
from tests.unit.drivers.local_harness import LocalHarness

if TYPE_CHECKING:
    from pathlib import Path


class FsspecHarness(LocalHarness):
    """An adopted node in a folder of its own.

    Versions are told by whole seconds at many servers, as docs say: strangers here write seconds apart.
    """

    def __init__(self, root: Path, url: str, options: dict[str, Any]) -> None:
        self._url, self._options = url, options
        self._second = itertools.count(int(time.time()) - 100_000)
        super().__init__(root)

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        at = next(self._second)
        os.utime(self.root / key, (at, at))

    def another(self, node_id: str) -> FsspecDriver:  # type: ignore[override]
        node = NodeDescriptor(node_id=node_id, url=self._url, storage_options=self._options)
        driver = open_driver(node)
        assert isinstance(driver, FsspecDriver)
        self._drivers.append(driver)  # type: ignore[arg-type]
        return driver
