"""How a local root spells names (`drivers.spelling`): asked of its file system by what is in ``.rebalance`` already, and one file that is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import proxy

from rebalance_tasks.drivers.local.entries import CREATE_FLAGS, PRIVATE_MODE, look
from rebalance_tasks.drivers.local.errors import node_error
from rebalance_tasks.drivers.local.linux import DIR_READ_FLAGS
from rebalance_tasks.drivers.spelling import ASIDE, OTHERWISE, OURS, Spelling, odd_name

if TYPE_CHECKING:
    from rebalance_tasks.drivers.local.tree import LocalTree


class LocalSpelling(Spelling):
    """Of one root; `of` also raises `OSError`."""

    def __init__(self, tree: LocalTree) -> None:
        """Ask nothing yet."""
        super().__init__()
        # The tree has this object, and must end with the last one who needs it: it closes its descriptors then.
        self._tree = proxy(tree)

    def _ask(self) -> bool | None:
        root = self._tree.root_fd()
        try:
            ours, otherwise = look(OURS, root), look(OTHERWISE, root)
        except OSError as exc:
            raise node_error(self._tree.node_id, self._tree.root, exc, "look at the node-id") from exc
        return None if ours is None else otherwise is not None and os.path.samestat(ours, otherwise)

    def _names(self, folder: str) -> list[str]:
        fd = self._tree.open_folder(folder or ".", DIR_READ_FLAGS)
        try:
            return os.listdir(fd)  # noqa: PTH208  a descriptor
        finally:
            os.close(fd)

    def _try(self) -> bool:
        name, folder = odd_name(), self._tree.work_fd("tmp")
        try:
            os.close(os.open(name, CREATE_FLAGS, PRIVATE_MODE, dir_fd=folder))
            try:
                return name in self._names(ASIDE)
            finally:
                os.unlink(name, dir_fd=folder)
        except OSError as exc:
            raise node_error(self._tree.node_id, self._tree.root, exc, "try out a name") from exc
