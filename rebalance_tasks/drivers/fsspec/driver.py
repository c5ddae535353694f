"""The driver for whatever fsspec serves (FTP, SMB, HDFS, …): `drivers.trees.driver` with the weakest calls that all have in common.

No call of fsspec's refuses a name that is taken in the same step in which it takes it, and so what is promised elsewhere about
strangers holds here only as far as a look right before each rename carries (docs/invariants.md, "Where a store has no such step"). That
is why such a node takes part only where the operator has given their word for it (`storage_options.sole_writer`). Where a rename
changes the version of a file, or no version is shown, no word helps and the node is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.core.errors import InvalidKey, NodeNotWritable
from rebalance_tasks.drivers.fsspec.errors import WORDS
from rebalance_tasks.drivers.fsspec.options import SOLE_WRITER
from rebalance_tasks.drivers.fsspec.probe import OddNames
from rebalance_tasks.drivers.fsspec.tree import FsspecTree
from rebalance_tasks.drivers.trees.driver import TreeDriver

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rebalance_tasks.drivers.fsspec.options import FsspecPlace


class FsspecDriver(TreeDriver):
    """A node behind fsspec.

    Attributes:
        keeps_mtime: no: fsspec has no call that sets a time.
    """

    keeps_mtime = False
    _words = WORDS
    _tree: FsspecTree

    def __init__(
        self, node_id: str, place: FsspecPlace, *, include: Iterable[str] = (), exclude: Iterable[str] = ()
    ) -> None:
        """Serve the folder that the place's URL names."""
        super().__init__(node_id, include=include, exclude=exclude)
        self._place = place
        self._tree = FsspecTree(place)
        self._names = OddNames(self._tree)

    def _require_write(self) -> None:
        if not self._place.sole_writer:
            message = (
                f"storage_options.{SOLE_WRITER} is not set for {self._tree.label}: this kind of store cannot refuse a name that is taken "
                "in one step, so an object that somebody else writes at that instant would be lost; where nobody else creates, "
                f"changes or removes objects there while a job runs, set storage_options = {{ {SOLE_WRITER} = true }}"
            )
            raise NodeNotWritable(self.node_id, message)

    def _require_node(self) -> None:
        with self._on_node("try out the file system"):
            able = self._tree.abilities
        if not (able.tells_versions and able.keeps_versions):
            what = "changes the version of a file when it renames it" if able.tells_versions else "tells no versions"
            message = f"{self._tree.label} {what}, so a copy could not be recognised after a crash; it cannot be a node"
            raise NodeNotWritable(self.node_id, message)

    def _require_kept(self, key: str) -> None:
        if not self._names.keeps(key):
            raise InvalidKey(key, f"{self._tree.label} does not keep such a name as it is")
