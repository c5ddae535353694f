"""Names on a node that cannot tell some apart, as ``a/two`` and ``a/TWO``, or one name in two Unicode forms.

There a look at one key shows the object of another, and a folder that is there already lends its spelling to what is made in it. So what is
at a key is believed only where each folder spells it so, and nothing is published below a folder that is spelled otherwise: in
every listing its key would be another one (invariant 1). Elsewhere nothing is asked but whether it is such a node, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.keys import RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable, Container

#: What every adopted node has …
OURS: Final = f"{RESERVED}/node-id"
#: … and what is found under this name only where case is folded: no object can be there.
OTHERWISE: Final = OURS.upper()


class Spelling:
    """How the folders of one node spell names."""

    def __init__(self, folds: Callable[[], bool | None], names: Callable[[str], Container[str]]) -> None:
        """Ask nothing yet.

        Args:
            folds: tells whether `OTHERWISE` leads to `OURS`; ``None`` while the latter is not there.
            names: tells what a folder below the root lists; ``""`` is the root itself.
        """
        self._ask = folds
        self._names = names
        self._folds: bool | None = None

    def forget(self) -> None:
        """Ask anew: the root may be another folder."""
        self._folds = None

    @property
    def folds(self) -> bool:
        """Whether names that differ in case only are one name on this node. Raises what the node raises."""
        if self._folds is None:
            self._folds = self._ask()
        return bool(self._folds)

    def of(self, path: str) -> bool:
        """Tell whether what a path leads to has just that name, and none that the node cannot tell from it.

        Args:
            path: below the root; ``""`` is the root itself. What is not there at all has no name.
        """
        return not self.folds or self._lists(path)

    def _lists(self, path: str) -> bool:
        folder = ""
        for component in path.split("/") if path else ():
            if component not in self._names(folder):
                return False
            folder = f"{folder}/{component}" if folder else component
        return True
