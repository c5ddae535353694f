"""Names on a node that cannot tell some apart, as ``a/two`` and ``a/TWO``, or one name in two Unicode forms.

There a look at one key shows the object of another, and a folder that is there already lends its spelling to what is made in it. So what is
at a key is believed only where each folder spells it so, and nothing is published below a folder that is spelled otherwise, or under a
name that would not be kept: in every listing its key would be another one (invariant 1). Elsewhere nothing is asked but whether it
is such a node, once.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from rebalance_tasks.core.keys import RESERVED

if TYPE_CHECKING:
    from collections.abc import Container

#: What every adopted node has …
OURS: Final = f"{RESERVED}/node-id"
#: … and what is found under this name only where case is folded; no object can be there.
OTHERWISE: Final = OURS.upper()
#: Where a name is tried out.
ASIDE: Final = f"{RESERVED}/tmp"  # noqa: S108  below our own folder


def odd_name() -> str:
    """Return a name that is not kept where case is not; what a kill leaves of it, cleanup removes."""
    return f"writing-{os.urandom(8).hex()}-A"


class Spelling(ABC):
    """How the folders of one node spell names."""

    def __init__(self) -> None:
        """Ask nothing yet."""
        self.forget()

    # -- what each kind of node answers -------------------------------------------------------------------------------
    @abstractmethod
    def _ask(self) -> bool | None:
        """Whether `OTHERWISE` leads to `OURS`; ``None`` while the latter is not there."""

    @abstractmethod
    def _names(self, folder: str) -> Container[str]:
        """What a folder below the root lists; ``""`` is the root itself."""

    @abstractmethod
    def _try(self) -> bool:
        """Whether a name with a capital (`odd_name`) is listed as it was given."""

    # -- what is asked ------------------------------------------------------------------------------------------------
    def forget(self) -> None:
        """Ask anew: the root may be another folder."""
        self._folds: bool | None = None
        self._keeps: bool | None = None

    @property
    def folds(self) -> bool:
        """Whether names that differ in case only are one name on this node. Raises what the node raises."""
        if self._folds is None:
            self._folds = self._ask()
        return bool(self._folds)

    def keeps(self, path: str) -> bool:
        """Tell whether what is made under a path will be listed by that name."""
        if path == path.lower() or not self.folds:
            return True
        if self._keeps is None:
            self._keeps = self._try()
        return self._keeps

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
