"""The hold of a driver without folders: it only remembers which moves are fresh, so that nothing is looked for under them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection
    from threading import Lock
    from types import TracebackType

    from rebalance_tasks.core.ids import MoveId


class ObjectHold:
    """Notes moves as fresh in ``register`` until it ends; other threads of the same burst see them too.

    Attributes:
        strays: always empty: there is no folder that could be renamed.
    """

    def __init__(self, register: Counter[MoveId], lock: Lock, fresh: Collection[MoveId]) -> None:
        """Note nothing before the context begins."""
        self.strays: set[MoveId] = set()
        self._register, self._lock, self._fresh = register, lock, fresh

    def __enter__(self) -> Self:
        """Note the moves."""
        with self._lock:
            self._register.update(self._fresh)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget them."""
        with self._lock:
            self._register.subtract(self._fresh)
            for move_id in self._fresh:
                if self._register[move_id] <= 0:
                    del self._register[move_id]
