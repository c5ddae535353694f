"""The drivers of one fleet that this process has opened."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import NodeError, UnknownNode
from rebalance_tasks.core.routes import seen_from
from rebalance_tasks.drivers.registry import open_driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebalance_tasks.core.models import NodeDescriptor
    from rebalance_tasks.drivers.base import Driver
    from rebalance_tasks.settings import Settings


@dataclass(slots=True)
class Drivers:
    """Opens each node's driver once per process, and another for its remote URL where one is wanted."""

    settings: Settings
    #: by node, and by remote URL
    _open: dict[str, Driver] = field(default_factory=dict)
    #: by node, of those that have a remote URL
    _reached: dict[str, Driver] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pid: int = field(default_factory=os.getpid)

    def __call__(self, node_id: str) -> Driver:
        """Return the node's driver. Raises: UnknownNode, ConfigurationError."""
        if self._pid != os.getpid():
            # After a fork the parent's descriptors are shared: open our own.
            self._open, self._reached, self._lock = {}, {}, threading.Lock()
            self._pid = os.getpid()
        driver = self._open.get(node_id)
        return self._opened(node_id, self._node(node_id)) if driver is None else driver

    def reached(self, node_id: str) -> Driver:
        """Return the node's driver as this host reaches it: at its URL, or where the node is not there, at its remote URL.

        Which of the two is found out when the node is first asked for, and again while it is at neither.

        Raises:
            UnknownNode, ConfigurationError.
        """
        near = self(node_id)
        chosen = self._reached.get(node_id)
        if chosen is not None:
            return chosen
        node = self._node(node_id)
        if not node.remote_url:
            return near
        far = seen_from(node, "")
        for driver in (near, self._opened(far.url, far)):
            with suppress(NodeError):
                driver.check_identity()
                self._reached[node_id] = driver
                return driver
        return near

    def of_queue(self, queue: str) -> Callable[[str], Driver]:
        """Return the drivers of the hosts of a Celery queue, which may reach a node at its remote URL only."""

        def reached(node_id: str) -> Driver:
            near = self(node_id)
            node = self._node(node_id)
            seen = seen_from(node, queue)
            return near if seen is node else self._opened(seen.url, seen)

        return reached

    def _node(self, node_id: str) -> NodeDescriptor:
        node = next((node for node in self.settings.nodes if node.node_id == node_id), None)
        if node is None:
            raise UnknownNode(node_id)
        return node

    def _opened(self, name: str, node: NodeDescriptor) -> Driver:
        with self._lock:
            driver = self._open.get(name)
            if driver is None:
                driver = self._open[name] = open_driver(node)
            return driver
