"""A look at many objects of one node: at a stroke where its driver can, several at once where each costs a round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

import numpy as np

from rebalance_tasks.core.errors import RebalanceError
from rebalance_tasks.drivers.lanes import MOST_AT_ONCE, each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.drivers.base import Driver

#: The size of what is not seen.
UNSEEN: Final = -1


class LooksAtMany(Protocol):
    """What a driver may offer beside `Driver`."""

    def look_at(self, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Look at valid keys; return size and time of change in ns of each, `UNSEEN` where `Driver.stat` is to be asked."""
        ...


def look_at(driver: Driver, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, str]]:
    """Look at objects.

    Args:
        driver: of their node.
        keys: valid ones.

    Returns:
        Sizes in bytes, int64 (n,), `UNSEEN` where there is no object; times of change in ns since 1970, int64 (n,), 0 where
        unknown; and for objects that cannot be looked at: place → cause of the error.
    """
    if hasattr(driver, "look_at"):
        sizes, times = cast("LooksAtMany", driver).look_at(keys)
    else:
        sizes, times = np.full(len(keys), UNSEEN), np.zeros(len(keys), np.int64)
    why: dict[int, str] = {}

    def ask(place: int) -> None:
        try:
            found = driver.stat(keys[place])
        except RebalanceError as exc:
            why[place] = exc.cause
            return
        if found is not None:
            sizes[place], times[place] = found.size_bytes, found.mtime_ns

    with driver.hold():
        unseen = np.flatnonzero(sizes == UNSEEN).tolist()
        each(unseen, ask, at_once=min(MOST_AT_ONCE, int(getattr(driver, "parallel", 1))))
    return sizes, times, why
