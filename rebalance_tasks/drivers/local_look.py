"""A look at many objects of a local root: each folder is opened once, by its path, and its names are looked up in it."""

from __future__ import annotations

import os
import stat as st_modes
from typing import TYPE_CHECKING

import numpy as np

from rebalance_tasks.drivers.looks import UNSEEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rebalance_tasks.drivers.local_tree import LocalTree


def look_at(tree: LocalTree, keys: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """See `drivers.looks.LooksAtMany.look_at`."""
    found = [(UNSEEN, 0)] * len(keys)
    by_folder: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        by_folder.setdefault(key.rpartition("/")[0], []).append(place)
    for folder, places in by_folder.items():
        try:
            fd = tree.open_folder(folder or ".")
        except OSError:
            continue
        skipped = len(folder) + 1 if folder else 0
        try:
            for place in places:
                status = _status(keys[place][skipped:], fd)
                if status is not None and st_modes.S_ISREG(status.st_mode):
                    found[place] = status.st_size, status.st_mtime_ns
        finally:
            os.close(fd)
    columns = np.array(found, np.int64).reshape(-1, 2)
    return columns[:, 0].copy(), columns[:, 1].copy()


def _status(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
