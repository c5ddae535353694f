"""The drivers of one fleet that this process has opened."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import UnknownNode
from rebalance_tasks.drivers.registry import open_driver

if TYPE_CHECKING:
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.settings import Settings


@dataclass(slots=True)
class Drivers:
    """Opens each node's driver once per process."""

    settings: Settings
    _open: dict[str, Driver] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pid: int = field(default_factory=os.getpid)

    def __call__(self, node_id: str) -> Driver:
        """Return the node's driver. Raises: UnknownNode, ConfigurationError."""
        if self._pid != os.getpid():
            # After a fork the parent's descriptors are shared: open our own.
            self._open, self._lock = {}, threading.Lock()
            self._pid = os.getpid()
        driver = self._open.get(node_id)
        return self._opened(node_id) if driver is None else driver

    def _opened(self, node_id: str) -> Driver:
        with self._lock:
            if node_id in self._open:
                return self._open[node_id]
            node = next((node for node in self.settings.nodes if node.node_id == node_id), None)
            if node is None:
                raise UnknownNode(node_id, "is not configured here; see [[nodes]] in rebalance.toml")
            driver = self._open[node_id] = open_driver(node)
            return driver
