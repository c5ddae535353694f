"""How a node at the other end of a line spells names (`drivers.spelling`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebalance_tasks.drivers.spelling import ASIDE, OTHERWISE, OURS, Spelling, odd_name

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rebalance_tasks.drivers.trees.calls import Tree, Words


class TreeSpelling(Spelling):
    """Of one tree; raises what `Words` make of its errors, as troubles of the node."""

    def __init__(self, tree: Tree, words: Words, node_id: str) -> None:
        """Ask nothing yet."""
        super().__init__()
        self._tree, self._words, self._node_id = tree, words, node_id

    def _on_node(self, doing: str) -> AbstractContextManager[None]:
        return self._words.translated(lambda exc: self._words.node_error(self._node_id, exc, doing))

    def _ask(self) -> bool | None:
        with self._on_node("look at the node-id"):
            return None if self._tree.look(OURS) is None else self._tree.look(OTHERWISE) is not None

    def _names(self, folder: str) -> set[str]:
        with self._on_node("list names"):
            return {name for name, _ in self._tree.entries(folder)}

    def _try(self) -> bool:
        name = odd_name()
        with self._on_node("try out a name"):
            self._tree.write(f"{ASIDE}/{name}", b"")
            try:
                return name in self._names(ASIDE)
            finally:
                self._tree.remove(f"{ASIDE}/{name}")
