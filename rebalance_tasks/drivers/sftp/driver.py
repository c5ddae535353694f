"""The driver for a folder behind an SFTP server: `drivers.trees.driver` with what the protocol has.

A copy is published by a second name, which refuses one that is taken. The protocol shows neither inode nor change time to rely on,
so size and modification time are what a version is known by, to the second at servers of protocol 3 (OpenSSH): what is written
within that second and to the same size is not told apart (docs/reference/drivers.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.errors import NodeMissing
from rebalance_tasks.drivers.sftp.errors import WORDS
from rebalance_tasks.drivers.sftp.many import SftpMany
from rebalance_tasks.drivers.sftp.tree import SftpTree
from rebalance_tasks.drivers.trees.driver import TreeDriver

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.drivers.sftp.link import SftpLink

#: Requests of so many objects are in flight at once on one connection.
PARALLEL: Final = 16


class SftpDriver(TreeDriver):
    """A node behind SFTP.

    Attributes:
        parallel: objects that the engine may carry through one step at once.
    """

    parallel = PARALLEL
    _words = WORDS
    _tree: SftpTree

    def __init__(
        self, node_id: str, link: SftpLink, root: str, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> None:
        """Serve the folder at the absolute path ``root``."""
        super().__init__(node_id, include=include, exclude=exclude)
        self._tree = SftpTree(link, root)

    @property
    def tree(self) -> SftpTree:
        """What its calls stand on, for `drivers.doors`."""
        return self._tree

    def many(self) -> SftpMany:
        """This node as one end of a burst of small objects."""
        return SftpMany(self._tree)

    def _require_root(self) -> None:
        if self._tree.look("") is None:
            raise NodeMissing(self.node_id, f"there is no folder {self._tree.label} on the server")
